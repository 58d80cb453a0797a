"""The limit on prompt tokens, against a machine whose times are known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from qwenkit.engine.pace import FRESH, STALL, Pace

Machine = Callable[[int, int], float]


def run(pace: Pace, machine: Machine, decoding: int, steps: int) -> list[tuple[int, float]]:
    """(prompt tokens, seconds) of each step while prompts never end."""
    found = []
    for _ in range(steps):
        tokens = pace.limit(decoding)
        seconds = machine(decoding, tokens)
        pace.observe(decoding, tokens, seconds)
        found.append((tokens, seconds))
    return found


@pytest.mark.parametrize("token", [0.00002, 0.001, 0.004, 0.1])
def test_gaps_stay_bounded_whatever_a_token_costs(token: float) -> None:
    def machine(decoding: int, tokens: int) -> float:
        return 0.01 + 0.0005 * decoding + token * tokens

    pace = Pace(512)
    pace.observe(0, 512, machine(0, 512))
    alone = machine(1, 0)
    gaps = run(pace, machine, 1, 200)
    assert max(seconds for _, seconds in gaps) <= max(STALL * alone, alone + token) * 1.01
    best = min(512, max(1, int((STALL - 1) * alone / token)))
    assert sum(tokens for tokens, _ in gaps[20:]) > 0.9 * 180 * best


def test_a_machine_that_changes_is_followed() -> None:
    pace, speed = Pace(512), [1.0]

    def machine(decoding: int, tokens: int) -> float:
        return speed[0] * (0.01 + 0.001 * decoding) + 0.0001 * tokens * speed[0] ** 2

    run(pace, machine, 1, 50)
    for now in (3.0, 0.5):
        speed[0] = now
        run(pace, machine, 1, 500)
        _, seconds = run(pace, machine, 1, 1)[0]
        assert seconds <= 2.1 * machine(1, 0)


def test_more_who_decode_are_measured_before_a_prompt_goes_on() -> None:
    pace = Pace(512)
    pace.observe(1, 0, 0.01)
    pace.observe(0, 100, 0.1)
    assert pace.limit(1) == 8
    assert pace.limit(0) == 512
    assert pace.limit(8) == 0
    pace.observe(8, 0, 0.03)  # a prompt token takes 0.001 s
    assert pace.limit(8) == pace.limit(9) == 24
    assert pace.limit(1) == 0


def test_noise_does_not_run_away() -> None:
    rng = random.Random(1)

    def machine(decoding: int, tokens: int) -> float:
        slow = 50.0 if rng.random() < 0.03 else 1.0
        return (0.01 + 0.0002 * tokens) * slow * rng.uniform(0.8, 1.3)

    tokens = [t for t, _ in run(Pace(512), machine, 1, 2000)][100:]
    assert 25 < sum(tokens) / len(tokens) < 120


def test_the_measure_does_not_grow_old() -> None:
    def machine(decoding: int, tokens: int) -> float:
        return 0.01 + 0.0001 * tokens

    tokens = [t for t, _ in run(Pace(512), machine, 1, 20 * FRESH)]
    assert 15 < tokens.count(0) < 25
