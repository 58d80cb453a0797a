"""The one seam of the model: whatever maps (N, in) to (N, out) stands where a Linear stands.

A module with `in_features`, `out_features`, `forward(x)` and `dense()` can take its place: packed
weights, low-rank adapters, any stack of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwenkit import ops


class Linear(nn.Module):
    """x (N, in) → x · weightᵀ + bias (N, out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def dense(self) -> Tensor:
        """The weight as a plain (out, in) tensor."""
        return self.weight
