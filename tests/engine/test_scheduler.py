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


def run(s: Scheduler, steps: int = 200) -> list[Plan]:
    """Step with a model that always writes 7, until nothing is left."""
    plans = []
    for _ in range(steps):
        if not s.has_work:
            return plans
        plans.append(s.schedule())
        s.commit(plans[-1], [7] * len(plans[-1].sampling))
    raise AssertionError("the scheduler does not come to an end")


def test_a_cached_beginning_is_not_computed_again() -> None:
    s = scheduler(tokens=64)
    s.add(request("a", 18))
    run(s)
    b = request("b", 18, text="a")
    s.add(b)
    assert shape(s.schedule()) == [("b", 16, 2, True)] and b.num_cached == 16
    assert (s.num_prompt_tokens, s.num_cached_tokens) == (36, 16)


def test_at_least_one_token_of_a_prompt_is_computed() -> None:
    s = scheduler(tokens=64)
    for name in "ab":
        s.add(request(name, 16, text="a"))
        plans = run(s)
    assert shape(plans[0]) == [("b", 12, 4, True)]


def test_a_conversation_goes_on_where_it_was() -> None:
    s = scheduler(tokens=64)
    a = request("a", 10, max_tokens=9)
    s.add(a)
    run(s)
    more = Request("b", [*a.token_ids, 1, 2, 3], SamplingParams(max_tokens=1))
    s.add(more)
    assert shape(s.schedule()) == [("b", 16, 6, True)]


def test_other_tenants_find_nothing() -> None:
    s = scheduler(tokens=64)
    for name in "ab":
        s.add(request(name, 18, text="a", tenant=name))
        plans = run(s)
    assert shape(plans[0]) == [("b", 0, 18, True)] and s.num_cached_tokens == 0


def test_twins_wait_for_the_first_one_and_others_pass() -> None:
    s = scheduler(tokens=8)
    for name in ("a1", "a2", "b"):
        s.add(request(name, 17 if name[0] == "a" else 2))
    plans = [shape(p) for p in run(s)]
    assert plans[0] == [("a1", 0, 6, False), ("b", 0, 2, True)]
    first = next(p for plan in plans for p in plan if p[0] == "a2")
    assert first == ("a2", 16, 1, True), "the cached beginning, and then only what is left"


def test_a_twin_takes_over_when_the_first_one_ends() -> None:
    s = scheduler(tokens=8)
    for name in ("a1", "a2"):
        s.add(request(name, 17))
    s.commit(s.schedule(), [])
    s.finish(s.running[0], "abort")
    assert shape(s.schedule()) == [("a2", 8, 8, False)]


def test_sharing_can_be_switched_off() -> None:
    pool = BlockPool(64, 4)
    s = Scheduler(pool, max_batch_tokens=64, max_sequences=4, share_prefixes=False)
    s.add(request("a1", 18))
    s.add(request("a2", 18))
    assert shape(s.schedule()) == [("a1", 0, 18, True), ("a2", 0, 18, True)]


def test_a_failed_request_leaves_nothing_to_find() -> None:
    s = scheduler(tokens=8)
    s.add(request("a1", 18))
    for tokens in ([], [], [None]):
        s.commit(s.schedule(), tokens)
    s.add(request("a2", 18))
    assert shape(s.schedule()) == [("a2", 0, 8, False)]


def test_without_room_the_youngest_is_paused_and_goes_on_first() -> None:
    s = scheduler(blocks=5, size=4, tokens=64)
    a, b = request("a", 7, max_tokens=10), request("b", 7, max_tokens=10)
    for each in (a, b):
        s.add(each)
    s.add(request("c", 1))
    plans = run(s)
    paused = [i for i, plan in enumerate(plans) if plan.paused]
    assert [r.id for i in paused for r in plans[i].paused] == ["b"] and s.num_preemptions == 1
    again = next(i for i in range(paused[0], 200) if any(x[0] == "b" for x in shape(plans[i])))
    assert a.finish_reason == "length" and a.num_output == b.num_output == 10
    assert not any(x[0] == "c" for plan in plans[:again] for x in shape(plan))
    assert s.pool.num_free == 5


def test_a_paused_request_can_be_ended() -> None:
    s = scheduler(blocks=5, size=4, tokens=64)
    a, b = request("a", 7, max_tokens=10), request("b", 7, max_tokens=10)
    s.add(a)
    s.add(b)
    while not s.paused:
        plan = s.schedule()
        s.commit(plan, [7] * len(plan.sampling))
    s.finish(b, "abort")
    s.finish(a, "abort")
    assert not s.has_work and s.pool.num_free == 5


