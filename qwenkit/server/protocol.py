"""One connection: uvicorn's, with the patience and the bounds that it lacks.

A head must come within `header_timeout` and its bounds, a body without long pauses, a reader must
read; whoever does not is closed, and so is the connection that has idled longest when there are too
many. Ambiguous framing (Content-Length twice, or beside Transfer-Encoding) is refused. What is
refused here never reaches the application, and is answered in OpenAI's envelope all the same.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import Any, ClassVar, cast

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from qwenkit.options.serve import ServeOptions
from qwenkit.server.errors import ApiError, overloaded

SLOWEST = 1024
"""Bytes a second that a body must bring."""


class Connection(HttpToolsProtocol):
    """A connection. `bound` makes the class for a server."""

    options: ClassVar[ServeOptions]
    idle: ClassVar[OrderedDict[Connection, None]]
    """Connections without a request, the one that idles longest first."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._head: int | None = None
        self._fed = self._got = 0
        """`_fed`: bytes of a head, of trailers, or of what else is not body, in one piece."""
        self._trailing = False
        self._refusal: ApiError | None = None
        self.idle[self] = None
        self._begin_head()
        if len(self.connections) > self.options.max_connections:
            oldest = next(iter(self.idle))
            if oldest is self:
                self._refuse(overloaded("There are too many connections.", 2))
            else:
                oldest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._stop(name)
        self.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is None and self in self.idle:
            self._begin_head()
        self._fed += len(data)
        super().data_received(data)
        if self._fed > self.options.max_header_bytes:
            self._refuse(_head_too_large(self.options))

    # The parser's callbacks; what they raise ends in `send_400_response`.

    def on_message_begin(self) -> None:
        self._head = self._head or 0
        self._trailing = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._trailing:
            return
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= self.options.max_headers:
            self._refusal = _head_too_large(self.options)
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._refusal = ApiError(400, "The server speaks HTTP/1.1 and 1.0.", close=True)
            raise self._refusal
        names = [name for name, _ in self.headers]
        lengths = names.count(b"content-length")
        if lengths > 1 or (lengths and b"transfer-encoding" in names):
            self._refusal = ApiError(400, "The length of the body is given twice.", close=True)
            raise self._refusal
        self._stop("head")
        self._head, self._got, self._trailing = None, 0, True
        self.idle.pop(self, None)
        self._start("body", self.options.body_timeout, self._check_body)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._got += len(body)
        self._fed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop("body")
        self._fed = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.idle[self] = None
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("write", self.options.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop("write")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """The parser gave up."""
        self._refuse(self._refusal or ApiError(400, msg, close=True))

    # Patience

    def _begin_head(self) -> None:
        self._head = self._fed = 0
        self._start("head", self.options.header_timeout, self._too_slow)

    def _count(self, size: int) -> None:
        self._head = (self._head or 0) + size
        if self._head > self.options.max_header_bytes:
            self._refusal = _head_too_large(self.options)
            raise self._refusal

    def _check_body(self) -> None:
        seconds = self.options.body_timeout
        if self._got < SLOWEST * seconds and not self.flow.read_paused:
            self._too_slow()
            return
        self._got = 0
        self._start("body", seconds, self._check_body)

    def _too_slow(self) -> None:
        self._refuse(ApiError(408, "The request did not come in time.", close=True))

    def _start(self, name: str, seconds: float, action: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, action)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _refuse(self, error: ApiError) -> None:
        """Answer, unless an answer has begun, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = to_json(error.body)
            head = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-request-id": f"req_{secrets.token_hex(16)}",
                **error.headers,
                "connection": "close",
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()


def bound(options: ServeOptions) -> type[Connection]:
    """The class of the connections of one server."""
    return type("BoundConnection", (Connection,), {"options": options, "idle": OrderedDict()})


def _head_too_large(options: ServeOptions) -> ApiError:
    text = f"The head of the request is over {options.max_header_bytes} bytes or "
    text += f"{options.max_headers} headers."
    return ApiError(431, text, code="headers_too_large", close=True)
