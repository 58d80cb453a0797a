"""Blocks of GGUF files against the `gguf` package: bit by bit for reading, and for writing."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from qwenkit.ops.formats import FORMATS, Packed, dequantize, quantize
from qwenkit.ops.gguf_blocks import TYPES

NAMES = list(TYPES)
PLAIN = [name for name in NAMES if not name.endswith("_k")]
K_ERRORS = {"q2_k": 0.28, "q3_k": 0.15, "q4_k": 0.074, "q5_k": 0.037, "q6_k": 0.018}
"""Error of normal numbers over their size, both root mean square: a hundredth above the measured.
The simple types of as many bits: 0.086 (Q4_0), 0.078 (Q4_1), 0.043 (Q5_0), 0.038 (Q5_1).
"""
# Where each type keeps its float16 numbers; random bytes there would mostly be nan or huge.
HALVES = {
    "q8_0": (0,), "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q2_k": (80, 82),
    "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
}  # fmt: skip


def kind_of(name: str) -> Type:
    return Type[name.upper()]


def random_blocks(name: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes, with finite scales: every code and every small scale occurs."""
    rng = np.random.default_rng(seed)
    if name in ("f32", "f16", "bf16"):
        return gguf.quants.quantize(
            rng.standard_normal((rows, blocks), dtype=np.float32), kind_of(name)
        ).view(np.uint8)
    data = rng.integers(0, 256, (rows * blocks, TYPES[name].block_bytes), dtype=np.uint8)
    for at in HALVES[name]:
        halves = (rng.standard_normal(len(data)) * 0.1).astype(np.float16)
        data[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return data.reshape(rows, -1)


def packed(name: str, data: np.ndarray) -> Packed:
    block, size = TYPES[name].block, TYPES[name].block_bytes
    shape = (data.shape[0], data.shape[1] // size * block)
    return Packed(name, shape, {"blocks": torch.from_numpy(data)}, block)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_format(name: str) -> None:
    assert (TYPES[name].block, TYPES[name].block_bytes) == gguf.GGML_QUANT_SIZES[kind_of(name)]
    assert FORMATS[name].block == TYPES[name].block


@pytest.mark.parametrize("name", NAMES)
def test_reading_is_exact(name: str) -> None:
    data = random_blocks(name, rows=37, blocks=9)
    expected = torch.from_numpy(gguf.quants.dequantize(data, kind_of(name)).astype(np.float32))
    found = dequantize(packed(name, data))
    assert found.dtype == torch.float32
    assert torch.equal(bits(found), bits(expected.reshape(found.shape)))


@pytest.mark.parametrize("name", [name for name in NAMES if name in HALVES])
def test_odd_scales_are_exact(name: str) -> None:
    """Zero, negative zero, subnormal and the largest float16 as scales."""
    data = random_blocks(name, rows=4, blocks=1, seed=1)
    odd = np.array([0.0, -0.0, 6e-8, 65504.0], dtype=np.float16).view(np.uint8).reshape(-1, 2)
    for at in HALVES[name]:
        data[:, at : at + 2] = odd
    expected = torch.from_numpy(gguf.quants.dequantize(data, kind_of(name)))
    assert torch.equal(bits(dequantize(packed(name, data))), bits(expected))


@pytest.mark.parametrize("name", PLAIN)
def test_writing_gives_the_same_bytes(name: str) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((33, 96), dtype=np.float32) * np.float32(0.02)
    weight[0] = 0
    weight[1, 32:64] = 0
    expected = gguf.quants.quantize(weight, kind_of(name)).view(np.uint8)
    found = quantize(torch.from_numpy(weight), name).tensors["blocks"]
    assert torch.equal(found, torch.from_numpy(expected).reshape(found.shape))


def relative_error(name: str, weight: Tensor) -> float:
    """Of what the `gguf` package reads in the bytes that are written here."""
    blocks = quantize(weight, name).tensors["blocks"].numpy()
    read = torch.from_numpy(gguf.quants.dequantize(blocks, kind_of(name)).astype(np.float32))
    assert read.isfinite().all()
    return float((read.reshape(weight.shape) - weight).norm() / weight.norm().clamp(min=1e-30))


@pytest.mark.parametrize("name", K_ERRORS)
def test_K_types_round_as_well_as_their_bits_allow(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 1024, generator=generator) * 0.02
    assert relative_error(name, weight) < K_ERRORS[name]
    assert relative_error(name, weight * 1000) < K_ERRORS[name]
    # Numbers of one sign waste half of the codes of the types without offsets.
    assert relative_error(name, weight.abs()) < K_ERRORS[name]
    assert relative_error(name, -weight.abs()) < K_ERRORS[name]


@pytest.mark.parametrize("name", K_ERRORS)
def test_K_types_hold_what_is_easy(name: str) -> None:
    flat = torch.full((1, 512), 0.013)
    assert relative_error(name, torch.zeros(2, 256)) == 0
    assert relative_error(name, flat) < 5e-3 and relative_error(name, -flat) < 5e-3
    lone = torch.zeros(1, 256)
    lone[0, 77] = -3.0
    assert relative_error(name, lone) < 5e-3
    grid = torch.arange(256.0).remainder(4).reshape(1, 256) - 2  # four values, as two bits have
    assert relative_error(name, grid) < 0.03