def test_a_long_prompt_leaves_half_to_a_short_one_and_decoding_limits_both() -> None:
    s = scheduler(tokens=16, sequences=8)
    s.add(request("a", 200))
    assert shape(s.schedule()) == [("a", 0, 16, False)]
    s.add(request("b", 5))
    s.add(request("c", 30))
    plan = s.schedule()
    assert shape(plan) == [("a", 0, 8, False), ("b", 0, 5, True), ("c", 0, 3, False)]
    s.commit(plan, [7])
    asked = []

    def limit(decoding: int, waiting: int) -> int:
        asked.append((decoding, waiting))
        return 4 * decoding

    s.prefill_limit = limit
    assert shape(s.schedule()) == [("b", 5, 1, True), ("a", 8, 2, False), ("c", 3, 2, False)]
    for name in "defghij":
        s.add(request(name, 30))
    s.schedule()
    assert asked == [(1, 2), (1, 7)], "a, c, and five for whom there is a place"


def test_late_requests_end_and_nothing_is_computed_for_them() -> None:
    s = scheduler(sequences=1)
    s.add(request("a", 2))
    s.commit(s.schedule(1.0), [7])
    b, c = request("b", 2, deadline=2.0), request("c", 2, deadline=9.0)
    s.add(b)
    s.add(c)
    assert s.schedule(1.9).late == []
    assert s.schedule(2.0).late == [b] and b.finish_reason == "error"
    assert len(s.waiting) == 1 and b.num_computed == 0


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(4, 30), blocks=st.integers(12, 24))
def test_under_pressure_outputs_are_those_of_a_quiet_engine(
    seed: int, tokens: int, blocks: int
) -> None:
    """The scripted model writes a token that depends on all before it; shared beginnings, pauses,
    aborts and tenants must not change what a request says, and every block returns.
    """
    rng = random.Random(seed)
    s = scheduler(blocks=blocks, size=4, tokens=tokens)
    stored: dict[tuple[int, int], int] = {}  # what the model has put into each slot

    def model(plan: Plan) -> list[int]:
        drawn = []
        for span in plan.spans:
            r = span.request
            for at in range(span.start, span.start + span.count):
                stored[r.blocks[at // 4], at % 4] = r.token_ids[at]
            end = span.start + span.count
            seen = [stored[r.blocks[at // 4], at % 4] for at in range(end)]
            assert seen == r.token_ids[:end], "somebody wrote into its blocks"
            if span.samples:
                drawn.append(hash(tuple(seen)) % 50)
        return drawn

    requests = [
        request(
            str(i),
            rng.randint(1, 24),
            rng.randint(1, 20),
            rng.choice("xyz"),
            tenant=rng.choice("ab"),
        )
        for i in range(14)
    ]
    alone = {}
    for r in requests:
        ids = list(r.prompt_ids)
        for _ in range(r.params.max_tokens):
            ids.append(hash(tuple(ids)) % 50)
        alone[r.id] = ids
    coming, aborted = list(requests), set()
    for _ in range(3000):
        if coming and rng.random() < 0.4:
            s.add(coming.pop())
        if rng.random() < 0.02 and not coming:
            r = rng.choice(requests)
            if r.finish_reason is None:
                aborted.add(r.id)
                s.finish(r, "abort")
        plan = s.schedule()
        assert plan.num_tokens <= tokens and (plan.spans or not s.has_work)
        s.commit(plan, model(plan))
    assert all(r.finish_reason for r in requests) and not s.has_work
    for r in requests:
        assert r.token_ids == alone[r.id][: len(r.token_ids)]
        assert r.id in aborted or len(r.token_ids) == len(alone[r.id])
    assert s.pool.num_free == blocks and not s._underway and not s.waiting._active


def test_who_finds_no_room_does_not_hurry_those_who_decode() -> None:
    s = scheduler(blocks=6, size=4, tokens=16, sequences=4)
    asked = []

    def limit(decoding: int, waiting: int) -> int:
        asked.append(waiting)
        return 4

    s.prefill_limit = limit
    s.add(request("a", 8, max_tokens=12))
    s.commit(s.schedule(), [7])
    s.add(request("b", 20, max_tokens=4))
    for _ in range(3):
        s.commit(s.schedule(), [7])
    assert asked == [1, 0, 0]
    s.finish(s.running[0], "abort")
    s.schedule()
    assert [r.id for r in s.running] == ["b"]
