"""One thread steps the engine for many: delivery, abort, close, failing receivers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from qwenkit.engine import Driver, Engine, Request, RequestOutput, SamplingParams
from qwenkit.errors import EngineError, RequestError
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
