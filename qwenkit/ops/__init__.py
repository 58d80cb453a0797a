"""The one kernel interface: the contract of each op, and the choice of its body.

Legend: N tokens, S sequences, H/K query/key-value heads, D head dim, C hidden, F ffn, V vocab,
B blocks of T slots in the paged cache. Sequences lie end to end (ragged), without padding.

| op | in | out |
|---|---|---|
| `linear` | x (N, in), weight (out, in), bias (out) or None | (N, out) |
| `head` | x (N, in), weight (out, in) | (N, out) float32 |
| `qlinear` | x (N, in), packed (out, in), bias (out) or None | (N, out), like x |
| `rms_norm` | x (…, C), weight (C), eps | like x; the mean of squares in float32 |
| `swiglu` | gate (N, F), up (N, F) | silu(gate) · up |
| `rope` | x (N, H, D), cos and sin (N, D/2) float32 | like x, halves rotated |
| `attention` | q (N, H, D), k and v (N, K, D), cu_seqlens (S+1), scale, window | (N, H, D) |
| `paged_attention` | q, two caches (B, T, K, D), block_tables, context_lens (S) | (N, H, D) |
| `store_kv` | k and v (N, K, D), two caches, slots (N): block · T + offset | writes the caches |
| `token_logprobs` | logits (N, V), targets (N) | (N) float32 |
| `argmax` | logits (S, V) float32 | S places, and the values there; nan counts as the largest |
| `sample` | logits (S, V) float32; five lists of options (S) | S token ids, as a list |

A cache (B, T, K, D) has any floating dtype, or it is int8 and (B, T, K, D + 4): D codes and the
four bytes of their float32 scale, for each token and head (`reference.pack_rows`).

`paged_attention` also takes `cu_seqlens`, scale and window. Its queries are the last positions of
their sequence: query i of a sequence with n queries stands at `context_lens - n + i`, and its keys
are already stored. A window of w lets a query see itself and the w − 1 tokens before it. `sample`
takes temperature 0 as greedy, top_k 0 as no limit, and draws by inverting the cumulative
distribution at `uniform` in [0, 1): the same number gives the same token whoever else is in the
batch.

`qlinear` is `linear` with the weight that `formats.dequantize` defines, rounded to x's dtype;
kernels instead keep the weight exact and may round x to 8 bits with a scale for each 32 or 64
inputs. It has a gradient for x and bias, none for the packed weight. `prepack` puts a packed weight
in the order of a kernel. `make_layer` makes one op of a whole decoder layer whose weights no longer
change; `run_layers` runs several.

The body is chosen by device and availability and logged once: C++ on the CPU, Triton on a GPU.
`QWENKIT_OPS=reference` forces the oracle, `cpu` and `triton` one of the others (Triton on the CPU
only in its interpreter, under TRITON_INTERPRET=1). A kernel without a backward is passed over when
gradients are needed. The choice may depend on the number of rows, and libraries add up in another
order for another number; within `batch_invariant` neither happens.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwenkit.errors import OptionError
from qwenkit.ops import cpu, draw, formats, grouped, layer, reference, triton
from qwenkit.ops.formats import FORMATS, Packed, quantize
from qwenkit.ops.layer import DecoderLayer, run_layers
from qwenkit.ops.layout import KernelWeight, repack, repack_rows
from qwenkit.ops.reference import cache_width, token_logprobs

__all__ = [
    "DecoderLayer",
    "FORMATS",
    "KernelWeight",
    "Packed",
    "answers_in_bfloat16",
    "argmax",
    "attention",
    "backend",
    "batch_invariant",
    "cache_width",
    "dequantize",
    "gpu_backend",
    "head",
    "linear",
    "make_layer",
    "native_bfloat16",
    "paged_attention",
    "prepack",
    "qlinear",
    "quantize",
    "rms_norm",
    "rope",
    "run_layers",
    "sample",
    "store_kv",
    "swiglu",
    "token_logprobs",
]

BACKENDS = ("auto", "reference", "cpu", "triton")
_log = logging.getLogger("qwenkit.ops")


@functools.cache
def _wanted() -> str:
    """What QWENKIT_OPS names. Errors: OptionError when it is no backend, or is not there."""
    wanted = os.environ.get("QWENKIT_OPS", "auto") or "auto"
    if wanted not in BACKENDS:
        raise OptionError(f"QWENKIT_OPS is {wanted!r}.", f"Use one of {', '.join(BACKENDS)}.")
    if wanted == "cpu" and not cpu.available():
        raise OptionError(
            f"QWENKIT_OPS=cpu, but the C++ part is missing: {cpu.unavailable_reason()}",
            "Install a C++ compiler and reinstall qwenkit.",
        )
    if wanted == "triton" and not triton.available():
        raise OptionError(
            f"QWENKIT_OPS=triton, but Triton is missing: {triton.unavailable_reason()}",
            "pip install 'triton>=3.4,<4'",
        )
    return wanted


@functools.cache
def backend() -> str:
    """The bodies for tensors on the CPU: "cpu" (C++ where it exists), "torch" (no C++ part),
    "reference", or "triton" in its interpreter. Decided once.

    Errors: OptionError when QWENKIT_OPS names no backend, or one that is not there.
    """
    chosen = wanted = _wanted()
    if wanted == "triton" and not triton.interpreted():
        raise OptionError(
            "QWENKIT_OPS=triton, but the model is on the CPU.",
            "Use --device cuda, or set TRITON_INTERPRET=1 for Triton's slow interpreter.",
        )
    if wanted == "auto":
        chosen = "cpu" if cpu.available() else "torch"
    _log.info("ops on the CPU: %s", chosen)
    return chosen


@functools.cache
def gpu_backend() -> str:
    """The bodies for tensors on a CUDA device: "triton" where it is installed, "torch" or
    "reference". Decided once. Errors as `backend`.
    """
    chosen = wanted = _wanted()
    if wanted in ("auto", "cpu"):
        chosen = "triton" if wanted == "auto" and triton.available() else "torch"
    _log.info("ops on the GPU: %s", chosen)
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


class _Mode(threading.local):
    invariant = False


_mode = _Mode()


@contextlib.contextmanager
def batch_invariant() -> Iterator[None]:
    """Within it, on this thread, what an op computes for a row (in attention: for a sequence) is
    the same to the last bit whatever other rows are there. The C++ bodies are made so; an op on
    tensors that they do not take is an OptionError instead of a near miss.
    """
    before, _mode.invariant = _mode.invariant, True
    try:
        yield
    finally:
        _mode.invariant = before


def _body(*tensors: Tensor | None) -> Any:
    """The module whose bodies take an op on these tensors: `cpu`, `triton` or `reference`."""
    given = [x for x in tensors if x is not None]
    body = _chosen(given)
    if _mode.invariant and body is not cpu:
        kinds = ", ".join(sorted({f"{x.dtype} on {x.device}" for x in given}))
        raise OptionError(
            f"Results that do not depend on the batch need the C++ kernels, not here: {kinds}.",
            "Use the CPU, float32 or bfloat16, and an install with the C++ part.",
        )
    return body


def _chosen(given: list[Tensor]) -> Any:
    device = given[0].device.type
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if gradient or device not in ("cpu", "cuda"):
        return reference
    chosen = backend() if device == "cpu" else gpu_backend()
    if chosen == "cpu" and cpu.takes(*given):
        return cpu
    return triton if chosen == "triton" and triton.takes(*given) else reference


def _cached(cache: Tensor, *tensors: Tensor) -> Any:
    """`_body` of an op on a cache; int8 is a cache's dtype and no op's, and Triton's takes none."""
    if cache.dtype != torch.int8:
        return _body(cache, *tensors)
    body = _body(*(x for x in tensors if x.dtype != torch.int8))
    return reference if body is triton else body


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
    if norms[0].device.type != "cpu" or backend() != "cpu":
        return None
    return layer.make_layer(weights, biases, norms, eps, heads, scale, window)


