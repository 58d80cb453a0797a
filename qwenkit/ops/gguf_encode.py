"""Numbers to the blocks of GGUF files: the inverse of `gguf_blocks.py`, as near as each type comes.

The plain types round as ggml's own reference code does, byte for byte. The types ending in K choose
a scale (and a least number) for each 16 or 32 numbers by trying some and keeping the one with the
least squared error, round those to their few bits, and then round the numbers with what is stored.
ggml tries other candidates and weighs the errors, so its bytes of these types differ.

Source: the layouts in ggml-common.h of the llama.cpp project; the fit is plain least squares.
Not covered: importance matrices, the IQ and TQ types.
Legend: B blocks, G runs with a scale of their own, n numbers of a run; blocks as (B, bytes) uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TRIES = 9
"""Scales that are tried for a run; twice as many lower the error by less than a hundredth."""


def _as_half(x: Tensor) -> Tensor:
    """(B, 1) float32 → its two bytes as float16, (B, 2)."""
    return x.to(torch.float16).contiguous().view(torch.uint8)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), 1 / x)


def _join_nibbles(codes: Tensor) -> Tensor:
    low, high = codes.to(torch.uint8).chunk(2, dim=-1)
    return low | high << 4


def _join_fifth_bits(codes: Tensor) -> Tensor:
    bits = (codes.to(torch.uint8) >> 4).reshape(-1, 4, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)
    return (bits << shifts).sum(-1, dtype=torch.uint8)


def _round(x: Tensor) -> Tensor:
    """To the nearest integer, halves away from zero, as C's roundf."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))


def encode_f32(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def encode_f16(x: Tensor) -> Tensor:
    return x.to(torch.float16).view(torch.uint8)


def encode_bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).view(torch.uint8)


def encode_q8_0(x: Tensor) -> Tensor:
    d = x.abs().amax(1, keepdim=True) / 127
    codes = _round(x * _inverse(d)).to(torch.int8).view(torch.uint8)
    return torch.cat((_as_half(d), codes), dim=1)


