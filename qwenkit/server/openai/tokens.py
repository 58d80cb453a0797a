"""`POST /tokenize` and `POST /detokenize`, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.prompt.chat import check_template_kwargs
from qwenkit.prompt.messages import MAX_MESSAGES
from qwenkit.server.body import read
from qwenkit.server.document import takes
from qwenkit.server.errors import bad_value
from qwenkit.server.openai.chat_fields import ChatMessage, Tool
from qwenkit.server.openai.fields import Name, Strict
from qwenkit.server.service import Service, call_of, service_of
from qwenkit.server.sse import JsonResponse

router = APIRouter(tags=["tokens"])
MAX_CHARS = 4 << 20
"""Of one request: a second of work, which cannot be stopped."""


class TokenizeRequest(Strict):
    """A text, or a conversation with what the template puts around it."""

    model: Name
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, max_length=MAX_MESSAGES, fail_fast=True)
    tools: list[Tool] | None = Field(None, max_length=128, fail_fast=True)
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class Tokens(BaseModel):
    """Ids, and how many a prompt may have at most."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Strict):
    """Ids."""

    model: Name
    tokens: list[int] = Field(max_length=1 << 20, fail_fast=True)


class Text(BaseModel):
    """Their text, special tokens included."""

    prompt: str


@router.post("/tokenize", **takes(TokenizeRequest, Tokens))
async def tokenize(request: Request) -> Response:
    """Text or messages → token ids."""
    service = service_of(request)
    body = await read(request, TokenizeRequest)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_value("prompt", "Give either prompt or messages.")
    if len(body.messages or ()) > service.options.max_messages:
        text = f"Invalid 'messages': at most {service.options.max_messages} entries."
        raise bad_value("messages", text, "array_above_max_length")
    texts = [body.prompt or "", *(text for m in body.messages or () for text in m.texts())]
    if sum(map(len, texts)) > MAX_CHARS:
        param = "messages" if body.prompt is None else "prompt"
        text = f"Invalid '{param}': at most {MAX_CHARS} characters are tokenised at once."
        raise bad_value(param, text, "string_above_max_length")
    work = asyncio.to_thread(_ids, service, body)
    return JsonResponse(await call_of(request).attend(work, request.receive))


def _ids(service: Service, body: TokenizeRequest) -> dict[str, Any]:
    llm = service.llm
    if body.prompt is not None:
        ids = llm.tokenize(body.prompt)
    else:
        ids = llm.render(
            [message.plain() for message in body.messages or ()],
            [tool.plain() for tool in body.tools or ()] or None,
            add_generation_prompt=body.add_generation_prompt is not False,
            **check_template_kwargs(body.chat_template_kwargs or {}),
        ).ids
    names = None
    if body.return_token_strs:
        names = [llm.tokenizer.id_to_bytes(i).decode("utf-8", "replace") for i in ids]
    return {
        "count": len(ids),
        "max_model_len": llm.context_length,
        "tokens": ids,
        "token_strs": names,
    }


@router.post("/detokenize", **takes(DetokenizeRequest, Text))
async def detokenize(request: Request) -> Response:
    """Token ids → text."""
    service = service_of(request)
    body = await read(request, DetokenizeRequest)
    service.check_model(body.model)
    size = service.llm.tokenizer.vocab_size
    for number, index in enumerate(body.tokens):
        if not 0 <= index < size:
            where = f"tokens[{number}]"
            raise bad_value(where, f"Invalid '{where}': ids are integers from 0 to {size - 1}.")
    text = await asyncio.to_thread(service.llm.detokenize, body.tokens, skip_special=False)
    return JsonResponse({"prompt": text})
