"""Compiled grammars for the answers of one model: tried in a process of its own, kept in a cache.

Contract: `Grammars.compile(constraint)` gives a `Grammar`, or raises an error within `COMPILE_S`,
whatever the constraint and whoever else asks. A hostile grammar may take minutes, gigabytes, or the
whole stack of whoever compiles it; so another process tries each one first, one at a time
(`prompt/grammar_worker.py`), is killed when the time is over, and started again. Waiting for one's
turn, for the new process, and for its verdict share the same deadline: only a grammar that had
`FULL_S` of it for itself is called too hard, the others are told to come again. What passed is
compiled here, in the caller's thread, without Python's lock. Any thread may call; the engine's
thread never does.

The cache holds the grammars used last, as many as take `CACHE_BYTES`; the trying process
measures each.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from qwenkit.errors import EngineError, QueueFullError, RequestError
from qwenkit.llm.job import Query
from qwenkit.prompt.constraint import Constraint
from qwenkit.prompt.grammar import Grammar, Vocabulary
from qwenkit.prompt.tokenizer import Tokenizer

COMPILE_S, FULL_S, SLICE_S = 1.8, 1.6, 0.05
"""So that whoever is refused knows it within 2 s, killing the process included; what of it makes a
grammar too hard; and how often those who wait look up.
"""
START_S = 30.0
"""For the process to load the vocabulary: half a second where nothing else runs."""
RETRY_S = math.ceil(COMPILE_S)
MAX_WAITING = 16
"""Constraints that are compiled or wait for it; one more is refused."""
CACHE_BYTES = 64 << 20
OTHERS, RESTART = "Other grammars came first", "The process that tries grammars was restarted"
_RUN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from qwenkit.prompt.grammar_worker import main; main()"
)


class Grammars:
    """The vocabulary, the trying process and the cache of one model, each made when needed."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        self._tokenizer, self.end_ids = tokenizer, tuple(end_ids)
        self._vocabulary: Vocabulary | None = None
        self._building = threading.Lock()
        self._worker: _Worker | None = None
        self._turn = _Turn()
        """Who may use the worker."""
        self._cache: OrderedDict[str, tuple[Grammar, int]] = OrderedDict()
        self.cache_bytes = 0
        self._num_waiting = 0
        self._lock = threading.Lock()
        """Over cache and number; never held for long."""
        self._threads = ThreadPoolExecutor(MAX_WAITING, "qwenkit-grammar")
        self._closed = False

    def prepare(self) -> None:
        """Build the vocabulary and start the process, so that the first constraint finds both.

        Building holds Python's lock for up to half a second: do it before there is traffic.
        """
        vocabulary, deadline = self._get_vocabulary(), _Deadline(START_S)
        with self._turn.taken(deadline):
            self._get_worker(vocabulary).wait_until_ready(deadline)

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint.

        Errors: RequestError naming what is wrong, with `constraint.param`; QueueFullError when this
        one did not have its time because of others.
        """
        known = self._known(constraint)
        if known is not None:
            return known
        deadline = _Deadline(COMPILE_S)
        self._take_place()
        try:
            return self._compile(constraint, deadline)
        finally:
            self._leave_place()

    def add_to(self, query: Query) -> Query:
        """The query with its grammar, if it has a constraint. Errors: those of `compile`."""
        if query.constraint is None:
            return query
        return replace(query, grammar=self.compile(query.constraint))

    async def aadd_to(self, query: Query) -> Query:
        """`add_to` for coroutines. What is not known yet is compiled in threads of its own, of
        which there is one for each place.
        """
        if query.constraint is None:
            return query
        grammar = self._known(query.constraint)
        if grammar is None:
            deadline = _Deadline(COMPILE_S)
            self._take_place()
            try:
                work = self._threads.submit(self._compile, query.constraint, deadline)
            except BaseException:
                self._leave_place()
                raise
            work.add_done_callback(lambda _: self._leave_place())
            grammar = await asyncio.wrap_future(work)
        return replace(query, grammar=grammar)

    def close(self) -> None:
        """End the process. Closing again changes nothing."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _get_vocabulary(self) -> Vocabulary:
        with self._building:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary.of(self._tokenizer, self.end_ids)
            return self._vocabulary

    def _known(self, constraint: Constraint) -> Grammar | None:
        with self._lock:
            known = self._cache.get(constraint.spec)
            if known is None:
                return None
            self._cache.move_to_end(constraint.spec)
            return known[0]

    def _keep(self, spec: str, grammar: Grammar, size: int) -> None:
        size += len(spec) + len(grammar.text)
        with self._lock:
            if spec in self._cache:
                return
            self._cache[spec] = grammar, size
            self.cache_bytes += size
            while self.cache_bytes > CACHE_BYTES:
                _, (_, freed) = self._cache.popitem(last=False)
                self.cache_bytes -= freed

    def _take_place(self) -> None:
        if self._closed:
            raise _closed()
        with self._lock:
            if self._num_waiting >= MAX_WAITING:
                raise QueueFullError(MAX_WAITING, RETRY_S)
            self._num_waiting += 1

    def _leave_place(self) -> None:
        with self._lock:
            self._num_waiting -= 1

    def _compile(self, constraint: Constraint, deadline: _Deadline) -> Grammar:
        vocabulary = self._get_vocabulary()
        try:
            tried = self._try(vocabulary, constraint.spec, deadline)
            grammar = Grammar(vocabulary, tried["grammar"])
        except RequestError as error:
            param = "tools" if error.param == "tools" else constraint.param  # whoever is to blame
            raise RequestError(error.message, error.remedy, param=param) from error
        self._keep(constraint.spec, grammar, tried["bytes"])
        return grammar

    def _try(self, vocabulary: Vocabulary, spec: str, deadline: _Deadline) -> dict[str, Any]:
        """What the other process says of a grammar that it has come to terms with."""
        with self._turn.taken(deadline):
            came = deadline.left()
            worker = self._get_worker(vocabulary)
            worker.wait_until_ready(deadline)
            had = deadline.left()
            cause = OTHERS if COMPILE_S - came > came - had else RESTART
            if had < SLICE_S:  # too little to end the process for
                raise _busy(cause)
            try:
                reply = worker.ask(spec, deadline)
            except TimeoutError:
                self._replace_worker(vocabulary)
                if had < FULL_S:
                    raise _busy(cause) from None
                reply = None
            else:
                if reply is None:
                    self._replace_worker(vocabulary)
        if reply is None:
            raise RequestError(
                f"The grammar takes over {FULL_S:g} s, or too much memory, to compile.",
                "Simplify it.",
            )
        if "error" in reply:
            raise RequestError(reply["error"], reply["remedy"], param=reply.get("param"))
        return reply

    def _get_worker(self, vocabulary: Vocabulary) -> _Worker:
        if self._closed:
            raise _closed()
        if self._worker is not None and not self._worker.usable:
            self._worker.kill()
            self._worker = None
        if self._worker is None:
            self._worker = _Worker(vocabulary)
        return self._worker

    def _replace_worker(self, vocabulary: Vocabulary) -> None:
        """A new one at once: it starts while nobody waits for it."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
        if not self._closed:
            self._worker = _Worker(vocabulary)


def _closed() -> EngineError:
    return EngineError("The engine was closed.", "Make a new LLM.", code="closed")


def _busy(cause: str) -> QueueFullError:
    reason = f"{cause}, so this grammar had no fair try within {COMPILE_S:g} s."
    return QueueFullError(MAX_WAITING, RETRY_S, reason=reason)


class _Deadline:
    """A number of seconds from now on. Where this process was held up (or the whole machine slept),
    the other one was too: one look counts for two slices at most, so who waits looks often.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._last = seconds, time.monotonic()

    def left(self) -> float:
        """Seconds; 0 when it has passed."""
        now = time.monotonic()
        self._left -= min(now - self._last, 2 * SLICE_S)
        self._last = now
        return max(self._left, 0.0)

    def slice(self) -> float:
        """How long to wait until the next look."""
        return min(SLICE_S, self.left())


