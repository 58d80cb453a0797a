"""Packed weights in the kernels' layout: the exact way back, and products in every instruction
set.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwenkit import ops
from qwenkit.ops import cpu, layout
from qwenkit.ops.formats import Packed, dequantize, quantize
from qwenkit.ops.gguf_blocks import TYPES
from qwenkit.ops.layout import KernelWeight

pytestmark = pytest.mark.skipif(
    not cpu.available(), reason=f"the C++ part is not built: {cpu.unavailable_reason()}"
)
SETS = cpu._cpu.instruction_sets() if cpu.available() else ["portable"]
HALVES = {  # where the blocks of each format have float16 numbers
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q8_0": [0],
    "q2_k": [80, 82],
    "q3_k": [108],
    "q4_k": [0, 2],
    "q5_k": [0, 2],
    "q6_k": [208],
}
INTEGERS = [(32, True), (64, True), (128, True), (0, True), (32, False), (128, False), (16, False)]


@pytest.fixture(params=SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu._cpu.instruction_set()
    cpu._cpu.use_instruction_set(request.param)
    yield request.param
    cpu._cpu.use_instruction_set(before)


def random_blocks(format: str, out: int, width: int) -> Packed:
    """Any bytes, with scales of a sane size."""
    kind = TYPES[format]
    blocks = torch.randint(0, 256, (out * width // kind.block, kind.block_bytes)).to(torch.uint8)
    for at in HALVES[format]:
        halves = (torch.rand(len(blocks), 1) * 0.02 - 0.01).half()
        blocks[:, at : at + 2] = halves.view(torch.uint8)
    return Packed(format, (out, width), {"blocks": blocks.reshape(out, -1)}, kind.block)


def random_integers(bits: int, out: int, width: int, group: int, zeros: bool) -> Packed:
    """Every code there is, -128 among them; zeros up to the end of their range."""
    group = group or width
    count = -(-width // group)
    scales = torch.rand(out, count) * 0.02 - 0.01
    if bits == 4:
        codes = torch.randint(0, 256, (out, -(-width // 2))).to(torch.uint8)
        extra = {"zeros": torch.randint(0, 17, (out, count)).to(torch.uint8)} if zeros else {}
    else:
        codes = torch.randint(-128, 128, (out, width)).to(torch.int8)
        extra = {"zeros": torch.randint(-128, 129, (out, count)).short()} if zeros else {}
    return Packed(f"int{bits}", (out, width), {"codes": codes, "scales": scales, **extra}, group)


def inputs_of_a_scale(weight: KernelWeight) -> int:
    """How many inputs the kernels round with one scale."""
    plain = weight.kinds[0] in (layout.SCALE_KINDS["float32"], layout.SCALE_KINDS["float16"])
    return 64 if weight.bits == 4 and plain and weight.group % 64 == 0 else 32


def rounded(x: Tensor, step: int) -> Tensor:
    """x as the kernels see it: 8 bits with a scale for each `step` inputs."""
    wide = torch.nn.functional.pad(x, (0, -x.shape[1] % step)).reshape(len(x), -1, step)
    most = wide.abs().amax(2, keepdim=True)
    codes = torch.round(wide * torch.where(most > 0, 127 / most, 0))
    return (codes * (most / 127)).reshape(len(x), -1)[:, : x.shape[1]]


def activations(rows: int, width: int, step: int) -> Tensor:
    """Random numbers whose 8-bit codes do not hang on the last bit of a product."""
    blocks = -(-width // step)
    codes = torch.randint(-127, 128, (rows, blocks, step)).float()
    codes[:, :, 0] = 127
    return (codes * torch.rand(rows, blocks, 1) / 64).reshape(rows, -1)[:, :width]


def assert_product(packed: Packed, rows: int) -> None:
    weight = layout.repack(packed)
    assert weight is not None
    exact = dequantize(packed)
    assert torch.equal(weight.dense(), exact)
    step = inputs_of_a_scale(weight)
    x, bias = activations(rows, packed.shape[1], step), torch.randn(packed.shape[0])
    seen = rounded(x, step).double()
    expected = seen @ exact.double().T + bias
    # float32 sums: relative to the sizes that are added
    limit = (seen.abs() @ exact.double().abs().T + bias.abs()) * 3e-6 + 1e-6
    # K types subtract one large number from another; what they add is larger than the weight
    limit = limit * (30 if packed.format.endswith("_k") or "zeros" in packed.tensors else 1)
    got = cpu.qlinear(x, weight, bias)
    assert got.shape == expected.shape and bool(((got - expected).abs() <= limit).all())


@pytest.mark.parametrize("rows", [1, 2, 7, 19])
@pytest.mark.parametrize("format", HALVES)
def test_gguf_formats(isa: str, format: str, rows: int) -> None:
    torch.manual_seed(rows)
    for out, width in ((1, 256), (19, 512)):
        assert_product(random_blocks(format, out, width), rows)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(("group", "symmetric"), INTEGERS)
@pytest.mark.parametrize("bits", [4, 8])
def test_integer_formats(isa: str, bits: int, group: int, symmetric: bool, rows: int) -> None:
    torch.manual_seed(rows)
    for out, width in ((5, 128), (24, 200), (33, 33), (8, 16), (3, 1)):
        assert_product(random_integers(bits, out, width, group, not symmetric), rows)


@pytest.mark.parametrize("rows", [3, 8, 29])
@pytest.mark.parametrize(
    ("bits", "group", "zeros"), [(4, 64, False), (4, 128, True), (8, 32, False)]
)
def test_long_rows(isa: str, bits: int, group: int, zeros: bool, rows: int) -> None:
    """Longer than what the kernels take at once, with an odd number of blocks."""
    torch.manual_seed(rows)
    assert_product(random_integers(bits, 21, 32 * 67, group, zeros), rows)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 128)])
def test_a_row_is_the_same_whatever_others_are_there(isa: str, bits: int, group: int) -> None:
    torch.manual_seed(4)
    weight = layout.repack(random_integers(bits, 40, 32 * 39, group, False))
    assert weight is not None
    x = torch.randn(21, 32 * 39)
    alone = torch.cat([cpu.qlinear(row[None], weight) for row in x])
    for rows in (2, 5, 8, 9, 16, 21):
        assert torch.equal(cpu.qlinear(x[:rows], weight), alone[:rows])


@settings(max_examples=25, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    out=st.integers(1, 40),
    width=st.integers(1, 300),
    group=st.sampled_from([0, 16, 32, 48, 64, 128, 256]),
    zeros=st.booleans(),
    rows=st.integers(1, 12),
)
def test_any_shape(bits: int, out: int, width: int, group: int, zeros: bool, rows: int) -> None:
    torch.manual_seed(out * 1000 + width)
    assert_product(random_integers(bits, out, width, group, zeros), rows)


@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_four_bit_numbers_do_not_overflow(isa: str, code: int, sign: int) -> None:
    for zeros in (False, True):
        tensors = {
            "codes": torch.full((8, 64), code, dtype=torch.uint8),
            "scales": torch.ones(8, 2),
        }
        extra = {"zeros": torch.zeros(8, 2, dtype=torch.uint8)} if zeros else {}
        weight = layout.repack(Packed("int4", (8, 128), {**tensors, **extra}, 64))
        assert weight is not None
        got = cpu.qlinear(torch.full((9, 128), 127.0 * sign), weight)
        value = (code & 15) - (0 if zeros else 8)
        assert torch.equal(got, torch.full((9, 8), 128.0 * 127 * sign * value))


def test_the_largest_numbers_do_not_overflow(isa: str) -> None:
    for code, sign in ((-128, 1), (-128, -1), (127, 1), (127, -1)):
        tensors = {
            "codes": torch.full((8, 64), code, dtype=torch.int8),
            "scales": torch.ones(8, 2),
        }
        weight = layout.repack(Packed("int8", (8, 64), tensors, 32))
        assert weight is not None
        got = cpu.qlinear(torch.full((1, 64), 127.0 * sign), weight)
        assert torch.equal(got, torch.full((1, 8), 64.0 * 127 * sign * code))


def test_bfloat16_in_and_out(isa: str) -> None:
    torch.manual_seed(0)
    weight = layout.repack(quantize(torch.randn(50, 96), "int8", group_size=32))
    assert weight is not None
    x = activations(6, 96, 32).bfloat16()
    got = cpu.qlinear(x, weight, torch.ones(50, dtype=torch.bfloat16))
    expected = rounded(x.float(), 32) @ weight.dense().T + 1
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-4)


def test_order_of_inputs(isa: str) -> None:
    torch.manual_seed(1)
    packed = random_integers(4, 20, 64, 32, True)
    order = torch.randperm(64)
    packed = Packed("int4", (20, 64), {**packed.tensors, "order": order}, 32)
    weight = layout.repack(packed)
    assert weight is not None and torch.equal(weight.dense(), dequantize(packed))
    x = torch.empty(3, 64).index_copy_(1, order, activations(3, 64, 32))
    expected = rounded(x[:, order], 32) @ dequantize(packed)[:, order].T
    torch.testing.assert_close(cpu.qlinear(x, weight), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_spoils_its_row_alone(isa: str, bad: float) -> None:
    torch.manual_seed(2)
    weight = layout.repack(quantize(torch.randn(9, 64), "int4", group_size=32))
    assert weight is not None
    x = torch.randn(5, 64)
    clean = cpu.qlinear(x, weight)
    x[2, 40] = bad
    got = cpu.qlinear(x, weight)
    keep = [0, 1, 3, 4]
    assert got[2].isnan().all() and torch.equal(got[keep], clean[keep])


def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads(isa: str) -> None:
    torch.manual_seed(3)
    weight = layout.repack(quantize(torch.randn(1000, 256), "int4", group_size=64))
    assert weight is not None
    x, before = torch.randn(21, 256), cpu.threads()
    together = cpu.qlinear(x, weight)
    assert torch.equal(together, torch.cat([cpu.qlinear(row[None], weight) for row in x]))
    try:
        cpu.set_threads(5)
        assert torch.equal(together, cpu.qlinear(x, weight))
        cpu.set_threads(1)
        assert torch.equal(together, cpu.qlinear(x, weight))
    finally:
        cpu.set_threads(before)


EMBEDDINGS = [
    *((name, lambda name=name: random_blocks(name, 30, 256)) for name in HALVES),
    *((f"int{n}", lambda n=n: random_integers(n, 30, 80, 16, False)) for n in (4, 8)),
    ("odd", lambda: quantize(torch.randn(30, 100), "int8", group_size=32)),
    ("zeros", lambda: random_integers(4, 30, 64, 32, True)),
]


@pytest.mark.parametrize("make", [make for _, make in EMBEDDINGS], ids=[n for n, _ in EMBEDDINGS])
def test_rows_of_an_embedding(isa: str, make: Callable[[], Packed]) -> None:
    torch.manual_seed(4)
    packed = make()
    weight = layout.repack(packed)
    assert weight is not None
    ids, exact = torch.tensor([29, 0, 7, 7, 16, 8]), dequantize(packed)
    assert torch.equal(weight.dense(ids), exact[ids])
    for dtype in (*cpu.DTYPES, torch.float16):
        assert torch.equal(weight.rows(ids, dtype), exact[ids].to(dtype))
        assert weight.rows(ids[:0], dtype).shape == (0, packed.shape[1])


def test_a_row_that_is_not_there_is_an_error() -> None:
    weight = layout.repack(quantize(torch.randn(9, 64), "int8", group_size=32))
    assert weight is not None
    for bad in (-1, 9):
        with pytest.raises(IndexError, match="no such row"):
            weight.rows(torch.tensor([0, bad]), torch.float32)


def test_formats_without_a_kernel_stay_as_they_are() -> None:
    packed = quantize(torch.randn(4, 100), "int4", group_size=20)
    assert layout.repack(packed) is None and ops.prepack(packed) is packed
    half = quantize(torch.randn(4, 100), "f16")
    assert ops.prepack(half) is half


def test_qlinear_has_a_gradient_for_x() -> None:
    weight = ops.prepack(quantize(torch.randn(6, 32), "int8", group_size=32))
    x = torch.randn(2, 32, requires_grad=True)
    ops.qlinear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, ops.dequantize(weight).sum(0).expand(2, -1))


def test_it_is_copied_and_refuses_another_width() -> None:
    weight = layout.repack(quantize(torch.randn(6, 32), "int8", group_size=32))
    assert isinstance(weight, KernelWeight) and weight.nbytes > 0
    x = torch.randn(1, 32)
    first = cpu.qlinear(x, weight)
    assert torch.equal(cpu.qlinear(x, copy.deepcopy(weight)), first)
    other = KernelWeight(**{**weight.__getstate__(), "lanes": 24 - weight.lanes})
    with pytest.raises(ValueError, match="another instruction set"):
        cpu.qlinear(x, other)
