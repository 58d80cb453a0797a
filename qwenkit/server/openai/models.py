"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.server.document import ERRORS
from qwenkit.server.service import Service, service_of
from qwenkit.server.sse import JsonResponse

router = APIRouter(tags=["models"], responses=ERRORS)


class ModelCard(BaseModel):
    """A model that can be named in requests; `max_model_len` is the longest prompt + answer."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]


@router.get("/v1/models", response_model=ModelList)
async def list_models(request: Request) -> Response:
    """The model of this server under all of its names, and its adapters."""
    service = service_of(request)
    cards = [card(service, name) for name in (*service.names, *service.llm.adapters)]
    return JsonResponse({"object": "list", "data": cards})


@router.get("/v1/models/{model:path}", response_model=ModelCard)
async def get_model(request: Request, model: str) -> Response:
    """One of them."""
    service = service_of(request)
    service.check_model(model)
    return JsonResponse(card(service, model))


def card(service: Service, name: str) -> dict[str, Any]:
    """What is told of a model, or of an adapter: then `parent` is its model."""
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "qwenkit",
        "root": service.names[0],
        "parent": None if name in service.names else service.names[0],
        "max_model_len": service.llm.context_length,
    }
