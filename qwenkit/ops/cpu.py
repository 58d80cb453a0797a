"""The C++ bodies of the ops, for tensors on the CPU and without gradients.

The extension module `_cpu` (csrc/) takes raw pointers, so it needs no PyTorch headers and works
with any version. It picks the best instruction set of the machine when it is imported;
`QWENKIT_ISA` forces a plainer one ("portable", "avx2", "avx512", "avx512vnni"). An install without
a compiler lacks it: `available()` is then false, and `unavailable_reason()` says why.

Ops run on the calling thread and on threads of the extension's own, as many as PyTorch uses when
the first op is asked for; `set_threads` changes that. The GIL is released meanwhile, by
`argmax`, `top` and the rows of an embedding only where there is much to do. Results do not depend
on the number of threads.

Not covered: dtypes outside `DTYPES`, gradients.
Legend: N tokens, S sequences, H/K query/key-value heads, D head dim, B blocks of T slots.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from qwenkit.errors import OptionError
from qwenkit.ops.layout import KernelWeight
from qwenkit.ops.reference import cache_width

try:
    import qwenkit.ops._cpu as _cpu
except ModuleNotFoundError:
    _import_error: str | None = (
        "this install has none (no compiler, or no Python headers, when it was made)"
    )
except ImportError as error:
    _import_error = " ".join(str(error).split())
else:
    _import_error = None

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
CACHE_DTYPES = {**DTYPES, torch.int8: "int8"}


@functools.cache
def available() -> bool:
    """Whether the extension module is built and loads. The first call applies QWENKIT_ISA.

    Errors: OptionError when QWENKIT_ISA names an instruction set that this machine or build lacks.
    """
    if _import_error is not None:
        return False
    wanted = os.environ.get("QWENKIT_ISA", "")
    if wanted:
        if wanted not in _cpu.instruction_sets():
            raise OptionError(
                f"QWENKIT_ISA is {wanted!r}.",
                f"Here it can be: {', '.join(_cpu.instruction_sets())}.",
            )
        _cpu.use_instruction_set(wanted)
    _cpu.set_threads(torch.get_num_threads())
    return True


def unavailable_reason() -> str | None:
    """Why `available()` is false, in one line; None when it is true."""
    return _import_error


def instruction_set() -> str | None:
    """The instruction set in use, "avx2" for instance; None without the extension."""
    return _cpu.instruction_set() if available() else None


def threads() -> int:
    """How many threads an op may use, the caller's included."""
    return _cpu.threads() if available() else 1


def set_threads(count: int) -> None:
    """Change that; PyTorch's own number stays as it is."""
    assert count >= 1 and available(), count
    _cpu.set_threads(count)


