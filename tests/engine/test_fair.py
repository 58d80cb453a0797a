"""Whose turn it is, who has waited too long, and that nothing is kept of who has gone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from qwenkit.engine.fair import LOOK_AHEAD, FairQueue
from qwenkit.engine.request import Request, SamplingParams


def request(name: str, tenant: str = "", **changes: Any) -> Request:
    return Request(name, [1], SamplingParams(), tenant=tenant, **changes)


def serve(queue: FairQueue, tokens: int) -> str:
    """Take the next one and compute `tokens` for it."""
    taken = next(queue.candidates())
    queue.remove(taken)
    queue.charge(taken.tenant, tokens)
    taken.started = True
    return taken.id


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    queue = FairQueue()
    for i in range(LOOK_AHEAD + 2):
        queue.add(request(str(i)))
    assert [r.id for r in queue.candidates()] == [str(i) for i in range(LOOK_AHEAD)]
    assert [serve(queue, 5) for _ in range(3)] == ["0", "1", "2"]
    assert len(queue) == LOOK_AHEAD - 1


def test_who_has_had_least_is_next() -> None:
    queue = FairQueue()
    for i in range(6):
        queue.add(request(f"a{i}", "a"))
    for i in range(3):
        queue.add(request(f"b{i}", "b"))
    assert {r.id for r in queue.requests()} == {
        "a0",
        "a1",
        "a2",
        "a3",
        "a4",
        "a5",
        "b0",
        "b1",
        "b2",
    }
    order = [serve(queue, 10 if i % 2 else 30) for i in range(6)]
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert [r.id for r in queue.requests()] == ["a3", "a4", "a5"]


def test_a_flood_does_not_hold_up_a_newcomer_who_starts_level() -> None:
    queue = FairQueue()
    for i in range(50):
        queue.add(request(f"a{i}", "a"))
    for _ in range(10):
        serve(queue, 100)
    queue.add(request("b0", "b"))
    queue.add(request("b1", "b"))
    assert [serve(queue, 100) for _ in range(4)] == ["a10", "b0", "a11", "b1"]


def test_nothing_is_kept_of_who_has_gone() -> None:
    queue = FairQueue()
    requests = [request(str(i), f"t{i}", deadline=1e9) for i in range(500)]
    for each in requests:
        queue.add(each)
        queue.remove(each)
        each.finish_reason = "abort"
        queue.left(each)
    assert not queue._active and not queue._served and not queue._queues
    assert len(queue._deadlines) <= 66
    held = [weakref.ref(each) for each in requests]
    del requests, each
    gc.collect()
    assert not any(each() for each in held)


def test_only_who_still_waits_can_be_late() -> None:
    queue = FairQueue()
    for name, deadline in (("late", 5.0), ("started", 4.0), ("later", 9.0), ("never", None)):
        queue.add(request(name, deadline=deadline))
    started = next(r for r in queue.candidates() if r.id == "started")
    queue.remove(started)
    started.started = True
    assert queue.late(3.0) == []
    assert [r.id for r in queue.late(5.0)] == ["late"]
    assert queue.late(5.0) == []
