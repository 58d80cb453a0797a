"""Drawing on the CPU against the reference, and each row by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.ops import draw, reference


def logits(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def options(rows: int, **values: float) -> list[list[Any]]:
    """temperature, top_k, top_p, min_p and a different uniform for each row."""
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **values}
    columns = [[given[k]] * rows for k in ("temperature", "top_k", "top_p", "min_p")]
    return [*columns, [(i + 0.5) / rows for i in range(rows)]]


@pytest.mark.parametrize("width", [5, 64, 300, 6001])
@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_k": 20},
        {"top_k": 20, "top_p": 0.7, "min_p": 0.05},
        {"top_k": 1000, "temperature": 0.4},
        {"top_p": 0.5},
        {"top_p": 0.999, "temperature": 5.0},  # more than the head holds
        {"min_p": 0.1},
        {"min_p": 1e-9, "temperature": 5.0},
        {"top_p": 1e-9},
    ],
)
def test_filtered_rows_are_drawn_as_the_reference_draws(
    width: int, values: dict[str, float]
) -> None:
    if values.get("top_k", 0) >= width:
        pytest.skip("no filter at all: another order")
    x = logits(200, width)
    found = draw.sample(x, *options(200, **values))
    expected = reference.sample(x, *map(torch.tensor, options(200, **values))).tolist()
    # The reference sums in float32: a number next to a border may fall to the neighbour.
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= (2 if width > 1000 else 0)


def test_unfiltered_rows_follow_the_distribution() -> None:
    x = logits(1, 50).expand(20_000, -1)
    tokens = draw.sample(x, *options(20_000, temperature=2.0))
    found = torch.bincount(torch.tensor(tokens), minlength=50) / 20_000
    assert (found - (x[0] / 2).softmax(-1)).abs().max() < 2e-4


def test_numbers_at_both_ends_draw_tokens_that_have_a_probability() -> None:
    x = torch.full((2, 1000), -torch.inf)
    x[:, 300:600] = 0.0
    columns = options(2)
    columns[4] = [0.0, 1 - 2**-24]
    assert draw.sample(x, *columns) == [300, 599]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70_000), st.integers(1, 400), st.integers(0, 9), st.booleans())
def test_top_is_the_beginning_of_the_sorted_row(
    width: int, count: int, seed: int, ties: bool
) -> None:
    row = logits(1, width, seed)[0]
    if ties:
        row = row.round()
    count = min(count, width)
    values, places = draw.top(row, count)
    assert len(set(places)) == count
    assert row[places].tolist() == values == sorted(row.tolist(), reverse=True)[:count]


def test_a_spoilt_row_does_not_stop_the_others() -> None:
    x = logits(8, 500)
    clean = draw.sample(x, *options(8, top_k=20))
    for bad in (torch.nan, torch.inf, -torch.inf):
        for values in ({"top_k": 20}, {"top_p": 0.9}, {}, {"temperature": 0.0}):
            y = x.clone()
            y[3] = bad
            found = draw.sample(y, *options(8, **values))
            assert 0 <= found[3] < 500
            if values == {"top_k": 20}:
                assert found[:3] == clean[:3] and found[4:] == clean[4:]
