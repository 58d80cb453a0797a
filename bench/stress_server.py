"""A real server under what breaks servers: one line for each promise, and 1 if one is broken.

    python bench/stress_server.py                  all parts at full size (make stress)
    python bench/stress_server.py loris --scale 0.05

    streams      1,000 streams at once: some finish, the others are told within a second when to
                 come back; /health answers all the while; memory and files are as before
    disconnects  1,000 clients leave at random moments: nothing runs on, no block is lost
    sigterms     100 times SIGTERM under ten streams: each finishes or is told; exit in time, and
                 no process is left behind
    loris        500 connections that drip: the others' slowest answers stay as quick
    grammars     500 hostile grammars, schemas and regexes, one after the other and several at once,
                 with good ones beside: each has its answer in time, and no other stream waits for
                 its next token meanwhile

It needs no other client than the sockets here, so that 1,000 of them cost little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from fuzz_api import KEY, toy_model
from goals import at_least, at_most, exactly, finish

HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: "
)
PATIENCE = 1.0
"""What the bounds on time are multiplied with: a busy machine needs it, a measurement does not."""
GRAMMAR_S = 2.0
MESSAGES = [{"role": "user", "content": "What is 12 + 30?"}]


@dataclass
class Server:
    """`qwenkit serve` in a process of its own."""

    model: str
    flags: tuple[str, ...] = ()
    port: int = 0
    command: list[str] | None = None
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        words = [sys.executable, "-m", "qwenkit", *words_of(self.model, self.flags)]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            self.command or words,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "QWENKIT_API_KEY": KEY},
        )
        assert self.process.stdout is not None
        self.port = port_in(self.process.stdout.readline())
        self.process.stdout.readline()

    @property
    def rss(self) -> float:
        """Resident MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", text)
        assert found
        return int(found[1]) / 1024

    @property
    def files(self) -> int:
        """Open files."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def end(self) -> None:
        """Stop it; fails when it logged a traceback or left with another code than 0."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        self.check_log()

    def check_log(self) -> None:
        self.log.seek(0)
        text = self.log.read()
        assert "Traceback" not in text, text[-5000:]


def words_of(model: str, flags: tuple[str, ...]) -> list[str]:
    """The command line behind `qwenkit`."""
    words = ["serve", model, "--port", "0", "--served-model-name", "m", "--log-level", "warning"]
    return [*words, *flags]


def port_in(line: str) -> int:
    """The port that a server tells in its first line."""
    return int(line.rsplit(":", 1)[1].split("/")[0])


class QuickServer:
    """The same command line, begun in a copy of a process that has imported everything: torch's
    four seconds of a hundred servers would be most of the time.
    """

    def __init__(self, model: str, flags: tuple[str, ...]) -> None:
        os.environ["QWENKIT_API_KEY"] = KEY
        context = get_context("forkserver")
        context.set_forkserver_preload(
            ["__main__", "qwenkit.cli.serve", "qwenkit.llm", "qwenkit.server.run"]
        )
        reader, writer = context.Pipe(duplex=False)
        self.log = tempfile.NamedTemporaryFile("r")
        what = (words_of(model, flags), writer, self.log.name)
        self.process = context.Process(target=run_command, args=what)
        self.process.start()
        writer.close()
        with open(reader.fileno(), closefd=False) as lines:
            self.port = port_in(lines.readline())
        self._reader = reader

    def family(self) -> list[int]:
        """The server's process and those below it."""
        found = [self.process.pid or 0]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, task.read_text().split())
        return found

    def wait(self) -> int:
        """The exit code."""
        self.process.join(60)
        assert self.process.exitcode is not None, "the server does not end"
        self._reader.close()
        text = self.log.read()
        self.log.close()
        assert "Traceback" not in text, text[-5000:]
        return self.process.exitcode


