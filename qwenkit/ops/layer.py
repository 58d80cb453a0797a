"""Whole decoder layers in one call of the C++ part, for weights that stay as they are.

    layer = make_layer(weights, biases, norms, eps, …)   # None where the kernels do not take it
    run_layers(layers, x, rotation, caches, slots, block_tables, context_lens, cu_seqlens)

The same as norm, q/k/v, rope, store_kv, paged_attention, o, norm, swiglu of gate and up, and down
one by one, but for roundings in between: here all of it is float32. The call costs microseconds
where the ops one by one cost hundreds for each layer, and threads meet six times in a layer.

Not covered: gradients, layers with experts, weights that are re-ordered by GPTQ's g_idx.
Legend: N tokens, S sequences, H/K query/key-value heads, D head dim, C hidden, F ffn,
B blocks of T slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwenkit.ops import cpu
from qwenkit.ops.layout import KernelWeight

try:
    import qwenkit.ops._cpu as _cpu
except ImportError:  # make_layer gives None then
    if not TYPE_CHECKING:
        _cpu = None


@dataclass(eq=False)
class DecoderLayer:
    """Weights q, k, v, o, gate, up, down with their biases, and what else a layer needs to know.

    `norms` (C) are float32 copies. The weights must neither move nor change while it is in use.
    """

    weights: tuple[KernelWeight | Tensor, ...]
    biases: tuple[Tensor | None, ...]
    norms: tuple[Tensor, Tensor]
    eps: float
    heads: tuple[int, int, int]
    """H, K, D."""
    scale: float
    window: int | None
    _handle: _cpu.Layer | None = field(default=None, repr=False)

    def handle(self) -> _cpu.Layer:
        """The addresses for the kernels; valid while this object lives."""
        if self._handle is None:
            self._handle = self._make()
        return self._handle

    def _make(self) -> _cpu.Layer:
        handles = [
            weight.handle()
            if isinstance(weight, KernelWeight)
            else _cpu.dense_weight(
                weight.shape[0], weight.shape[1], weight.data_ptr(), cpu.DTYPES[weight.dtype]
            )
            for weight in self.weights
        ]
        biases = [0 if bias is None else bias.data_ptr() for bias in self.biases]
        first, second = self.norms
        return _cpu.make_layer(handles, biases, first.data_ptr(), second.data_ptr(), self.eps)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


def make_layer(
    weights: Sequence[KernelWeight | Tensor],
    biases: Sequence[Tensor | None],
    norms: tuple[Tensor, Tensor],
    eps: float,
    heads: tuple[int, int, int],
    scale: float,
    window: int | None = None,
) -> DecoderLayer | None:
    """A `DecoderLayer` of weights (out, in) in that order; None where the kernels cannot do it, or
    where the norms are of a dtype that they do not compute in.
    """
    if not cpu.takes(*norms) or not all(_fits(weight) for weight in weights):
        return None
    return DecoderLayer(
        tuple(weights),
        tuple(None if bias is None else bias.detach().float().contiguous() for bias in biases),
        (norms[0].detach().float().contiguous(), norms[1].detach().float().contiguous()),
        eps,
        heads,
        scale,
        window,
    )


def _fits(weight: KernelWeight | Tensor) -> bool:
    if isinstance(weight, KernelWeight):
        return "order" not in weight.tensors
    return weight.is_contiguous() and cpu.takes(weight)


def run_layers(
    layers: Sequence[DecoderLayer],
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    caches: Sequence[tuple[Tensor, Tensor]],
    slots: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens: Tensor,
) -> Tensor:
    """x (N, C), contiguous, through the layers: changed in place and returned.

    `rotation` is cos and sin (N, D/2) float32; `caches` each layer's k and v (B, T, K, D),
    contiguous, all alike; slots (N) int64; the last three int32, as in `ops.paged_attention`.
    """
    assert x.is_contiguous() and x.dtype in cpu.DTYPES and slots.dtype == torch.int64
    assert rotation[0].dtype == torch.float32 and rotation[0].is_contiguous()
    first, cache = layers[0], caches[0][0]
    assert all(layer.heads == first.heads and layer.scale == first.scale for layer in layers)
    assert all(k.shape == v.shape == cache.shape and k.is_contiguous() for k, v in caches)
    tables = block_tables.contiguous()
    assert tables.dtype == context_lens.dtype == cu_seqlens.dtype == torch.int32
    at = (x, *rotation, slots, tables, context_lens, cu_seqlens)
    _cpu.run_layers(
        [layer.handle() for layer in layers],
        [tensor.data_ptr() for tensor in at],
        [
            (k.data_ptr(), v.data_ptr(), layer.window or 0)
            for layer, (k, v) in zip(layers, caches, strict=True)
        ],
        len(x),
        [len(context_lens), *first.heads, cache.shape[1], tables.shape[1], 0],
        first.scale,
        cpu.DTYPES[x.dtype],
        cpu.CACHE_DTYPES[cache.dtype],
    )
    return x
