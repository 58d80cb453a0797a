"""The weights of a GGUF file under the model's names.

Matrices stay the file's own bytes, mapped: their modules become `QuantLinear` (and the embedding a
`QuantEmbedding`). Vectors, and matrices of float types, are read as plain tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.io.gguf import Gguf, GgufTensor
from qwenkit.model.names import from_gguf
from qwenkit.ops import FORMATS, Packed

_PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Place:
    """Where a model's tensor is: the file's tensor, and which expert of it."""

    tensor: str
    expert: int | None = None


class GgufWeights:
    """The tensors of an open GGUF file; see `weights.Weights`."""

    def __init__(self, gguf: Gguf, num_experts: int) -> None:
        self.path, self._gguf = gguf.path, gguf
        self._places: dict[str, _Place] = {}
        for tensor, info in gguf.tensors.items():
            name = from_gguf(tensor) or tensor
            many = "{}" in name and len(info.shape) == 3
            if many and info.shape[0] == num_experts:
                for expert in range(num_experts):
                    self._places[name.format(expert)] = _Place(tensor, expert)
            else:
                self._places[name] = _Place(tensor)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._shape(name) for name in self._places}

    def fault(self, name: str) -> str | None:
        info = self._info(name)
        if len(self._shape(name)) < 2 and info.type not in _PLAIN:
            return f"{self._places[name].tensor} is {info.type}, expected a float type"
        return None

    def ignorable(self, name: str) -> bool:
        """Factors of the rotary frequencies that are all 1 change nothing."""
        if name != "rope_freqs.weight" or self._info(name).type != "f32":
            return False
        return bool((self._gguf.blocks(name).clone().view(torch.float32) == 1).all())

    def packed(self, name: str) -> str | None:
        kind = self._info(name).type
        return None if kind in _PLAIN else kind

    def read(self, name: str, rows: slice | None = None) -> Tensor | Packed:
        place, info, shape = self._places[name], self._info(name), self._shape(name)
        blocks = self._gguf.blocks(place.tensor)
        if place.expert is not None:
            blocks = blocks[place.expert]
        if info.type in _PLAIN:
            plain = blocks.view(_PLAIN[info.type]).view(shape)
            return (plain if rows is None else plain[rows]).clone()
        out, width = shape
        spec = FORMATS[info.type]
        whole = Packed(info.type, (out, width), {"blocks": blocks}, spec.block)
        return whole if rows is None else whole.rows(rows)

    def release(self, name: str) -> None:
        self._gguf.release(self._places[name].tensor)

    def _info(self, name: str) -> GgufTensor:
        return self._gguf.tensors[self._places[name].tensor]

    def _shape(self, name: str) -> tuple[int, ...]:
        """As the model has it: the gate of the shared expert is a vector in the file."""
        shape = self._info(name).shape
        if name.endswith("shared_expert_gate.weight") and len(shape) == 1:
            return (1, *shape)
        return shape if self._places[name].expert is None else shape[1:]
