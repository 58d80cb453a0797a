"""Checkpoints in safetensors: named tensors in one file or in shards with an index, mapped, strict,
never pickled.

    with Checkpoint.open("path/to/model") as checkpoint:
        dtype, shape = checkpoint.info("model.norm.weight")
        weight = checkpoint.tensor("model.norm.weight")     # a view of the file
    save_file(tensors, "out/model.safetensors")

`Checkpoint.open` reads and validates every header and holds the index against them; no tensor's
data is read before it is asked for. The single file's format is in `header.py`, the choice of files
in `index.py`, mapping in `mapped.py`, writing in `writer.py`; this module is where other packages
import from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from qwenkit.errors import FormatError
from qwenkit.io.header import FETCH_AGAIN, SafetensorsHeader, TensorInfo, read_header, shown
from qwenkit.io.index import INDEX_NAME, WEIGHTS_NAME, few, find_weights
from qwenkit.io.mapped import TORCH_DTYPES, SafetensorsFile
from qwenkit.io.writer import save_file, save_sharded

__all__ = [
    "INDEX_NAME",
    "TORCH_DTYPES",
    "WEIGHTS_NAME",
    "Checkpoint",
    "SafetensorsFile",
    "SafetensorsHeader",
    "TensorInfo",
    "read_header",
    "save_file",
    "save_sharded",
]


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint directory by name, over all its shards. Also a context manager.

    `checkpoint[name]` is `checkpoint.tensor(name)`, a view of the mapped file; `read` gives a
    private copy that a file truncated meanwhile cannot harm. Tensors outlive `close`.
    """

    def __init__(self, path: Path, files: Mapping[str, SafetensorsFile]) -> None:
        self.path = path
        self._files = dict(files)
        self._owner = {name: file for file in self._files.values() for name in file.keys()}

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """Open `model.safetensors`, or all shards of `model.safetensors.index.json`, and check them
        against the index.

        Errors: FormatError naming the files or tensors: no weights or pickles only, a malformed
        file or index, an absent shard, a shard without a tensor that the index puts there, a tensor
        in two shards or in none of the index.
        """
        directory = Path(directory)
        weights = find_weights(directory)
        files = {name: SafetensorsFile(path) for name, path in weights.shards.items()}
        if weights.weight_map is not None:
            _check_index(weights.weight_map, files, directory / INDEX_NAME)
        return cls(directory, files)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the maps; their pages stay until the last tensor made from them is gone."""
        for file in self._files.values():
            file.close()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._owner:
            raise KeyError(name)
        return self.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def __len__(self) -> int:
        return len(self._owner)

    def __contains__(self, name: object) -> bool:
        return name in self._owner

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(
            info.nbytes for file in self._files.values() for info in file.header.tensors.values()
        )

    def info(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of one tensor, without reading it. Errors: FormatError for an unknown
        name.
        """
        return self._file(name).info(name)

    def tensor(self, name: str) -> Tensor:
        """One tensor as a view of its mapped file. Errors: FormatError, see
        `SafetensorsFile.tensor`.
        """
        return self._file(name).tensor(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """One tensor, or some rows of it, as a private copy. Errors: FormatError, see
        `SafetensorsFile.read`.
        """
        return self._file(name).read(name, rows)

    def verify(self) -> None:
        """Errors: FormatError if a file was replaced, changed or removed since it was opened."""
        for file in self._files.values():
            file.verify()

    def _file(self, name: str) -> SafetensorsFile:
        try:
            return self._owner[name]
        except KeyError:
            raise FormatError(f"{self.path} has no tensor {shown(name)}.", FETCH_AGAIN) from None


def _check_index(
    weight_map: Mapping[str, str], files: Mapping[str, SafetensorsFile], where: Path
) -> None:
    """Every tensor must be in exactly the shard that the index names, and every tensor of a shard
    in the index.
    """
    homes: dict[str, str] = {}
    for shard, file in files.items():
        twice = [name for name in file.keys() if name in homes]
        if twice:
            raise FormatError(
                f"{where}: {few(twice)} stand in both {homes[twice[0]]} and {shard}.", FETCH_AGAIN
            )
        homes.update(dict.fromkeys(file.keys(), shard))
    lacking = [name for name, shard in weight_map.items() if homes.get(name) != shard]
    if lacking:
        shard = weight_map[lacking[0]]
        raise FormatError(
            f"{where} puts {few(lacking)} where they are not (the first in {shard}).", FETCH_AGAIN
        )
    extra = [name for name in homes if name not in weight_map]
    if extra:
        raise FormatError(
            f"{where} does not mention {few(extra)}, which the shards hold.", FETCH_AGAIN
        )
