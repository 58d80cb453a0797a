"""The Triton bodies against the reference: on a GPU where there is one, else in the interpreter.

The interpreter cannot multiply bfloat16 matrices, so without a GPU those run in float16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.model.load import init_model, save_model
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


@pytest.mark.parametrize(
    ("format", "group", "width", "taken"),
    [
        ("int4", 64, 96, True), ("int4", 16, 64, False), ("int4", 24, 48, False),
        ("int8", 16, 64, True), ("int8", 8, 64, False), ("int8", 0, 63, False),
        ("int4", 128, 96, True), ("q8_0", 32, 64, False),
    ],
)  # fmt: skip
def test_weights_that_a_dot_product_cannot_take_are_left_to_the_reference(
    format: str, group: int, width: int, taken: bool
) -> None:
    packed = ops.quantize(draw(4, width).cpu(), format, group_size=group).to(DEVICE)
    assert linear.takes_weight(packed) == taken
    if taken:
        x = draw(3, width)
        close(linear.qlinear(x, packed), x @ ops.dequantize(packed).T)


# Which body an op takes is decided once in a process: whole models get processes of their own.

FORWARD = """
import sys
import torch
from safetensors.torch import save_file
from qwenkit import ops
from qwenkit.engine.kv_cache import KVCache
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.load import load_model
from qwenkit.model.transforms import prepare

folder, out = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
logits = {}
for dtype, quantize in (
    ("float32", None), ("bfloat16", None), ("float32", "int8"), ("bfloat16", "int4"),
):
    model = load_model(folder, dtype, device, quantize=quantize)
    prepare(model)
    cache = KVCache(model.config, 12, 4, dtype=model.dtype, device=device)
    tables = torch.tensor([[3, 7, 1, 0, 9], [2, 5, 0, 0, 0]], dtype=torch.int32, device=device)
    lens = [0, 0]
    for counts in ([9, 3], [1, 1], [3, 1]):  # prefill, decode, a chunk beside decode
        at = [(s, n) for s in (0, 1) for n in range(lens[s], lens[s] + counts[s])]
        lens = [a + b for a, b in zip(lens, counts)]
        s, n = torch.tensor(at, device=device).T
        numbers = (lens, [0, counts[0], sum(counts)])
        context, bounds = (torch.tensor(x, dtype=torch.int32, device=device) for x in numbers)
        slots = tables[s, n // 4].long() * 4 + n % 4
        kv = PagedKV(cache.k, cache.v, slots, tables, context)
        batch = Batch((n * 7 + s) % 96, n.expand(3, -1), bounds, kv)
        with torch.inference_mode():
            logits[f"{dtype} {quantize} {lens[0]}"] = model(batch).cpu()
save_file(logits, out)
print(ops.gpu_backend() if device == "cuda" else ops.backend())
"""
CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    torch_dtype="float32",
    initializer_range=0.1,
)


def child(code: str, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environ}
    return subprocess.run(
        [sys.executable, "-c", code, *argv], env=env, capture_output=True, text=True, timeout=400
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_model(tmp_path: Path) -> None:
    """Prefill, decoding, and a chunk beside decoding, in float32, bfloat16, int8 and int4."""
    save_model(init_model(CONFIG, seed=3), tmp_path)
    logits = {}
    for body in ("triton", "reference"):
        out = str(tmp_path / f"{body}.logits")
        done = child(FORWARD, str(tmp_path), out, QWENKIT_OPS=body)
        assert done.returncode == 0 and done.stdout.strip() == body, done.stderr
        logits[body] = safetensors.torch.load_file(out)
    assert len(logits["triton"]) == 12
    for name, want in logits["reference"].items():
        got = logits["triton"][name]
        bound = (3e-2 if name.startswith("bfloat16") else 1e-4) * float(want.abs().max())
        torch.testing.assert_close(got, want, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_it_is_chosen_for_a_GPU(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, there, chosen in (
        ("auto", True, "triton"), ("auto", False, "torch"), ("cpu", True, "torch"),
        ("reference", True, "reference"), ("triton", True, "triton"),
    ):  # fmt: skip
        monkeypatch.setattr(ops, "_wanted", lambda wanted=wanted: wanted)
        monkeypatch.setattr(ops.triton, "available", lambda there=there: there)
        assert ops.gpu_backend.__wrapped__() == chosen


@pytest.mark.skipif(GPU, reason="on a GPU there is nothing to refuse")
def test_forced_on_the_cpu_it_names_the_remedy() -> None:
    code = (
        "import torch\nfrom qwenkit import ops\nfrom qwenkit.errors import OptionError\n"
        "try:\n    ops.swiglu(torch.ones(1, 2), torch.ones(1, 2))\n"
        "except OptionError as error:\n    print(error)"
    )
    assert "TRITON_INTERPRET=1" in child(code, QWENKIT_OPS="triton", TRITON_INTERPRET="0").stdout
