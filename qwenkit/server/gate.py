"""What happens before and after every route, whatever it is: one ASGI layer around all others.

Before: a request id of our own making, the Host, the key, draining, the declared size, room for one
more. All of it is judged by what the server itself routes by (`scope["path"]`, the raw headers),
never by something that is put together again from what the client sent. After: the id and the
rates as headers, a log line, a count.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenkit.server.errors import ApiError, as_api_error, overloaded
from qwenkit.server.logs import log_bug, log_request
from qwenkit.server.service import CALL, Call, Ended, Service, too_large
from qwenkit.server.sse import JsonResponse

PUBLIC = frozenset({"/health", "/ready", "/ping"})
"""The only routes that need no key."""
ADMIN = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""Routes that need a key of an administrator."""
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_LOCAL = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
CLIENT_GONE = 499


class Gate:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        options = service.options
        waiting = options.max_waiting
        room = 4 * options.max_sequences if waiting is None else waiting
        self._room = options.max_sequences + room
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets: the connection is closed
        call, status = Call(), CLIENT_GONE
        scope[CALL] = call

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(call)]
            await send(message)

        self._service.calls.add(call)
        heavy = scope["method"] == "POST"
        self._working += heavy
        try:
            self._admit(call, scope)
            await self._app(scope, receive, answer)
        except (Ended, ClientDisconnect):
            pass
        except ApiError as error:
            call.error = error
            await JsonResponse(error.body, error.status, error.headers)(scope, receive, answer)
        except Exception as error:
            if call.error is None:  # else the application has answered and logged it already
                log_bug(call, error)
        finally:
            self._working -= heavy
            self._service.calls.discard(call)
            self._book(call, scope, status)

    def _admit(self, call: Call, scope: Scope) -> None:
        """Errors: ApiError."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        service, path = self._service, scope["path"]
        self._check_host(headers)
        if path not in PUBLIC:
            address, _ = scope.get("client") or ("", 0)
            call.caller = service.keys.caller(headers, address)
            if path in ADMIN and not call.caller.admin:
                text = "Only an administrator's key may do this (see --admin-key-file)."
                raise ApiError(403, text, code="insufficient_permissions")
        if scope["method"] != "POST":
            return
        service.check_ready()
        service.rates.take(call.caller.tenant, "requests", 1)
        if self._working > self._room:
            raise overloaded("All places are taken, those to wait as well.", 2)
        most = service.options.max_body_bytes
        if path == "/v1/files":  # goes to the disk, not into memory
            most = service.options.max_file_bytes
        for name, value in headers:
            if name == b"content-length" and int(value) > most:
                raise too_large(most)
            if name == b"content-encoding" and value.strip().lower() != b"identity":
                text = "Compressed bodies are not taken; send it without Content-Encoding."
                raise ApiError(415, text, code="unsupported_media_type", close=True)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        """A well-formed Host. Without keys it must be one of this machine's names: a web page
        elsewhere may have its own name lead here.
        """
        hosts = [value for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if len(hosts) > 1 or (hosts and match is None):
            raise ApiError(400, "The Host header is not a host name.", close=True)
        options = self._service.options
        if match is None or self._service.keys or options.unprotected:
            return
        known = {
            *_LOCAL,
            options.host.lower().encode(),
            *(h.lower().encode() for h in options.allowed_host),
        }
        if match.group(1).lower() not in known:
            text = "This Host is not one of the server's (see --allowed-host)."
            raise ApiError(403, text, code="unknown_host", close=True)

    def _headers(self, call: Call) -> list[tuple[bytes, bytes]]:
        found = [(b"x-request-id", call.request_id.encode())]
        if self._service.draining:  # whoever asks again shall reach another process
            found.append((b"connection", b"close"))
        return found + self._service.rates.headers(call.caller.tenant)

    def _book(self, call: Call, scope: Scope, status: int) -> None:
        found: Any = scope.get("route")
        route = getattr(found, "path", None) or "unknown"
        method = scope["method"] if route != "unknown" else "unknown"
        self._service.metrics.answered(route, method, status)
        log_request(call, route, method, status)


async def tell(request: Any, error: Exception) -> JsonResponse:
    """The application's handler of every exception."""
    call: Call = request.scope[CALL]
    told = as_api_error(error, call.request_id, call.spelling)
    if isinstance(error, (Ended, ClientDisconnect)):
        return JsonResponse({}, CLIENT_GONE)
    if told.status == 500 and not isinstance(error, ApiError):
        log_bug(call, error)
    call.error = told
    headers = told.headers
    if told.status == 405:
        headers["allow"] = _allowed(request)
    return JsonResponse(told.body, told.status, headers)


def _allowed(request: Any) -> str:
    """The methods of all routes of a path: the router tells those of the first one only."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods
    return ", ".join(sorted(found))