def dequantize(packed: Packed | KernelWeight) -> Tensor:
    """The weight (out, in) in float32, as the format defines it; inputs in the model's order."""
    return packed.dense() if isinstance(packed, KernelWeight) else formats.dequantize(packed)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias."""
    if (weight.dtype == x.dtype or _mode.invariant) and _body(x, weight, bias) is cpu:
        # Many rows are left to PyTorch's libraries where those are faster.
        library = weight.dtype == torch.float32 or native_bfloat16(x.device)
        if _mode.invariant or not library or x.shape[0] <= _FEW_ROWS[weight.dtype]:
            return cpu.linear(x, weight, bias)
    return reference.linear(x, weight, bias)


_FEW_ROWS = {torch.bfloat16: 7, torch.float32: 16}


def head(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ in float32, whatever the two are: logits rounded to bfloat16 would tie."""
    few = x.dtype != torch.float32 or x.shape[0] <= _FEW_ROWS[x.dtype]
    if _body(x, weight) is cpu and (few or _mode.invariant):
        return cpu.linear(x.float(), weight)
    return reference.linear(x, weight).float()


def qlinear(x: Tensor, packed: Packed | KernelWeight, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias of a packed weight."""
    body = _body(x, bias)
    if isinstance(packed, KernelWeight) and body is cpu:
        return cpu.qlinear(x, packed, bias)
    if _mode.invariant:
        raise OptionError(
            "Results that do not depend on the batch need a kernel for the packed weight.",
            "Load the model with LLM or `prepack`, in a format that has one.",
        )
    if isinstance(packed, Packed):
        if body is triton and triton.takes_weight(packed):
            return triton.qlinear(x, packed, bias)
        return reference.qlinear(x, packed, bias)
    return reference.linear(x, packed.dense().to(x.dtype), bias)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su 2021, arXiv 2104.09864), halves rotated."""
    body = _body(x) if cos.dtype == torch.float32 else reference
    out: Tensor = body.rope(x, cos, sin)
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202)."""
    body = _body(gate, up) if gate.dtype == up.dtype else reference
    out: Tensor = body.swiglu(gate, up)
    return out


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Write new keys and values to their slots."""
    _cached(k_cache, k, v, v_cache).store_kv(k, v, k_cache, v_cache, slots)


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
    body = _cached(k_cache, q, v_cache)
    if body is triton and q.shape[2] > triton.MAX_HEAD_DIM:
        body = reference
    where = (block_tables, context_lens, cu_seqlens, scale, window)
    out: Tensor = body.paged_attention(q, k_cache, v_cache, *where)
    return out


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Causal grouped-query attention within each sequence (Vaswani 2017, arXiv 1706.03762)."""
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    if needs_grad and window is None and _wanted() != "reference":
        return grouped.attention(q, k, v, cu_seqlens, scale)
    if q.dtype == torch.bfloat16 and not native_bfloat16(q.device) and _wanted() != "reference":
        wide = reference.attention(q.float(), k.float(), v.float(), cu_seqlens, scale, window)
        return wide.to(q.dtype)
    return reference.attention(q, k, v, cu_seqlens, scale, window)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv 1910.07467) over the last dimension."""
    body = _body(x, weight) if x.dtype == weight.dtype else reference
    out: Tensor = body.rms_norm(x, weight, eps)
    return out


def argmax(logits: Tensor) -> tuple[list[int], list[float]]:
    """The place of each row's largest value, and that value."""
    if logits.device.type == "cpu" and backend() == "cpu" and logits.stride(1) == 1:
        return cpu.argmax(logits)
    peaks, places = logits.max(-1)  # nan counts as the largest
    return places.tolist(), peaks.tolist()


def sample(
    logits: Tensor,
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    min_p: Sequence[float],
    uniform: Sequence[float],
) -> list[int]:
    """One token for each row, by inverting the cumulative distribution at `uniform`."""
    if logits.device.type == "cpu" and backend() != "reference":
        return draw.sample(logits, temperature, top_k, top_p, min_p, uniform)
    given = torch.tensor((temperature, top_p, min_p, uniform), dtype=torch.float32)
    heat, keep, floor, at = given.to(logits.device)
    limits = torch.tensor(top_k, dtype=torch.int64).to(logits.device)
    tokens: list[int] = reference.sample(logits, heat, limits, keep, floor, at).tolist()
    return tokens
