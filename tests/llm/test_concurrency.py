"""Threads and coroutines at once over one engine: each gets its own, and giving up frees what was
held.
"""

from __future__ import annotations

import _thread
import asyncio
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from qwenkit.errors import ContextLengthError, EngineError, QueueFullError, RequestError
from qwenkit.llm import LLM
from qwenkit.llm.run import _mail_of

Scripted = Callable[..., SimpleNamespace]


def echo(prompt: str) -> str:
    return prompt.split("user\n")[-1].split("<")[0] + "!"


def idle(llm: LLM) -> bool:
    """Wait until the engine holds nothing."""
    deadline = time.monotonic() + 10
    pool = llm._driver.engine.scheduler.pool
    while pool.num_free < pool.num_blocks and time.monotonic() < deadline:
        time.sleep(0.005)
    return pool.num_free == pool.num_blocks


def test_threads_share_the_batch(scripted: Scripted) -> None:
    s, found = scripted(echo, delay=0.002), {}

    def work(i: int) -> None:
        if i % 2:
            found[i] = s.llm.chat(f"number {i}").text
        else:
            found[i] = "".join(d.text for d in s.llm.stream(f"number {i}"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {i: f"number {i}!" for i in range(16)}
    assert s.model.widest > 4


def test_coroutines_share_the_batch(scripted: Scripted) -> None:
    s = scripted(echo, delay=0.002)

    async def streamed(text: str) -> str:
        return "".join([d.text async for d in s.llm.astream(text)])

    async def main() -> list[str]:
        chats = [s.llm.achat(f"number {i}") for i in range(8)]
        streams = [streamed(f"stream {i}") for i in range(8)]
        raw = await s.llm.agenerate("user\nraw")
        texts = await asyncio.gather(*streams)
        return [r.text for r in await asyncio.gather(*chats)] + texts + [raw.text]

    expected = [f"number {i}!" for i in range(8)] + [f"stream {i}!" for i in range(8)] + ["raw!"]
    assert asyncio.run(main()) == expected
    assert s.model.widest > 4


def test_async_equals_sync(scripted: Scripted) -> None:
    s = scripted("some text")

    async def main() -> tuple[Any, ...]:
        deltas = [d async for d in s.llm.astream("hi", logprobs=1)]
        return await s.llm.achat("hi", n=2), await s.llm.agenerate("hi"), deltas

    chat, raw, deltas = asyncio.run(main())
    assert chat == s.llm.chat("hi", n=2) and raw == s.llm.generate("hi")
    assert deltas == list(s.llm.stream("hi", logprobs=1))


def test_async_errors_reach_their_caller(scripted: Scripted) -> None:
    s = scripted(lambda prompt: "okNAN" if "bad" in prompt else "fine")

    async def main() -> None:
        with pytest.raises(RequestError):
            await s.llm.achat("hi", temperature=-1)
        with pytest.raises(ContextLengthError):
            await s.llm.agenerate([1] * 300)
        with pytest.raises(EngineError, match="not finite"):
            await s.llm.achat("bad")
        with pytest.raises(EngineError, match="not finite"):
            async for _ in s.llm.astream("bad"):
                pass
        assert (await s.llm.achat("good")).text == "fine"

    asyncio.run(main())


def test_closing_a_stream_aborts_its_request(scripted: Scripted) -> None:
    s = scripted("a" * 1000, delay=0.002)
    stream = s.llm.stream("hi")
    assert next(stream).text == "a"
    stream.close()
    assert idle(s.llm)
    s.llm.stream("never started")
    assert idle(s.llm)


def test_cancelling_a_coroutine_aborts_its_request(scripted: Scripted) -> None:
    s = scripted("a" * 1000, delay=0.002)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(s.llm.achat("hi"), 0.1)
        async for _ in s.llm.astream("hi"):
            break

    asyncio.run(main())
    assert idle(s.llm)


def test_an_interrupt_aborts_the_request(scripted: Scripted) -> None:
    """KeyboardInterrupt arrives in the main thread while it waits for the engine."""
    s = scripted("a" * 1000, delay=0.005)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            s.llm.chat("hi")
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert idle(s.llm)
    assert s.llm.chat("hi", max_tokens=3).text == "aaa"


def test_mail_for_a_loop_that_was_closed_does_not_keep_it() -> None:
    loop, box = asyncio.new_event_loop(), asyncio.Queue[Any]()
    with pytest.raises(asyncio.TimeoutError):  # whoever has waited ties the box to the loop
        loop.run_until_complete(asyncio.wait_for(box.get(), 0.01))
    mail = _mail_of(loop)
    mail.slot(box)([])
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        mail.send()
    gone = weakref.ref(loop)
    del loop, box, mail
    gc.collect()
    assert gone() is None


def test_closing_the_llm_ends_those_who_wait(scripted: Scripted) -> None:
    s, seen = scripted("a" * 1000, delay=0.002), []

    def work() -> None:
        try:
            s.llm.chat("hi")
        except EngineError as error:
            seen.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    s.llm.close()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 3 and "closed" in seen[0]


def test_a_full_queue_refuses_and_a_late_request_times_out(scripted: Scripted) -> None:
    s = scripted(lambda prompt: "a" * 200, delay=0.01, max_sequences=1, max_waiting=1)
    running = s.llm.stream("first")
    next(running)
    found: list[BaseException] = []

    def wait() -> None:
        try:
            s.llm.chat("second", queue_timeout=0.2)
        except EngineError as error:
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while len(s.llm.driver._open) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(QueueFullError, match="Try again in"):
        s.llm.chat("third")
    thread.join(20)
    assert isinstance(found[0], EngineError) and found[0].code == "timeout"
    running.close()
    assert idle(s.llm)
