"""The OpenAPI document. Handlers read their bodies themselves (`body.read`), because a body's size,
time and form are judged before a model sees it; `takes` says in the document what they read.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from qwenkit.server.gate import PUBLIC

_MODELS: dict[str, type[BaseModel]] = {}
"""What FastAPI does not see: bodies and events."""


class ErrorBody(BaseModel):
    """What is wrong with a request, or with the server."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every error of this server."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": text}
    for status, text in {
        400: "The request is wrong; param says where.",
        401: "No key, or a wrong one.",
        403: "This key may not do this.",
        404: "No such model, object or route.",
        405: "Not with this method.",
        413: "The body is too large.",
        415: "The body is not plain JSON.",
        429: "Too many requests; see Retry-After.",
        431: "The head of the request is too large.",
        500: "The server failed.",
        507: "The server's disk is full.",
        503: "Overloaded or shutting down; see Retry-After.",
    }.items()
}


def takes(
    body: type[BaseModel],
    answer: type[BaseModel],
    *,
    events: type[BaseModel] | None = None,
    done: bool = True,
) -> dict[str, Any]:
    """Keywords of a route: what its body is, what it answers, and the events that it streams
    (`done`: with a last one that is no JSON but `[DONE]`).
    """
    ok: dict[str, Any] = {"model": answer, "description": "The answer."}
    if events is not None:
        ok["content"] = {"text/event-stream": {"schema": _event(_reference(events), done)}}
    content = {"application/json": {"schema": _reference(body)}}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": {**ERRORS, 200: ok},
    }


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    _MODELS[model.__name__] = model
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _event(value: dict[str, Any], done: bool) -> dict[str, Any]:
    """The schema of one event."""
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [value, _reference(ErrorEnvelope)]},
    }
    if done:
        data = {"anyOf": [{"const": "[DONE]"}, data]}
    properties = {"event": {"type": "string"}, "data": data}
    return {"type": "object", "properties": properties, "required": ["data"]}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    pairs = [(model, "validation") for model in _MODELS.values()]
    _, models = models_json_schema(pairs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    parts = found.setdefault("components", {})
    parts.setdefault("schemas", {}).update(models.get("$defs", {}))
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"key": []}]
    for path in PUBLIC:
        for operation in found["paths"][path].values():
            operation["security"] = []
    return found
