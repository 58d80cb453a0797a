"""GGUF files: metadata, and tensors as views of the mapped file.

    with Gguf.open("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf") as gguf:
        gguf.metadata["general.architecture"]                # "qwen2"
        gguf.tensors["token_embd.weight"]                    # type, shape, place
        gguf.blocks("blk.0.attn_q.weight")                   # uint8 (out, bytes of a row)

`open` reads and validates the header, and those of the other parts of a split file, before anything
is mapped (`gguf_header.py`, `gguf_parts.py`). `config()` says which model it is (`gguf_config.py`);
the tokenizer is read in `prompt/tokenizer_gguf.py`. The map is private and its pages are read when
touched, so a file larger than memory opens at once; it must not be changed while it is in use, and
`blocks` tells if it was.

Source: docs/gguf.md in the ggml project.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from qwenkit.config import ModelConfig
from qwenkit.errors import FormatError
from qwenkit.io.gguf_header import GgufTensor
from qwenkit.io.gguf_parts import SUFFIX, GgufModel, GgufPart, is_gguf, read_gguf
from qwenkit.io.header import FETCH_AGAIN, open_regular, shown
from qwenkit.io.mapped import MappedFile

__all__ = ["SUFFIX", "Gguf", "GgufModel", "GgufTensor", "is_gguf", "read_gguf"]


class GgufFile(MappedFile):
    """One mapped file. Errors of the constructor: FormatError if it is no longer what was read."""

    def __init__(self, part: GgufPart) -> None:
        with open_regular(part.path) as (fd, status):
            super().__init__(part.path, fd, status)
            self._identity = part.identity
            self._compare(status)


class Gguf:
    """A GGUF model, whole or split. Also a context manager; tensors outlive `close`."""

    def __init__(self, model: GgufModel) -> None:
        """Map what `read_gguf` has read. Errors: FormatError."""
        self.path: Path = model.path
        self.metadata: dict[str, Any] = model.metadata
        self.tensors: dict[str, GgufTensor] = model.tensors
        self._model = model
        self._files = [GgufFile(part) for part in model.parts]
        self._owner = {
            name: file
            for part, file in zip(model.parts, self._files, strict=True)
            for name in part.header.tensors
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Gguf:
        """Open a file, or all parts of a split one. Errors: FormatError, see `read_gguf`."""
        return cls(read_gguf(path))

    def __enter__(self) -> Gguf:
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
        for file in self._files:
            file.close()

    def config(self) -> ModelConfig:
        """The model's configuration. Errors: ConfigError naming the key."""
        return self._model.config()

    def blocks(self, name: str) -> Tensor:
        """A tensor's bytes, uint8 (…, bytes of a row), a view of the map.

        Errors: FormatError for an unknown name, or a file that changed since it was opened.
        """
        if name not in self._owner:
            raise FormatError(f"{self.path} has no tensor {shown(name)}.", FETCH_AGAIN)
        info, file = self.tensors[name], self._owner[name]
        file.verify()
        return file.view(info.begin, info.nbytes).view(*info.shape[:-1], -1)

    def release(self, name: str) -> None:
        """Give the memory of a tensor's pages back; its views read the file again when used."""
        info = self.tensors[name]
        self._owner[name].release(info.begin, info.nbytes)
