"""`/v1/batches`: files of requests that are answered beside the live ones."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.server.body import read
from qwenkit.server.document import ERRORS, takes
from qwenkit.server.errors import ApiError, bad_value
from qwenkit.server.openai.batch_journal import Journal
from qwenkit.server.openai.batch_run import ENDED, BatchRun
from qwenkit.server.openai.fields import Label, Strict
from qwenkit.server.openai.paging import PAGING, page
from qwenkit.server.service import Service, call_of, service_of
from qwenkit.server.sse import JsonResponse

router = APIRouter(tags=["batches"])
DOCUMENTED: dict[str, Any] = {"responses": ERRORS}
DAY = 24 * 3600
STAMPS = "in_progress finalizing completed failed expired cancelling cancelled".split()


class BatchRequest(Strict):
    """A file of requests, all to one endpoint."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "output_expires_after": "delete the files when you have read them."
    }
    input_file_id: Label
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[Annotated[str, Field(max_length=64)], Label] | None = Field(None, max_length=16)


class Counts(BaseModel):
    """Requests of a batch."""

    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    """A batch, as far as it has come."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of them."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Batches:
    """The batches that run; one in a process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._runs: dict[str, tuple[str, BatchRun]] = {}
        self._places = asyncio.Semaphore(service.options.batch_concurrency)

    def resume(self) -> None:
        """Go on with what was running when the server ended."""
        for tenant in self._service.batches.tenants():
            for batch in list(self._service.batches.all(tenant).values()):
                if batch["status"] not in ENDED:
                    self.begin(tenant, batch)
                else:  # it may have ended in the very moment
                    Journal(self._service, tenant, batch).remove()

    def check_room(self, tenant: str) -> None:
        """Errors: ApiError 429 when too many of a tenant's batches run."""
        if sum(owner == tenant for owner, _ in self._runs.values()) >= MAX_RUNNING:
            text = f"{MAX_RUNNING} batches run already; wait until one of them has ended."
            code = "rate_limit_exceeded"
            raise ApiError(429, text, kind="requests", code=code, retry_after=30)

    def begin(self, tenant: str, batch: dict[str, Any]) -> None:
        """Run a batch."""
        run = BatchRun(self._service, tenant, batch, self._places)
        self._runs[batch["id"]] = (tenant, run)
        task = asyncio.ensure_future(run.run())
        self._service.tasks.add(task)
        task.add_done_callback(self._service.tasks.discard)
        task.add_done_callback(lambda _: self._runs.pop(batch["id"], None))

    def cancel(self, batch_id: str) -> None:
        """End a batch that runs."""
        found = self._runs.get(batch_id)
        if found is not None:
            found[1].cancel()


MAX_RUNNING, MAX_KEPT = 16, 1000
"""Batches of one key: at the same time, and at all (the oldest are forgotten)."""


def _batches(request: Request) -> Batches:
    found: Batches = request.app.state.batches
    return found


@router.post("/v1/batches", **takes(BatchRequest, BatchObject))
async def create(request: Request) -> Response:
    """Begin a batch."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    body = await read(request, BatchRequest)
    try:
        file = service.files.get(tenant, body.input_file_id)
    except ApiError as error:
        raise bad_value("input_file_id", error.message, "not_found") from None
    if file["purpose"] != "batch":
        raise bad_value("input_file_id", "This file was not uploaded for a batch.")
    running = _batches(request)
    running.check_room(tenant)
    known = service.batches.all(tenant)
    for old in [each["id"] for each in known.values() if each["status"] in ENDED]:
        if len(known) < MAX_KEPT:
            break
        service.batches.remove(tenant, old)
    now = int(time.time())
    batch: dict[str, Any] = {
        "id": f"batch_{secrets.token_hex(16)}",
        "object": "batch",
        "endpoint": body.endpoint,
        "errors": None,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + DAY,
        **{f"{name}_at": None for name in STAMPS},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata,
    }
    service.batches.put(tenant, batch)
    answer = JsonResponse(batch)
    running.begin(tenant, batch)
    return answer


@router.get(
    "/v1/batches",
    response_model=BatchList,
    openapi_extra={"parameters": PAGING},
    **DOCUMENTED,
)
async def list_batches(request: Request) -> Response:
    """The batches of this key, the newest first unless `order` is asc."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    found = list(service.batches.all(tenant).values())
    return JsonResponse(page(request, found, default=20, most=100))


@router.get("/v1/batches/{batch_id}", response_model=BatchObject, **DOCUMENTED)
async def retrieve(request: Request, batch_id: str) -> Response:
    """How far a batch has come."""
    return JsonResponse(service_of(request).batches.get(call_of(request).caller.tenant, batch_id))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    response_model=BatchObject,
    openapi_extra={"requestBody": {"required": False, "content": {}}},
    **DOCUMENTED,
)
async def cancel(request: Request, batch_id: str) -> Response:
    """End a batch; what it has answered so far is kept."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    found = service.batches.get(tenant, batch_id)
    if found["status"] in (*ENDED, "finalizing"):
        raise bad_value("batch_id", f"The batch is {found['status']}; it cannot be cancelled.")
    if found["status"] != "cancelling":
        _batches(request).cancel(batch_id)
    return JsonResponse(found)
