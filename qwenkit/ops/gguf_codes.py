"""GGUF's integer blocks taken apart for the kernels: whole-number codes here, scales there.

`gguf_blocks.py` says what the bytes mean and turns them into numbers; here nothing is multiplied,
so nothing is rounded. Codes of 4 and 5 bits are not negative, and where a format has no offsets
they count from 8 and 16; codes of 8 bits are signed.
Source: the layouts in ggml-common.h of the llama.cpp project.
Legend: O outputs, I inputs, B blocks of a row, n groups, u units of 16 or 32 inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.ops.gguf_blocks import TYPES


@dataclass(frozen=True)
class Plain:
    """A weight as codes (O, I) and scales (O, n) for `group` inputs each; fine ones (O, u)."""

    bits: int
    codes: Tensor
    halves: bool
    group: int
    scale_kind: str
    scales: Tensor
    offset_kind: str = "none"
    offsets: Tensor | None = None
    fine_scales: Tensor | None = None
    fine_offsets: Tensor | None = None


def read(format: str, blocks: Tensor) -> Plain:
    """blocks uint8 (O, bytes of a row) of a format in `READERS`."""
    cut = blocks.reshape(len(blocks), -1, TYPES[format].block_bytes)  # (O, B, bytes)
    return READERS[format](cut)


def _half(b: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block: (O, B)."""
    return b[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _cut(b: Tensor, size: int) -> Tensor:
    """(O, B, bytes) → (O, B, runs, size)."""
    return b.reshape(*b.shape[:-1], -1, size)


def _nibbles(b: Tensor) -> Tensor:
    return torch.cat((b & 15, b >> 4), dim=-1)


def _pairs(b: Tensor) -> Tensor:
    return torch.cat([b >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)


def _fifths(b: Tensor) -> Tensor:
    """(O, B, 4) → (O, B, 32): bit i of the word as 0 or 16."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (b[..., None] >> shifts & 1).flatten(2) << 4


def _row(x: Tensor) -> Tensor:
    """(O, B, …) → (O, everything)."""
    return x.flatten(1).contiguous()


def _less(codes: Tensor, middle: int) -> Tensor:
    """uint8 codes as int8, counted from `middle`."""
    return codes.view(torch.int8) - middle


def _q4_0(b: Tensor) -> Plain:
    return Plain(4, _row(_nibbles(b[..., 2:])), False, 32, "float16", _half(b, 0))


def _q4_1(b: Tensor) -> Plain:
    codes = _row(_nibbles(b[..., 4:]))
    return Plain(4, codes, False, 32, "float16", _half(b, 0), "float16", _half(b, 2))


def _q5_0(b: Tensor) -> Plain:
    codes = _row(_nibbles(b[..., 6:]) | _fifths(b[..., 2:6]))
    return Plain(5, codes, False, 32, "float16", _half(b, 0))


def _q5_1(b: Tensor) -> Plain:
    codes = _row(_nibbles(b[..., 8:]) | _fifths(b[..., 4:8]))
    return Plain(5, codes, False, 32, "float16", _half(b, 0), "float16", _half(b, 2))


def _q8_0(b: Tensor) -> Plain:
    return Plain(8, _row(b[..., 2:]).view(torch.int8), False, 32, "float16", _half(b, 0))


def _with_minima(
    bits: int, codes: Tensor, halves: bool, d: Tensor, least: Tensor, fine: tuple[Tensor, Tensor]
) -> Plain:
    kind = "super_unsigned"
    return Plain(bits, codes, halves, 256, kind, d, kind, least, _row(fine[0]), _row(fine[1]))


def _q2_k(b: Tensor) -> Plain:
    codes = _row(_pairs(_cut(b[..., 16:80], 32)))
    fine = (b[..., :16] & 15, b[..., :16] >> 4)
    return _with_minima(4, codes, True, _half(b, 80), _half(b, 82), fine)


def _q3_k(b: Tensor) -> Plain:
    high, packed = b[..., :32], b[..., 96:108]
    low = _pairs(_cut(b[..., 32:96], 32)).flatten(2)
    bits = torch.cat([high >> shift & 1 for shift in range(8)], dim=-1)
    codes = _row(low + 4 * bits + 4)  # low − 4 + 4 · bit, counted from 8
    scales = _nibbles(packed[..., :8]) | _pairs(packed[..., 8:]) << 4
    fine = _less(_row(scales), 32)
    return Plain(4, codes, True, 256, "super_signed", _half(b, 108), fine_scales=fine)


def _six_bits(b: Tensor) -> tuple[Tensor, Tensor]:
    first, second, third = b[..., :4], b[..., 4:8], b[..., 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=-1)
    return scales, torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=-1)


def _q4_k(b: Tensor) -> Plain:
    codes = _row(_nibbles(_cut(b[..., 16:], 32)))
    return _with_minima(4, codes, False, _half(b, 0), _half(b, 2), _six_bits(b[..., 4:16]))


def _q5_k(b: Tensor) -> Plain:
    low = _cut(_nibbles(_cut(b[..., 48:], 32)).flatten(2), 32)
    high = torch.stack([b[..., 16:48] >> shift & 1 for shift in range(8)], dim=2)
    codes = _row(low | high << 4)
    return _with_minima(5, codes, False, _half(b, 0), _half(b, 2), _six_bits(b[..., 4:16]))


def _q6_k(b: Tensor) -> Plain:
    low = _nibbles(_cut(b[..., :128], 64))
    high = _pairs(_cut(b[..., 128:192], 32))
    codes = _less(_row(low | high << 4), 32)
    fine = _row(b[..., 192:208]).view(torch.int8)
    return Plain(8, codes, True, 256, "super_signed", _half(b, 208), fine_scales=fine)


READERS: dict[str, Callable[[Tensor], Plain]] = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
