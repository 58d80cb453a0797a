"""The one seam of the model: whatever maps (N, in) to (N, out) stands where a Linear stands.

A module with `in_features`, `out_features`, `forward(x)` and `dense()` can take its place: packed
weights, say. What adapters add to its output is in `lora.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qwenkit import ops
from qwenkit.ops import KernelWeight, Packed


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


class QuantLinear(nn.Module):
    """A `Linear` whose weight stays packed; its bias, if any, is a parameter like a Linear's.

    The packed tensors are no parameters: they have no gradient and no place in a state dict.
    `.to(device)` moves them; `.to(dtype)` leaves them alone.
    """

    def __init__(self, packed: Packed | KernelWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.packed, self.bias = packed, bias

    def forward(self, x: Tensor) -> Tensor:
        return ops.qlinear(x, self.packed, self.bias)

    def dense(self) -> Tensor:
        """The weight as a plain (out, in) float32 tensor, as its format defines it."""
        return ops.dequantize(self.packed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed = _moved(self.packed, fn)
        return self


class QuantEmbedding(nn.Module):
    """An embedding whose rows stay packed: ids (N) → (N, C) of `dtype`.

    A tied head is a `QuantLinear` on the same `Packed`.
    """

    def __init__(self, packed: Packed | KernelWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed, self.dtype = packed, dtype

    def forward(self, ids: Tensor) -> Tensor:
        if isinstance(self.packed, KernelWeight):
            return self.packed.rows(ids, self.dtype)
        return ops.dequantize(self.packed.rows(ids)).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantEmbedding:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed = _moved(self.packed, fn)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


def _moved(packed: Packed | KernelWeight, fn: Callable[[Tensor], Tensor]) -> Packed | KernelWeight:
    """`packed` on the device to which `fn` moves tensors; what `fn` does to dtypes is left out."""
    return packed.to(fn(torch.empty(0, dtype=torch.uint8, device=packed.device)).device)


def is_packed(model: nn.Module) -> bool:
    """Whether any weight of the model is packed: such a model answers, but is not trained."""
    return any(isinstance(module, (QuantLinear, QuantEmbedding)) for module in model.modules())


def prepack(model: nn.Module) -> None:
    """Put every packed weight in the order of its device's kernels, where they have one. Once,
    after loading; a weight that two modules share stays shared. The old form of each goes before
    the next is made.
    """
    holders: dict[int, list[QuantLinear | QuantEmbedding]] = {}
    for module in model.modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)) and isinstance(module.packed, Packed):
            holders.setdefault(id(module.packed), []).append(module)
    for modules in holders.values():
        packed = modules[0].packed
        assert isinstance(packed, Packed)
        ready = ops.prepack(packed)
        for module in modules:
            module.packed = ready
