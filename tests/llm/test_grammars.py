"""The trying process and the cache: hostile grammars end there, and only there."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwenkit.errors import EngineError, QueueFullError, RequestError
from qwenkit.io.hub import resolve
from qwenkit.llm import LLM, grammars
from qwenkit.llm.grammars import COMPILE_S, RESTART, Grammars
from qwenkit.llm.job import Query
from qwenkit.prompt.constraint import Constraint, constraint_of
from qwenkit.prompt.tokenizer import Tokenizer

SECONDS = COMPILE_S + 1.0
"""A refusal on a busy machine: the limit, and what it takes to kill the process."""
LEAP = (
    r"(((([12]\d([2468][048]|[13579][26]|0[48]))|(((1[26]|2[048])00)))-((((0[13578]|1[02])-"
    r"(0[1-9]|[12]\d|3[01]))|((0[469]|11)-(0[1-9]|[12]\d|30)))|(02-(0[1-9]|[12]\d)))){1,50})"
)


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def anded(count: int) -> str:
    """Holds the compiler up for minutes."""
    return "start: A\nA: " + " & ".join(f"/(?s:.*)a.{{{i}}}b(?s:.*)/" for i in range(count))


def chained(count: int) -> str:
    """Takes all of the compiler's stack."""
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(count))
    return f'start: r0\n{rules}\nr{count}: "a"'


def asked(**what: Any) -> Constraint:
    constraint = constraint_of(**what)
    assert constraint is not None
    return constraint


class Stopwatch:
    """Seconds in which this process ran: a test that is stopped for a while does not fail."""

    def __enter__(self) -> Stopwatch:
        self.ticks, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.ticks += 1

    @property
    def seconds(self) -> float:
        return self.ticks * 0.05


@pytest.fixture(scope="module")
def made() -> Iterator[Grammars]:
    tokenizer = Tokenizer.from_dir(resolve("tiny-instruct"))
    made = Grammars(tokenizer, [tokenizer.special_ids["<|im_end|>"]])
    made.prepare()
    yield made
    made.close()


HOSTILE: list[dict[str, Any]] = [
    {"grammar": anded(60)},
    {"grammar": chained(4500)},
    {"grammar": chained(4500).replace("r", "R").replace('staRt: R0', 'start: R0')},
    {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {"grammar": "start: a\na: b\nb: a"},
    {"regex": "(" * 20_000 + "a" + ")" * 20_000},
    {"regex": "(?=a)a"},
    {"regex": r"(a)\1"},
    schema({"$ref": "#"}),
    schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    schema({"$ref": "http://127.0.0.1:9/schema"}),
    schema({"enum": list(range(1001))}),
    schema({"type": "object", "properties": {f"p{i}": {} for i in range(5001)}}),
    schema({"type": "string", "minLength": 3, "maxLength": 2}),
    schema({"type": "array", "minItems": 10**9}),
    schema({"type": "string", "pattern": "(?<!a)b"}),
    schema({"allOf": [{"anyOf": [{"type": "string", "pattern": f"a{i}"} for i in range(30)]}] * 6}),
]  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_grammars_are_refused_in_time(made: Grammars, what: dict[str, Any]) -> None:
    made.prepare()
    with Stopwatch() as watch, pytest.raises(RequestError) as error:
        made.compile(asked(**what))
    assert watch.seconds < SECONDS
    assert error.value.param == next(iter(what))
    assert len(str(error.value)) < 500 and "/" not in str(error.value).replace("#/", "")[:40]


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "a{1,100000}", LEAP, "(x+x+)+y", "(?:.*a.{20}){20}"]
)
def test_patterns_that_hang_others_compile(made: Grammars, pattern: str) -> None:
    with Stopwatch() as watch:
        made.compile(asked(regex=pattern))
        made.compile(asked(**schema({"type": "string", "pattern": pattern})))
    assert watch.seconds < SECONDS


def test_bounds_that_are_only_large_compile(made: Grammars) -> None:
    for value in (
        {"type": "array", "maxItems": 10**9},
        {"type": "string", "maxLength": 2**31 - 1},
        {"type": "number", "minimum": -1e12, "maximum": 1e12},
        {"type": "integer", "multipleOf": 9999},
    ):
        with Stopwatch() as watch:
            made.compile(asked(**schema(value)))
        assert watch.seconds < SECONDS


def test_a_killed_process_is_replaced(made: Grammars) -> None:
    made.prepare()
    before = made._worker
    with pytest.raises(RequestError, match=r"over 1\.6 s"):
        made.compile(asked(grammar=anded(61)))
    assert made.compile(asked(choice=["after all"])).matcher()
    assert made._worker is not before


def test_a_process_that_died_meanwhile_is_replaced(made: Grammars) -> None:
    made.prepare()
    assert made._worker is not None
    os.kill(made._worker._process.pid, 9)
    made._worker._process.wait()
    assert made.compile(asked(choice=["after that"])).matcher()


