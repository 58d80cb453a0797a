"""What operators ask: is it alive, does it take work, how is it doing. Probes may use HEAD."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from qwenkit import __version__
from qwenkit.server.document import ERRORS
from qwenkit.server.errors import unavailable
from qwenkit.server.service import service_of
from qwenkit.server.sse import JsonResponse

router = APIRouter(tags=["operations"], responses=ERRORS)
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Status(BaseModel):
    """A short word."""

    status: str


class Version(BaseModel):
    """Which qwenkit this is."""

    version: str


@router.head("/health", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
@router.get("/health", response_model=Status)
@router.get("/ping", response_model=Status)
async def health(request: Request) -> Response:
    """Alive: 200 until the process should be ended. Also while draining."""
    if service_of(request).trouble:
        raise unavailable("The server is not well and will be restarted.")
    return JsonResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_model=Status)
async def ready(request: Request) -> Response:
    """Whether new work is taken: 503 from the moment that the server is asked to stop."""
    service_of(request).check_ready()
    return JsonResponse({"status": "ready"})


@router.get("/version", response_model=Version)
async def version(request: Request) -> Response:
    """The version of qwenkit."""
    return JsonResponse({"version": __version__})


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(service_of(request).metrics.page(), headers={"content-type": PROMETHEUS})
