"""The Triton bodies against the reference: on a GPU where there is one, else in the interpreter.

The interpreter cannot multiply bfloat16 matrices, so without a GPU those run in float16.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.ops import reference

pytest.importorskip("triton", reason="Triton is not installed")

from qwenkit.ops.triton import attention, elementwise, linear

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DOT_DTYPES = DTYPES if GPU else DTYPES[:2]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative to the largest number: two steps of the dtype, since float32 sums differ in order."""


def close(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    bound = TOLERANCE[got.dtype] * max(1.0, float(want.abs().max()) if want.numel() else 0.0)
    torch.testing.assert_close(got, want, atol=bound, rtol=0)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 896), (3, 33), (0, 16), (2, 3, 40)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype, seed=1)
    close(elementwise.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 333), (0, 8)])
def test_swiglu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate, up = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    close(elementwise.swiglu(gate, up), reference.swiglu(gate, up))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 14, 64), (5, 3, 32), (2, 1, 80), (0, 2, 16)])
def test_rope(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, angle = draw(*shape, dtype=dtype), draw(shape[0], shape[2] // 2, seed=1)
    cos, sin = angle.cos(), angle.sin()
    close(elementwise.rope(x, cos, sin), reference.rope(x, cos, sin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_store_kv(dtype: torch.dtype) -> None:
    k, v = draw(3, 2, 24, dtype=dtype), draw(3, 2, 24, dtype=dtype, seed=1)
    slots = torch.tensor([9, 0, 4], device=DEVICE)
    caches = [torch.zeros(5, 2, 2, 24, dtype=dtype, device=DEVICE) for _ in range(4)]
    elementwise.store_kv(k, v, caches[0], caches[1], slots)
    reference.store_kv(k, v, caches[2], caches[3], slots)
    assert torch.equal(caches[0], caches[2]) and torch.equal(caches[1], caches[3])


@pytest.mark.parametrize("dtype", DOT_DTYPES)
@pytest.mark.parametrize("format, group, symmetric", [
    ("int4", 32, True), ("int4", 128, False), ("int4", 64, True), ("int8", 32, True),
    ("int8", 0, True),
])  # fmt: skip
@pytest.mark.parametrize("m, n, k", [(1, 40, 256), (5, 33, 2048), (70, 96, 128), (0, 8, 128)])
def test_qlinear(
    m: int, n: int, k: int, format: str, group: int, symmetric: bool, dtype: torch.dtype
) -> None:
    packed = ops.quantize(
        draw(n, k, seed=2), format, group_size=group, symmetric=symmetric
    ).to(DEVICE)  # fmt: skip
    x, bias = draw(m, k, dtype=dtype), draw(n, dtype=dtype, seed=1)
    want = x.float() @ ops.dequantize(packed).T + bias.float()
    close(linear.qlinear(x, packed, bias), want.to(dtype))
    close(linear.qlinear(x, packed, None), (want - bias.float()).to(dtype))


def test_qlinear_in_activation_order() -> None:
    packed = ops.quantize(draw(24, 64, seed=2), "int4", group_size=32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    packed = ops.Packed("int4", packed.shape, {**packed.tensors, "order": order}, 32).to(DEVICE)
    x = draw(3, 64)
    close(linear.qlinear(x, packed, None), x @ ops.dequantize(packed).T)


CASES = {
    "one prompt": ([5], [5], 4, 2, 32, 4, None),
    "a chunk, a decode and a prompt": ([40, 7, 33], [20, 1, 33], 6, 2, 16, 16, None),
    "decoding, keys split": ([300, 900], [1, 1], 7, 1, 64, 16, None),
    "window": ([40, 70], [3, 25], 4, 4, 32, 8, 9),
    "decoding in a window": ([600, 70], [1, 1], 4, 2, 32, 16, 100),
    "odd head": ([19, 20], [19, 2], 3, 3, 24, 4, None),
}


@pytest.mark.parametrize("dtype", DOT_DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_paged_attention(
    case: tuple[list[int], list[int], int, int, int, int, int | None], dtype: torch.dtype
) -> None:
    contexts, new, heads, kv_heads, width, size, window = case
    most = max(-(-context // size) for context in contexts)
    blocks = len(contexts) * most + 3
    pages = torch.randperm(blocks, generator=torch.Generator().manual_seed(3))
    tables = pages[: len(contexts) * most].view(len(contexts), most).int().to(DEVICE)
    caches = [draw(blocks, size, kv_heads, width, dtype=dtype, seed=seed) for seed in (4, 5)]
    q = draw(sum(new), heads, width, dtype=dtype)
    bounds = torch.tensor([0, *accumulate(new)], dtype=torch.int32, device=DEVICE)
    lens = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    where = (*caches, tables, lens, bounds, width**-0.5, window)
    close(attention.paged_attention(q, *where), reference.paged_attention(q, *where))


def test_nan_beyond_a_sequence_is_not_read() -> None:
    """The cache is not cleared: what nobody wrote may hold anything."""
    caches = [torch.full((2, 16, 1, 16), torch.nan, device=DEVICE) for _ in range(2)]
    for cache in caches:
        cache[0, :3] = 1.0
    lens = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    bounds = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    tables = torch.tensor([[0, 1]], dtype=torch.int32, device=DEVICE)
    out = attention.paged_attention(draw(1, 1, 16), *caches, tables, lens, bounds, 0.25)
    assert torch.equal(out, torch.ones_like(out))
