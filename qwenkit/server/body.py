"""The body of a request: bytes, never more than allowed, then JSON by the letter, then a model.

JSON by the letter means: UTF-8 without a byte order mark, no key twice in an object, no NaN or
Infinity, no number that a double or 64 bits cannot hold, bounded in depth and in the number of
values. Lone surrogates become U+FFFD, as everywhere in qwenkit. Each breach is a 400.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from qwenkit.options.serve import ServeOptions
from qwenkit.prompt.tokenizer import replace_surrogates
from qwenkit.server.errors import ApiError
from qwenkit.server.service import Service, call_of, service_of
from qwenkit.server.validation import explain

T = TypeVar("T", bound=BaseModel)
ON_THE_LOOP = 32 << 10
"""Bodies up to this size are parsed where they are received; larger ones in a thread."""


async def read(request: Request, model: type[T]) -> T:
    """The body of a request as a model. Errors: ApiError."""
    service = service_of(request)
    raw = await read_bytes(request, service)
    if len(raw) <= ON_THE_LOOP:
        return parse(raw, model, service.options)
    return await asyncio.to_thread(parse, raw, model, service.options)


async def read_bytes(request: Request, service: Service) -> bytes:
    """The whole body. Errors: ApiError 413 as soon as it is too large, 503 while too much is being
    received already; ClientDisconnect.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            "The body must be JSON; send `Content-Type: application/json`.",
            code="unsupported_media_type",
            close=True,
        )
    pieces: list[bytes] = []
    with service.receiving(call_of(request)) as ticket:
        async for piece in request.stream():
            ticket.add(len(piece))
            pieces.append(piece)
    return b"".join(pieces)


def parse(raw: bytes, model: type[T], options: ServeOptions) -> T:
    """Bytes → model. Errors: ApiError 400 naming the field."""
    value = parse_json(raw, options)
    if not isinstance(value, dict):
        raise _no_json("The body must be a JSON object.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise explain(error, value) from None


def parse_json(raw: bytes, options: ServeOptions, what: str = "The body") -> Any:
    """Bytes → plain values; errors speak of `what`. Errors: ApiError 400."""
    if not raw.strip():
        raise _no_json(f"{what} is empty; it must be a JSON object.")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _no_json(f"{what} starts with a byte order mark; send plain UTF-8.")
    marks = sum(map(raw.count, (b",", b"[", b"{")))
    if marks > options.max_json_values:
        raise _no_json(f"{what} has more than {options.max_json_values} values.")
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise _no_json(f"{what} is not valid UTF-8.") from None
    except RecursionError:
        raise _too_deep(options, what) from None
    except json.JSONDecodeError as error:
        raise _no_json(f"{what} is not valid JSON: {error.msg} at {error.pos}.") from None
    return _tidy(value, options, what, surrogates=b"\\ud" in raw or b"\\uD" in raw)


def _no_json(message: str) -> ApiError:
    return ApiError(400, message)


def _too_deep(options: ServeOptions, what: str) -> ApiError:
    return _no_json(f"{what} is nested deeper than {options.max_json_depth} levels.")


def _tidy(value: Any, options: ServeOptions, what: str, *, surrogates: bool) -> Any:
    """Check the depth and replace lone surrogates, without recursion."""
    level: list[Any] = [value]
    for _ in range(options.max_json_depth):
        deeper: list[Any] = []
        for box in level:
            if surrogates:
                _replace(box)
            items = box.values() if isinstance(box, dict) else box if isinstance(box, list) else ()
            deeper += [item for item in items if isinstance(item, (dict, list))]
        if not deeper:
            return value
        level = deeper
    raise _too_deep(options, what)


def _replace(box: Any) -> None:
    if isinstance(box, list):
        box[:] = [replace_surrogates(item) if isinstance(item, str) else item for item in box]
    elif isinstance(box, dict):
        items = [
            (replace_surrogates(key), replace_surrogates(item) if isinstance(item, str) else item)
            for key, item in box.items()
        ]
        box.clear()
        box.update(items)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _no_json(f"The key {replace_surrogates(twice)[:80]!r} appears twice in one object.")
    return found


def _integer(text: str) -> int:
    if len(text) > 20:
        raise _no_json("A number has too many digits.")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(value):
        raise _no_json("A number is too large.")
    return value


def _constant(text: str) -> NoReturn:
    raise _no_json(f"{text} is no JSON.")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)
