"""The batch that every forward takes: sequences laid end to end, no padding, no masks, no global
context.

Legend: N tokens, S sequences, K key-value heads, D head dim, B blocks of T slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.model.lora import AdapterRows, LayerParts


@dataclass
class PagedKV:
    """Where this step's keys and values go, and where each sequence's older ones are."""

    k: list[Tensor]
    """One cache for each layer, as in `qwenkit.ops`: (B, T, K, D)."""
    v: list[Tensor]
    slots: Tensor
    """(N) int64: block · T + offset of each new token."""
    block_tables: Tensor
    """(S, most blocks) int32, unused entries anything."""
    context_lens: Tensor
    """(S) int32: tokens of each sequence in the cache once this step's are stored."""


@dataclass
class Batch:
    """One forward's input. `kv is None` means no cache: training, scoring."""

    input_ids: Tensor
    """(N) int64."""
    positions: Tensor
    """(3, N) int64: time, height, width; three equal rows for text."""
    cu_seqlens: Tensor
    """(S + 1) int32: where each sequence starts, and N."""
    kv: PagedKV | None = None
    scaled: Tensor | None = None
    """(N) bool: tokens of sequences that use the scaled RoPE frequencies (YaRN); None when none
    does.
    """
    adapters: AdapterRows = ()
    """The rows that have an adapter, each in one entry at most."""

    def parts(self, layer: int) -> LayerParts:
        """What the adapters add in one decoder layer."""
        return [(rows, adapter.layers[layer]) for rows, adapter in self.adapters]

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> Batch:
        """Pack whole sequences for a forward without cache; positions start at 0 in each."""
        lengths = torch.tensor([len(ids) for ids in sequences])
        flat = torch.tensor([token for ids in sequences for token in ids], dtype=torch.int64)
        positions = torch.cat([torch.arange(int(n)) for n in lengths])
        cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
        return cls(flat, positions.expand(3, -1), cu_seqlens.to(torch.int32)).to(device)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device (without its cache, which has a place of its own)."""
        return Batch(
            self.input_ids.to(device),
            self.positions.to(device),
            self.cu_seqlens.to(device),
            self.kv,
            None if self.scaled is None else self.scaled.to(device),
            [(r if isinstance(r, slice) else r.to(device), own) for r, own in self.adapters],
        )
