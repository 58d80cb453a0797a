"""The one thread that steps an engine, for any number of threads and coroutines that want tokens.

`submit` checks requests in the caller's thread (a bad one raises there), queues them, and from then
on the thread calls `sink(output)` for each output. A sink must be quick and must not block: put
into a queue and return. The thread starts with the first request, sleeps when there is nothing to
do, and ends with `close`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from qwenkit.engine.engine import Engine
from qwenkit.engine.request import Request, RequestOutput
from qwenkit.errors import EngineError, QwenkitError

Sink = Callable[[RequestOutput], None]
CLOSED = "The engine was closed."

_log = logging.getLogger("qwenkit.engine")


class Driver:
    """Runs `engine.step` on a thread of its own while there is work."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._arrived: list[tuple[Request, Sink]] = []
        self._unwanted: list[str] = []
        self._sinks: dict[str, Sink] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, requests: Sequence[Request], sink: Sink) -> None:
        """Queue all of the requests, or none: errors are those of `Engine.check`, raised before any
        is queued.
        """
        for request in requests:
            self.engine.check(request)
        with self._wake:
            if self._closed:
                raise EngineError(CLOSED, "Make a new LLM.")
            self._arrived += [(request, sink) for request in requests]
            if self._thread is None or not self._thread.is_alive():  # in a forked child it is gone
                self._thread = threading.Thread(
                    target=self._run, name="qwenkit-engine", daemon=True
                )
                self._thread.start()
            self._wake.notify()

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests within one step; their sinks get one last output. Unknown and ended ids
        change nothing.
        """
        with self._wake:
            self._unwanted += request_ids
            self._wake.notify()

    def close(self) -> None:
        """End everything that runs (sinks get "abort") and stop the thread. Closing again changes
        nothing.
        """
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._arrived or self._unwanted or self.engine.has_work):
                    self._wake.wait()
                if self._closed:
                    break
                arrived, self._arrived = self._arrived, []
                unwanted, self._unwanted = self._unwanted, []
            for request, sink in arrived:
                self._add(request, sink)
            for request_id in unwanted:
                self.engine.abort(request_id)
            for output in self._step():
                self._deliver(output)
        for request, sink in self._arrived:
            self._sinks[request.id] = sink
        for request_id in list(self._sinks):
            self.engine.abort(request_id)
            self._deliver(RequestOutput(request_id, finish_reason="abort", error=CLOSED))

    def _add(self, request: Request, sink: Sink) -> None:
        try:
            self.engine.add(request)
        except QwenkitError as error:
            sink(RequestOutput(request.id, finish_reason="error", error=str(error)))
        else:
            self._sinks[request.id] = sink

    def _step(self) -> list[RequestOutput]:
        try:
            return self.engine.step()
        except Exception as error:  # a bug: what requests cause, the engine contains
            _log.exception("a step of the engine failed; every running request ends")
            text = f"The engine failed: {type(error).__name__}: {error}"
            failed = [RequestOutput(i, finish_reason="error", error=text) for i in self._sinks]
            for output in failed:
                self.engine.abort(output.id)
            return failed

    def _deliver(self, output: RequestOutput) -> None:
        sink = self._sinks.get(output.id)
        if sink is None:
            return
        if output.finished:
            del self._sinks[output.id]
        try:
            sink(output)
        except (
            Exception
        ):  # for instance an event loop that was closed: its request ends, the others go on
            _log.exception("the receiver of request %s failed", output.id)
            self._sinks.pop(output.id, None)
            self.engine.abort(output.id)
