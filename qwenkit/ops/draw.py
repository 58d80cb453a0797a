"""Choosing tokens on the CPU: a kernel or numpy over the vocabulary, plain Python over the few
candidates that are left. On so few numbers that takes a tenth of the time of small steps in torch.
Contracts stand in `qwenkit.ops`; `reference.sample` is the oracle.

A row without any filter needs no order: its cumulative distribution runs along the token ids (in
the reference along falling probability, so the same number may give another token there; the
distribution is the same). A row with top_p or min_p but without top_k looks at its few most likely
tokens first, and at more only when those are not enough (`HEADS`).
Legend: M rows, V vocab.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from qwenkit.ops import cpu

HEADS = (64, 1024)
FEW = 256
"""Up to so many, the kernel's sorted list is faster than `torch.topk`."""
Array = np.ndarray[Any, np.dtype[Any]]


def sample(
    logits: Tensor,
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    min_p: Sequence[float],
    uniform: Sequence[float],
) -> list[int]:
    """As `reference.sample`."""
    options = zip(temperature, top_k, top_p, min_p, uniform, strict=True)
    with np.errstate(invalid="ignore"):  # a row that is not finite is the caller's to report
        return [_draw(row, *each) for row, each in zip(logits, options, strict=True)]


def _draw(x: Tensor, heat: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    row: Array = x.numpy()
    if heat <= 0:
        return int(row.argmax())
    if 0 < top_k < len(row):
        values, ids = top(x, top_k)
        weights = _weights(values, heat)
        return ids[_invert(weights, math.fsum(weights), top_p, min_p, uniform)]
    if top_p >= 1 and min_p <= 0:
        return _anywhere(row, heat, uniform)
    total = float(np.exp((row - row.max()) / heat).sum(dtype=np.float64))
    for count in (*(count for count in HEADS if count < len(row)), len(row)):
        values, ids = top(x, count)
        weights = _weights(values, heat)
        if math.fsum(weights) >= top_p * total or weights[-1] < min_p * weights[0]:
            break
    return ids[_invert(weights, total, top_p, min_p, uniform)]


def top(x: Tensor, count: int) -> tuple[list[float], list[int]]:
    """A row's largest values in falling order, and their places."""
    fast = count <= FEW and cpu.available() and x.stride(0) == 1
    values, places = cpu.top(x[None], count) if fast else x[None].topk(count)
    return values[0].tolist(), places[0].tolist()


def _weights(values: list[float], heat: float) -> list[float]:
    return [math.exp((value - values[0]) / heat) for value in values]


def _invert(
    weights: Sequence[float], total: float, top_p: float, min_p: float, uniform: float
) -> int:
    """Falling weights, of a distribution that sums to `total`: those outside top_p and min_p are
    cut off, and the cumulative sum of the others is inverted. The first is never cut off.
    """
    limit, least = top_p * total, min_p * weights[0]
    kept, sums = 0.0, list[float]()
    for weight in weights:
        if sums and (kept >= limit or weight < least):
            break
        kept += weight
        sums.append(kept)
    target = uniform * kept
    return next((i for i, value in enumerate(sums) if value > target), len(sums) - 1)


def _anywhere(row: Array, heat: float, uniform: float) -> int:
    """One token of the whole distribution."""
    sums = np.exp((row - row.max()) / heat).cumsum(dtype=np.float64)
    place = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    # Rounding can put the number at the very end; the last token that has any probability is there.
    return min(place, int(np.searchsorted(sums, sums[-1])))
