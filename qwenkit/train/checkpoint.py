"""Checkpoints that survive `kill -9` at any moment: complete and verified, or not there.

Order of a save: every file is written into a temporary directory and fsynced, the manifest with
their SHA-256 comes last, the directory is fsynced, renamed to `step-00000042`, and its parent
fsynced. Only then are older checkpoints removed, by renaming first. Loading takes the newest
directory whose every byte matches its manifest and says aloud when it passes one over. Tensors are
safetensors, the rest is JSON; nothing is ever unpickled.

Two trainers cannot share an output directory (`OutputLock`, released by the kernel when the process
dies).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from qwenkit.errors import CheckpointError, QwenkitError, TrainError
from qwenkit.io.safetensors import SafetensorsFile, save_file
from qwenkit.train.tokenise import file_digest
from qwenkit.utils import fsync_dir, read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})$")
_log = logging.getLogger("qwenkit.train")


class OutputLock:
    """Holds an output directory for one trainer. Errors: TrainError when another one has it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / ".lock"
        self._fd: int | None = None

    def __enter__(self) -> OutputLock:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise TrainError(
                f"{self._path.parent} is in use by another training run.",
                "Wait for it, or choose another output_dir.",
            ) from None
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def save_checkpoint(
    root: Path,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `root/step-…` with one safetensors file for each group and `state` as JSON, then keep
    the newest `keep`.

    Errors: TrainError (full disk, permissions) with nothing left behind and older checkpoints
    untouched.
    """
    target = root / f"step-{step:08d}"
    temporary = root / f".tmp-{target.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in groups.items():
            save_file(tensors, temporary / f"{name}.safetensors")
        write_json(temporary / STATE, {"format": FORMAT, "step": step, **state})
        files = {
            path.name: {"size": path.stat().st_size, "sha256": file_digest(path)}
            for path in _files(temporary)
        }
        write_json(temporary / MANIFEST, {"files": files})
        fsync_dir(temporary)
        if target.exists():  # a damaged one that was passed over on resuming
            _remove(target)
        os.rename(temporary, target)
        fsync_dir(root)
        rotate(root, keep)
    except (OSError, CheckpointError) as error:
        raise TrainError(
            f"The checkpoint of step {step} could not be written: {error}.",
            f"Free space, then run the same command again; older checkpoints in {root} are whole.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories, newest first, verified or not."""
    found = [path for path in root.iterdir() if _NAME.match(path.name)] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def rotate(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what earlier crashes left."""
    for path in list_checkpoints(root)[max(1, keep) :]:
        _remove(path)
    clean(root)


def clean(root: Path) -> None:
    """Remove temporary and half-deleted directories. Only under the lock."""
    for path in root.glob(".tmp-*") if root.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None when every byte matches its manifest."""
    try:
        files = read_json(path / MANIFEST)["files"]
        if {p.name for p in _files(path)} != {*files, MANIFEST}:
            return "files are missing or left over"
        for name, entry in files.items():
            size, digest = entry["size"], entry["sha256"]
            if (path / name).stat().st_size != size or file_digest(path / name) != digest:
                return f"{name} does not match its digest"
    except (QwenkitError, OSError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is unreadable ({error})"
    return None


def newest_checkpoint(root: Path) -> Path | None:
    """The newest complete checkpoint, None when there is none at all.

    Damaged ones are passed over with a warning. Errors: TrainError when all that exist are damaged.
    """
    found = list_checkpoints(root)
    for path in found:
        problem = verify(path)
        if problem is None:
            return path
        _log.warning("checkpoint %s is damaged, trying the one before: %s", path, problem)
    if found:
        raise TrainError(
            f"Every checkpoint in {root} is damaged.", "Delete them, or set resume: never."
        )
    return None


def load_state(path: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint. Errors: TrainError for another format version."""
    state = read_json(path / STATE)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainError(
            f"{path} has another checkpoint format.", "Resume with the version that wrote it."
        )
    return state


def load_tensors(path: Path, group: str) -> dict[str, Tensor]:
    """One group of tensors, copied out of the file."""
    with SafetensorsFile(path / f"{group}.safetensors") as file:
        return {name: file.tensor(name).clone() for name in file.keys()}


def check_fingerprint(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, allow_changes: bool
) -> None:
    """Refuse to resume when what decides the result has changed. It names each change."""
    keys = sorted(saved.keys() | current.keys())
    changes = [key for key in keys if _plain(saved.get(key)) != _plain(current.get(key))]
    if not changes:
        return
    text = "; ".join(
        f"{key} was {saved.get(key)!r}, is {current.get(key)!r}" for key in changes[:6]
    )
    if not allow_changes:
        raise TrainError(
            f"The checkpoint belongs to another run: {text}.",
            "Undo the change, choose another output_dir, or set allow_changes: true.",
        )
    _log.warning("resuming although the run changed: %s", text)


def rng_tensors() -> dict[str, Tensor]:
    """The global random states as tensors: torch's (CPU, each GPU) and Python's."""
    version, words, _ = random.getstate()
    assert version == 3
    tensors = {"torch": torch.get_rng_state(), "python": torch.tensor(words, dtype=torch.int64)}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def load_rng_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Put back what `rng_tensors` gave; GPUs that are not here are passed over."""
    torch.set_rng_state(tensors["torch"])
    random.setstate((3, tuple(tensors["python"].tolist()), None))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file())


def _remove(path: Path) -> None:
    """Renamed first: a directory that is half deleted must not look like a checkpoint."""
    trash = path.with_name(f".tmp-removed-{path.name}")
    shutil.rmtree(trash, ignore_errors=True)
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _plain(value: Any) -> Any:
    """As it looks after a round trip through JSON."""
    return json.loads(json.dumps(value))
