"""Choosing tokens on the CPU: numpy over the vocabulary, plain Python over the few candidates that
are left. On so few numbers that takes a tenth of the time of small steps in torch. Contracts stand
in `qwenkit.ops`; `reference.sample` is the oracle.

A row without any filter needs no order: its cumulative distribution runs along the token ids (in
the reference along falling probability, so the same number may give another token there; the
distribution is the same). A row with top_p or min_p but without top_k looks at its `HEAD` most
likely tokens first, and at all of them only when those are not enough.
Legend: M rows, V vocab.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

HEAD = 256
STRIPES = 64
WIDE = 1 << 15
"""Under this a heap over the row (`torch.topk`) is faster than stripes."""
Array = np.ndarray[Any, np.dtype[Any]]


def argmax(logits: Tensor) -> tuple[list[int], list[float]]:
    """(M, V) → M places and the values there; the first of equals, and the first nan if any."""
    rows = logits.numpy()
    places = [int(row.argmax()) for row in rows]
    return places, [float(row[place]) for row, place in zip(rows, places, strict=True)]


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
        return [_draw(row, *each) for row, each in zip(logits.numpy(), options, strict=True)]


def _draw(row: Array, heat: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    if heat <= 0:
        return int(row.argmax())
    if 0 < top_k < len(row):
        ids = top(row, top_k)
        weights = _weights(row[ids], heat)
        return int(ids[_invert(weights, math.fsum(weights), top_p, min_p, uniform)])
    if top_p >= 1 and min_p <= 0:
        return _anywhere(row, heat, uniform)
    total = float(np.exp((row - row.max()) / heat).sum(dtype=np.float64))
    for count in (min(HEAD, len(row)), len(row)):
        ids = top(row, count)
        weights = _weights(row[ids], heat)
        if math.fsum(weights) >= top_p * total or weights[-1] < min_p * weights[0]:
            break
    return int(ids[_invert(weights, total, top_p, min_p, uniform)])


def top(row: Array, count: int) -> Array:
    """The places (count) of a row's largest values, in falling order.

    In a wide row they lie in the `count` columns with the largest peaks when the row is cut into
    stripes that are laid under each other; finding those is one pass.
    """
    width = len(row) // STRIPES
    if len(row) < WIDE or 4 * count >= width:
        found: Array = torch.from_numpy(row).topk(count)[1].numpy()
        return found
    peaks = row[: width * STRIPES].reshape(STRIPES, width).max(0)
    columns = np.argpartition(peaks, width - count)[width - count :]
    inside = (columns + np.arange(0, width * STRIPES, width)[:, None]).ravel()
    places = np.concatenate((inside, np.arange(width * STRIPES, len(row))))
    places = places[np.argpartition(row[places], len(places) - count)[len(places) - count :]]
    found = places[np.argsort(-row[places], kind="stable")]
    return found


def _weights(values: Array, heat: float) -> list[float]:
    most = float(values[0])
    return [math.exp((value - most) / heat) for value in values.tolist()]


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
