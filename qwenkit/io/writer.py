"""Writing safetensors: the same tensors give the same bytes, and a file appears whole or not at
all.

Tensors are laid out by falling item size and then by name, the data starts on a 64-byte boundary,
and metadata says `{"format": "pt"}` unless told otherwise: what the `safetensors` package reads,
and what can be mapped without a copy. Tensors that share memory are written once each; leaving out
tied ones is the caller's choice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from qwenkit.errors import CheckpointError
from qwenkit.io.header import MAX_HEADER_BYTES, shown
from qwenkit.io.index import INDEX_NAME, WEIGHTS_NAME
from qwenkit.io.mapped import TORCH_DTYPES
from qwenkit.utils import atomic_write, fsync_dir, human_bytes, write_json

_FORMAT_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_ALIGNMENT = 64
_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_file(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file atomically. `metadata` defaults to {"format": "pt"}.

    Errors: CheckpointError for a tensor that cannot be stored, and when the disk is full or not
    writable; then `path` is as it was before.
    """
    path = Path(path)
    header, order = _layout(tensors, metadata)
    try:
        with atomic_write(path) as file:
            _write(file, header, [tensors[name] for name in order])
    except OSError as error:
        raise _unwritable(path, tensors, error) from error


def save_sharded(
    tensors: Mapping[str, Tensor],
    directory: str | os.PathLike[str],
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
    *,
    make: Callable[[str], Tensor] | None = None,
) -> list[Path]:
    """Write a checkpoint as shards of at most `max_shard_bytes` data bytes each, and their index;
    return the files.

    With `make`, `tensors` need only have shapes and dtypes (they may be on the meta device), and
    each tensor is made when its shard is written: no more than a shard is in memory.

    Tensors keep the mapping's order; one larger than the bound has a shard of its own; all in one
    shard gives a plain `model.safetensors`. All shards are on the disk before the first takes its
    name, and the index comes last: a crash leaves the old checkpoint, the new one, or in a short
    moment none, but never a mixture. Errors: as `save_file`.
    """
    if max_shard_bytes <= 0:
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}.", "Use a positive number.")
    directory = Path(directory)
    groups = _group(tensors, max_shard_bytes)

    def data(keys: Iterable[str]) -> dict[str, Tensor]:
        return {key: make(key) if make else tensors[key] for key in keys}

    if len(groups) == 1:
        save_file(data(tensors), directory / WEIGHTS_NAME, metadata)
        _remove_old(directory, {WEIGHTS_NAME})
        return [directory / WEIGHTS_NAME]
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    index = {
        "metadata": {"total_size": sum(map(_nbytes, tensors.values()))},
        "weight_map": dict(
            sorted((key, name) for name, keys in zip(names, groups, strict=True) for key in keys)
        ),
    }
    staged = [directory / f".{name}.new" for name in names]
    try:
        try:
            for path, keys in zip(staged, groups, strict=True):
                save_file(data(keys), path, metadata)
            _remove_old(directory, set(names))
            for path, name in zip(staged, names, strict=True):
                os.replace(path, directory / name)
            fsync_dir(directory)
            write_json(directory / INDEX_NAME, index)
        except OSError as error:
            raise _unwritable(directory, tensors, error) from error
    except BaseException:
        for path in staged:
            path.unlink(missing_ok=True)
        raise
    return [directory / name for name in names] + [directory / INDEX_NAME]


def _layout(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> tuple[bytes, Sequence[str]]:
    """The bytes before the data (length and padded header) and the names in the order of the
    data.
    """
    for name, tensor in tensors.items():
        _check(name, tensor)
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, object] = {
        "__metadata__": dict(sorted((metadata or {"format": "pt"}).items()))
    }
    position = 0
    for name in order:
        tensor, begin = tensors[name], position
        position += _nbytes(tensor)
        entries[name] = {
            "dtype": _FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, position],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{len(tensors)} tensors need a header above the format's bound.", "Use save_sharded."
        )
    return len(text).to_bytes(8, "little") + text, order


def _check(name: str, tensor: Tensor) -> None:
    if name == "__metadata__" or not isinstance(name, str):
        raise CheckpointError(f"{shown(name)} cannot name a tensor.", "Rename it.")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{shown(name)} is not valid text.", "Rename the tensor.") from error
    if tensor.dtype not in _FORMAT_NAMES:
        raise CheckpointError(
            f"{name} is {tensor.dtype}, which safetensors cannot hold.", "Convert it first."
        )
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise CheckpointError(
            f"{name} is {tensor.layout} on {tensor.device}: no plain data.", "Make it dense first."
        )


def _write(file: BinaryIO, header: bytes, tensors: Sequence[Tensor]) -> None:
    file.write(header)
    for tensor in tensors:
        if tensor.numel():
            plain = tensor.detach().to("cpu").contiguous().reshape(-1)
            file.write(plain.view(torch.uint8).numpy().data)


def _group(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    room = limit
    for name, tensor in tensors.items():
        size = _nbytes(tensor)
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def _remove_old(directory: Path, keep: set[str]) -> None:
    """Take away the former checkpoint's index first (so that it no longer counts as one), then its
    other files.
    """
    (directory / INDEX_NAME).unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.name not in keep and (
            path.name == WEIGHTS_NAME or _SHARD_NAME.fullmatch(path.name)
        ):
            path.unlink()


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unwritable(path: Path, tensors: Mapping[str, Tensor], error: OSError) -> CheckpointError:
    needed = human_bytes(sum(map(_nbytes, tensors.values())))
    return CheckpointError(
        f"{path} cannot be written: {error.strerror or error}.",
        f"It needs {needed}: free that much, or choose another disk.",
    )