def takes(*tensors: Tensor) -> bool:
    """Whether the bodies here compute on these tensors: on the CPU, a dtype of `DTYPES`."""
    return all(x.device.type == "cpu" and x.dtype in DTYPES for x in tensors)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension: x (…, C), weight (C), both of one dtype of `DTYPES`.

    Returns a new tensor like x, contiguous; no gradient flows through it. A view that is not
    contiguous is copied first.
    """
    assert x.dtype in DTYPES and weight.dtype == x.dtype, (x.dtype, weight.dtype)
    assert weight.shape == x.shape[-1:], (weight.shape, x.shape)
    assert x.device.type == weight.device.type == "cpu", (x.device, weight.device)
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    cols = x.shape[-1]
    rows = x.numel() // cols if cols else 0
    _cpu.rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, cols, eps, DTYPES[x.dtype])
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (N, H, D) rotated by cos and sin (N, D/2) float32. A new tensor like x, contiguous."""
    assert x.dtype in DTYPES and cos.dtype == sin.dtype == torch.float32, (x.dtype, cos.dtype)
    n, h, d = x.shape
    assert cos.shape == sin.shape == (n, d // 2) and d % 2 == 0, (x.shape, cos.shape)
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)
    at = (x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr())
    _cpu.rope(*at, n, h, d, DTYPES[x.dtype])
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, both of one shape and dtype. A new tensor, contiguous."""
    assert gate.shape == up.shape and gate.dtype == up.dtype and gate.dtype in DTYPES, gate.shape
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    at = (gate.data_ptr(), up.data_ptr(), out.data_ptr())
    _cpu.swiglu(*at, gate.numel(), DTYPES[gate.dtype])
    return out


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """k and v (N, K, D) into contiguous caches (B, T, K, D), in int8 (B, T, K, D + 4), at slots (N)
    int64.
    """
    assert k.shape == v.shape and k.dtype == v.dtype and k.dtype in DTYPES, (k.shape, v.shape)
    assert k_cache.is_contiguous() and v_cache.is_contiguous() and slots.dtype == torch.int64
    (_, heads, d), width = k.shape, cache_width(k.shape[2], k_cache.dtype)
    assert k_cache.shape == v_cache.shape and k_cache.shape[2:] == (heads, width), k_cache.shape
    k, v, slots = k.contiguous(), v.contiguous(), slots.contiguous()
    _cpu.store_kv(
        k.data_ptr(),
        v.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        slots.data_ptr(),
        len(k),
        heads,
        d,
        DTYPES[k.dtype],
        CACHE_DTYPES[k_cache.dtype],
    )


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
    """q (N, H, D) over contiguous caches (B, T, K, D), in int8 (B, T, K, D + 4); the other three
    int32. Like q.
    """
    assert q.dtype in DTYPES and k_cache.dtype == v_cache.dtype and k_cache.dtype in CACHE_DTYPES
    assert k_cache.is_contiguous() and v_cache.is_contiguous() and k_cache.shape == v_cache.shape
    (_, h, d), (_, t, k, _) = q.shape, k_cache.shape
    width = cache_width(d, k_cache.dtype)
    assert k_cache.shape[3] == width and h % k == 0, (q.shape, k_cache.shape)
    q = q.contiguous()
    numbers = [x.to(torch.int32).contiguous() for x in (block_tables, context_lens, cu_seqlens)]
    out = torch.empty_like(q)
    _cpu.paged_attention(
        q.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        out.data_ptr(),
        numbers[0].data_ptr(),
        numbers[1].data_ptr(),
        numbers[2].data_ptr(),
        [len(context_lens), h, k, d, t, block_tables.shape[1], window or 0],
        scale,
        DTYPES[q.dtype],
        CACHE_DTYPES[k_cache.dtype],
    )
    return out


def argmax(logits: Tensor) -> tuple[list[int], list[float]]:
    """(M, V) float32 with V > 0, rows contiguous → M places and the values there; the first of
    equals, and the first nan if any.
    """
    rows, cols = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1, logits.stride()
    return _cpu.argmax(logits.data_ptr(), logits.stride(0), rows, cols)


def top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(M, V) float32, rows contiguous, V ≥ count > 0 → values and places (M, count) in falling
    order, the first of equals first. nan is left out; -inf at place 0 stands for what is missing.
    """
    rows, cols = logits.shape
    assert logits.dtype == torch.float32 and logits.stride(1) == 1, logits.stride()
    values = torch.empty(rows, count)
    places = torch.empty(rows, count, dtype=torch.int64)
    where = (places.data_ptr(), values.data_ptr())
    _cpu.top(logits.data_ptr(), logits.stride(0), rows, cols, count, *where)
    return values, places


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in) · weightᵀ + bias → (…, out) like x; weight (out, in) contiguous, of `DTYPES`."""
    assert weight.is_contiguous() and weight.dtype in DTYPES, weight.dtype
    rows, cols = weight.shape
    handle = _cpu.dense_weight(rows, cols, weight.data_ptr(), DTYPES[weight.dtype])
    return _linear(x, handle, bias)


def qlinear(x: Tensor, weight: KernelWeight, bias: Tensor | None = None) -> Tensor:
    """x (…, in) against a repacked weight → (…, out) like x. x is rounded to 8 bits by blocks of
    32 inputs, 64 for 4 bits with groups of 64; integer sums are exact, the rest is float32.
    """
    order = weight.tensors.get("order")
    return _linear(x if order is None else x[..., order], weight.handle(), bias)


def _linear(x: Tensor, handle: _cpu.Weight, bias: Tensor | None) -> Tensor:
    assert x.dtype in DTYPES and x.shape[-1] == handle.cols, (x.dtype, x.shape, handle.cols)
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], handle.rows), dtype=x.dtype)
    rows = x.numel() // handle.cols
    bias = None if bias is None else bias.detach().float().contiguous()
    where = 0 if bias is None else bias.data_ptr()
    _cpu.linear(handle, x.data_ptr(), out.data_ptr(), rows, DTYPES[x.dtype], where)
    return out