def _signed(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Scale and codes 0 … 2·steps − 1 around `steps`: the number farthest from 0 gets code 0."""
    farthest = x.gather(1, x.abs().argmax(1, keepdim=True))
    d = farthest / -steps
    codes = torch.trunc(x * _inverse(d) + (steps + 0.5)).clamp(0, 2 * steps - 1)
    return d, codes


def _affine(x: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, least number, and codes 0 … top."""
    least = x.amin(1, keepdim=True)
    d = (x.amax(1, keepdim=True) - least) / top
    codes = torch.trunc((x - least) * _inverse(d) + 0.5).clamp(0, top)
    return d, least, codes


def encode_q4_0(x: Tensor) -> Tensor:
    d, codes = _signed(x, 8)
    return torch.cat((_as_half(d), _join_nibbles(codes)), dim=1)


def encode_q4_1(x: Tensor) -> Tensor:
    d, least, codes = _affine(x, 15)
    return torch.cat((_as_half(d), _as_half(least), _join_nibbles(codes)), dim=1)


def encode_q5_0(x: Tensor) -> Tensor:
    d, codes = _signed(x, 16)
    low = torch.remainder(codes, 16)
    return torch.cat((_as_half(d), _join_fifth_bits(codes), _join_nibbles(low)), dim=1)


def encode_q5_1(x: Tensor) -> Tensor:
    d, least, codes = _affine(x, 31)
    low = _join_nibbles(torch.remainder(codes, 16))
    return torch.cat((_as_half(d), _as_half(least), _join_fifth_bits(codes), low), dim=1)


def _signed_runs(x: Tensor, steps: int) -> Tensor:
    """x (B, G, n) → the scales (B, G), of either sign, for codes −steps … steps − 1."""
    farthest = x.gather(2, x.abs().argmax(2, keepdim=True))
    best = torch.zeros_like(farthest)
    gain = torch.full_like(farthest, -1.0)
    for shift in torch.linspace(-0.9, 0.9, _TRIES).tolist():
        codes = _round(x * _inverse(farthest / -(steps + shift))).clamp(-steps, steps - 1)
        product, square = (x * codes).sum(2, keepdim=True), codes.square().sum(2, keepdim=True)
        scale = product * _inverse(square)
        better = product * scale > gain
        best, gain = torch.where(better, scale, best), torch.where(better, product * scale, gain)
    return best[:, :, 0]


def _affine_runs(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """x (B, G, n) → scales and offsets (B, G), neither negative: x ≈ scale · code − offset, codes
    0 … top.
    """
    n = x.shape[2]
    least = x.amin(2, keepdim=True).clamp(max=0)
    range_ = x.amax(2, keepdim=True) - least
    best, base = range_ / top, -least
    error = torch.full_like(least, torch.inf)
    for shift in torch.linspace(-0.9, 0.9, _TRIES).tolist():
        codes = _round((x - least) * _inverse(range_ / (top + shift))).clamp(0, top)
        sum_c, sum_x = codes.sum(2, keepdim=True), x.sum(2, keepdim=True)
        square, product = codes.square().sum(2, keepdim=True), (x * codes).sum(2, keepdim=True)
        scale = (n * product - sum_c * sum_x) * _inverse(n * square - sum_c.square())
        offset = (scale * sum_c - sum_x) / n
        through_zero = offset < 0
        scale = torch.where(through_zero, product * _inverse(square), scale).clamp(min=0)
        offset = offset.clamp(min=0)
        found = (scale * codes - offset - x).square().sum(2, keepdim=True)
        better = found < error
        best, base = torch.where(better, scale, best), torch.where(better, offset, base)
        error = torch.where(better, found, error)
    return best[:, :, 0], base[:, :, 0]


def _in_steps(scales: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Numbers ≥ 0 (B, G) → the step (B, 1) as float16 holds it, and whole numbers 0 … top."""
    d = (scales.amax(1, keepdim=True) / top).half().float()
    return d, _round(scales * _inverse(d)).clamp(0, top)


def _in_signed_steps(scales: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The same for numbers of either sign; the farthest from 0 becomes −steps."""
    farthest = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    d = (farthest / -steps).half().float()
    return d, _round(scales * _inverse(d)).clamp(-steps, steps - 1)


def _affine_blocks(x: Tensor, run: int, top: int, fine: int) -> tuple[Tensor, ...]:
    """x (B, 256) → d, least (B, 1); their multiples for each run (B, G); codes (B, 256)."""
    runs = x.reshape(len(x), -1, run)
    scales, offsets = _affine_runs(runs, top)
    d, scales = _in_steps(scales, fine)
    least, offsets = _in_steps(offsets, fine)
    shifted = runs + (least * offsets)[:, :, None]
    codes = _round(shifted * _inverse(d * scales)[:, :, None]).clamp(0, top)
    parts = (scales, offsets, codes.flatten(1))
    return d, least, *(part.to(torch.uint8) for part in parts)


def _signed_blocks(x: Tensor, steps: int, fine: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, 256) → d (B, 1); its multiples for each 16 (B, 16) int8; codes (B, 256), uint8 from
    `steps`.
    """
    runs = x.reshape(len(x), 16, 16)
    d, scales = _in_signed_steps(_signed_runs(runs, steps), fine)
    codes = _round(runs * _inverse(d * scales)[:, :, None]).clamp(-steps, steps - 1) + steps
    return d, scales.to(torch.int8), codes.flatten(1).to(torch.uint8)


def _join_pairs(codes: Tensor) -> Tensor:
    """(B, 256) numbers of two bits → (B, 64): four runs of 32 share their bytes."""
    first, second, third, fourth = codes.reshape(-1, 2, 4, 32).unbind(2)
    return (first | second << 2 | third << 4 | fourth << 6).flatten(1)


def _join_bits(bits: Tensor) -> Tensor:
    """(B, 256) of 0 or 1 → (B, 32): bit i of the bytes is the run i of 32."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)[:, None]
    return (bits.reshape(-1, 8, 32) << shifts).sum(1, dtype=torch.uint8)


def _join_six_bits(scales: Tensor, offsets: Tensor) -> Tensor:
    """Eight scales and eight offsets 0 … 63 → the 12 bytes of Q4_K and Q5_K."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = offsets[:, :4] | offsets[:, 4:] >> 4 << 6
    return torch.cat((first, second, scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4), dim=1)


def encode_q2_k(x: Tensor) -> Tensor:
    d, least, scales, offsets, codes = _affine_blocks(x, 16, 3, 15)
    return torch.cat(
        (scales | offsets << 4, _join_pairs(codes), _as_half(d), _as_half(least)), dim=1
    )


def encode_q3_k(x: Tensor) -> Tensor:
    d, scales, codes = _signed_blocks(x, 4, 32)
    stored = (scales + 32).view(torch.uint8)
    low = _join_nibbles(stored & 15)
    first, second, third, fourth = (stored >> 4).reshape(-1, 4, 4).unbind(1)
    high = first | second << 2 | third << 4 | fourth << 6
    parts = (_join_bits(codes >> 2), _join_pairs(codes & 3), low, high, _as_half(d))
    return torch.cat(parts, dim=1)


def encode_q4_k(x: Tensor) -> Tensor:
    d, least, scales, offsets, codes = _affine_blocks(x, 32, 15, 63)
    low = _join_nibbles(codes.reshape(-1, 4, 64)).flatten(1)
    return torch.cat((_as_half(d), _as_half(least), _join_six_bits(scales, offsets), low), dim=1)


def encode_q5_k(x: Tensor) -> Tensor:
    d, least, scales, offsets, codes = _affine_blocks(x, 32, 31, 63)
    low = _join_nibbles((codes & 15).reshape(-1, 4, 64)).flatten(1)
    header = (_as_half(d), _as_half(least), _join_six_bits(scales, offsets))
    return torch.cat((*header, _join_bits(codes >> 4), low), dim=1)


def encode_q6_k(x: Tensor) -> Tensor:
    d, scales, codes = _signed_blocks(x, 32, 128)
    low = _join_nibbles((codes & 15).reshape(-1, 2, 128)).flatten(1)
    return torch.cat((low, _join_pairs(codes >> 4), scales.view(torch.uint8), _as_half(d)), dim=1)
