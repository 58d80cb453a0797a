"""Jobs on the engine's thread, watched from a thread or from a coroutine.

Whatever ends the watching early (an exception, KeyboardInterrupt, a closed generator, a cancelled
task) aborts what still runs of the job, so that no tokens are computed for nobody.
"""

from __future__ import annotations

import asyncio
import queue
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator

from qwenkit.engine import Driver, RequestOutput
from qwenkit.engine.driver import Sink
from qwenkit.llm.job import Job
from qwenkit.llm.results import StreamDelta

Parcel = list[RequestOutput]
"""Outputs of one request, in order."""


def run(driver: Driver, job: Job) -> Generator[StreamDelta, None, None]:
    """Submit a job and yield its news until it is done."""
    box: queue.SimpleQueue[Parcel] = queue.SimpleQueue()
    try:
        driver.submit(job.requests, _sink(job, box.put))
        while job.open_ids:
            news, unwanted = job.push(box.get())
            if unwanted:
                driver.abort(unwanted)
            yield from news
    finally:
        if job.open_ids:
            driver.abort(job.open_ids)


async def arun(driver: Driver, job: Job) -> AsyncGenerator[StreamDelta, None]:
    """`run` for coroutines."""
    box, mail = asyncio.Queue[Parcel](), _mail_of(asyncio.get_running_loop())
    try:
        driver.submit(job.requests, _sink(job, mail.slot(box)), mail.send)
        while job.open_ids:
            news, unwanted = job.push(await box.get())
            if unwanted:
                driver.abort(unwanted)
            for delta in news:
                yield delta
    finally:
        if job.open_ids:
            driver.abort(job.open_ids)


class _Mail:
    """Parcels for the coroutines of one event loop, which is woken once for all of a step. The
    engine's thread puts them in and sends them off.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._parcels: deque[tuple[asyncio.Queue[Parcel], Parcel]] = deque()

    def slot(self, box: asyncio.Queue[Parcel]) -> Callable[[Parcel], None]:
        """Where parcels for `box` are put in."""
        parcels = self._parcels
        return lambda parcel: parcels.append((box, parcel))

    def send(self) -> None:
        """Have the loop hand out what there is. Errors: RuntimeError when it is closed."""
        loop = self._loop()
        try:
            if loop is None:
                raise RuntimeError("the event loop is gone")
            if self._parcels:
                loop.call_soon_threadsafe(self._hand_out)
        except RuntimeError:
            self._parcels.clear()  # their boxes would keep the loop, and `_mails` them
            raise

    def _hand_out(self) -> None:
        while self._parcels:
            box, parcel = self._parcels.popleft()
            box.put_nowait(parcel)


_mails: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mail] = weakref.WeakKeyDictionary()


def _mail_of(loop: asyncio.AbstractEventLoop) -> _Mail:
    mail = _mails.get(loop)
    if mail is None:
        mail = _mails[loop] = _Mail(loop)
    return mail


def _sink(job: Job, put: Callable[[Parcel], None]) -> Sink:
    """Live jobs hear of every token; for the others one parcel at the end saves waking up the
    watcher each time.
    """
    if job.live:

        def hand_over(output: RequestOutput) -> None:
            job.note()
            put([output])

        return hand_over
    held: dict[str, Parcel] = {request.id: [] for request in job.requests}

    def sink(output: RequestOutput) -> None:
        job.note()
        held[output.id].append(output)
        if output.finished:
            put(held.pop(output.id))

    return sink
