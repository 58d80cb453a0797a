"""Exceptions → OpenAI's error envelope: `{"error": {"message", "type", "param", "code"}}`.

`ApiError` is an answer that is already decided; `as_api_error` decides for everything else. What a
client gets never holds a path, an address, a traceback or a key: of an exception that is not meant
for users only the request id is told. A mistake of the client is never answered with a status that
the official client would try again (408, 409, 429, 5xx).
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from qwenkit.errors import (
    ContextLengthError,
    EngineError,
    QueueFullError,
    RequestError,
    TemplateError,
)

INVALID, SERVER, UNAVAILABLE = "invalid_request_error", "server_error", "service_unavailable_error"
LONGEST_TEXT = 2000


class ApiError(Exception):
    """An error answer: HTTP status, and the fields of the envelope.

    retry_after: seconds after which trying again makes sense; None: it never does.
    close: the connection cannot be used any more, because the request was not read to its end.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        close: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code = param, code
        self.retry_after, self.close = retry_after, close
        self._headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        message = self.message
        if len(message) > LONGEST_TEXT:
            message = message[: LONGEST_TEXT - 1] + "…"
        return {
            "error": {
                "message": message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """What goes beside the envelope."""
        found = dict(self._headers)
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        elif self.status >= 500:
            found["x-should-retry"] = "false"
        if self.close:
            found["connection"] = "close"
        return found


def bad_value(param: str, message: str, code: str | None = "invalid_value") -> ApiError:
    """400 for one parameter."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """400 for a documented parameter or value that this server does not have."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def overloaded(message: str, retry_after: float) -> ApiError:
    """503: try again later."""
    return ApiError(
        503,
        message,
        kind=UNAVAILABLE,
        code="server_is_overloaded",
        retry_after=retry_after,
    )


def unavailable(message: str, retry_after: float = 5) -> ApiError:
    """503: this process is not (or no longer) the one to ask."""
    return ApiError(
        503, message, kind=UNAVAILABLE, code="service_unavailable", retry_after=retry_after
    )


def failed(request_id: str) -> ApiError:
    """500 for a bug, telling nothing but where to look."""
    return ApiError(
        500,
        f"The server had an error with this request. Its log knows more under {request_id}.",
        kind=SERVER,
        code="internal_error",
    )


def as_api_error(
    error: BaseException, request_id: str, spelling: Mapping[str, str] | None = None
) -> ApiError:
    """What a client is told of an exception; `spelling`: its names of parameters."""
    param: str | None = getattr(error, "param", None)
    if param is not None and spelling:
        param = spelling.get(param, param)
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return ApiError(400, str(error), param=param, code="context_length_exceeded")
        case RequestError():
            code = None if param == "response_format" else "invalid_value"
            return ApiError(400, str(error), param=param, code=code)
        case TemplateError():
            return ApiError(400, str(error), param="messages", code="invalid_value")
        case QueueFullError(tenant=None):
            return overloaded(str(error), error.retry_after)
        case QueueFullError():
            return ApiError(
                429,
                str(error),
                kind="requests",
                code="rate_limit_exceeded",
                retry_after=error.retry_after,
            )
        case EngineError():
            return _of_engine(error, request_id)
        case HTTPException():
            return _of_http(error)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            text = "The server's disk is full; nothing of this was kept."
            return ApiError(507, text, kind=SERVER, code="storage_full")
    return failed(request_id)


def _of_engine(error: EngineError, request_id: str) -> ApiError:
    match error.code:
        case "timeout":
            return overloaded("No place became free in time; nothing was computed.", 5)
        case "grammar":
            text = "The answer cannot go on within what was asked of its form; simplify that."
            return ApiError(400, text, code="grammar_failed")
        case "closed":
            return unavailable("The server is shutting down.")
        case "not_finite":
            text = "The model computed values that are not finite; the operator can serve it with "
            return ApiError(500, text + "--dtype float32.", kind=SERVER, code="not_finite")
        case "out_of_memory":
            text = "The server ran out of memory for this request."
            return ApiError(500, text, kind=SERVER, code="out_of_memory")
    return failed(request_id)


def _of_http(error: HTTPException) -> ApiError:
    if error.status_code == 404:
        return ApiError(404, "There is no such route.", code="unknown_url")
    if error.status_code == 405:
        return ApiError(405, "This route does not take this method.", code="method_not_allowed")
    return ApiError(error.status_code, str(error.detail))
