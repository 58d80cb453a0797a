"""The answer of `/v1/responses`: the object, and the typed events that it comes in. Every field
that Open Responses (openresponses.org) requires is there, and a number where it wants one.

An `Answer` is fed the pieces of a stream; the same pieces make the whole object, so that both say
the same. Items are `message` (with one part, `output_text`) and `function_call`.
"""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwenkit.config import GenerationConfig
from qwenkit.llm import Logprob, StreamDelta, Usage
from qwenkit.prompt.tools import Delta
from qwenkit.server.errors import ApiError
from qwenkit.server.openai.responses_fields import ResponseRequest
from qwenkit.server.openai.usage import chat_logprobs

Event = dict[str, Any]


class ResponseObject(BaseModel):
    """A response. `output` are its items."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: dict[str, Any] | None
    frequency_penalty: float
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: None
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: dict[str, Any] | None
    user: str | None


class ResponseEvent(BaseModel):
    """One event of a stream; what else it has depends on its type."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(pattern=r"^(response\.[a-z_.]+|error)$")
    sequence_number: int = Field(ge=0)


def begun(body: ResponseRequest, usual: GenerationConfig) -> dict[str, Any]:
    """`ResponseObject` before anything of its answer is there; `usual`: what holds where the body
    says nothing.
    """
    choice = body.tool_choice or "auto"
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "frequency_penalty": body.frequency_penalty or 0,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": body.presence_penalty or 0,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": None,
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": usual.usual_temperature if body.temperature is None else body.temperature,
        "text": {"format": _format(body)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": usual.top_p if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _format(body: ResponseRequest) -> dict[str, Any]:
    form = body.text.format if body.text else None
    if form is None or form.type != "json_schema":
        return {"type": form.type if form else "text"}
    told = {"description": None, **form.model_dump(by_alias=True, exclude_none=True)}
    return {**told, "strict": form.strict is not False}


class Answer:
    """Grows with the pieces that it is fed; gives the events that tell of it."""

    def __init__(self, body: ResponseRequest, usual: GenerationConfig) -> None:
        self.response = begun(body, usual)
        self._sequence = 0
        self._started = False
        self._item: dict[str, Any] | None = None
        self._call: int | None = None

    def of(self, delta: StreamDelta) -> Iterator[Event]:
        """The events of one piece."""
        if not self._started:
            self._started = True
            self.response["status"] = "in_progress"
            yield self._whole("response.created")
            yield self._whole("response.in_progress")
        if delta.tool_call is not None:
            yield from self._of_call(delta.tool_call)
        elif delta.text or delta.logprobs:
            yield from self._of_text(delta)
        if delta.finish_reason is not None:
            yield from self._end(delta)

    def failed(self, error: ApiError) -> list[Event]:
        """The events of an error after the first event."""
        told = error.body["error"]
        self.fail(error)
        flat = {"type": "error", "code": told["code"] or told["type"], "message": told["message"]}
        return [
            {**flat, "param": told["param"], "sequence_number": self._next()},
            self._whole("response.failed"),
        ]

    def fail(self, error: ApiError, status: str = "failed") -> None:
        """The object of an answer that came to nothing; what is there of it stays."""
        told = error.body["error"]
        if self._item is not None:
            self._item["status"] = "incomplete"
        self.response["status"] = status
        if status == "failed":
            code = "rate_limit_exceeded" if error.status == 429 else "server_error"
            self.response["error"] = {"code": code, "message": told["message"]}

    # One item after the other

    def _of_text(self, delta: StreamDelta) -> Iterator[Event]:
        if self._item is None or self._item["type"] != "message":
            yield from self._close("completed")
            yield from self._open_message()
        assert self._item is not None
        part = self._item["content"][0]
        found = _logprobs(delta.logprobs)
        part["text"] += delta.text
        part["logprobs"] += found
        piece = {"content_index": 0, "delta": delta.text, "logprobs": found}
        yield self._of_item("response.output_text.delta", **piece)

    def _of_call(self, call: Delta) -> Iterator[Event]:
        if call.id is not None:
            yield from self._close("completed")
            item = {"id": _id("fc"), "type": "function_call", "status": "in_progress"}
            item |= {"call_id": call.id, "name": call.name or "", "arguments": ""}
            yield from self._open(item)
        if call.arguments:
            assert self._item is not None
            self._item["arguments"] += call.arguments
            yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)

    def _open_message(self) -> Iterator[Event]:
        item = {"id": _id("msg"), "type": "message", "status": "in_progress", "role": "assistant"}
        yield from self._open({**item, "content": []})
        assert self._item is not None
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._item["content"].append(part)
        yield self._of_item("response.content_part.added", content_index=0, part=dict(part))

    def _open(self, item: dict[str, Any]) -> Iterator[Event]:
        self._item = item
        self.response["output"].append(item)
        yield self._of_index("response.output_item.added", item=copy.deepcopy(item))

    def _close(self, status: str) -> Iterator[Event]:
        item = self._item
        if item is None:
            return
        if item["type"] == "message":
            part = item["content"][0]
            done = {"content_index": 0, "text": part["text"], "logprobs": part["logprobs"]}
            yield self._of_item("response.output_text.done", **done)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._of_item("response.function_call_arguments.done", **done)
        item["status"] = status
        yield self._of_index("response.output_item.done", item=item)
        self._item = None

    def _end(self, delta: StreamDelta) -> Iterator[Event]:
        cut = delta.finish_reason == "length"
        if not self.response["output"]:
            yield from self._open_message()
        yield from self._close("incomplete" if cut else "completed")
        self.response["status"] = "incomplete" if cut else "completed"
        self.response["completed_at"] = None if cut else int(time.time())
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        assert delta.usage is not None
        self.response["usage"] = _usage(delta.usage)
        yield self._whole("response.incomplete" if cut else "response.completed")

    # The events themselves

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _whole(self, kind: str) -> Event:
        response = copy.deepcopy(self.response)
        return {"type": kind, "sequence_number": self._next(), "response": response}

    def _of_index(self, kind: str, **more: Any) -> Event:
        index = len(self.response["output"]) - 1
        return {"type": kind, "sequence_number": self._next(), "output_index": index, **more}

    def _of_item(self, kind: str, **more: Any) -> Event:
        assert self._item is not None
        return self._of_index(kind, item_id=self._item["id"], **more)


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def _logprobs(found: tuple[Logprob, ...]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = chat_logprobs(found)["content"]
    return content


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