def run_command(words: list[str], out: Connection, log: str) -> None:
    """`qwenkit WORDS` with its output and its log in these places."""
    from qwenkit.cli import main

    os.dup2(out.fileno(), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    sys.exit(main(words))


def request(**more: Any) -> bytes:
    """A chat request as bytes."""
    body = json.dumps({"model": "m", "messages": MESSAGES, "stream": True, **more}).encode()
    return HEAD.encode() + f"{len(body)}\r\n\r\n".encode() + body


@dataclass
class Answer:
    """What came back: status, seconds until the head, headers, and how the stream ended."""

    status: int
    wait: float
    head: str
    body: bytes = b""

    @property
    def ending(self) -> str:
        """done, error or nothing."""
        events = [e for e in self.body.split(b"\n\n") if b"data: " in e]
        if not events or b"[DONE]" not in events[-1]:
            return "nothing"
        return "error" if len(events) > 1 and b'"error"' in events[-2] else "done"


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Streams]:
    """A connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def talk(streams: Streams, data: bytes) -> Answer:
    """Send a request and read its whole answer."""
    reader, writer = streams
    began = time.monotonic()
    writer.write(data)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    answer = Answer(int(head.split()[1]), time.monotonic() - began, head)
    size = re.search(r"content-length: (\d+)", head)
    if size:
        answer.body = await reader.readexactly(int(size[1]))
        return answer
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            length = int(await reader.readline() or b"0", 16)
            answer.body += await reader.readexactly(length)
            await reader.readexactly(2)
            if length == 0:
                break
    return answer


async def ask(port: int, data: bytes) -> Answer:
    """One request on a connection of its own."""
    async with connected(port) as streams:
        return await talk(streams, data)


async def gauges(port: int) -> dict[str, float]:
    """The server's metrics that have no other label than the model."""
    data = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    page = (await ask(port, data.encode())).body.decode()
    pairs = re.findall(r'^qwenkit:(\w+)\{model_name="m"\} (\S+)$', page, flags=re.M)
    return {name: float(value) for name, value in pairs}


async def settled(port: int, seconds: float) -> float:
    """Seconds until nothing runs, waits or holds a block."""
    began = time.monotonic()
    while True:
        now = await gauges(port)
        busy = [now[f"num_requests_{what}"] for what in ("running", "waiting")]
        busy.append(now["kv_cache_usage_perc"])
        if not any(busy):
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, f"still busy: {busy}"
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def beside(work: Callable[..., Any], *what: Any) -> Iterator[Queue[Any]]:
    """Run `work(*what, out, stop)` in a process of its own, so that it is not slowed down by what
    happens here; gives `out`.
    """
    context = get_context("spawn")
    out, stop = context.Queue(), context.Event()
    process = context.Process(target=work, args=(*what, out, stop), daemon=True)
    process.start()
    assert out.get(timeout=60) == "ready"
    try:
        yield out
    finally:
        stop.set()
        process.join(60)
        assert process.exitcode == 0


def probe_health(port: int, out: Queue[Any], stop: Event) -> None:
    """Asks /health a hundred times a second, on one connection; puts the seconds of each answer."""
    times: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    out.put("ready")
    while not stop.is_set():
        began = time.monotonic()
        connection.request("GET", "/health")
        response = connection.getresponse()
        assert response.read() and response.status == 200
        times.append(time.monotonic() - began)
        time.sleep(0.01)
    connection.close()
    out.put(times)


def drip(port: int, count: int, out: Queue[Any], stop: Event) -> None:
    """Holds `count` connections open by a byte every two seconds; closed ones are opened again."""
    data, open_ones = request(), list[tuple[socket.socket, int]]()
    told = False
    while not stop.is_set():
        while len(open_ones) < count:
            open_ones.append((socket.create_connection(("127.0.0.1", port), timeout=30), 0))
        if not told:
            out.put("ready")
            told = True
        began, kept = time.monotonic(), list[tuple[socket.socket, int]]()
        for number, (sock, at) in enumerate(open_ones):
            try:
                sock.sendall(data[at : at + 1])
                kept.append((sock, at + 1))
            except OSError:
                sock.close()
            ahead = began + 2 * number / count - time.monotonic()
            if ahead > 0 and stop.wait(ahead):
                break
        open_ones = kept
    for sock, _ in open_ones:
        sock.close()


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def streams(model: str, scale: float) -> None:
    count = max(int(1000 * scale), 60)
    server = Server(model, ("--max-sequences", "16", "--max-waiting", "32"))
    try:
        await asyncio.gather(*(ask(server.port, request(max_tokens=8)) for _ in range(20)))
        await settled(server.port, 20)
        before, files = server.rss, server.files
        with beside(probe_health, server.port) as out:
            data = request(max_tokens=400, ignore_eos=True)
            answers = await asyncio.gather(*(ask(server.port, data) for _ in range(count)))
        health = out.get(timeout=30)
        took = await settled(server.port, 20)
        good = [a for a in answers if a.status == 200 and a.ending == "done"]
        told = "retry-after: "
        refused = [a for a in answers if a.status in (429, 503) and told in a.head]
        waits = [a.wait for a in refused] or [0.0]
        others = Counter((a.status, a.ending) for a in answers if a not in good + refused)
        print(f"streams: {count} at once: {len(good)} finished, {len(refused)} refused; ", end="")
        print(f"/health's worst {max(health) * 1000:.0f} ms; idle again after {took:.2f} s")
        print(
            f"  others, (status, ending): {dict(others)}" if others else "",
            end="\n" if others else "",
        )
        at_least("streams: finished", len(good), 48)
        exactly(
            "streams: neither finished nor told when to come back", count - len(good + refused), 0
        )
        at_most("streams: refusal, p99", percentile(waits, 0.99), 1 * PATIENCE, " s")
        at_most("streams: refusal, longest", max(waits), 1 * PATIENCE, " s")
        at_most("streams: /health, p99", percentile(health, 0.99) * 1000, 250 * PATIENCE, " ms")
        at_most("streams: memory gained", server.rss - before, 64, " MiB")
        at_most("streams: files left open", server.files - files, 1)
    finally:
        server.end()