class _Turn:
    """One at a time, in the order of coming."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line = deque[object]()

    @contextmanager
    def taken(self, deadline: _Deadline) -> Iterator[None]:
        """Errors: QueueFullError when the deadline passes before it is one's turn."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
        try:
            with self._changed:
                while self._line[0] is not ticket:
                    if not deadline.left():
                        raise _busy(OTHERS)
                    self._changed.wait(deadline.slice())
            yield
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()


class _Worker:
    """One trying process; started at once, usable when it says so."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        with tempfile.TemporaryFile() as file:
            vocabulary.dump(file)
            file.flush()
            command = [sys.executable, "-I", "-c", _RUN, str(file.fileno()), json.dumps(sys.path)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=[file.fileno()],
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )
        self._owner, self._is_ready, self._begun = os.getpid(), False, time.monotonic()

    @property
    def usable(self) -> bool:
        """Whether it lives, and belongs to this process (after a fork, it does not)."""
        return self._owner == os.getpid() and self._process.poll() is None

    def wait_until_ready(self, deadline: _Deadline) -> None:
        """Until the vocabulary is loaded. Errors: QueueFullError when the deadline passes before,
        EngineError when it would never be.
        """
        if self._is_ready:
            return
        try:
            if self._read(deadline) is not None:
                self._is_ready = True
                return
        except TimeoutError:
            if time.monotonic() - self._begun < START_S:
                raise _busy(RESTART) from None
        self.kill()
        raise EngineError("The process that tries grammars does not start.")

    def ask(self, spec: str, deadline: _Deadline) -> dict[str, Any] | None:
        """Its reply; None when it dies of that. Errors: TimeoutError."""
        assert self._process.stdin is not None
        data = memoryview(spec.encode() + b"\n")
        try:
            while data:
                data = data[self._process.stdin.write(data) :]
        except BrokenPipeError:
            return None
        return self._read(deadline)

    def kill(self) -> None:
        """End it and reap it."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, deadline: _Deadline) -> dict[str, Any] | None:
        """One line of JSON; None when the process ends before. Errors: TimeoutError."""
        assert self._process.stdout is not None
        poll = select.poll()  # `select.select` takes no descriptor over 1023
        poll.register(self._process.stdout, select.POLLIN)
        parts = list[bytes]()
        while not parts or not parts[-1].endswith(b"\n"):
            if not poll.poll(1000 * deadline.slice()):
                if not deadline.left():
                    raise TimeoutError
                continue
            parts.append(self._process.stdout.read(1 << 16))
            if not parts[-1]:
                return None
        reply: dict[str, Any] = json.loads(b"".join(parts))
        return reply
