"""One thread steps the engine for many: delivery, abort, close, failing receivers."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import torch

from qwenkit.engine import Driver, Engine, Request, RequestOutput, SamplingParams
from qwenkit.engine.driver import leave_cores_to_kernels
from qwenkit.errors import EngineError, QueueFullError, RequestError
from qwenkit.model.qwen import Qwen

Complete = Callable[..., list[list[int]]]


@pytest.fixture
def driver(model: Qwen) -> Iterator[Driver]:
    driver = Driver(Engine(model, num_blocks=128, max_sequences=4))
    yield driver
    driver.close()
    assert driver.engine.scheduler.pool.num_free == 128
    assert not any(thread.name == "qwenkit-engine" for thread in threading.enumerate())


def collect(
    box: queue.SimpleQueue[RequestOutput], count: int = 1
) -> dict[str, list[RequestOutput]]:
    """Outputs until `count` requests have ended."""
    outputs: dict[str, list[RequestOutput]] = {}
    while count:
        output = box.get(timeout=20)
        outputs.setdefault(output.id, []).append(output)
        count -= output.finished
    return outputs


def ids(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.new_ids]


def test_many_threads_at_once_get_their_own_tokens(
    driver: Driver, model: Qwen, make_prompts: Complete, complete: Complete
) -> None:
    prompts, params = make_prompts(12), SamplingParams(max_tokens=20)
    expected = complete(Engine(model, num_blocks=128), prompts, params)
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        driver.submit([Request(str(i), prompts[i], params)], box.put)
        found[i] = ids(collect(box)[str(i)])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[i] for i in range(12)] == expected


def test_all_are_checked_before_any_is_queued(driver: Driver) -> None:
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    good, bad = Request("a", [1], SamplingParams()), Request("b", [], SamplingParams())
    with pytest.raises(RequestError, match="empty"):
        driver.submit([good, bad], box.put)
    assert box.empty() and driver._thread is None


def test_a_repeated_id_fails_alone(driver: Driver) -> None:
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    twins = [Request("a", [1], SamplingParams(max_tokens=3)) for _ in range(2)]
    driver.submit(twins, box.put)
    outputs = collect(box, 2)["a"]
    assert [o.finish_reason for o in outputs if o.finished] == ["error", "length"]
    assert len(ids(outputs)) == 3


def test_abort_ends_a_request_soon(driver: Driver) -> None:
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    driver.submit([Request("a", [1], SamplingParams(max_tokens=250))], box.put)
    box.get(timeout=20)
    driver.abort(["a", "nobody"])
    driver.abort(["a"])
    outputs = collect(box)["a"]
    assert outputs[-1].finish_reason == "abort" and len(ids(outputs)) < 240


def test_close_ends_what_runs_and_what_waits(model: Qwen) -> None:
    driver = Driver(Engine(model, num_blocks=128, max_sequences=1))
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    driver.submit([Request(str(i), [1], SamplingParams(max_tokens=250)) for i in range(3)], box.put)
    box.get(timeout=20)
    driver.close()
    driver.close()
    assert {o[-1].finish_reason for o in collect(box, 3).values()} == {"abort"}
    with pytest.raises(EngineError, match="closed"):
        driver.submit([Request("a", [1], SamplingParams())], box.put)
    Driver(Engine(model, num_blocks=8)).close()


def test_a_closed_driver_keeps_no_model(model: Qwen) -> None:
    driver = Driver(Engine(model, num_blocks=8))
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    driver.submit([Request("a", [1], SamplingParams(max_tokens=2))], box.put)
    collect(box)
    engine = weakref.ref(driver.engine)
    gc.disable()  # memory of gigabytes shall not wait for it
    try:
        driver.close()
        del driver
        assert engine() is None
    finally:
        gc.enable()


def test_a_receiver_that_fails_ends_its_own_request(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(output: RequestOutput) -> None:
        raise RuntimeError("the loop is closed")

    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    driver.submit([Request("bad", [1], SamplingParams(max_tokens=250))], broken)
    driver.submit([Request("good", [1], SamplingParams(max_tokens=50))], box.put)
    assert len(ids(collect(box)["good"])) == 50
    deadline = time.monotonic() + 10
    while driver.engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert driver.engine.scheduler.pool.num_free == 128
    assert "receiver of request bad failed" in caplog.text


def test_who_has_got_something_is_woken_once_a_step_and_before_its_kernels(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    ended, forward = threading.Event(), driver.engine.model.forward

    def watched(*what: Any) -> torch.Tensor:
        events.append("kernels")
        return forward(*what)

    class Loop:
        def wake(self) -> None:
            events.append("wake")

        def last(self) -> None:
            ended.set()

    def sink(output: RequestOutput) -> None:
        events.append("output")

    monkeypatch.setattr(driver.engine.model, "forward", watched)
    loop = Loop()
    params = SamplingParams(max_tokens=3)
    with driver._wake:  # all of them come before the first step
        for name in "ab":  # an equal `wake`, though not the same object
            driver.submit([Request(name, [1], params)], sink, loop.wake)
        driver.submit([Request("c", [1], params.replace(max_tokens=4))], sink, loop.last)
    assert ended.wait(20)
    while driver.engine.has_work:
        time.sleep(0.001)
    driver.close()
    step = ["kernels", *["output"] * 3, "wake"]
    assert events == [*step * 3, "kernels", "output"]


def test_a_wake_that_fails_ends_its_own_requests(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("the loop is closed")

    box, lost = queue.SimpleQueue[RequestOutput](), queue.SimpleQueue[RequestOutput]()
    for name in ("bad", "worse"):
        driver.submit([Request(name, [1], SamplingParams(max_tokens=250))], lost.put, broken)
    driver.submit([Request("good", [1], SamplingParams(max_tokens=50))], box.put)
    assert len(ids(collect(box)["good"])) == 50
    deadline = time.monotonic() + 10
    while driver.engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert driver.engine.scheduler.pool.num_free == 128 and not driver._open
    assert lost.qsize() < 10 and "'bad'" in caplog.text and "'worse'" in caplog.text


def test_lent_work_keeps_nobody_asleep(driver: Driver) -> None:
    woken = threading.Event()

    def work() -> Generator[None, None, bool]:
        deadline = time.monotonic() + 20
        while driver._asleep or not woken.is_set():  # it runs between steps, on the same thread
            assert time.monotonic() < deadline and not driver._asleep
            yield
        return True

    lent = driver.lend(work())
    request = Request("a", [1], SamplingParams(max_tokens=3))
    driver.submit([request], lambda output: None, woken.set)
    assert lent.result(30)


def test_nobody_hangs_when_the_engine_itself_fails(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()

    def fail(now: float) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(driver.engine.scheduler, "schedule", fail)
    driver.submit([Request("a", [1], SamplingParams(max_tokens=5))], box.put)
    [output] = collect(box)["a"]
    assert output.finish_reason == "error" and "a bug" in str(output.error)
    monkeypatch.undo()
    driver.submit([Request("b", [1], SamplingParams(max_tokens=5))], box.put)
    assert len(ids(collect(box)["b"])) == 5


def test_a_thread_that_dies_leaves_nobody_waiting(
    model: Qwen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(Engine(model, num_blocks=128))
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()

    def fail(request_id: str) -> None:
        raise RuntimeError("the books are wrong")

    assert driver.healthy and driver.busy_seconds == 0
    monkeypatch.setattr(driver.engine, "abort", fail)
    driver.submit([Request("a", [1], SamplingParams(max_tokens=250))], box.put)
    driver.abort(["a"])
    end = collect(box)["a"][-1]
    assert (end.finish_reason, end.code) == ("error", "failed")
    assert "books are wrong" in str(end.error) and "thread has died" in caplog.text
    assert not driver.healthy
    with pytest.raises(EngineError, match="died") as caught:
        driver.submit([Request("b", [1], SamplingParams())], box.put)
    assert caught.value.code == "failed"
    driver.close()


def test_a_step_that_hangs_shows(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    box: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    inside, release, step = threading.Event(), threading.Event(), driver.engine.step

    def hanging() -> list[RequestOutput]:
        inside.set()
        assert release.wait(20)
        return step()

    monkeypatch.setattr(driver.engine, "step", hanging)
    driver.submit([Request("a", [1], SamplingParams(max_tokens=1))], box.put)
    assert inside.wait(20)
    time.sleep(0.02)
    assert driver.busy_seconds > 0.01 and driver.healthy
    release.set()
    collect(box)
    monkeypatch.undo()
    deadline = time.monotonic() + 10
    while driver.busy_seconds and time.monotonic() < deadline:
        time.sleep(0.001)
    assert driver.busy_seconds == 0


class Gate:
    """Holds the engine's thread before its next step."""

    def __init__(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, step = threading.Event(), driver.engine.step

        def gated() -> list[RequestOutput]:
            assert self.open.wait(20)
            return step()

        monkeypatch.setattr(driver.engine, "step", gated)


def batch(names: str, tenant: str = "") -> list[Request]:
    return [Request(n, [1, 2], SamplingParams(max_tokens=2), tenant=tenant) for n in names]


def test_what_is_too_much_is_refused_at_once_and_as_a_whole(
    model: Qwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(Engine(model, num_blocks=128, max_sequences=2), max_waiting=3)
    gate, box = Gate(driver, monkeypatch), queue.SimpleQueue[RequestOutput]()
    driver.submit(batch("abcd"), box.put)
    with pytest.raises(QueueFullError, match="All 3 waiting places") as caught:
        driver.submit(batch("ef"), box.put)
    assert 1 <= caught.value.retry_after <= 30 and caught.value.tenant is None
    driver.submit(batch("e"), box.put)
    with pytest.raises(QueueFullError):
        driver.submit(batch("f"), box.put)
    gate.open.set()
    assert sorted(collect(box, 5)) == list("abcde")
    driver.submit(batch("fghij"), box.put)
    assert sorted(collect(box, 5)) == list("fghij")
    driver.close()
    assert not driver._open


def test_one_tenant_cannot_take_all_waiting_places(
    model: Qwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, num_blocks=128, max_sequences=2)
    driver = Driver(engine, max_waiting_per_tenant=3)
    gate, box = Gate(driver, monkeypatch), queue.SimpleQueue[RequestOutput]()
    driver.submit(batch("abc", "greedy"), box.put)
    with pytest.raises(QueueFullError, match="This client's 3 waiting places") as caught:
        driver.submit(batch("d", "greedy"), box.put)
    assert caught.value.tenant == "greedy"
    driver.submit(batch("xyz", "modest"), box.put)
    gate.open.set()
    collect(box, 6)
    driver.close()


def test_a_deadline_that_passes_while_waiting_ends_the_request(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, box = Gate(driver, monkeypatch), queue.SimpleQueue[RequestOutput]()
    late = Request("late", [1], SamplingParams(), deadline=time.monotonic() + 0.01)
    good = Request("good", [1], SamplingParams(max_tokens=2), deadline=time.monotonic() + 60)
    driver.submit([late, good], box.put)
    time.sleep(0.02)
    gate.open.set()
    outputs = collect(box, 2)
    assert [(o.finish_reason, o.code) for o in outputs["late"]] == [("error", "timeout")]
    assert outputs["good"][-1].finish_reason == "length"
    assert late.num_computed == 0 and driver.engine.stats().prompt_tokens == 1


@pytest.mark.parametrize("stage", ["waiting", "prefill", "decode", "paused"])
def test_an_abort_takes_effect_within_one_step(stage: str, model: Qwen) -> None:
    engine = Engine(
        model, num_blocks=8, block_size=8, max_batch_tokens=8, max_sequences=2, prefix_cache=False
    )
    scheduler = engine.scheduler
    victim = Request("v", [3] * 20, SamplingParams(max_tokens=40))
    others = [Request(str(i), [5] * 3, SamplingParams(max_tokens=30)) for i in range(2)]
    if stage == "waiting":
        for other in others:
            engine.add(other)
        engine.step()
    elif stage == "paused":
        engine.add(others[0])
    engine.add(victim)
    where = {
        "waiting": lambda: victim.waits,
        "prefill": lambda: 0 < victim.num_computed < 20,
        "decode": lambda: victim.num_output > 2,
        "paused": lambda: victim in scheduler.paused,
    }[stage]
    for _ in range(60):
        engine.step()
        if where():
            break
    assert where()
    engine.abort("v")
    assert "v" not in engine.runner._rows and not victim.blocks
    assert [o.finish_reason for o in engine.step() if o.id == "v"] == ["abort"]
    for other in others:
        engine.abort(other.id)
    engine.step()
    assert not engine.has_work and engine.stats().kv_usage == 0
    assert len(engine.runner._free_rows) == 2 and not engine._requests


def test_pytorch_keeps_to_one_thread_there_and_nowhere_else() -> None:
    before, seen = torch.get_num_threads(), []

    def work() -> None:
        leave_cores_to_kernels()
        seen.append(torch.get_num_threads())

    for target in (work, lambda: seen.append(torch.get_num_threads())):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert seen == [1, before] and torch.get_num_threads() == before
