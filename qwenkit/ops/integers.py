"""Weights as 4- and 8-bit integers with a scale for each group: w = (code − zero) · scale.

A row of `in` numbers is cut into groups of `group` neighbours; the last may be shorter. Tensors,
with n = ⌈in / group⌉ groups:

| tensor | int4 | int8 |
|---|---|---|
| `codes` | uint8 (out, ⌈in/2⌉), 0 … 15; input 2i low, 2i + 1 high | int8 (out, in) |
| `scales` | float16 or float32 (out, n) | the same |
| `zeros` | uint8 (out, n), 0 … 16 | int16 (out, n), −128 … 128 |

Without `zeros` every zero is the middle: 8 in int4, 0 in int8. Scales may be negative. `group` = in
means one scale for each output channel. Quantisers here look at the weights alone (round to
nearest).
Legend: O outputs, I inputs, n groups of G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF_LEAST = 2.0**-14
_HALF_MOST = 65504.0


def pack_nibbles(codes: Tensor) -> Tensor:
    """(O, I) integers 0 … 15 → (O, ⌈I/2⌉) uint8; the first of a pair is the low half."""
    codes = codes.to(torch.uint8)
    if codes.shape[1] % 2:
        codes = F.pad(codes, (0, 1))
    return (codes[:, 0::2] | codes[:, 1::2] << 4).contiguous()


def unpack_nibbles(packed: Tensor, width: int) -> Tensor:
    """The inverse of `pack_nibbles`: (O, ⌈width/2⌉) → (O, width) uint8."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :width]


def dequantize_int4(tensors: dict[str, Tensor], width: int, group: int) -> Tensor:
    codes = unpack_nibbles(tensors["codes"], width).float()
    return _rescale(codes, tensors, group, 8)


def dequantize_int8(tensors: dict[str, Tensor], width: int, group: int) -> Tensor:
    return _rescale(tensors["codes"].float(), tensors, group, 0)


def _rescale(codes: Tensor, tensors: dict[str, Tensor], group: int, middle: int) -> Tensor:
    grouped = _grouped(codes, group)  # (O, n, G)
    zeros = tensors.get("zeros")
    offset = middle if zeros is None else zeros.float()[:, :, None]
    scaled = (grouped - offset) * tensors["scales"].float()[:, :, None]
    return scaled.flatten(1)[:, : codes.shape[1]].contiguous()


def _grouped(x: Tensor, group: int) -> Tensor:
    """(O, I) → (O, n, G); a short last group is filled up with zeros."""
    return F.pad(x, (0, -x.shape[1] % group)).reshape(len(x), -1, group)


def quantize_int4(weight: Tensor, group: int, symmetric: bool) -> dict[str, Tensor]:
    grouped, width = _grouped(weight, group), weight.shape[1]
    if symmetric:
        codes, scales = _symmetric_int4(grouped)
        zeros = {}
    else:
        # As in GPTQ's and AWQ's files the zero is a whole code, so 0 must lie in the range.
        least = grouped.amin(2, keepdim=True).clamp(max=0)
        most = grouped.amax(2, keepdim=True).clamp(min=0)
        scales = _storable((most - least) / 15)
        zero = torch.round(-least * _inverse(scales)).clamp(0, 15)
        codes = (torch.round(grouped * _inverse(scales)) + zero).clamp(0, 15)
        zeros = {"zeros": zero[:, :, 0].to(torch.uint8)}
    packed = pack_nibbles(codes.flatten(1)[:, :width])
    return {"codes": packed, "scales": scales[:, :, 0].contiguous(), **zeros}


def _symmetric_int4(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Codes around 8 and scales (O, n, 1).

    The number farthest from 0 gets code 0, the end of the longer side; then the scale becomes the
    one with the least squared error for these codes.
    """
    farthest = grouped.gather(2, grouped.abs().argmax(2, keepdim=True))
    steps = torch.round(grouped * _inverse(farthest / -8)).clamp(-8, 7)
    fit = (grouped * steps).sum(2, keepdim=True) * _inverse(steps.square().sum(2, keepdim=True))
    scales = _storable(fit)
    steps = torch.round(grouped * _inverse(scales)).clamp(-8, 7)
    return steps + 8, scales


def quantize_int8(weight: Tensor, group: int) -> dict[str, Tensor]:
    grouped = _grouped(weight, group)
    scales = _storable(grouped.abs().amax(2, keepdim=True) / 127)
    codes = torch.round(grouped * _inverse(scales)).clamp(-127, 127).to(torch.int8)
    return {
        "codes": codes.flatten(1)[:, : weight.shape[1]].contiguous(),
        "scales": scales[:, :, 0].contiguous(),
    }


def _storable(scales: Tensor) -> Tensor:
    """Scales as float16 where it holds them all with full precision, else as float32."""
    size = scales.abs()
    small = (size > 0) & (size < _HALF_LEAST)
    if bool(small.any()) or bool((size > _HALF_MOST).any()):
        return scales
    return scales.to(torch.float16)


def _inverse(x: Tensor) -> Tensor:
    """1 / x in float32, and 0 for 0."""
    x = x.float()
    return torch.where(x == 0, torch.zeros_like(x), 1 / x)
