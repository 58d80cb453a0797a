"""Packed weights: round trips at odd sizes, error bounds, the contract of `Packed`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit import ops
from qwenkit.errors import OptionError
from qwenkit.ops.formats import FORMATS, Packed, dequantize, quantize
from qwenkit.ops.integers import pack_nibbles, unpack_nibbles

GROUPS = (0, 1, 3, 32, 64, 128)
sizes = st.integers(1, 70)


def weight_of(out: int, width: int, seed: int = 0, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * scale


@given(out=sizes, width=sizes, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_nibbles_round_trip(out: int, width: int, seed: int) -> None:
    codes = torch.randint(0, 16, (out, width), generator=torch.Generator().manual_seed(seed))
    packed = pack_nibbles(codes)
    assert packed.shape == (out, (width + 1) // 2) and packed.dtype == torch.uint8
    assert torch.equal(unpack_nibbles(packed, width), codes.to(torch.uint8))
    for i in range(width):
        assert torch.equal(packed[:, i // 2] >> 4 * (i % 2) & 15, codes[:, i].to(torch.uint8))


def by_hand(packed: Packed) -> torch.Tensor:
    """The definition, number by number: w = (code − zero) · scale."""
    out, width = packed.shape
    codes, scales = packed.tensors["codes"], packed.tensors["scales"].float()
    zeros = packed.tensors.get("zeros")
    weight = torch.empty(out, width)
    for o in range(out):
        for i in range(width):
            if packed.format == "int4":
                code, middle = int(codes[o, i // 2]) >> 4 * (i % 2) & 15, 8
            else:
                code, middle = int(codes[o, i]), 0
            group = i // packed.group_size
            zero = middle if zeros is None else int(zeros[o, group])
            weight[o, i] = (code - zero) * scales[o, group]
    order = packed.tensors.get("order")
    if order is None:
        return weight
    straight = torch.empty_like(weight)
    straight[:, order] = weight
    return straight


@given(
    out=st.integers(1, 9),
    width=sizes,
    group=st.sampled_from(GROUPS),
    kind=st.sampled_from((("int4", True), ("int4", False), ("int8", True))),
    ordered=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_integers_are_exact_by_definition(
    out: int, width: int, group: int, kind: tuple[str, bool], ordered: bool
) -> None:
    packed = quantize(weight_of(out, width), kind[0], group_size=group, symmetric=kind[1])
    assert packed.group_size == (group or width)
    assert ("zeros" in packed.tensors) == (not kind[1])
    if ordered:
        order = torch.randperm(width, generator=torch.Generator().manual_seed(1))
        packed = Packed(
            packed.format, packed.shape, {**packed.tensors, "order": order}, packed.group_size
        )
    assert torch.equal(dequantize(packed), by_hand(packed))


@given(width=sizes, group=st.sampled_from(GROUPS), scale=st.sampled_from((1e-9, 0.02, 1.0, 1e6)))
@settings(max_examples=40, deadline=None)
def test_errors_stay_within_half_a_step(width: int, group: int, scale: float) -> None:
    weight = weight_of(5, width, seed=3, scale=scale)
    weight[1] = 0
    for format, symmetric in (("int8", True), ("int4", False)):
        packed = quantize(weight, format, group_size=group, symmetric=symmetric)
        steps = packed.tensors["scales"].float().abs().repeat_interleave(packed.group_size, 1)
        # A float16 scale is off by 2⁻¹¹ of itself, which the code farthest from zero multiplies.
        slack = 0.5 + (128 if format == "int8" else 16) * 2**-11 + (0.5 if not symmetric else 0)
        assert ((dequantize(packed) - weight).abs() <= steps[:, :width] * slack).all()
    plain = weight.abs().amax(1, keepdim=True) / 8
    packed = quantize(weight, "int4", group_size=group)
    assert ((dequantize(packed) - weight).abs() <= 1.6 * plain).all()


def test_symmetric_int4_is_no_worse_than_the_plain_rule() -> None:
    weight = weight_of(64, 256, seed=5)
    grouped = weight.unflatten(1, (-1, 32))
    scale = grouped.gather(2, grouped.abs().argmax(2, keepdim=True)) / -8
    plain = ((grouped / scale).round().clamp(-8, 7) * scale).flatten(1)
    fitted = dequantize(quantize(weight, "int4", group_size=32))
    assert (fitted - weight).square().mean() < (plain - weight).square().mean()


def test_scales_that_float16_cannot_hold_stay_float32() -> None:
    assert quantize(weight_of(2, 32), "int8").tensors["scales"].dtype == torch.float16
    for scale in (1e-9, 1e9):
        tensors = quantize(weight_of(2, 32, scale=scale), "int8").tensors
        assert tensors["scales"].dtype == torch.float32
    zero = quantize(torch.zeros(2, 32), "int4")
    assert not dequantize(zero).any()


@pytest.mark.parametrize("format", ["int4", "int8", "q8_0", "q4_1"])
def test_rows_and_chunks(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of(23, 64)
    whole = quantize(weight, format)
    monkeypatch.setattr("qwenkit.ops.formats._ROWS_AT_ONCE", 64 * 7)
    assert torch.equal(dequantize(quantize(weight, format)), dequantize(whole))
    assert torch.equal(dequantize(whole.rows(slice(3, 9))), dequantize(whole)[3:9])
    index = torch.tensor([22, 0, 0])
    assert torch.equal(dequantize(whole.rows(index)), dequantize(whole)[index])
    assert whole.nbytes == sum(t.numel() * t.element_size() for t in whole.tensors.values())
    assert whole.to("cpu") is whole


@pytest.mark.parametrize("format", ["int4", "int8", "q8_0", "q5_0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qlinear_is_linear_with_the_dequantised_weight(format: str, dtype: torch.dtype) -> None:
    packed = quantize(weight_of(24, 64), format)
    x = weight_of(5, 64, seed=1, scale=1.0).to(dtype).requires_grad_()
    bias = weight_of(1, 24, seed=2)[0].to(dtype)
    y = ops.qlinear(x, packed, bias)
    assert y.shape == (5, 24) and y.dtype == dtype
    expected = x.float() @ dequantize(packed).T + bias.float()
    torch.testing.assert_close(y.float(), expected, atol=2e-2 if dtype != torch.float32 else 1e-5,
                               rtol=0)  # fmt: skip
    y.sum().backward()
    assert x.grad is not None and x.grad.any()


@pytest.mark.parametrize(
    ("format", "options", "words"),
    [
        ("q4_k", {}, "blocks of 256"),
        ("int3", {}, "no format 'int3'"),
        ("q8_0", {"group_size": 64}, "blocks of 32"),
        ("int4", {"group_size": -1}, "group_size is -1"),
    ],
)
def test_what_cannot_be_quantised(format: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        quantize(weight_of(4, 64), format, **options)


def test_a_width_that_is_no_multiple_of_the_block() -> None:
    with pytest.raises(OptionError, match="rows of 33"):
        quantize(weight_of(4, 33), "q8_0")


def test_a_packed_weight_has_what_its_format_says() -> None:
    good = quantize(weight_of(4, 64), "int4", group_size=32)
    for change in (
        {"codes": torch.zeros(4, 31, dtype=torch.uint8)},
        {"scales": torch.zeros(4, 3)},
        {"scales": torch.zeros(4, 2, dtype=torch.bfloat16)},
        {"zeros": torch.zeros(4, 2)},
        {"order": torch.zeros(63, dtype=torch.int64)},
        {"more": torch.zeros(1)},
        {"codes": torch.zeros(32, 4, dtype=torch.uint8).T},
    ):
        with pytest.raises(AssertionError):
            Packed("int4", (4, 64), {**good.tensors, **change}, 32)
    with pytest.raises(AssertionError):
        Packed("q8_0", (4, 64), {"blocks": torch.zeros(4, 67, dtype=torch.uint8)}, 32)
    assert set(FORMATS) >= {"int4", "int8", "q4_0", "q4_k", "q6_k", "q8_0"}
