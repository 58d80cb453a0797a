"""Compiled grammars for the answers of one model: tried in a process of its own, kept in a cache.

Contract: `Grammars.compile(constraint)` gives a `Grammar`, or raises a RequestError within the time
limit, whatever the constraint. A hostile grammar may take minutes, gigabytes, or the whole stack of
whoever compiles it; so another process tries each one first (`prompt/grammar_worker.py`), is killed
after `COMPILE_S` seconds, and started again. What passed there is compiled here, in the caller's
thread, without Python's lock. Any thread may call; the engine's thread never does.

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
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from qwenkit.errors import EngineError, QueueFullError, RequestError
from qwenkit.llm.job import Query
from qwenkit.prompt.constraint import Constraint
from qwenkit.prompt.grammar import Grammar, Vocabulary
from qwenkit.prompt.tokenizer import Tokenizer

COMPILE_S, SLICE_S = 1.8, 0.05
"""So that whoever is refused knows it within 2 s, killing the process included."""
START_S = 30.0
"""For the process to load the vocabulary: half a second where nothing else runs."""
MAX_WAITING = 16
"""Constraints that are tried or wait for it; one more is refused."""
CACHE_BYTES = 64 << 20
_RUN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from qwenkit.prompt.grammar_worker import main; main()"
)


class Grammars:
    """The vocabulary, the trying process and the cache of one model, each made when needed."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        self._tokenizer, self.end_ids = tokenizer, tuple(end_ids)
        self._vocabulary: Vocabulary | None = None
        self._worker: _Worker | None = None
        self._cache: OrderedDict[str, tuple[Grammar, int]] = OrderedDict()
        self.cache_bytes = 0
        self._lock = threading.Lock()
        """Over vocabulary and cache. `_turn` is over the worker, which tries one at a time."""
        self._turn = threading.Lock()
        self._num_waiting = 0
        self._threads = ThreadPoolExecutor(MAX_WAITING, "qwenkit-grammar")
        self._closed = False

    def prepare(self) -> None:
        """Build the vocabulary and start the process, so that the first constraint finds both.

        Building holds Python's lock for up to half a second: do it before there is traffic.
        """
        vocabulary = self._get_vocabulary()
        with self._turn:
            self._get_worker(vocabulary)

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint.

        Errors: RequestError naming what is wrong, with `constraint.param`; QueueFullError when so
        many others wait to be tried that this one could not be within the time limit.
        """
        with self._lock:
            known = self._cache.get(constraint.spec)
            if known is not None:
                self._cache.move_to_end(constraint.spec)
                return known[0]
        vocabulary = self._get_vocabulary()
        try:
            tried = self._try(vocabulary, constraint.spec)
            grammar = Grammar(vocabulary, tried["grammar"])
        except RequestError as error:
            raise RequestError(error.message, error.remedy, param=constraint.param) from error
        self._keep(constraint.spec, grammar, tried["bytes"])
        return grammar

    def add_to(self, query: Query) -> Query:
        """The query with its grammar, if it has a constraint. Errors: those of `compile`."""
        if query.constraint is None:
            return query
        return replace(query, grammar=self.compile(query.constraint))

    async def aadd_to(self, query: Query) -> Query:
        """`add_to` for coroutines, in threads of its own: others do not wait for slow grammars."""
        if query.constraint is None:
            return query
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.add_to, query)

    def close(self) -> None:
        """End the process. Closing again changes nothing."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _get_vocabulary(self) -> Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary.of(self._tokenizer, self.end_ids)
            return self._vocabulary

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

    def _try(self, vocabulary: Vocabulary, spec: str) -> dict[str, Any]:
        """What the other process says of a grammar that it has come to terms with."""
        with self._lock:
            if self._num_waiting == MAX_WAITING:
                raise QueueFullError(MAX_WAITING, math.ceil(COMPILE_S))
            self._num_waiting += 1
        try:
            if not self._turn.acquire(timeout=COMPILE_S):
                raise QueueFullError(MAX_WAITING, math.ceil(COMPILE_S))
            try:
                reply = self._ask(vocabulary, spec)
            finally:
                self._turn.release()
        finally:
            with self._lock:
                self._num_waiting -= 1
        if reply is None:
            raise RequestError(
                f"The grammar takes over {COMPILE_S:g} s, or too much memory, to compile.",
                "Simplify it.",
            )
        if "error" in reply:
            raise RequestError(reply["error"], reply["remedy"])
        return reply

    def _ask(self, vocabulary: Vocabulary, spec: str) -> dict[str, Any] | None:
        worker = self._get_worker(vocabulary)
        reply = worker.ask(spec, COMPILE_S)
        if reply is None:
            worker.kill()
            self._worker = None if self._closed else _Worker(vocabulary)
        return reply

    def _get_worker(self, vocabulary: Vocabulary) -> _Worker:
        if self._closed:
            raise EngineError("The engine was closed.", "Make a new LLM.")
        if self._worker is not None and not self._worker.usable:
            self._worker.kill()
            self._worker = None
        if self._worker is None:
            self._worker = _Worker(vocabulary)
        return self._worker.ready()


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
        self._owner, self._is_ready = os.getpid(), False

    @property
    def usable(self) -> bool:
        """Whether it lives, and belongs to this process (after a fork, it does not)."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ready(self) -> _Worker:
        """Itself, once the vocabulary is loaded. Errors: EngineError when that never happens."""
        if not self._is_ready:
            if self._read(START_S) is None:
                self.kill()
                raise EngineError("The process that tries grammars does not start.")
            self._is_ready = True
        return self

    def ask(self, spec: str, seconds: float) -> dict[str, Any] | None:
        """Its reply; None when it takes longer, or dies."""
        assert self._process.stdin is not None
        data = memoryview(spec.encode() + b"\n")
        try:
            while data:
                data = data[self._process.stdin.write(data) :]
        except BrokenPipeError:
            return None
        return self._read(seconds)

    def kill(self) -> None:
        """End it and reap it."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """One line of JSON, or None. The time is counted in slices: where this process itself is
        held up (or the whole machine sleeps), the other one was too.
        """
        assert self._process.stdout is not None
        parts = list[bytes]()
        while not parts or not parts[-1].endswith(b"\n"):
            if seconds <= 0:
                return None
            if not select.select([self._process.stdout], [], [], SLICE_S)[0]:
                seconds -= SLICE_S
                continue
            parts.append(self._process.stdout.read(1 << 16))
            if not parts[-1]:
                return None
        reply: dict[str, Any] = json.loads(b"".join(parts))
        return reply
