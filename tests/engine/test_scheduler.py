"""The scheduler alone, with a scripted model: budgets, order, reservations, and no torch."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.engine.blocks import BlockPool
from qwenkit.engine.request import Request, SamplingParams
from qwenkit.engine.scheduler import Plan, Scheduler

STOP = 99


def scheduler(blocks: int = 64, size: int = 4, tokens: int = 16, sequences: int = 4) -> Scheduler:
    return Scheduler(BlockPool(blocks, size), max_batch_tokens=tokens, max_sequences=sequences)


def request(name: str, prompt: int, max_tokens: int = 4, text: str = "", **changes: Any) -> Request:
    """`prompt` tokens of a text, by default one of its own."""
    ids = [1000 * ord((text or name)[0]) + i for i in range(prompt)]
    params = SamplingParams(max_tokens=max_tokens, stop_token_ids=(STOP,))
    return Request(name, ids, params, **changes)


def shape(plan: Plan) -> list[tuple[str, int, int, bool]]:
    return [(s.request.id, s.start, s.count, s.samples) for s in plan.spans]


def test_prompts_are_cut_into_chunks_and_decodes_come_first() -> None:
    s = scheduler(tokens=8)
    s.add(request("a", 3))
    s.add(request("b", 20))
    plan = s.schedule()
    assert shape(plan) == [("a", 0, 3, True), ("b", 0, 5, False)]
    s.commit(plan, [7])
    plan = s.schedule()
    assert shape(plan) == [("a", 3, 1, True), ("b", 5, 7, False)]
    s.commit(plan, [7])
    plan = s.schedule()
    assert shape(plan) == [("a", 4, 1, True), ("b", 12, 7, False)]
    s.commit(plan, [7])
    plan = s.schedule()
    assert shape(plan) == [("a", 5, 1, True), ("b", 19, 1, True)], (
        "the prompt's last token alone samples"
    )


def test_a_request_ends_by_stop_id_length_and_error() -> None:
    s = scheduler()
    reasons = {"stop": [7, STOP], "length": [7, 7, 7, 7], "error": [7, None]}
    for name, script in reasons.items():
        r = request(name, 2)
        s.add(r)
        for token in script:
            s.commit(s.schedule(), [token])
        assert r.finish_reason == name
        assert r.num_output == sum(t is not None for t in script)
        assert not s.has_work and s.pool.num_free == 64


def test_admission_takes_what_the_prompt_needs_in_order_of_arrival() -> None:
    s = scheduler(blocks=8, size=4, tokens=64)
    s.add(request("a", 10, 7))  # 3 blocks now, 4 in the end
    s.add(request("b", 20, 5))  # 5 blocks, and one is left aside for a: must wait
    s.add(request("c", 1, 1))  # would fit, but does not overtake
    assert shape(s.schedule()) == [("a", 0, 10, True)]
    assert s.pool.num_free == 5
    s.finish(s.running[0], "abort")
    assert [span[0] for span in shape(s.schedule())] == ["b", "c"]


def test_what_can_never_fit_is_known_before_it_waits() -> None:
    s = scheduler(blocks=8, size=4)
    assert s.fits(request("a", 20, 13))
    assert not s.fits(request("b", 20, 14))


def test_no_more_sequences_than_allowed() -> None:
    s = scheduler(tokens=64, sequences=2)
    for name in "abc":
        s.add(request(name, 2))
    assert [span[0] for span in shape(s.schedule())] == ["a", "b"]
    with pytest.raises(ValueError, match="max_batch_tokens"):
        scheduler(tokens=2, sequences=3)


def test_finishing_again_changes_nothing() -> None:
    s = scheduler()
    r = request("a", 2)
    s.add(r)
    s.finish(r, "abort")
    s.finish(r, "stop")
    assert r.finish_reason == "abort" and not s.has_work


def test_ended_while_its_plan_was_computed() -> None:
    s = scheduler()
    a, b = request("a", 2), request("b", 2)
    s.add(a)
    s.add(b)
    plan = s.schedule()
    s.finish(a, "abort")
    s.commit(plan, [7, 8])
    assert a.num_output == 0 and b.token_ids[-1] == 8


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(4, 30), blocks=st.integers(12, 40))
def test_every_request_ends_and_every_block_returns(seed: int, tokens: int, blocks: int) -> None:
    rng = random.Random(seed)
    s = scheduler(blocks=blocks, size=4, tokens=tokens)
    requests = [request(str(i), rng.randint(1, 24), rng.randint(1, 20)) for i in range(12)]
    waiting = list(requests)
    for _ in range(2000):
        if waiting and rng.random() < 0.4:
            s.add(waiting.pop())
        if not s.has_work:
            continue
        plan = s.schedule()
        assert 0 < plan.num_tokens <= tokens
        assert len(s.running) <= 4
        for span in plan.spans:
            r = span.request
            assert span.start == r.num_computed
            assert span.start + span.count <= len(r.blocks) * 4, "tokens without a slot"
        s.commit(plan, [rng.choice([7, 8, STOP, None]) for _ in plan.sampling])
        if rng.random() < 0.05:
            s.finish(rng.choice(requests), "abort") if not waiting else None
    assert all(r.finish_reason for r in requests)
    assert s.pool.num_free == blocks


def test_scheduler_imports_no_torch() -> None:
    code = (
        "import sys, types; pkg = types.ModuleType('qwenkit.engine'); "
        "import os, qwenkit; pkg.__path__ = [os.path.dirname(qwenkit.__file__) + '/engine']; "
        "sys.modules['qwenkit.engine'] = pkg; "
        "import qwenkit.engine.scheduler; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
