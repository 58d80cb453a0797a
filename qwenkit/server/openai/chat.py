"""`POST /v1/chat/completions`. `answer` and `stream` serve every way in: HTTP here, rows of a batch
elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.server.body import read
from qwenkit.server.document import takes
from qwenkit.server.openai.chat_answers import ChatChunk, ChatCompletion, Chunks, whole
from qwenkit.server.openai.chat_fields import ChatRequest
from qwenkit.server.openai.usage import booked, watched
from qwenkit.server.service import Call, Service, call_of, service_of
from qwenkit.server.sse import EventStream, JsonResponse, event

router = APIRouter(tags=["generation"])


@router.post("/v1/chat/completions", **takes(ChatRequest, ChatCompletion, events=ChatChunk))
async def create(request: Request) -> Response:
    """Answer a conversation."""
    service, call = service_of(request), call_of(request)
    body = await read(request, ChatRequest)
    if body.stream:
        return EventStream(call, stream(service, call, body))
    return JsonResponse(await call.attend(answer(service, call, body), request.receive))


async def answer(service: Service, call: Call, body: ChatRequest) -> dict[str, Any]:
    """The whole answer. Errors: ApiError, QwenkitError."""
    question = body.question(call, service)
    with service.metered(call, question.get("max_tokens"), body.n):
        result = await service.llm.achat(**question)
        booked(service, call, result)
    return whole(result, body.model)


async def stream(service: Service, call: Call, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    """The answer in events. Errors, with the first event: ApiError, QwenkitError."""
    wishes = body.stream_options
    chunks = Chunks(body.model, include_usage=bool(wishes and wishes.include_usage))
    question = body.question(call, service)
    with service.metered(call, question.get("max_tokens"), body.n):
        async with aclosing(watched(service, call, service.llm.astream(**question))) as deltas:
            async for delta in deltas:
                yield b"".join(event(chunk) for chunk in chunks.of(delta))
