"""The one thread that steps an engine, for any number of threads and coroutines that want tokens.

`submit` checks requests in the caller's thread (a bad one raises there, and one too many), queues
them, and from then on the thread calls `sink(output)` for each output. A sink must be quick and
must not block: put into a queue and return. The thread starts with the first request, sleeps when
there is nothing to do, and ends with `close`. A receiver that must be woken gives `wake` besides:
it is called once for all outputs of a step, when the kernels of the next one are about to run, so
that both go on at the same time. Other work on the same model (`lend`) takes turns
with the steps. `busy_seconds` and `healthy` tell a watchdog whether it hangs or has died.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from qwenkit.engine.engine import Engine
from qwenkit.engine.request import ErrorCode, FinishReason, Request, RequestOutput
from qwenkit.errors import EngineError, QueueFullError, QwenkitError

Sink = Callable[[RequestOutput], None]
Wake = Callable[[], None]
CLOSED = "The engine was closed."
DIED = "The engine's thread has died."
LONGEST_RETRY = 30

_log = logging.getLogger("qwenkit.engine")


@dataclass(frozen=True, slots=True)
class _Receiver:
    request: Request
    sink: Sink
    wake: Wake | None


class Driver:
    """Runs `engine.step` on a thread of its own while there is work.

    max_waiting: requests that may wait beside the `max_sequences` that the engine runs, and
    max_waiting_per_tenant: of one tenant; None is no limit.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int | None = None,
        max_waiting_per_tenant: int | None = None,
    ) -> None:
        self.engine = engine
        self.max_waiting, self.max_waiting_per_tenant = max_waiting, max_waiting_per_tenant
        self._wake = threading.Condition()
        self._arrived: list[_Receiver] = []
        self._unwanted: list[str] = []
        self._open: dict[int, Request] = {}  # by id(): everything that has not ended
        self._sinks: dict[str, _Receiver] = {}
        self._asleep: dict[Wake, list[_Receiver]] = {}  # who has got outputs and was not woken yet
        self._lent: deque[tuple[Generator[None, None, Any], Future[Any]]] = deque()
        self._ends: deque[float] = deque(maxlen=64)
        self._thread: threading.Thread | None = None
        self._closed = self._died = False
        self._step_began: float | None = None

    @property
    def healthy(self) -> bool:
        """False once the thread has ended by itself: a bug; no request is taken any more."""
        return not self._died

    @property
    def busy_seconds(self) -> float:
        """How long the step that is being computed has taken so far; 0 while none is."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def submit(self, requests: Sequence[Request], sink: Sink, wake: Wake | None = None) -> None:
        """Queue all of the requests, or none: errors are raised before any is queued. Receivers
        with an equal `wake` are woken by one call.

        Errors: those of `Engine.check`, QueueFullError, EngineError once it is closed or has died.
        """
        for request in requests:
            self.engine.check(request)
        with self._wake:
            self._check_alive()
            self._check_room(requests)
            self._arrived += [_Receiver(request, sink, wake) for request in requests]
            self._open.update((id(request), request) for request in requests)
            self._start()

    def lend(self, work: Generator[None, None, Any]) -> Future[Any]:
        """Run other work with the model on the engine's thread, where nothing races with it: one
        piece (as far as its next `yield`) between two steps, pieces of several works in turn. The
        future has what it returns or raises; cancelling the future ends the work within one piece.

        Errors: QueueFullError beyond `max_waiting` works, EngineError once it is closed or has
        died.
        """
        future: Future[Any] = Future()
        with self._wake:
            self._check_alive()
            if self.max_waiting is not None and len(self._lent) > self.max_waiting:
                raise QueueFullError(self.max_waiting, self._retry_after())
            self._lent.append((work, future))
            self._start()
        return future

    def _check_alive(self) -> None:
        if self._closed or self._died:
            code: ErrorCode = "closed" if self._closed else "failed"
            raise EngineError(CLOSED if self._closed else DIED, "Make a new LLM.", code=code)

    def _start(self) -> None:
        """Have the thread run and look. The lock is held."""
        if self._thread is None or not self._thread.is_alive():  # in a forked child it is gone
            self._thread = threading.Thread(target=self._run, name="qwenkit-engine", daemon=True)
            self._thread.start()
        self._wake.notify()

    def _check_room(self, requests: Sequence[Request]) -> None:
        beyond = len(self._open) + len(requests) - self.engine.scheduler.max_sequences
        if beyond <= 0:  # each of them can start at once
            return
        if self.max_waiting is not None and beyond > self.max_waiting:
            raise QueueFullError(self.max_waiting, self._retry_after())
        limit = self.max_waiting_per_tenant
        if limit is None:
            return
        waiting = Counter(request.tenant for request in self._open.values() if request.waits)
        for tenant, count in Counter(request.tenant for request in requests).items():
            if waiting[tenant] + count > limit:
                raise QueueFullError(limit, self._retry_after(), tenant=tenant)

    def _retry_after(self) -> int:
        """Seconds until those who wait now have had their turn, as fast as requests end lately."""
        ends, waiting = self._ends, sum(request.waits for request in self._open.values())
        if len(ends) < 2:
            return 1
        each = (time.monotonic() - ends[0]) / len(ends)
        return min(max(math.ceil(waiting * each), 1), LONGEST_RETRY)

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
        for runner in self.engine.runners:
            runner.meanwhile = self._wake_all
        try:
            if self.engine.model.fused:
                leave_cores_to_kernels()
            with torch.inference_mode():
                while self._take():
                    self._turn()
            self._end_all("abort", CLOSED, "closed")
        except BaseException as error:  # a bug; nobody shall wait for ever
            _log.exception("the engine's thread has died")
            with self._wake:
                self._died = True
            self._end_all("error", f"{DIED} {type(error).__name__}: {error}", "failed")
        finally:
            self._step_began = None
            for runner in self.engine.runners:
                runner.meanwhile = None  # else engine and driver would keep each other

    def _turn(self) -> None:
        for output in self._step():
            self._deliver(output)
        if self._lent or not self.engine.has_work:
            self._wake_all()
        if self._lent:
            self._lend_turn()

    def _take(self) -> bool:
        """Wait for work and hand what has come to the engine; False once it is closed."""
        with self._wake:
            while not (
                self._closed
                or self._arrived
                or self._unwanted
                or self._lent
                or self.engine.has_work
            ):
                self._wake.wait()
            if self._closed:
                return False
            arrived, self._arrived = self._arrived, []
            unwanted, self._unwanted = self._unwanted, []
        for receiver in arrived:
            self._add(receiver)
        for request_id in unwanted:
            self.engine.abort(request_id)
        return True

    def _add(self, receiver: _Receiver) -> None:
        request = receiver.request
        try:
            self.engine.add(request)
        except QwenkitError as error:
            self._call(receiver, RequestOutput(request.id, [], None, "error", str(error)))
        else:
            self._sinks[request.id] = receiver

    def _step(self) -> list[RequestOutput]:
        self._step_began = time.monotonic()
        try:
            return self.engine.step()
        except Exception as error:  # a bug: what requests cause, the engine contains
            _log.exception("a step of the engine failed; every running request ends")
            text = f"The engine failed: {type(error).__name__}: {error}"
            failed = [RequestOutput(i, [], None, "error", text, "failed") for i in self._sinks]
            for output in failed:
                self.engine.abort(output.id)
            return failed
        finally:
            self._step_began = None

    def _lend_turn(self) -> None:
        """One piece of the first lent work; then it goes to the end of the row."""
        work, future = self._lent.popleft()
        if future.cancelled():
            work.close()
            return
        self._step_began = time.monotonic()
        try:
            next(work)
        except StopIteration as end:
            with suppress(InvalidStateError):  # cancelled just now
                future.set_result(end.value)
        except Exception as error:  # its own fault, and nobody else's
            with suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with self._wake:
                self._lent.append((work, future))
        finally:
            self._step_began = None

    def _end_all(self, reason: FinishReason, text: str, code: ErrorCode) -> None:
        with self._wake:
            arrived, self._arrived = self._arrived, []
            lent, self._lent = self._lent, deque()
        for work, future in lent:
            work.close()
            with suppress(InvalidStateError):
                future.set_exception(EngineError(text, code=code))
        known = [*self._sinks.values(), *arrived]
        self._sinks.clear()
        for receiver in known:
            request_id = receiver.request.id
            if not self._died:
                self.engine.abort(request_id)
            self._call(receiver, RequestOutput(request_id, [], None, reason, text, code))
        self._wake_all()

    def _deliver(self, output: RequestOutput) -> None:
        found = self._sinks.get(output.id)
        if found is None:
            return
        if output.finished:
            del self._sinks[output.id]
        if not self._call(found, output) and not output.finished:
            del self._sinks[output.id]
            self.engine.abort(output.id)

    def _call(self, receiver: _Receiver, output: RequestOutput) -> bool:
        """Hand an output over; False when the receiver fails: its request ends, no other."""
        if output.finished:  # first, so that its receiver finds the place free
            self._close_request(receiver.request)
        try:
            receiver.sink(output)
        except Exception:
            _log.exception("the receiver of request %s failed", output.id)
            self._close_request(receiver.request)
            return False
        if receiver.wake is not None:
            self._asleep.setdefault(receiver.wake, []).append(receiver)
        return True

    def _wake_all(self) -> None:
        """Wake those who have got something. Where that fails, their requests end."""
        while self._asleep:
            wake, receivers = self._asleep.popitem()
            try:
                wake()
            except Exception:  # for instance an event loop that was closed
                ids = [receiver.request.id for receiver in receivers]
                _log.exception("the receivers of the requests %s failed", ids)
                for receiver in receivers:
                    self._close_request(receiver.request)
                    self._sinks.pop(receiver.request.id, None)
                self.abort(ids)

    def _close_request(self, request: Request) -> None:
        with self._wake:
            if self._open.pop(id(request), None) is not None:
                self._ends.append(time.monotonic())


def leave_cores_to_kernels() -> None:
    """Keep PyTorch to one thread on this thread alone. Its OpenMP threads stay awake for a while
    after each operation, on the cores that the kernels' threads want next.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # also what threads that are yet to come would begin with
    restore = threading.Thread(target=torch.set_num_threads, args=(before,))
    restore.start()
    restore.join()