def test_the_cache_is_bounded_in_bytes(made: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 schemas with a cap of 2 MiB; 10,000 with the real one were run by hand (dev/LOG.md)."""
    monkeypatch.setattr(grammars, "CACHE_BYTES", 2 << 20)
    first = made.compile(asked(choice=["kept"]))
    for i in range(300):
        made.compile(asked(**schema({"type": "object", "properties": {f"a{i}": {}}})))
        assert made.cache_bytes <= 2 << 20
        if i % 5 == 0:
            assert made.compile(asked(choice=["kept"])) is first
    assert made.cache_bytes == sum(size for _, size in made._cache.values())
    assert len(made._cache) < 20


def test_too_many_at_once_are_told_to_come_back(
    made: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_WAITING", 2)
    outcomes: list[str] = []

    def work(i: int) -> None:
        try:
            made.compile(asked(grammar=anded(70 + i)))
        except (RequestError, QueueFullError) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 6
    assert outcomes.count("QueueFullError") >= 4
    assert made._num_waiting == 0


SLEEPER = """
import json, sys, time
time.sleep({start})
print("{{}}", flush=True)
for line in sys.stdin:
    time.sleep(float(line))
    print(json.dumps({{"grammar": 'start: "a"', "bytes": 1}}), flush=True)
"""
"""Instead of the trying process: it takes as many seconds as the grammar says."""
LIMIT, FULL = 1.0, 0.7


@pytest.fixture
def sleeper(made: Grammars, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Grammars]]:
    """`sleeper(start)`: grammars with such a process, which takes `start` seconds to begin."""
    monkeypatch.setattr(grammars, "COMPILE_S", LIMIT)
    monkeypatch.setattr(grammars, "FULL_S", FULL)
    opened = []

    def make(start: float = 0.0) -> Grammars:
        monkeypatch.setattr(grammars, "_RUN", SLEEPER.format(start=start))
        opened.append(Grammars(made._tokenizer, made.end_ids))
        if not start:
            opened[-1].prepare()
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def outcomes(sleepy: Grammars, *plan: tuple[float, float]) -> list[str]:
    """What becomes of grammars that (begin then, take so long), and that each is told in time."""
    found = [""] * len(plan)

    def work(number: int, begin: float, takes: float) -> None:
        time.sleep(begin)
        with Stopwatch() as watch:
            try:
                sleepy.compile(Constraint(f"{takes}{'0' * number}", "regex"))
                found[number] = "compiled"
            except (RequestError, QueueFullError) as error:
                found[number] = str(error)
        assert watch.seconds < LIMIT + 0.5

    threads = [threading.Thread(target=work, args=(i, *each)) for i, each in enumerate(plan)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


HARD = "The grammar takes over 0.7 s, or too much memory, to compile. Simplify it."
WAITED = "Other grammars came first, so this grammar had no fair try within 1 s. Try again in 2 s."
RESTARTED = WAITED.replace("Other grammars came first", RESTART)


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        ([(0, 60.0)], [HARD]),
        ([(0, 0.01), (0, 0.01), (0, 0.01)], ["compiled"] * 3),
        # It had its turn for a part of the time: enough for a quick one only.
        ([(0, 0.5), (0.1, 60.0)], ["compiled", WAITED]),
        ([(0, 0.5), (0.1, 0.05), (0.2, 0.05)], ["compiled"] * 3),
        # The process was ended meanwhile.
        ([(0, 60.0), (0.6, 0.05)], [HARD, "compiled"]),
        ([(0, 60.0), (0.4, 60.0)], [HARD, WAITED]),
    ],
    ids=range(6),
)
def test_one_deadline_covers_all_of_the_wait(
    sleeper: Callable[..., Grammars], plan: list[tuple[float, float]], wanted: list[str]
) -> None:
    assert outcomes(sleeper(), *plan) == wanted


def test_of_those_that_come_at_once_one_is_blamed(sleeper: Callable[..., Grammars]) -> None:
    assert sorted(outcomes(sleeper(), *[(0, 60.0)] * 4)) == sorted([HARD, WAITED, WAITED, WAITED])


def test_a_start_that_takes_the_time_is_not_the_grammars_fault(
    sleeper: Callable[..., Grammars],
) -> None:
    sleepy = sleeper(start=1.4)
    assert outcomes(sleepy, (0, 0.01)) == [RESTARTED]
    before = sleepy._worker
    assert before is not None and before.usable  # it goes on starting
    assert outcomes(sleepy, (0, 60.0)) == [RESTARTED]  # it had what the start left of its time
    assert before is not sleepy._worker and not before.usable


def test_a_process_that_never_starts_is_told(
    sleeper: Callable[..., Grammars], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "START_S", 0.5)
    sleepy = sleeper(start=60)
    with pytest.raises(EngineError, match="does not start"):
        sleepy.compile(Constraint("0", "regex"))


def test_a_process_that_starts_while_many_files_are_open(
    sleeper: Callable[..., Grammars],
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 2048) if hard != resource.RLIM_INFINITY else 2048)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    opened = []
    try:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1030)]
        assert opened[-1] > 1023, "more than select() can wait for"
        assert outcomes(sleeper(), (0, 0.01), (0.1, 60.0)) == ["compiled", HARD]
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_known_needs_neither_turn_nor_place(
    sleeper: Callable[..., Grammars], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleepy = sleeper()
    known = Constraint("0.01", "regex")
    kept = sleepy.compile(known)
    monkeypatch.setattr(grammars, "MAX_WAITING", 1)

    async def main() -> list[str]:
        made_of = lambda what: Query([1], None, constraint=what)  # type: ignore[arg-type]  # noqa: E731
        slow = asyncio.create_task(sleepy.aadd_to(made_of(Constraint("60", "regex"))))
        await asyncio.sleep(0.1)
        monkeypatch.setattr(sleepy._threads, "submit", None)
        assert (await sleepy.aadd_to(made_of(known))).grammar is kept
        assert sleepy.compile(known) is kept
        told = []
        for wait in (sleepy.aadd_to(made_of(Constraint("0", "regex"))), slow):
            with pytest.raises((RequestError, QueueFullError)) as caught:
                await wait
            told.append(str(caught.value))
        return told

    assert asyncio.run(main()) == ["All 1 waiting places are taken. Try again in 2 s.", HARD]
    assert sleepy._num_waiting == 0


def test_who_leaves_gives_back_the_place(sleeper: Callable[..., Grammars]) -> None:
    sleepy = sleeper()

    async def main() -> None:
        wishes = [Query([1], None, constraint=Constraint(f"0.2{'0' * i}", "x")) for i in range(4)]  # type: ignore[arg-type]
        tasks = [asyncio.create_task(sleepy.aadd_to(wish)) for wish in wishes]
        await asyncio.sleep(0.05)
        assert sleepy._num_waiting == 4
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    deadline = time.monotonic() + 10
    while sleepy._num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sleepy.compile(Constraint("0", "x")).matcher()


def test_coroutines_do_not_wait_for_the_slow_ones(made: Grammars) -> None:
    made.compile(asked(choice=["known"]))

    async def main() -> float:
        query = Query([1], None, constraint=asked(choice=["known"]))  # type: ignore[arg-type]
        slow = Query([1], None, constraint=asked(grammar=anded(90)))  # type: ignore[arg-type]
        task = asyncio.create_task(made.aadd_to(slow))
        await asyncio.sleep(0.1)
        with Stopwatch() as watch:
            found = await made.aadd_to(query)
        assert found.grammar is not None
        with pytest.raises(RequestError):
            await task
        return watch.seconds

    assert asyncio.run(main()) < 1.0


def test_closing_ends_the_process() -> None:
    tokenizer = Tokenizer.from_dir(resolve("tiny-instruct"))
    made = Grammars(tokenizer, [tokenizer.special_ids["<|im_end|>"]])
    made.prepare()
    assert made._worker is not None
    process = made._worker._process
    made.close()
    made.close()
    assert process.returncode is not None
    with pytest.raises(EngineError, match="closed"):
        made.compile(asked(choice=["a"]))


def test_the_process_ends_with_its_parent() -> None:
    """Its standard input ends, and so does it."""
    tokenizer = Tokenizer.from_dir(resolve("tiny-instruct"))
    made = Grammars(tokenizer, [tokenizer.special_ids["<|im_end|>"]])
    made.prepare()
    assert made._worker is not None and made._worker._process.stdin is not None
    made._worker._process.stdin.close()
    assert made._worker._process.wait(10) == 0
    made._worker._process.stdin = open(os.devnull, "wb", buffering=0)
    made.close()


def gaps(llm: LLM, during: list[dict[str, Any]]) -> tuple[float, float]:
    """The longest time between two tokens of a stream, in seconds: before others compile, and while
    they do.
    """
    refused: list[BaseException] = []

    def compile_all() -> None:
        for what in during:
            try:
                llm.chat("x", max_tokens=1, **what)
            except (RequestError, QueueFullError) as error:
                refused.append(error)

    thread = threading.Thread(target=compile_all)
    found, last = [0.0, 0.0], None
    options: dict[str, Any] = {"max_tokens": 900, "min_tokens": 900, "temperature": 1.0, "seed": 1}
    for count, _ in enumerate(llm.stream("Count.", **options)):
        now = time.perf_counter()
        if last is not None:
            busy = count > 200
            found[busy] = max(found[busy], now - last)
        if count == 200:
            thread.start()
        if count > 220 and not thread.is_alive():
            break
        last = now
    thread.join(60)
    assert len(refused) == len(during)
    return found[0], found[1]


def test_no_stream_stalls_while_hostile_grammars_compile() -> None:
    """Less than 100 ms, or than twice what the stream waits anyway. Six tries: what makes a stream
    wait by design does so each time, a busy machine does not.
    """
    with LLM("tiny-instruct") as llm:
        llm.prepare_grammars()
        hostile = [HOSTILE[i] for i in (0, 1, 6, 12, 16)]
        tries = []
        for _ in range(6):
            usual, busy = gaps(llm, hostile)
            tries.append((usual, busy))
            if busy < max(0.1, 2 * usual):
                return
    raise AssertionError(f"each time a stream stalled (usual, then): {tries}")
