"""Server-sent events: a stream of JSON values, ended by `data: [DONE]`.

Until the first event nothing is sent, so that an error before it is an ordinary error answer. An
error after it is one event with the envelope, then the end. When the client goes, the source is
closed, and with it the request in the engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenkit.server.errors import as_api_error
from qwenkit.server.logs import log_bug
from qwenkit.server.service import Call, Ended

DONE = b"data: [DONE]\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
Events = AsyncGenerator[bytes, None]


def event(value: Any, name: str | None = None) -> bytes:
    """One event; `name` is its `event:` line."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + to_json(value) + b"\n\n"


class JsonResponse(Response):
    """A JSON answer in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class EventStream(Response):
    """Sends `events` (each the bytes of whole events) and `end`."""

    def __init__(self, call: Call, events: Events, *, end: bytes = DONE) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._call, self._events, self._end = call, events, end
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._call.attend(self._pump(send), receive)
        except Ended:
            return
        except Exception as error:
            if not self._begun:
                raise
            await self._fail(error, send)

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for data in events:
                if not self._begun:
                    self._begun = True
                    await send(
                        {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                    )
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": self._end, "more_body": False})

    async def _fail(self, error: Exception, send: Send) -> None:
        told = as_api_error(error, self._call.request_id, self._call.spelling)
        if told.status == 500:
            log_bug(self._call, error)
        self._call.error = told
        body = event(told.body) + self._end
        await send({"type": "http.response.body", "body": body, "more_body": False})