async def leave(port: int, chance: random.Random) -> None:
    """Ask, and go at a random moment."""
    async with connected(port) as (reader, writer):
        data = request(max_tokens=200, ignore_eos=True)
        events = chance.choice([0, 0, 1, 2, 10, 50])
        whole = events or chance.random() < 0.5
        writer.write(data if whole else data[: chance.randrange(len(data))])
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            if events == 0:
                await asyncio.sleep(chance.random() * 0.3)
            for _ in range(events):
                await asyncio.wait_for(reader.readuntil(b"\n\n"), 5)
        if chance.random() < 0.5:
            writer.transport.abort()


async def disconnects(model: str, scale: float) -> None:
    count, chance = max(int(1000 * scale), 30), random.Random(1)
    server = Server(model)
    try:
        await ask(server.port, request(max_tokens=4))
        await settled(server.port, 20)
        files = server.files
        for start in range(0, count, 20):
            some = range(start, min(start + 20, count))
            await asyncio.gather(*(leave(server.port, chance) for _ in some))
        took = await settled(server.port, 20)
        await asyncio.sleep(0.2)
        print(f"disconnects: {count} clients left")
        at_most("disconnects: nothing runs, no block is held after", took, 1 * PATIENCE, " s")
        at_most("disconnects: files left open", server.files - files, 1)
        last = await ask(server.port, request(max_tokens=4))
        assert last.ending == "done"
    finally:
        server.end()


async def sigterms(model: str, scale: float) -> None:
    count, endings, left = max(int(100 * scale), 2), Counter[str](), 0
    chance, waits = random.Random(2), dict[bool, list[float]]({True: [0.0], False: [0.0]})
    for number in range(count):
        drain = [0, 0.5, 5][number % 3]
        server = QuickServer(model, ("--drain-timeout", str(drain)))
        wishes = [request(max_tokens=400, ignore_eos=True) for _ in range(10)]
        tasks = [asyncio.ensure_future(ask(server.port, wish)) for wish in wishes]
        await asyncio.sleep(0.2 + chance.random() * 0.3)
        family = server.family()
        began = time.monotonic()
        os.kill(family[0], signal.SIGTERM)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        code = await asyncio.to_thread(server.wait)
        waits[drain == 0].append(time.monotonic() - began - drain)
        assert code == 0, code
        for answer in answers:
            assert isinstance(answer, Answer), answer
            endings[answer.ending if answer.status == 200 else str(answer.status)] += 1
        left += await still_there(family, 10)
    silent = sum(n for ending, n in endings.items() if ending not in ("done", "error", "503"))
    print(f"sigterms: {count} with 10 streams each: {dict(endings)}")
    exactly("sigterms: streams that ended without a word, or as 500", silent, 0)
    at_most("sigterms: exit without a drain, longest", max(waits[True]), 4 * PATIENCE, " s")
    at_most("sigterms: exit behind the drain, longest", max(waits[False]), 2 * PATIENCE, " s")
    exactly("sigterms: processes left after 10 s", left, 0)


