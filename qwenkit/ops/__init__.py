"""The one kernel interface: the contract of each op, and the choice of its body.

Legend: N tokens, S sequences, H/K query/key-value heads, D head dim, C hidden, F ffn, V vocab,
B blocks of T slots in the paged cache. Sequences lie end to end (ragged), without padding.

| op | in | out |
|---|---|---|
| `linear` | x (N, in), weight (out, in), bias (out) or None | (N, out) |
| `qlinear` | x (N, in), packed (out, in), bias (out) or None | (N, out), like x |
| `rms_norm` | x (…, C), weight (C), eps | like x; the mean of squares in float32 |
| `swiglu` | gate (N, F), up (N, F) | silu(gate) · up |
| `rope` | x (N, H, D), cos and sin (N, D/2) float32 | like x, halves rotated |
| `attention` | q (N, H, D), k and v (N, K, D), cu_seqlens (S+1), scale, window | (N, H, D) |
| `paged_attention` | q, two caches (B, T, K, D), block_tables, context_lens (S) | (N, H, D) |
| `store_kv` | k and v (N, K, D), two caches, slots (N): block · T + offset | writes the caches |
| `token_logprobs` | logits (N, V), targets (N) | (N) float32 |
| `sample` | logits (S, V) float32; five rows of options (S) | (S) int64 token ids |

`paged_attention` also takes `cu_seqlens`, scale and window. Its queries are the last positions of
their sequence: query i of a sequence with n queries stands at `context_lens - n + i`, and its keys
are already stored. A window of w lets a query see itself and the w − 1 tokens before it. `sample`
takes temperature 0 as greedy, top_k 0 as no limit, and draws by inverting the cumulative
distribution at `uniform` in [0, 1): the same number gives the same token whoever else is in the
batch.

`qlinear` is `linear` with the weight that `formats.dequantize` defines, rounded to x's dtype;
kernels may instead keep the weight exact and the sums in float32. It has a gradient for x and
bias, none for the packed weight.

The body is chosen by device and availability and logged once. `QWENKIT_OPS=reference` forces the
oracle. A kernel without a backward is passed over when gradients are needed.
"""

from __future__ import annotations

import functools
import logging
import os

import torch
from torch import Tensor

from qwenkit.errors import OptionError
from qwenkit.ops import cpu, grouped
from qwenkit.ops.formats import FORMATS, Packed, dequantize, quantize
from qwenkit.ops.reference import attention as _reference_attention
from qwenkit.ops.reference import (
    linear,
    paged_attention,
    qlinear,
    rope,
    sample,
    store_kv,
    swiglu,
    token_logprobs,
)
from qwenkit.ops.reference import rms_norm as _reference_rms_norm

__all__ = [
    "FORMATS",
    "Packed",
    "attention",
    "backend",
    "dequantize",
    "linear",
    "native_bfloat16",
    "paged_attention",
    "qlinear",
    "quantize",
    "rms_norm",
    "rope",
    "sample",
    "store_kv",
    "swiglu",
    "token_logprobs",
]

BACKENDS = ("auto", "reference", "cpu")
_log = logging.getLogger("qwenkit.ops")


@functools.cache
def backend() -> str:
    """The bodies in use: "cpu" (C++ where it exists), "torch" (no C++ part) or "reference". Decided
    once.

    Errors: OptionError when QWENKIT_OPS names no backend, or one that is not built.
    """
    wanted = os.environ.get("QWENKIT_OPS", "auto") or "auto"
    if wanted not in BACKENDS:
        raise OptionError(f"QWENKIT_OPS is {wanted!r}.", f"Use one of {', '.join(BACKENDS)}.")
    if wanted == "cpu" and not cpu.available():
        raise OptionError(
            f"QWENKIT_OPS=cpu, but the C++ part is missing: {cpu.unavailable_reason()}",
            "Install a C++ compiler and reinstall qwenkit.",
        )
    chosen = "cpu" if cpu.available() else "torch"
    if wanted == "reference":
        chosen = wanted
    _log.info("ops on the CPU: %s", chosen)
    return chosen


@functools.cache
def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices at least as fast as float32 ones.

    PyTorch computes bfloat16 on any CPU, but without instructions for it a product takes fifty
    times as long as in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    mkldnn = torch.backends.mkldnn
    if device.type != "cpu" or not mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Causal grouped-query attention within each sequence (Vaswani 2017, arXiv 1706.03762)."""
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    if needs_grad and window is None and backend() != "reference":
        return grouped.attention(q, k, v, cu_seqlens, scale)
    return _reference_attention(q, k, v, cu_seqlens, scale, window)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv 1910.07467) over the last dimension."""
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    fits = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in cpu.DTYPES
    if fits and not needs_grad and backend() == "cpu":
        return cpu.rms_norm(x, weight, eps)
    return _reference_rms_norm(x, weight, eps)
