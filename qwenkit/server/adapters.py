"""`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, as vLLM has them: for
administrators (see `gate.py`). What is loaded lies below `--lora-root`, links followed, and stays
what was checked, whoever changes the folder meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.errors import OptionError, QwenkitError, RequestError
from qwenkit.server.body import read
from qwenkit.server.document import takes
from qwenkit.server.errors import ApiError, bad_value
from qwenkit.server.openai.fields import Strict
from qwenkit.server.openai.models import ModelCard, card
from qwenkit.server.service import Service, no_model, service_of
from qwenkit.server.sse import JsonResponse

router = APIRouter(tags=["operations"])
FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
log = logging.getLogger("qwenkit.server")


class LoadAdapter(Strict):
    """An adapter's name, and its folder: absolute, or from `--lora-root` on."""

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None


class UnloadAdapter(Strict):
    """An adapter's name."""

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]


class Unloaded(BaseModel):
    """It is gone; what runs with it goes on."""

    id: str
    object: Literal["model"]
    deleted: bool


@router.post("/v1/load_lora_adapter", **takes(LoadAdapter, ModelCard))
async def load(request: Request) -> Response:
    """Serve an adapter under a name of its own. `load_inplace`: also where there is one already."""
    service = service_of(request)
    body = await read(request, LoadAdapter)
    async with service.adapter_turn:
        await asyncio.to_thread(_load, service, body)
    log.info("adapter %r is loaded from %r", body.lora_name, body.lora_path)
    return JsonResponse(card(service, body.lora_name))


@router.post("/v1/unload_lora_adapter", **takes(UnloadAdapter, Unloaded))
async def unload(request: Request) -> Response:
    """Serve it no more; requests that run with it go on."""
    service = service_of(request)
    body = await read(request, UnloadAdapter)
    try:
        async with service.adapter_turn:
            await asyncio.to_thread(service.llm.adapters.unload, body.lora_name)
    except RequestError:
        raise no_model(body.lora_name, "lora_name") from None
    log.info("adapter %r is unloaded", body.lora_name)
    gone: dict[str, Any] = {"id": body.lora_name, "object": "model", "deleted": True}
    return JsonResponse(gone)


def _load(service: Service, body: LoadAdapter) -> None:
    """Errors: ApiError; nothing is changed then."""
    root = service.options.lora_root
    if root is None:
        text = "No adapters are loaded while running; the operator can allow it with --lora-root."
        raise ApiError(403, text, code="adapters_not_allowed")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        base = Path(root).resolve()
        for name, place in _places(base, body.lora_path).items():
            # Whoever writes below the root can put a link where a file or a folder was when the
            # place was checked. So each file is opened once, no link followed any more, and what
            # is read is what was opened: the reader gets a folder of links to the descriptors.
            fd = _open(base, place, name)
            if fd is not None:
                opened.callback(os.close, fd)
                os.symlink(f"/dev/fd/{fd}", Path(folder, name))
        try:
            service.add_adapter(body.lora_name, folder, replace=bool(body.load_inplace))
        except OptionError as error:
            raise bad_value("lora_name", str(error)) from None
        except QwenkitError as error:
            shown = str(error).replace(folder, body.lora_path)
            raise bad_value("lora_path", shown, "invalid_adapter") from None


def _places(base: Path, path: str) -> dict[str, Path]:
    """Where the files of an adapter would be, links followed. Nothing is told of what lies outside
    of `base`, not even whether it is there. Errors: ApiError.
    """
    try:
        folder = (base / path).resolve()
        places = {name: (folder / name).resolve() for name in FILES}
        inside = all(place.is_relative_to(base) for place in (folder, *places.values()))
        there = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        inside, there = True, False
    if not inside:
        text = "Invalid 'lora_path': it leads out of the folder that --lora-root names."
        raise bad_value("lora_path", text, "path_not_allowed")
    if not there:
        text = "Invalid 'lora_path': there is no such folder."
        raise ApiError(404, text, param="lora_path", code="adapter_not_found")
    return places


def _open(base: Path, place: Path, name: str) -> int | None:
    """A descriptor of a regular file below `base`; None when there is nothing. Errors: ApiError,
    also when there is a link on the way.
    """
    try:
        fd = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
        for part in place.relative_to(base).parts:
            above = fd
            try:  # without waiting, should it be a pipe
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                fd = os.open(part, flags, dir_fd=above)
            finally:
                os.close(above)
    except FileNotFoundError:
        return None
    except OSError as error:
        text = f"Invalid 'lora_path': {name} cannot be opened: {error.strerror}."
        raise bad_value("lora_path", text, "invalid_adapter") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        text = f"Invalid 'lora_path': {name} is no file."
        raise bad_value("lora_path", text, "invalid_adapter")
    return fd
