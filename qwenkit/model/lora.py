"""Low-rank adapters (LoRA, Hu 2021, arXiv 2106.09685): y = linear(x) + (x · Aᵀ) · Bᵀ.

An `Adapter` travels with the batch: `Batch.adapters` says which rows have which, and all other rows
get the linear layer alone. The model holds none. So any number of them can be in one forward,
a new one is there as soon as somebody names it, one that nobody holds any more is gone, and what is
beneath (float, int4, GGUF) does not matter. Reading them from files is in `adapter.py`.

Not covered: adapters of embeddings, of the head, of routers and experts. Legend: N tokens, r rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from qwenkit import ops

_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class LowRank:
    """One adapter's part in one linear layer; its scale is in `b`."""

    a: Tensor
    """(r, in)."""
    b: Tensor
    """(out, r)."""

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, in) → (N, out)."""
        return ops.linear(ops.linear(x, self.a), self.b)


@dataclass(frozen=True, eq=False)
class Adapter:
    """The low-rank parts of each decoder layer by the last part of their linear layer's name
    (`q_proj`).
    """

    layers: Sequence[Mapping[str, LowRank]]
    id: int = field(default_factory=lambda: next(_numbers), init=False)
    """No other adapter in this process has it, not even one that is read from the same file."""

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        parts = [part for layer in self.layers for part in layer.values()]
        return sum(part.a.nbytes + part.b.nbytes for part in parts)


Rows = slice | Tensor
"""Which rows of a batch: a slice, or their numbers (N_i) int64, each once."""
AdapterRows = Sequence[tuple[Rows, Adapter]]
LayerParts = Sequence[tuple[Rows, Mapping[str, LowRank]]]
"""The parts of one decoder layer that are in a batch, and the rows of each."""


def adapted(linear: nn.Module, x: Tensor, name: str, parts: LayerParts) -> Tensor:
    """linear(x), and on the rows of each adapter what its part called `name` adds. (N, in) →
    (N, out).
    """
    y: Tensor = linear(x)
    for rows, layer in parts:
        part = layer.get(name)
        if part is None:
            continue
        if isinstance(rows, slice):
            y[rows].add_(part(x[rows]))
        else:
            y.index_add_(0, rows, part(x[rows]))
    return y
