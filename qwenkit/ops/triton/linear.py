"""Packed linear in Triton: int4 and int8 codes become numbers in registers, groups get their scale
on the float32 sums.

Codes of 4 and 8 bits are exact in bfloat16 and float16, so a product is as exact as the hardware's
dot product: the scale is applied to the sum of a group and never to the weight. Few rows are bound
by memory: the inputs are then split over several programs, whose partial sums are added in a fixed
order. Legend: M rows of x, N outputs, K inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwenkit.ops.formats import Packed

FORMATS = ("int4", "int8")
_PROGRAMS = 264
"""Programs that fill a large GPU twice; fewer are made more by splitting the inputs."""
_MAX_SPLITS = 16


@triton.jit
def _packed(
    x, codes, scales, zeros, bias, out, M, N, K, groups, per_split,
    GROUP: tl.constexpr, INT4: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    row_in, col_in = rows[:, None] < M, cols < N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    begin = split * per_split
    for start in range(begin, tl.minimum(begin + per_split, K), BLOCK_K):
        group = start // GROUP
        scale = tl.load(scales + cols * groups + group, mask=col_in, other=0.0).to(tl.float32)
        if HAS_ZEROS:
            zero = tl.load(zeros + cols * groups + group, mask=col_in, other=0).to(tl.float32)
        else:
            zero = tl.zeros((BLOCK_N,), tl.float32) + (8.0 if INT4 else 0.0)
        if INT4:
            pair = start // 2 + tl.arange(0, BLOCK_K // 2)
            pair_in = pair < K // 2
            place = x + rows[:, None] * K + 2 * pair[None, :]
            even = tl.load(place, mask=row_in & pair_in[None, :], other=0.0)
            odd = tl.load(place + 1, mask=row_in & pair_in[None, :], other=0.0)
            where = codes + cols[None, :] * (K // 2) + pair[:, None]
            byte = tl.load(where, mask=pair_in[:, None] & col_in[None, :], other=0)
            low = ((byte & 15).to(tl.float32) - zero[None, :]).to(x.dtype.element_ty)
            high = ((byte >> 4).to(tl.float32) - zero[None, :]).to(x.dtype.element_ty)
            part = tl.dot(even, low, input_precision=PRECISION)
            part += tl.dot(odd, high, input_precision=PRECISION)
        else:
            k = start + tl.arange(0, BLOCK_K)
            k_in = k < K
            values = tl.load(
                x + rows[:, None] * K + k[None, :], mask=row_in & k_in[None, :], other=0.0
            )
            where = codes + cols[None, :] * K + k[:, None]
            code = tl.load(where, mask=k_in[:, None] & col_in[None, :], other=0)
            weight = (code.to(tl.float32) - zero[None, :]).to(x.dtype.element_ty)
            part = tl.dot(values, weight, input_precision=PRECISION)
        total += part * scale[None, :]
    if HAS_BIAS:
        if split == 0:
            extra = tl.load(bias + cols, mask=col_in, other=0.0).to(tl.float32)
            total += extra[None, :]
    at = out + (split * M + rows[:, None]) * N + cols[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=row_in & col_in[None, :])


def takes_weight(packed: Packed) -> bool:
    """Whether `qlinear` multiplies by it: a dot product takes 16 codes or more of one group."""
    if packed.format not in FORMATS or packed.shape[1] % 2:
        return False
    least = 32 if packed.format == "int4" else 16
    return _block_k(packed.group_size, packed.shape[1]) >= least


def qlinear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """x (M, K), packed (N, K) that `takes_weight` → (M, N), like x."""
    if x.dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return qlinear(x.float(), packed, bias).to(x.dtype)  # the interpreter has no such product
    m, k = x.shape
    n = packed.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if m == 0:
        return out
    order = packed.tensors.get("order")
    x = (x if order is None else x[:, order]).contiguous()
    block_m = min(max(triton.next_power_of_2(m), 16), 64)
    block_n = 32 if m <= 16 else 64
    block_k = _block_k(packed.group_size, k)
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    steps = triton.cdiv(k, block_k)
    splits = max(1, min(_PROGRAMS // tiles, steps // 4, _MAX_SPLITS))
    per_split = triton.cdiv(steps, splits) * block_k
    splits = triton.cdiv(k, per_split)
    target = out if splits == 1 else out.new_empty((splits, m, n), dtype=torch.float32)
    codes, scales = packed.tensors["codes"], packed.tensors["scales"]
    zeros = packed.tensors.get("zeros")
    _packed[(triton.cdiv(m, block_m), triton.cdiv(n, block_n), splits)](
        x, codes, scales, scales if zeros is None else zeros, scales if bias is None else bias,
        target, m, n, k, scales.shape[1], per_split,
        GROUP=packed.group_size, INT4=packed.format == "int4", HAS_ZEROS=zeros is not None,
        HAS_BIAS=bias is not None, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
    )  # fmt: skip
    return out if splits == 1 else target.sum(0).to(x.dtype)


def _block_k(group: int, k: int) -> int:
    """Inputs of one step: a power of two that never crosses a group's end."""
    if group >= k:
        return 64
    block = group & -group  # the largest power of two that divides the group
    return min(block, 128)
