"""The limit on prompt tokens, against machines whose times are known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from qwenkit.engine.pace import BEHIND, CROWD, FRESH, STALL, PrefillPace

Machine = Callable[[int, int], float]


def run(pace: PrefillPace, machine: Machine, decoding: int, steps: int) -> list[tuple[int, float]]:
    """(prompt tokens, seconds) of each step while prompts never end."""
    found = []
    for _ in range(steps):
        tokens = pace.limit(decoding)
        seconds = machine(decoding, tokens)
        pace.observe(decoding, tokens, seconds)
        found.append((tokens, seconds))
    return found


def linear(token: float) -> Machine:
    return lambda decoding, tokens: 0.01 + 0.0005 * decoding + token * tokens


def bent(free: int, token: float) -> Machine:
    """The first tokens cost nothing."""
    return lambda decoding, tokens: 0.01 + token * max(tokens - free, 0)


@pytest.mark.parametrize(
    "machine",
    [*map(linear, (0.00002, 0.0002, 0.001, 0.004)), bent(6, 0.001), bent(8, 0.005), bent(30, 1e-4)],
)
def test_gaps_stay_bounded_and_the_room_is_used(machine: Machine) -> None:
    pace = PrefillPace(512)
    pace.observe(0, 512, machine(0, 512))
    alone = machine(1, 0)
    steps = run(pace, machine, 1, 400)
    assert max(seconds for _, seconds in steps) < 3 * alone
    best = next((n for n in range(1, 512) if machine(1, n + 1) > STALL * alone), 512)
    assert sum(tokens for tokens, _ in steps[100:]) > 0.75 * 300 * best


def test_at_least_one_token_goes_on_however_dear_it_is() -> None:
    steps = run(PrefillPace(512), linear(0.1), 1, 100)
    assert {tokens for tokens, _ in steps} == {0, 1} and steps.count(steps[1]) > 90


def test_a_machine_that_changes_is_followed() -> None:
    pace, speed = PrefillPace(512), [1.0]

    def machine(decoding: int, tokens: int) -> float:
        return speed[0] * (0.01 + 0.001 * decoding) + 0.0001 * tokens * speed[0] ** 2

    run(pace, machine, 1, 50)
    for now in (3.0, 0.5):
        speed[0] = now
        run(pace, machine, 1, 500)
        _, seconds = run(pace, machine, 1, 1)[0]
        assert seconds <= 1.1 * STALL * machine(1, 0)


def test_more_who_decode_are_measured_before_a_prompt_goes_on() -> None:
    pace = PrefillPace(512)
    pace.observe(1, 0, 0.01)
    pace.observe(0, 100, 0.1)
    assert pace.limit(1) == 8
    assert pace.limit(0) == 512
    assert pace.limit(8) == 0
    pace.observe(8, 0, 0.03)
    assert pace.limit(8) == pace.limit(9) == 8
    assert pace.limit(1) == 0


def test_the_end_of_a_prompt_says_nothing_about_longer_chunks() -> None:
    pace = PrefillPace(512)
    pace.observe(0, 100, 0.01)
    pace.observe(1, 0, 0.01)
    assert pace.limit(1) == 80
    pace.observe(1, 3, 0.0101)
    assert pace.limit(1) == 80
    pace.observe(1, 3, 0.1)
    assert pace.limit(1) < 4


def test_noise_does_not_run_away() -> None:
    rng = random.Random(1)

    def machine(decoding: int, tokens: int) -> float:
        slow = 50.0 if rng.random() < 0.03 else 1.0
        return (0.01 + 0.0002 * tokens) * slow * rng.uniform(0.8, 1.3)

    tokens = [t for t, _ in run(PrefillPace(512), machine, 1, 2000)][100:]
    assert 20 < sum(tokens) / len(tokens) < 90


def test_the_measure_does_not_grow_old() -> None:
    tokens = [t for t, _ in run(PrefillPace(512), linear(0.0001), 1, 20 * FRESH)]
    assert 15 < tokens.count(0) < 25


def test_a_crowd_is_let_in_faster_than_one() -> None:
    def crowded(decoding: int, waiting: int) -> float:
        """Seconds of a step beside so many who wait, over one without, when that has settled."""
        pace, machine = PrefillPace(512), linear(0.0005)
        for _ in range(400):
            tokens = pace.limit(decoding, waiting)
            pace.observe(decoding, tokens, machine(decoding, tokens))
        tokens = pace.limit(decoding, waiting) or pace.limit(decoding, waiting)
        return machine(decoding, tokens) / machine(decoding, 0)

    assert crowded(1, 1) == pytest.approx(STALL, rel=0.1)
    assert crowded(8, 3) == crowded(8, 1) == pytest.approx(STALL, rel=0.1)
    assert crowded(8, 9) == pytest.approx(1 + BEHIND * (STALL - 1), rel=0.1)
    assert crowded(2, 4) == pytest.approx(1 + 1.5 * BEHIND * (STALL - 1), rel=0.1)
    assert crowded(1, 100) == pytest.approx(1 + CROWD * (STALL - 1), rel=0.1)


def test_one_prompt_after_a_crowd_gets_no_more_than_before() -> None:
    pace, machine = PrefillPace(512), bent(8, 0.001)
    for _ in range(100):
        tokens = pace.limit(1, 15)
        pace.observe(1, tokens, machine(1, tokens))
    assert max(seconds for _, seconds in run(pace, machine, 1, 50)) < 3 * machine(1, 0)
