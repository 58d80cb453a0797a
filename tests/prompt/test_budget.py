"""The budget of one rendering."""

from __future__ import annotations

import time

import pytest

from qwenkit.prompt import budget as module
from qwenkit.prompt.budget import LIMIT_CHARS, LIMIT_ITEMS, BoundError, Budget


def test_sizes_count_shared_parts_as_often_as_they_occur() -> None:
    budget = Budget(0, 0)
    leaf = ["abc"]
    assert budget.size("abc") == 4 and budget.size(leaf) == 5
    assert budget.size([leaf, leaf]) == 11
    assert budget.size({"k": leaf}) == 1 + 2 + 5
    assert budget.size({"k": leaf}.values()) == 6
    value: object = leaf
    for _ in range(200):
        value = [value, value]
    assert budget.size(value) > 2**200


def test_limits() -> None:
    budget = Budget(100, 5)
    budget.charge(LIMIT_CHARS + 200)
    with pytest.raises(BoundError, match="larger than"):
        budget.charge(LIMIT_CHARS + 201)
    budget.count(LIMIT_ITEMS + 5)
    with pytest.raises(BoundError, match="longer than"):
        budget.count(LIMIT_ITEMS + 6)
    with pytest.raises(BoundError, match="longer than"):
        budget.take(iter(int, 1))
    with pytest.raises(BoundError, match="too much"):
        for _ in range(100):
            budget.charge(LIMIT_CHARS)


def test_text_is_measured_before_it_is_made() -> None:
    budget = Budget(0, 0)
    assert budget.text([1, "a"]) == "[1, 'a']" and budget.text("x") == "x"
    value: object = "abc"
    for _ in range(60):
        value = (value, value)
    with pytest.raises(BoundError):
        budget.text(value)


def test_the_clock_counts_cpu_time_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_SECONDS", 0.05)
    budget = Budget(0, 0)
    time.sleep(0.2)
    budget.tick()  # waiting is not working
    end = time.thread_time() + 0.1
    with pytest.raises(BoundError, match="ran longer"):
        while time.thread_time() < end:
            budget.tick()
    assert list(Budget(0, 0).watch([1, 2])) == [1, 2]
