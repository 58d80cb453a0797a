"""The headers of a GGUF model that may be split into several files. Works without torch.

Parts are named PREFIX-00001-of-0000N.gguf, as llama.cpp's gguf-split writes them. All must be
there, and their numbers, counts and tensors must fit one another. The metadata is that of the first
part.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.config import ModelConfig
from qwenkit.errors import FormatError
from qwenkit.io.gguf_config import config_of
from qwenkit.io.gguf_header import GgufHeader, GgufTensor, gguf_header_of
from qwenkit.io.header import FETCH_AGAIN, open_regular, shown

SUFFIX = ".gguf"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a GGUF file; nothing is opened."""
    return os.fspath(path).lower().endswith(SUFFIX)


@dataclass(frozen=True)
class GgufPart:
    """One file: its header, and what it was when the header was read."""

    path: Path
    header: GgufHeader
    identity: tuple[int, int, int, int]


@dataclass(frozen=True)
class GgufModel:
    """The headers of a whole model. `path` is the first part's."""

    path: Path
    parts: list[GgufPart]

    @property
    def metadata(self) -> dict[str, Any]:
        return self.parts[0].header.metadata

    @property
    def tensors(self) -> dict[str, GgufTensor]:
        """Every tensor by the file's own name."""
        return {name: info for part in self.parts for name, info in part.header.tensors.items()}

    def config(self) -> ModelConfig:
        """The model's configuration. Errors: ConfigError naming the key."""
        return config_of(self.metadata, self.tensors, str(self.path))


def read_gguf(path: str | os.PathLike[str]) -> GgufModel:
    """Read a file's header, or those of all parts of a split one, given any of them.

    Errors: FormatError naming file and field: malformed, truncated, hostile; a part that is absent
    or does not belong to the others.
    """
    path = Path(path)
    match = _PART.fullmatch(path.name)
    if match is None:
        part = _read(path)
        count = part.header.metadata.get("split.count", 1)
        if count not in (0, 1):
            raise FormatError(
                f"{path}: split.count is {shown(count)}, but its name is that of a whole file.",
                "Give it back the name that ends in -00001-of-0000N.gguf.",
            )
        return GgufModel(path, [part])
    count = int(match[3])
    try:
        present = set(os.listdir(path.parent))
    except OSError as error:
        raise FormatError(f"{path} is missing.", FETCH_AGAIN) from error
    names = [f"{match[1]}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    absent = [name for name in names if name not in present]
    if not names or absent:
        first = f", the first {shown(absent[0])}" if absent else ""
        raise FormatError(
            f"{path} is one of {count} parts; {len(absent)} of them are absent{first}.", FETCH_AGAIN
        )
    parts = [_read(path.with_name(name)) for name in names]
    _check(parts)
    return GgufModel(parts[0].path, parts)


def _read(path: Path) -> GgufPart:
    with open_regular(path) as (fd, status):
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return GgufPart(path, gguf_header_of(fd, status.st_size, str(path)), identity)


def _check(parts: list[GgufPart]) -> None:
    """Numbers, counts and names of the parts must fit one another."""
    homes: dict[str, Path] = {}
    total = sum(len(part.header.tensors) for part in parts)
    for index, part in enumerate(parts):
        expected = {"split.no": index, "split.count": len(parts), "split.tensors.count": total}
        for key, value in expected.items():
            found = part.header.metadata.get(key)
            if found != value:
                raise FormatError(
                    f"{part.path}: {key} is {shown(found)}, expected {value}.", FETCH_AGAIN
                )
        for name in part.header.tensors:
            if name in homes:
                raise FormatError(
                    f"{part.path}: tensor {shown(name)} is in {homes[name].name} too.", FETCH_AGAIN
                )
            homes[name] = part.path
