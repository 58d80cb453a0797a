"""rms_norm, swiglu, rope and store_kv in Triton. Rounding follows `reference.py`.

Legend: N tokens, H/K query/key-value heads, D head dim, C hidden, F ffn.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_STEP = 1024


@triton.jit
def _rms_norm(x, weight, out, cols, eps, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * cols
    at = tl.arange(0, BLOCK)
    inside = at < cols
    value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / cols + eps)
    normal = (value * scale).to(out.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + at, (normal * gain).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    silu = (g / (1.0 + tl.exp(-g))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at, (silu * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rope(x, cos, sin, out, heads, HALF: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, WIDE)[None, :]
    inside = (head < heads) & (d < HALF)
    at = (token * heads + head) * (2 * HALF) + d
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + token * HALF + d, mask=d < HALF, other=0.0)
    s = tl.load(sin + token * HALF + d, mask=d < HALF, other=0.0)
    kind = out.dtype.element_ty
    tl.store(out + at, (first * c - second * s).to(kind), mask=inside)
    tl.store(out + at + HALF, (second * c + first * s).to(kind), mask=inside)


@triton.jit
def _store_kv(k, v, k_cache, v_cache, slots, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    at = tl.arange(0, BLOCK)
    inside = at < width
    kind = k_cache.dtype.element_ty
    key = tl.load(k + token * width + at, mask=inside)
    value = tl.load(v + token * width + at, mask=inside)
    tl.store(k_cache + slot * width + at, key.to(kind), mask=inside)
    tl.store(v_cache + slot * width + at, value.to(kind), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (…, C), weight (C) → like x."""
    x = x.contiguous()
    out = torch.empty_like(x)
    cols = x.shape[-1]
    rows = x.numel() // max(cols, 1)
    if rows:
        _rms_norm[(rows,)](x, weight, out, cols, eps, BLOCK=triton.next_power_of_2(cols))
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up (N, F) → (N, F)."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    if count := gate.numel():
        _swiglu[(triton.cdiv(count, _STEP),)](gate, up, out, count, BLOCK=_STEP)
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (N, H, D), cos and sin (N, D/2) float32 → like x."""
    x = x.contiguous()
    out = torch.empty_like(x)
    tokens, heads, width = x.shape
    half = width // 2
    if tokens:
        _rope[(tokens,)](
            x, cos.contiguous(), sin.contiguous(), out, heads,
            HALF=half, HEADS=triton.next_power_of_2(heads), WIDE=triton.next_power_of_2(half),
        )  # fmt: skip
    return out


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """k and v (N, K, D) into two caches (B, T, K, D) at slots (N)."""
    tokens, heads, width = k.shape
    if tokens:
        size = heads * width
        _store_kv[(tokens,)](
            k.contiguous(), v.contiguous(), k_cache, v_cache, slots, size,
            BLOCK=triton.next_power_of_2(size),
        )  # fmt: skip
