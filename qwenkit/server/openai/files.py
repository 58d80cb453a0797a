"""`/v1/files`: the inputs and outputs of batches. Every file is one key's own."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from qwenkit.server.document import ERRORS
from qwenkit.server.errors import ApiError, bad_value, unsupported
from qwenkit.server.openai.paging import PAGING, page
from qwenkit.server.openai.uploads import receive
from qwenkit.server.service import Service, call_of, service_of
from qwenkit.server.sse import JsonResponse

router = APIRouter(tags=["files"])
DOCUMENTED: dict[str, Any] = {"responses": ERRORS}
BYTES = "application/octet-stream"
PURPOSES = "assistants batch fine-tune vision user_data evals".split()
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
    },
}


class FileObject(BaseModel):
    """A file that was uploaded, or written by a batch."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class FileList(BaseModel):
    """A page of them."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """It is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


@router.post(
    "/v1/files",
    response_model=FileObject,
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
    },
    **DOCUMENTED,
)
async def upload(request: Request) -> Response:
    """Keep a file of requests, one JSON object a line."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    check_room(service, tenant, close=True)
    path = new_path(service, tenant)
    with Room(service, tenant) as room:
        try:
            return JsonResponse(await _kept(request, service, tenant, path, room))
        finally:
            path.unlink(missing_ok=True)


async def _kept(
    request: Request, service: Service, tenant: str, path: Path, room: Room
) -> dict[str, Any]:
    """Receive a file at `path`, and make it one that is known. Errors: ApiError."""
    found = await receive(request, path, service.options.max_file_bytes, room.take)
    purpose = found.fields.pop("purpose", None)
    for name in found.fields:
        if name.startswith("expires_after"):
            raise unsupported("expires_after", "'expires_after' is not supported: delete it.")
        raise ApiError(
            400,
            f"Unknown parameter: '{name[:100]}'.",
            param=name[:100],
            code="unknown_parameter",
        )
    for name, given in (("file", found.filename), ("purpose", purpose)):
        if given is None:
            text = f"Missing required parameter: '{name}'."
            raise ApiError(400, text, param=name, code="missing_required_parameter")
    if purpose != "batch":
        if purpose in PURPOSES:
            raise unsupported("purpose", f"Files for '{purpose}' are not supported: 'batch' is.")
        raise bad_value("purpose", "Invalid value for 'purpose'. Supported values are: 'batch'.")
    if not found.size:
        raise bad_value("file", "Invalid 'file': it is empty.", "empty_file")
    async with service.upload_turn:
        check_room(service, tenant)
        return await asyncio.to_thread(
            keep, service, tenant, path, found.filename or "upload.jsonl", "batch"
        )


class Room:
    """Room among a tenant's files for one that is being uploaded: its bytes count from before they
    are written until the `with` ends, by when they count as a file or are gone.
    """

    def __init__(self, service: Service, tenant: str) -> None:
        self._service, self._tenant, self._taken, self._open = service, tenant, 0, True

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        with self._service.files.lock:
            self._open = False
            self._service.uploading[self._tenant] -= self._taken

    def take(self, count: int) -> None:
        """Room for so many bytes more; from any thread. Errors: ApiError 400."""
        with self._service.files.lock:
            if self._open:  # else this is a thread that is left over from a cancelled upload
                check_room(self._service, self._tenant, count, close=True)
                self._service.uploading[self._tenant] += count
                self._taken += count


def new_path(service: Service, tenant: str) -> Path:
    """A name for something that is not yet a file; what is left there is swept at the start."""
    folder = service.files.path(tenant, "x").parent
    return folder / f".{secrets.token_hex(16)}.tmp"


def check_room(service: Service, tenant: str, more: int = 0, *, close: bool = False) -> None:
    """Errors: ApiError 400 when a tenant has too many files, or would have too many bytes with
    `more`, those of uploads that are under way included. `close`: the body was not read.
    """
    known, options = service.files.all(tenant), service.options
    if len(known) >= options.max_files:
        text = f"There are {len(known)} files already; delete some."
        raise ApiError(400, text, code="too_many_files", close=close)
    size = sum(each["bytes"] for each in known.values()) + service.uploading[tenant]
    if size + more > options.max_files_bytes:
        text = f"All files together may have {options.max_files_bytes} bytes; delete some."
        raise ApiError(400, text, code="storage_full", close=close)


def keep(service: Service, tenant: str, path: Path, filename: str, purpose: str) -> dict[str, Any]:
    """Make what stands at `path` a file; it is there whole, or not at all."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    found = {
        "id": f"file-{secrets.token_hex(16)}",
        "object": "file",
        "bytes": size,
        "created_at": int(time.time()),
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }
    os.replace(path, service.files.path(tenant, found["id"]))  # type: ignore[arg-type]
    service.files.put(tenant, found)
    return found


@router.get(
    "/v1/files",
    response_model=FileList,
    openapi_extra={"parameters": PAGING},
    **DOCUMENTED,
)
async def list_files(request: Request) -> Response:
    """The files of this key, the newest first unless `order` is asc."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    purpose = request.query_params.get("purpose")
    found = [
        each
        for each in service.files.all(tenant).values()
        if purpose is None or each["purpose"] == purpose
    ]
    return JsonResponse(page(request, found, default=10_000, most=10_000))


@router.get("/v1/files/{file_id}", response_model=FileObject, **DOCUMENTED)
async def retrieve(request: Request, file_id: str) -> Response:
    """What is known of a file."""
    return JsonResponse(service_of(request).files.get(call_of(request).caller.tenant, file_id))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    responses={**ERRORS, 200: {"description": "The bytes.", "content": {BYTES: {}}}},
)
async def content(request: Request, file_id: str) -> Response:
    """Its bytes."""
    file = service_of(request).files.open(call_of(request).caller.tenant, file_id)
    size = {"content-length": str(os.fstat(file.fileno()).st_size)}
    return StreamingResponse(_pieces(file), headers=size, media_type=BYTES)


async def _pieces(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    with file:
        while piece := await asyncio.to_thread(file.read, 1 << 18):
            yield piece


@router.delete("/v1/files/{file_id}", response_model=FileDeleted, **DOCUMENTED)
async def delete(request: Request, file_id: str) -> Response:
    """Delete a file."""
    service, tenant = service_of(request), call_of(request).caller.tenant
    found = service.files.get(tenant, file_id)
    await asyncio.to_thread(service.files.remove, tenant, found["id"])
    return JsonResponse({"id": file_id, "object": "file", "deleted": True})
