"""A server in this process over tiny-instruct, and servers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from qwenkit.llm import LLM
from qwenkit.options import ServeOptions, resolve
from qwenkit.server.app import create_app

KEY = "sk-test-0123456789"


@pytest.fixture(scope="session")
def key() -> str:
    """The key of servers that have one."""
    return KEY


@pytest.fixture(scope="session")
def tiny() -> Iterator[LLM]:
    with LLM("tiny-instruct", max_waiting=64) as llm:
        yield llm


@pytest.fixture(scope="session")
def client_of(tiny: LLM) -> Callable[..., TestClient]:
    """`client_of(n=…, key=…)`: a client of an application with these options."""

    def make(*, llm: LLM | None = None, key: str | None = None, **options: Any) -> TestClient:
        flags = {**options, **({"api_key": [KEY]} if key else {})}
        app = create_app(llm or tiny, resolve(ServeOptions, flags, env={}))
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return TestClient(
            app, base_url="http://localhost", headers=headers, raise_server_exceptions=False
        )

    return make


@pytest.fixture(scope="session")
def client(client_of: Callable[..., TestClient]) -> TestClient:
    """A client of an application without keys."""
    return client_of()


class Live:
    """`qwenkit serve` in a process of its own."""

    def __init__(
        self,
        *flags: str,
        key: str | None = None,
        env: dict[str, str] | None = None,
        inside: tuple[str, ...] = (),
    ):
        """`inside`: the command that is to start it."""
        words = [sys.executable, "-W", "error", "-m", "qwenkit", "serve", "--port", "0", *flags]
        words[:0] = inside
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        if key:
            environment["QWENKIT_API_KEY"] = key
        self.key = key
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.log: list[str] = []
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, lines), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, None), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        first = lines.get(timeout=120)
        assert first is not None, "".join(self.log)
        found = re.search(r"http://(\S+):(\d+)/v1", first)
        assert found, first
        self.host, self.port = found[1], int(found[2])
        self.url = f"http://{self.host}:{self.port}"
        self.curl = lines.get(timeout=10)

    def _read(self, stream: Any, lines: Any) -> None:
        for line in stream:
            self.log.append(line)
            if lines is not None:
                lines.put(line)
        if lines is not None:
            lines.put(None)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Ask it to stop; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    @property
    def rss(self) -> int:
        """Resident bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


@pytest.fixture(scope="module")
def live_of() -> Iterator[Callable[..., Live]]:
    """`live_of(*flags, key=…)` starts a server; it is stopped behind the module's tests."""
    started: list[Live] = []

    def start(*flags: str, **more: Any) -> Live:
        started.append(Live(*flags, **more))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def client_for() -> Iterator[Callable[..., OpenAI]]:
    """`client_for(server, key)`: the official client, closed at the end. One that is left to the
    garbage collector may warn of its open sockets, in whatever test runs then.
    """
    with contextlib.ExitStack() as opened:

        def make(server: Live, key: str | None = None) -> OpenAI:
            given = key or server.key or "none"
            client = OpenAI(base_url=f"{server.url}/v1", api_key=given, max_retries=0)
            return opened.enter_context(client)

        yield make


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """One server without keys for all tests that do it no harm."""
    server = Live("--drain-timeout", "5")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def keyed() -> Iterator[Live]:
    """The same with a key."""
    server = Live("--drain-timeout", "5", key=KEY)
    yield server
    assert server.stop() == 0
