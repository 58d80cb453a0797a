"""From a model's name to a directory: a folder, an embedded model, a cache, or a download.

    path = resolve("tiny-instruct")  # shipped with qwenkit
    path = resolve("Qwen/Qwen2.5-0.5B-Instruct")  # cache, else Hugging Face, else ModelScope
    path = resolve("Qwen/Qwen2.5-0.5B-Instruct@main", source="modelscope")

How a name is read, in this order: `tiny` and `tiny-instruct` are the embedded models (write
`./tiny` for a folder); an existing folder is a local model and must have a config.json; a .gguf
file is a model by itself; anything else is `org/name[@revision]`. A complete copy in either cache
is taken without asking a hub; `refresh=True` asks for a newer one. With source "auto" Hugging Face
comes first, and ModelScope if that is unreachable or has no such model.
QWENKIT_HUB=huggingface|modelscope replaces "auto"; HF_HUB_OFFLINE=1 or QWENKIT_OFFLINE=1 forbids
the network.

Names from a request are none of this module's business: a server compares them with what it serves.
Imports no torch.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from qwenkit.config import FAMILY
from qwenkit.errors import HubError, ModelNotFoundError, OfflineError, OptionError
from qwenkit.io import huggingface, modelscope
from qwenkit.io.gguf_parts import is_gguf
from qwenkit.io.header import shown
from qwenkit.io.http import StatusError
from qwenkit.io.names import CachedModel, ModelRef, Progress, directory_bytes

__all__ = ["CachedModel", "EMBEDDED", "ModelRef", "Progress", "SOURCES", "list_cached", "resolve"]

EMBEDDED = ("tiny", "tiny-instruct")
SOURCES = ("auto", "huggingface", "modelscope")
ASSETS = Path(__file__).resolve().parent.parent / "assets"
_HUBS: dict[str, ModuleType] = {"huggingface": huggingface, "modelscope": modelscope}
_MAX_PATH = 4096


def resolve(
    ref: str | os.PathLike[str],
    *,
    source: str = "auto",
    offline: bool | None = None,
    progress: Progress | None = None,
    refresh: bool = False,
) -> Path:
    """The directory (or the .gguf file) of a model, downloaded into the hub's own cache if need be.

    `offline` None follows the environment. `progress(file, done, total)` is called while bytes
    arrive.
    Errors: ModelNotFoundError (no such model; near names are suggested), OfflineError (network
    absent or forbidden and not cached), HubError (gated, wrong digest, full disk, broken
    connection), OptionError (unknown source).
    """
    hubs = _hubs(source)
    local = _local(ref)
    if local is not None:
        return local
    try:
        wanted = ModelRef.parse(os.fspath(ref))
    except ModelNotFoundError as error:
        raise ModelNotFoundError(error.message, _advice(os.fspath(ref), error)) from error
    forbidden = _offline() if offline is None else offline
    if forbidden or not refresh:
        for hub in hubs:
            path: Path | None = hub.cached(wanted)
            if path is not None:
                return path
    if forbidden:
        places = " or ".join(str(hub.cache_root()) for hub in hubs)
        if offline:
            missing = f"{wanted} is not on this machine: it is not in {places}."
            raise OfflineError(missing, f"`qwenkit pull {wanted}` fetches it.")
        raise OfflineError(
            f"{wanted} is not in {places}, and the network is switched off.",
            "Unset HF_HUB_OFFLINE and QWENKIT_OFFLINE, or pull it on a connected machine.",
        )
    return _download(wanted, hubs, progress)


def list_cached() -> list[CachedModel]:
    """Every complete model on this machine: embedded, then Hugging Face's cache, then ModelScope's.
    No network.
    """
    return [*_embedded_models(), *huggingface.scan(), *modelscope.scan()]


def _hubs(source: str) -> list[ModuleType]:
    if source == "auto":
        source = os.environ.get("QWENKIT_HUB") or "auto"
    if source not in SOURCES:
        raise OptionError(f"{shown(source)} is no source of models.", f"Use {', '.join(SOURCES)}.")
    return list(_HUBS.values()) if source == "auto" else [_HUBS[source]]


def _offline() -> bool:
    names = ("QWENKIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _local(ref: str | os.PathLike[str]) -> Path | None:
    """The embedded model or the folder that `ref` names, or None. Errors: ModelNotFoundError if it
    cannot be a model.
    """
    text = os.fspath(ref)
    if not text or len(text) > _MAX_PATH or not text.isprintable():
        raise ModelNotFoundError(
            f"{shown(text[:60])} ({len(text)} characters) cannot name a model.",
            "Write a folder or org/name.",
        )
    if isinstance(ref, str) and text in EMBEDDED:
        return _embedded(text)
    path = Path(text).expanduser()
    try:
        exists, is_folder, has_config = (
            path.exists(),
            path.is_dir(),
            (path / "config.json").is_file(),
        )
    except (OSError, RuntimeError) as error:
        raise ModelNotFoundError(
            f"{shown(text)} cannot be looked at: {error}.", "Check its permissions."
        ) from error
    if is_folder and has_config:
        return path
    if is_folder:
        raise ModelNotFoundError(
            f"{shown(text)} is a folder without config.json.",
            "Give a model's folder, or the .gguf file itself.",
        )
    if exists and is_gguf(path):
        return path
    if exists:
        raise ModelNotFoundError(
            f"{shown(text)} is a file.", "Give the folder that holds the model, or a .gguf file."
        )
    if is_gguf(path):
        raise ModelNotFoundError(f"There is no file {shown(text)}.", "Check the path.")
    if text.startswith((".", "/", "~")) or not isinstance(ref, str):
        raise ModelNotFoundError(f"There is no folder {shown(text)}.", "Check the path.")
    return None


def _embedded(name: str) -> Path:
    path = ASSETS / name
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(
            f"This copy of qwenkit lacks its embedded model {name!r} ({path}).",
            "Install it again, or make the model with `make tiny`.",
        )
    return path


def _embedded_models() -> Iterator[CachedModel]:
    for name in EMBEDDED:
        path = ASSETS / name
        if (path / "config.json").is_file():
            yield CachedModel(name, path, "embedded", directory_bytes(path), "embedded")


def _download(ref: ModelRef, hubs: list[ModuleType], progress: Progress | None) -> Path:
    """Try the hubs in turn; only "unreachable" and "no such model" lead on to the next."""
    failures: list[HubError] = []
    for hub in hubs:
        try:
            path: Path = hub.download(ref, progress)
            return path
        except (ModelNotFoundError, OfflineError) as error:
            failures.append(error)
        except StatusError as error:
            if not error.transient:
                raise
            failures.append(OfflineError(error.message, error.remedy))
    if len(failures) == 1 and isinstance(failures[0], OfflineError):
        raise failures[0]
    message = " ".join(error.message for error in failures)
    if all(isinstance(error, ModelNotFoundError) for error in failures):
        raise ModelNotFoundError(message, _advice(ref.repo, failures[0]))
    if all(isinstance(error, OfflineError) for error in failures):
        raise OfflineError(message, failures[0].remedy)
    raise HubError(message, _near(ref.repo) or failures[0].remedy)


def _advice(text: str, error: HubError) -> str:
    """Names near to what was written, or the error's own remedy; and what is there without any
    network.
    """
    return _near(text) or f"{error.remedy or ''} Built in: {' and '.join(EMBEDDED)}."


def _near(text: str) -> str | None:
    """A sentence with published names near to what was written, or None."""
    short = text[:200].partition("@")[0].rpartition("/")[2].casefold()
    names = {name.casefold(): entry.repo for name, entry in FAMILY.items()} | {
        n: n for n in EMBEDDED
    }
    near = difflib.get_close_matches(short, names, n=3, cutoff=0.6)
    if not near or names[near[0]] == text:
        return None
    return f"Did you mean {', '.join(names[name] for name in near)}? `qwenkit family` lists all."
