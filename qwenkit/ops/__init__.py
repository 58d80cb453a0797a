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
kernels instead keep the weight exact and may round x to 8 bits with a scale for each 32 inputs. It
has a gradient for x and bias, none for the packed weight. `prepack` puts a packed weight in the
order of a kernel. `make_layer` makes one op of a whole decoder layer whose weights no longer
change.

The body is chosen by device and availability and logged once. `QWENKIT_OPS=reference` forces the
oracle. A kernel without a backward is passed over when gradients are needed.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qwenkit.errors import OptionError
from qwenkit.ops import cpu, formats, grouped, layer, reference
from qwenkit.ops.formats import FORMATS, Packed, quantize
from qwenkit.ops.layer import DecoderLayer
from qwenkit.ops.layout import KernelWeight, repack, repack_rows
from qwenkit.ops.reference import sample, token_logprobs

__all__ = [
    "DecoderLayer",
    "FORMATS",
    "KernelWeight",
    "Packed",
    "answers_in_bfloat16",
    "attention",
    "backend",
    "dequantize",
    "linear",
    "make_layer",
    "native_bfloat16",
    "paged_attention",
    "prepack",
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


def answers_in_bfloat16(device: torch.device) -> bool:
    """Whether a model in bfloat16 answers at least as fast as in float32: where the device has
    instructions for it, and where the C++ bodies read half the bytes and multiply in float32.
    """
    return native_bfloat16(device) or (device.type == "cpu" and backend() == "cpu")


def _native(*tensors: Tensor | None) -> bool:
    """Whether the C++ bodies take an op on these tensors: on the CPU, of one dtype, no gradient."""
    given = [x for x in tensors if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return False
    return cpu.takes(*given) and backend() == "cpu"


def prepack(packed: Packed) -> Packed | KernelWeight:
    """The weight as the kernels of its device want it; itself where none takes it. Once, at load.

    `dequantize` and `qlinear` take either; the other one is no longer needed.
    """
    if packed.device.type != "cpu" or backend() != "cpu":
        return packed
    return repack(packed) or packed


def prepack_rows(shape: tuple[int, int], rows: Callable[[slice], Packed]) -> KernelWeight | None:
    """What `prepack` makes of a weight (O, I) whose packed form is never whole in memory:
    `rows(slice)` packs the rows asked for. None where the CPU has no kernel for it.
    """
    return repack_rows(shape, rows) if backend() == "cpu" else None


def make_layer(
    weights: Sequence[KernelWeight | Tensor],
    biases: Sequence[Tensor | None],
    norms: tuple[Tensor, Tensor],
    eps: float,
    heads: tuple[int, int, int],
    scale: float,
    window: int | None = None,
) -> DecoderLayer | None:
    """A decoder layer in one kernel, as in `ops.layer`; None where no kernel takes it."""
    if backend() != "cpu":
        return None
    return layer.make_layer(weights, biases, norms, eps, heads, scale, window)


def dequantize(packed: Packed | KernelWeight) -> Tensor:
    """The weight (out, in) in float32, as the format defines it; inputs in the model's order."""
    return packed.dense() if isinstance(packed, KernelWeight) else formats.dequantize(packed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias."""
    if weight.dtype == torch.bfloat16 == x.dtype and _native(x, weight, bias):
        # Many rows are oneDNN's where the machine multiplies bfloat16 by itself.
        if x.shape[0] < _FEW_ROWS or not native_bfloat16(x.device):
            return cpu.linear(x, weight, bias)
    return reference.linear(x, weight, bias)


_FEW_ROWS = 8


def qlinear(x: Tensor, packed: Packed | KernelWeight, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias of a packed weight."""
    if isinstance(packed, Packed):
        return reference.qlinear(x, packed, bias)
    if _native(x, bias):
        return cpu.qlinear(x, packed, bias)
    return reference.linear(x, packed.dense().to(x.dtype), bias)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su 2021, arXiv 2104.09864), halves rotated."""
    if _native(x) and cos.dtype == torch.float32:
        return cpu.rope(x, cos, sin)
    return reference.rope(x, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202)."""
    if gate.dtype == up.dtype and _native(gate, up):
        return cpu.swiglu(gate, up)
    return reference.swiglu(gate, up)


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Write new keys and values to their slots."""
    store = cpu.store_kv if _native(k, v, k_cache, v_cache) else reference.store_kv
    store(k, v, k_cache, v_cache, slots)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention of each sequence's last positions over what it has in the cache."""
    body = cpu.paged_attention if _native(q, k_cache, v_cache) else reference.paged_attention
    return body(q, k_cache, v_cache, block_tables, context_lens, cu_seqlens, scale, window)


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Causal grouped-query attention within each sequence (Vaswani 2017, arXiv 1706.03762)."""
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    if needs_grad and window is None and backend() != "reference":
        return grouped.attention(q, k, v, cu_seqlens, scale)
    if q.dtype == torch.bfloat16 and not native_bfloat16(q.device) and backend() != "reference":
        wide = reference.attention(q.float(), k.float(), v.float(), cu_seqlens, scale, window)
        return wide.to(q.dtype)
    return reference.attention(q, k, v, cu_seqlens, scale, window)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv 1910.07467) over the last dimension."""
    if x.dtype == weight.dtype and _native(x, weight):
        return cpu.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)
