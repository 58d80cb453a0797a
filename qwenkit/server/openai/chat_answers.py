"""The answers of `/v1/chat/completions`: the whole one, and the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from qwenkit.llm import ChatResult, Choice, StreamDelta, Usage
from qwenkit.server.openai.usage import Timings, UsageBody, chat_logprobs, timings_body, usage_body


class AnswerFunction(BaseModel):
    """A function with the JSON text of its arguments."""

    name: str
    arguments: str


class AnswerToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: AnswerFunction


class AnswerMessage(BaseModel):
    """What the assistant says; `content` is null where there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[AnswerToolCall] | None = None


class TokenLogprobBody(BaseModel):
    """A token with the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprobBody):
    """A generated token, with the likeliest at its place."""

    top_logprobs: list[TokenLogprobBody]


class ChatLogprobs(BaseModel):
    """One entry for each generated token."""

    content: list[ContentLogprob]
    refusal: None


class ChatChoice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    timings: Timings
    system_fingerprint: str | None
    service_tier: str | None = None


class FunctionPiece(BaseModel):
    """The name comes first and once; the arguments come in pieces."""

    name: str | None = None
    arguments: str


class ToolCallPiece(BaseModel):
    """More of the call with this index."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionPiece


class ChunkDelta(BaseModel):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChunkChoice(BaseModel):
    """What is new of one of the `n` answers."""

    index: int
    delta: ChunkDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(BaseModel):
    """One event of a stream. The last one has no choices, but the usage, if that was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None = None
    timings: Timings | None = None
    system_fingerprint: str | None


def new_id(prefix: str) -> str:
    """A name for an answer."""
    return f"{prefix}-{secrets.token_hex(16)}"


def whole(result: ChatResult, model: str) -> dict[str, Any]:
    """`ChatCompletion`."""
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(choice) for choice in result.choices],
        "usage": usage_body(result.usage),
        "timings": timings_body(result.usage, result.timing),
        "system_fingerprint": None,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.content or (None if choice.tool_calls else ""),
        "refusal": None,
    }
    if choice.tool_calls:
        message["tool_calls"] = [call.as_message() for call in choice.tool_calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
    }


class Chunks:
    """The pieces of a stream as `chat.completion.chunk` objects."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self._head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def of(self, delta: StreamDelta) -> Iterator[dict[str, Any]]:
        """The chunks of one piece; the first one of a choice has its role."""
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            yield self._chunk(delta.index, {"role": "assistant", "content": "", "refusal": None})
        news: dict[str, Any] = {}
        if delta.text:
            news["content"] = delta.text
        if delta.tool_call is not None:
            news["tool_calls"] = [_call_piece(delta)]
        if news or delta.logprobs or delta.finish_reason is not None:
            yield self._chunk(delta.index, news, delta)
        if delta.usage is not None and self._include_usage:
            yield self._last(delta, delta.usage)

    def _chunk(
        self, index: int, news: dict[str, Any], delta: StreamDelta | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": news, "logprobs": None}
        choice["finish_reason"] = None if delta is None else delta.finish_reason
        if delta is not None and delta.logprobs:
            choice["logprobs"] = chat_logprobs(delta.logprobs)
        chunk = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return chunk

    def _last(self, delta: StreamDelta, usage: Usage) -> dict[str, Any]:
        assert delta.timing is not None
        timings = timings_body(usage, delta.timing)
        return {**self._head, "choices": [], "usage": usage_body(usage), "timings": timings}


def _call_piece(delta: StreamDelta) -> dict[str, Any]:
    call = delta.tool_call
    assert call is not None
    function: dict[str, Any] = {"arguments": call.arguments}
    if call.id is None:
        return {"index": call.index, "function": function}
    named = {"name": call.name, **function}
    return {"index": call.index, "id": call.id, "type": "function", "function": named}
