"""The block formats of GGUF files: bytes to numbers, exactly by definition.

A row of a weight is a run of blocks. A block holds 32 or 256 numbers as small codes with their
scales: w = d · code, w = d · (code − zero) or w = d · code + m, where d and m are float16 (of the
types ending in K: float16 times a small integer for each 16 or 32 numbers). `TYPES` has one row for
each type. Products are rounded to float32 in the order of the definition, so results are the same
bit by bit as ggml's own.

Source: the layouts in ggml-common.h and the loops in ggml-quants.c of the llama.cpp project.
Not covered: the IQ and TQ types, Q8_1 and Q8_K (which no file holds). Writing: `gguf_encode.py`.
Legend: B blocks; E numbers of a block; the blocks of one or many rows as (B, bytes) uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.ops import gguf_encode


@dataclass(frozen=True)
class BlockType:
    """`decode`: (B, block_bytes) uint8 → (B, block) float32; `encode`: back, as near as can be."""

    block: int
    block_bytes: int
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]


def _half(b: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block, (B, 1) float32."""
    return b[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(b: Tensor) -> Tensor:
    """(…, n) → (…, 2n): all low halves, then all high halves."""
    return torch.cat((b & 15, b >> 4), dim=-1)


def _pairs(b: Tensor) -> Tensor:
    """(…, n) → (…, 4n): bits 0–1 of all bytes, then 2–3, 4–5 and 6–7."""
    return torch.cat([b >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)


def _fifth_bits(b: Tensor) -> Tensor:
    """(B, 4) → (B, 32): bit i of the little-endian word, as 0 or 16."""
    shifts = torch.arange(8, dtype=torch.uint8, device=b.device)
    return (b[:, :, None] >> shifts & 1).flatten(1) << 4


def _decode_f32(b: Tensor) -> Tensor:
    return b.contiguous().view(torch.float32)


def _decode_f16(b: Tensor) -> Tensor:
    return b.contiguous().view(torch.float16).float()


def _decode_bf16(b: Tensor) -> Tensor:
    return b.contiguous().view(torch.bfloat16).float()


def _decode_q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:].view(torch.int8).float()


def _decode_q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:]).float() - 8)


def _decode_q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:]).float() + _half(b, 2)


def _decode_q5_0(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])
    return _half(b, 0) * (codes.float() - 16)


def _decode_q5_1(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _half(b, 0) * codes.float() + _half(b, 2)


def _decode_q2_k(b: Tensor) -> Tensor:
    scales, d, least = b[:, :16], _half(b, 80), _half(b, 82)
    codes = _pairs(b[:, 16:80].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    step, base = d * (scales & 15).float(), least * (scales >> 4).float()  # (B, 16)
    return (step[:, :, None] * codes.float() - base[:, :, None]).flatten(1)


def _decode_q3_k(b: Tensor) -> Tensor:
    high, packed, d = b[:, :32], b[:, 96:108], _half(b, 108)
    low = _pairs(b[:, 32:96].reshape(-1, 2, 32)).flatten(1)  # (B, 256)
    bits = torch.cat([high >> shift & 1 for shift in range(8)], dim=1)  # 1: nothing is taken off
    codes = low.float() - (4 - 4 * bits.float())
    scales = _nibbles(packed[:, :8]) | _pairs(packed[:, 8:]) << 4  # (B, 16), six bits
    step = d * (scales.float() - 32)
    return (step[:, :, None] * codes.reshape(-1, 16, 16)).flatten(1)


def _six_bit_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes of Q4_K and Q5_K → eight scales and eight minima, each (B, 8) float32."""
    first, second, third = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=1)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=1)
    return scales.float(), minima.float()


def _scaled_by_32(b: Tensor, codes: Tensor) -> Tensor:
    """codes (B, 8, 32) with the header that Q4_K and Q5_K share."""
    scales, minima = _six_bit_scales(b[:, 4:16])
    step, base = _half(b, 0) * scales, _half(b, 2) * minima
    return (step[:, :, None] * codes.float() - base[:, :, None]).flatten(1)


def _decode_q4_k(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 16:].reshape(-1, 4, 32))  # (B, 4, 64)
    return _scaled_by_32(b, codes.reshape(-1, 8, 32))


def _decode_q5_k(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = b[:, 16:48]
    fifth = torch.stack([high >> shift & 1 for shift in range(8)], dim=1)  # (B, 8, 32)
    return _scaled_by_32(b, codes | fifth << 4)


def _decode_q6_k(b: Tensor) -> Tensor:
    low = _nibbles(b[:, :128].reshape(-1, 2, 64))  # (B, 2, 128)
    high = _pairs(b[:, 128:192].reshape(-1, 2, 32))
    codes = (low | high << 4).float() - 32
    step = _half(b, 208) * b[:, 192:208].view(torch.int8).float()  # (B, 16)
    return (step[:, :, None] * codes.reshape(-1, 16, 16)).flatten(1)


TYPES: dict[str, BlockType] = {
    "f32": BlockType(1, 4, _decode_f32, gguf_encode.encode_f32),
    "f16": BlockType(1, 2, _decode_f16, gguf_encode.encode_f16),
    "bf16": BlockType(1, 2, _decode_bf16, gguf_encode.encode_bf16),
    "q8_0": BlockType(32, 34, _decode_q8_0, gguf_encode.encode_q8_0),
    "q4_0": BlockType(32, 18, _decode_q4_0, gguf_encode.encode_q4_0),
    "q4_1": BlockType(32, 20, _decode_q4_1, gguf_encode.encode_q4_1),
    "q5_0": BlockType(32, 22, _decode_q5_0, gguf_encode.encode_q5_0),
    "q5_1": BlockType(32, 24, _decode_q5_1, gguf_encode.encode_q5_1),
    "q2_k": BlockType(256, 84, _decode_q2_k, gguf_encode.encode_q2_k),
    "q3_k": BlockType(256, 110, _decode_q3_k, gguf_encode.encode_q3_k),
    "q4_k": BlockType(256, 144, _decode_q4_k, gguf_encode.encode_q4_k),
    "q5_k": BlockType(256, 176, _decode_q5_k, gguf_encode.encode_q5_k),
    "q6_k": BlockType(256, 210, _decode_q6_k, gguf_encode.encode_q6_k),
}
