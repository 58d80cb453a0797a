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
    with Room(service, tenant, uploaded=True) as room:
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
        room.take(0, 1)
        name = found.filename or "upload.jsonl"
        return await asyncio.to_thread(keep, service, tenant, path, name, "batch", room)


class NoRoom(ApiError):
    """400: a tenant has as many files, or bytes of files, as it may have; `reason` says which."""

    def __init__(self, reason: str, code: str, *, close: bool = False) -> None:
        text = f"{reason[0].upper()}{reason[1:]}; delete some."
        super().__init__(400, text, code=code, close=close)
        self.reason = reason


class Room:
    """Room among a tenant's files for what is being written: its bytes, and the files that it will
    be, count from before they are written until it is closed, or they are files.
    """

    def __init__(self, service: Service, tenant: str, *, uploaded: bool = False) -> None:
        """`uploaded`: an error closes the client's connection."""
        self._service, self._tenant, self._uploaded = service, tenant, uploaded
        self._bytes = self._files = 0
        self._open = True

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is left. Closing again changes nothing."""
        with self._service.files.lock:
            self.give(self._bytes, self._files)
            self._open = False

    def take(self, count: int, files: int = 0) -> None:
        """Room for so many bytes and files more; from any thread. Errors: NoRoom."""
        with self._service.files.lock:
            if self._open:  # a thread may be left over from a cancelled upload
                close = self._uploaded and not files
                check_room(self._service, self._tenant, count, files, close=close)
                self.hold(count, files)

    def hold(self, count: int, files: int = 0) -> None:
        """Count what is there already, whatever the limits are."""
        with self._service.files.lock:
            if not self._open:
                return
            self._bytes += count
            self._files += files
            self._service.taken_bytes[self._tenant] += count
            self._service.taken_files[self._tenant] += files

    def give(self, count: int, files: int = 0) -> None:
        """Give room back."""
        self.hold(-count, -files)


def new_path(service: Service, tenant: str) -> Path:
    """A name for something that is not yet a file; what is left there is swept at the start."""
    folder = service.files.path(tenant, "x").parent
    return folder / f".{secrets.token_hex(16)}.tmp"


def check_room(
    service: Service, tenant: str, more: int = 0, files: int = 1, *, close: bool = False
) -> None:
    """Errors: NoRoom when a tenant would have too many files with so many, or too many bytes with
    `more`; what is being written counts too. `close`: the body was not read.
    """
    known, options = service.files.all(tenant), service.options
    if files and len(known) + service.taken_files[tenant] + files > options.max_files:
        reason = f"there may be at most {options.max_files} files (--max-files)"
        raise NoRoom(reason, "too_many_files", close=close)
    size = sum(each["bytes"] for each in known.values()) + service.taken_bytes[tenant]
    if size + more > options.max_files_bytes:
        reason = f"all files together may have {options.max_files_bytes} bytes (--max-files-bytes)"
        raise NoRoom(reason, "storage_full", close=close)


def keep(
    service: Service, tenant: str, path: Path, filename: str, purpose: str, room: Room
) -> dict[str, Any]:
    """Make what stands at `path` a file; it is there whole, or not at all. What was taken of the
    room for it is given back in the moment in which it is known.
    """
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
    service.files.put(tenant, found, then=lambda: room.give(size, 1))
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