async def still_there(pids: list[int], seconds: float) -> int:
    """How many processes have not ended after so many seconds; at once when there are none."""
    end = time.monotonic() + seconds
    while left := sum(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            break
        await asyncio.sleep(0.02)
    return left


async def latencies(port: int, count: int) -> list[float]:
    """Seconds of `count` short requests, one after the other."""
    found = []
    for _ in range(count):
        began = time.monotonic()
        answer = await ask(port, request(max_tokens=8, stream=False))
        assert answer.status == 200
        found.append(time.monotonic() - began)
    return found


async def loris(model: str, scale: float) -> None:
    count = max(int(500 * scale), 25)
    server = Server(model)
    try:
        await latencies(server.port, 30)
        alone = await latencies(server.port, max(int(1500 * scale), 60))
        with beside(drip, server.port, count):
            among = await latencies(server.port, max(int(1500 * scale), 60))
        p99, before = percentile(among, 0.99), percentile(alone, 0.99)
        medians = [statistics.median(times) * 1000 for times in (alone, among)]
        print(f"loris: {count} connections that drip; answers' ", end="")
        print(f"median {medians[0]:.1f} → {medians[1]:.1f} ms, ", end="")
        print(f"p99 {before * 1000:.1f} → {p99 * 1000:.1f} ms")
        at_most("loris: p99 of the others, with and without", p99 / before, 1.2 * PATIENCE, " ×")
    finally:
        server.end()


def probe_stream(port: int, out: Queue[Any], stop: Event) -> None:
    """Reads one stream after the other; puts what it says of the times between two events of one:
    their median, 99th percentile and longest in milliseconds, and how many there were.
    """
    gaps: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    head = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    wish = {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 400}
    body = json.dumps({**wish, "ignore_eos": True})
    out.put("ready")
    while not stop.is_set():
        connection.request("POST", "/v1/chat/completions", body, head)
        response, last = connection.getresponse(), 0.0
        assert response.status == 200
        for line in response:
            if line.startswith(b"data: "):
                now = time.monotonic()
                if last:
                    gaps.append((now - last) * 1000)
                last = now
    connection.close()
    out.put((statistics.median(gaps), percentile(gaps, 0.99), max(gaps), len(gaps)))


def hostile(number: int) -> list[dict[str, Any]]:
    """What holds compilers up, takes their stack, or has no end; no two numbers give the same."""
    key = f"k{number}"
    slow = " & ".join(f"/(?s:.*){key}.{{{i}}}b(?s:.*)/" for i in range(60))
    chain = "\n".join(f"r{i}: r{i + 1}" for i in range(4500))
    brackets = "(" * 20_000 + key + ")" * 20_000
    ways = [{"anyOf": [{"type": "string", "pattern": f"{key}{i}"} for i in range(30)]}] * 6
    loop = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    deep: dict[str, Any] = {"title": key}
    for _ in range(25):
        deep = {"items": deep}
    schemas: list[dict[str, Any]] = [
        {"title": key, "$ref": "#"},
        {"title": key, "$ref": "#/$defs/a", "$defs": loop},
        {"enum": [f"{key}{i}" for i in range(1001)]},
        {"type": "object", "properties": {f"{key}{i}": {} for i in range(5001)}},
        {"type": "object", "properties": {f"{key}{i}": {} for i in range(251)}},
        {"type": "string", "pattern": f"(?<!a){key}"},
        {"type": "string", "pattern": brackets},
        {"title": key, "type": "array", "minItems": 10**9},
        {"allOf": ways},
        deep,
    ]
    forms = [{"type": "json_schema", "json_schema": {"name": "x", "schema": s}} for s in schemas]
    return [
        {"guided_grammar": f"start: A\nA: {slow}"},
        {"guided_grammar": f'start: r0\n{chain}\nr4500: "{key}"'},
        {"guided_grammar": f"start: {key}\n{key}: b\nb: {key}"},
        {"guided_regex": brackets},
        {"guided_regex": f"(?={key})a"},
        {"guided_regex": f"({key})\\1"},
        *({"response_format": form} for form in forms),
    ]


async def gaps_beside(port: int, name: str, work: Awaitable[Any]) -> tuple[float, Any]:
    """The longest time between two tokens of a stream while `work` is done, in milliseconds; and
    what that gives.
    """
    with beside(probe_stream, port) as out:
        done = await work
    median, p99, longest, count = out.get(timeout=60)
    print(f"grammars: gaps of a stream {name}: median {median:.2f}, p99 {p99:.2f}, ", end="")
    print(f"longest {longest:.1f} ms ({count} gaps)", flush=True)
    return longest, done


def told(answer: Answer) -> bool:
    """Whether it says when to come back."""
    return answer.status in (429, 503) and "retry-after: " in answer.head


async def with_good_ones(port: int, work: Awaitable[list[Answer]]) -> list[list[Answer]]:
    """The answers of `work`, those to new good grammars beside it, and to one known before."""
    task, found = asyncio.ensure_future(work), list[list[Answer]]([[], [], []])
    while not task.done():
        words = [f"good {next(NUMBERS)}", "known"]
        wishes = [request(stream=False, max_tokens=1, guided_choice=[word]) for word in words]
        fresh, known = await asyncio.gather(*(ask(port, wish) for wish in wishes))
        found[1].append(fresh)
        found[2].append(known)
        await asyncio.sleep(0.1)
    found[0] = await task
    return found


NUMBERS = itertools.count()


async def bursts(port: int, count: int) -> list[Answer]:
    """Several that take minutes: two in a row, the second while the first is tried, and four at
    once; so many times.
    """

    async def slow(after: float) -> Answer:
        await asyncio.sleep(after)
        return await ask(port, request(stream=False, **hostile(10**6 + next(NUMBERS))[0]))

    answers: list[Answer] = []
    for _ in range(count):
        for waits in ((0.0, 1.0), (0.0,) * 4):
            answers += await asyncio.gather(*map(slow, waits))
            await asyncio.sleep(1)
    return answers


async def grammars(model: str, scale: float) -> None:
    attacks = itertools.chain.from_iterable(map(hostile, itertools.count()))
    server = Server(model)

    async def attack(count: int) -> list[Answer]:
        some = itertools.islice(attacks, count)
        return [await ask(server.port, request(stream=False, **what)) for what in some]

    async def many(count: int) -> list[Answer]:
        found = await asyncio.gather(*(attack(count) for _ in range(4)))
        return list(itertools.chain.from_iterable(found))

    try:
        await ask(server.port, request(max_tokens=1, guided_choice=["known"]))
        count = max(int(100 * scale), 16)
        await gaps_beside(server.port, "alone", asyncio.sleep(max(20 * scale, 2)))
        longest, single = await gaps_beside(server.port, "beside one hostile client", attack(count))
        gaps, sent = {"one hostile client": longest}, {"one hostile client": [single, [], []]}
        for name, work in (
            ("four", many(count)),
            ("bursts", bursts(server.port, max(int(10 * scale), 1))),
        ):
            both = with_good_ones(server.port, work)
            gaps[name], sent[name] = await gaps_beside(server.port, f"beside {name}", both)
        judge_grammars(sent)
        idle = sum(map(told, single))
        exactly("grammars: told to come back by an idle compiler", idle, 0)
        for name, longest in gaps.items():
            at_most(f"grammars: longest gap beside {name}", longest, 100 * PATIENCE, " ms")
    finally:
        server.end()


def judge_grammars(sent: dict[str, list[list[Answer]]]) -> None:
    """Claims on the answers: hostile ones, good new ones and known ones."""
    for name, (bad, fresh, known) in sent.items():
        refused, later = [a for a in bad if a.status == 400], [a for a in bad if told(a)]
        rest = Counter(a.status for a in bad if a.status != 400 and not told(a))
        good = [a for a in fresh if a.status == 200]
        print(f"grammars: {name}: {len(bad)} hostile ones: {len(refused)} refused, ", end="")
        print(f"{len(later)} told to come back; {len(good)} of {len(fresh)} good ones answered")
        print(f"  others, by status: {dict(rest)}\n" if rest else "", end="")
        exactly(f"grammars: {name}: neither refused nor told when", rest.total(), 0)
        wait = max(a.wait for a in [*bad, *fresh, *known])
        at_most(f"grammars: {name}: longest answer", wait, GRAMMAR_S * PATIENCE, " s")
        if fresh:
            lost = sum(a.status != 200 and not told(a) for a in fresh)
            exactly(f"grammars: {name}: good ones neither answered nor told when", lost, 0)
            held = max(a.wait for a in known)
            print(f"grammars: {name}: longest answer to the known one {held:.2f} s")
            turned = sum(a.status != 200 for a in known)
            exactly(f"grammars: {name}: known ones turned away", turned, 0)


PARTS: dict[str, Callable[[str, float], Awaitable[None]]] = {
    "streams": streams,
    "disconnects": disconnects,
    "sigterms": sigterms,
    "loris": loris,
    "grammars": grammars,
}


def main() -> None:
    """Run the parts; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="1 is the full size")
    parser.add_argument("--patience", type=float, default=1.0, help="every bound times this")
    parser.add_argument("--model", help="tiny-instruct and others; a toy if not given")
    options = parser.parse_args()
    globals()["PATIENCE"] = options.patience
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(toy_model(Path(folder)))
        for name in options.parts:
            asyncio.run(PARTS[name](model, options.scale))  # type: ignore[arg-type]
    finish()


if __name__ == "__main__":
    main()
