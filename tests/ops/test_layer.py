"""A decoder layer in one kernel against its ops one by one, in every instruction set."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.ops import KernelWeight, cpu, reference
from qwenkit.ops.layer import DecoderLayer, make_layer, run_layers

pytestmark = pytest.mark.skipif(
    not cpu.available(), reason=f"the C++ part is not built: {cpu.unavailable_reason()}"
)
SETS = cpu._cpu.instruction_sets() if cpu.available() else ["portable"]
FORMATS = ["float32", "bfloat16", "int4", "int8", "q8_0", "q4_1", "mixed"]
EPS, SCALE = 1e-6, 0.3


@pytest.fixture(params=SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu._cpu.instruction_set()
    cpu._cpu.use_instruction_set(request.param)
    yield request.param
    cpu._cpu.use_instruction_set(before)


def weight_of(shape: tuple[int, int], format: str) -> KernelWeight | Tensor:
    weight = torch.randn(shape) * shape[1] ** -0.5
    if format in ("float32", "bfloat16"):
        return weight.to(getattr(torch, format))
    ready = ops.prepack(ops.quantize(weight, format, group_size=32))
    assert isinstance(ready, KernelWeight)
    return ready


def layer_of(format: str, c: int, f: int, heads: tuple[int, int, int]) -> DecoderLayer:
    h, k, d = heads
    shapes = [(h * d, c), (k * d, c), (k * d, c), (c, h * d), (f, c), (f, c), (c, f)]
    mixed = ["int4", "bfloat16", "float32", "int8", "float32", "int4", "bfloat16"]
    kinds = mixed if format == "mixed" else [format] * 7
    weights = [weight_of(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
    biases = [torch.randn(shape[0]) * 0.1 if i < 3 else None for i, shape in enumerate(shapes)]
    norms = (torch.rand(c) + 0.5, torch.rand(c) + 0.5)
    layer = make_layer(weights, biases, norms, EPS, heads, SCALE)
    assert layer is not None
    return layer


def test_a_dtype_that_no_kernel_computes_in_is_left_to_the_ops() -> None:
    c = 64
    weights = [weight_of((c, c), "int4") for _ in range(7)]
    for dtype, fused in ((torch.float16, False), (torch.bfloat16, True), (torch.float32, True)):
        norms = (torch.ones(c, dtype=dtype), torch.ones(c, dtype=dtype))
        made = make_layer(weights, [None] * 7, norms, EPS, (2, 2, 32), SCALE)
        assert (made is not None) == fused


def one_by_one(
    layer: DecoderLayer,
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    slots: Tensor,
    where: tuple[Tensor, ...],
) -> Tensor:
    d = layer.heads[2]

    def linear(i: int, x: Tensor) -> Tensor:
        weight, bias = layer.weights[i], layer.biases[i]
        if isinstance(weight, KernelWeight):
            return cpu.qlinear(x, weight, bias)
        return cpu.linear(x, weight, bias)

    normed = cpu.rms_norm(x, layer.norms[0], EPS)
    q, k = (cpu.rope(linear(i, normed).unflatten(1, (-1, d)), *rotation) for i in (0, 1))
    cpu.store_kv(k, linear(2, normed).unflatten(1, (-1, d)), *cache, slots)
    x = x + linear(3, cpu.paged_attention(q, *cache, *where, SCALE).flatten(1))
    normed = cpu.rms_norm(x, layer.norms[1], EPS)
    return x + linear(6, cpu.swiglu(linear(4, normed), linear(5, normed)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(96, 160, (6, 2, 16)), (72, 100, (3, 1, 24))])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_layer(
    isa: str, format: str, shape: tuple[int, int, tuple[int, int, int]], cache_dtype: torch.dtype
) -> None:
    torch.manual_seed(shape[0])
    c, f, heads = shape
    if format.startswith("q") and c % 32:  # blocks of 32 fill their rows
        c, f, heads = 64, 96, (4, 1, 16)
    layer = layer_of(format, c, f, heads)
    for lens, contexts in (([1], [33]), ([1, 7, 1], [5, 7, 40]), ([70], [90])):
        n, blocks = sum(lens), 12
        x = torch.randn(n, c)
        angle = torch.rand(n, heads[2] // 2) * 6
        rotation = (angle.cos(), angle.sin())
        old = [torch.randn(blocks * 3, 8, heads[1], heads[2]) for _ in "kv"]
        packed = cache_dtype == torch.int8
        cache = [reference.pack_rows(x) if packed else x.to(cache_dtype) for x in old]
        tables = torch.randperm(blocks * 3)[: blocks * len(lens)].view(len(lens), blocks).int()
        at = [torch.arange(t - s, t) for s, t in zip(lens, contexts, strict=True)]
        slots = torch.cat([tables[i, p // 8].long() * 8 + p % 8 for i, p in enumerate(at)])
        cu = torch.tensor([0, *lens]).cumsum(0).int()
        where = (tables, torch.tensor(contexts).int(), cu)
        mine = (cache[0].clone(), cache[1].clone())
        expected = one_by_one(layer, x, rotation, (cache[0], cache[1]), slots, where)
        for x_dtype in (torch.float32, torch.bfloat16):
            given = x.to(x_dtype, copy=True)
            got = run_layers([layer], given, rotation, [mine], slots, *where)
            assert got is given and got.dtype == x_dtype
            exact = x_dtype == cache_dtype == torch.float32
            error = (got.float() - expected).abs().max() / expected.abs().max()
            assert error < (1e-5 if exact else 0.02), (lens, x_dtype, error)
            if x_dtype == torch.float32:
                for new, expected_cache in zip(mine, cache, strict=True):
                    rows = reference.unpack_rows(new), reference.unpack_rows(expected_cache)
                    torch.testing.assert_close(*rows, rtol=0.01, atol=0.05 if packed else 1e-4)


def test_several_layers_in_one_call() -> None:
    torch.manual_seed(0)
    heads = (2, 1, 32)
    layers = [layer_of(format, 64, 96, heads) for format in ("int4", "float32", "int4")]
    x, angle = torch.randn(2, 64), torch.rand(2, 16)
    rotation = (angle.cos(), angle.sin())
    where = (
        torch.tensor([4, 5]),
        torch.tensor([[1]], dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32),
        torch.tensor([0, 2], dtype=torch.int32),
    )

    def caches() -> list[tuple[Tensor, Tensor]]:
        return [(torch.zeros(2, 4, 1, 32), torch.zeros(2, 4, 1, 32)) for _ in layers]

    together, alone = caches(), caches()
    got = run_layers(layers, x.clone(), rotation, together, *where)
    for layer, cache in zip(layers, alone, strict=True):
        run_layers([layer], x, rotation, [cache], *where)
    assert torch.equal(got, x)
    for (k, v), (k_alone, v_alone) in zip(together, alone, strict=True):
        assert torch.equal(k, k_alone) and torch.equal(v, v_alone) and bool(k[1].any())


def test_a_copy_has_addresses_of_its_own() -> None:
    layer = layer_of("int4", 64, 96, (2, 1, 32))
    x, angle = torch.randn(1, 64), torch.zeros(1, 16)
    rest = (
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 1, dtype=torch.int32),
        torch.ones(1, dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
    )

    def run(layer: DecoderLayer) -> Tensor:
        cache = (torch.zeros(1, 4, 1, 32), torch.zeros(1, 4, 1, 32))
        return run_layers([layer], x.clone(), (angle.cos(), angle.sin()), [cache], *rest)

    expected = run(layer)
    twin = copy.deepcopy(layer)
    del layer
    assert torch.equal(run(twin), expected)


def test_weights_in_gptq_order_are_left_to_the_ops() -> None:
    weight = weight_of((64, 64), "int4")
    assert isinstance(weight, KernelWeight)
    weight.tensors["order"] = torch.randperm(64)
    ones = (torch.ones(64), torch.ones(64))
    assert make_layer([weight] * 7, [None] * 7, ones, EPS, (2, 2, 32), SCALE) is None


def test_weights_that_make_no_layer_are_refused() -> None:
    layer = layer_of("float32", 64, 96, (2, 1, 32))
    layer.weights = (torch.zeros(64, 60), *layer.weights[1:])
    with pytest.raises(ValueError, match="do not make a layer"):
        layer._make()
