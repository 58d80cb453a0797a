"""Log lines: one for each request, as text or JSON. Neither prompts nor answers, keys or anything
else that a client typed, unless the operator asks for content.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenkit.options.serve import ServeOptions
    from qwenkit.server.service import Call

log = logging.getLogger("qwenkit.server")


def set_up(options: ServeOptions) -> None:
    """Send the lines of qwenkit and uvicorn to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if options.log_format == "json" else TextLines())
    level = options.log_level.upper()
    for name in ("qwenkit", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(
            level if name == "qwenkit" else max(logging.WARNING, logging.getLevelName(level))
        )
        logger.propagate = name == "uvicorn.error"


def log_request(call: Call, route: str, method: str, status: int) -> None:
    """The line of a request that has ended."""
    now = time.monotonic()
    fields: dict[str, Any] = {
        "request_id": call.request_id,
        "tenant": call.caller.tenant or None,
        "method": method,
        "route": route,
        "status": status,
        "ms": round((now - call.started) * 1000, 1),
    }
    if call.prompt_tokens:
        fields["prompt_tokens"] = call.prompt_tokens
        fields["completion_tokens"] = call.completion_tokens
    if call.first_token_s is not None:
        fields["first_token_ms"] = round(call.first_token_s * 1000, 1)
    if call.finish_reason:
        fields["finish_reason"] = call.finish_reason
    if call.error is not None:
        fields["error"] = call.error.code or call.error.kind
    log.info("request", extra={"fields": {k: v for k, v in fields.items() if v is not None}})


def log_bug(call: Call, error: BaseException) -> None:
    """The traceback that the client is not told."""
    fields = {"request_id": call.request_id}
    log.error("a request failed", exc_info=error, extra={"fields": fields})


class TextLines(logging.Formatter):
    """`12:34:56 info request request_id=… status=200`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname.lower()} {record.getMessage()}"
        text += "".join(f" {key}={value}" for key, value in fields.items())
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
