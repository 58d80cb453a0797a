"""The process: how it starts, how it is stopped, and what becomes of requests meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

HI = {"model": "tiny-instruct", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
LONG = {**HI, "stream": True, "ignore_eos": True}
QWENKIT = [sys.executable, "-m", "qwenkit", "serve"]


class Reader(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, server: Any, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._url, self._body = f"{server.url}/v1/chat/completions", body
        self.status: int | None = None
        self.events: list[str] = []
        self.failure: Exception | None = None
        self.first = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=120) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    if line:
                        self.events.append(line.removeprefix("data: "))
                        self.first.set()
        except httpx.HTTPError as error:
            self.failure = error
        self.first.set()

    @property
    def ending(self) -> str:
        """What the stream ended with: done, error, or nothing of both."""
        self.join(120)
        if not self.events or self.events[-1] != "[DONE]":
            return "nothing"
        last = json.loads(self.events[-2])
        return "error" if "error" in last else "done"


def children(pid: int) -> list[int]:
    return [
        int(c) for t in Path(f"/proc/{pid}/task").glob("*/children") for c in t.read_text().split()
    ]


def test_the_printed_command_works(live: Any) -> None:
    assert live.curl.startswith(f"curl {live.url}/v1/chat/completions ")
    ran = subprocess.run(live.curl, shell=True, capture_output=True, text=True, timeout=60)
    assert json.loads(ran.stdout)["choices"][0]["message"]["content"]


def test_it_listens_on_this_machine_only(live: Any) -> None:
    """One socket, and no other address than the one that was asked for."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add((fields[1], fields[9]))
    links = (os.readlink(fd) for fd in Path(f"/proc/{live.process.pid}/fd").iterdir())
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    assert [addr for addr, inode in found if inode in inodes] == [f"0100007F:{live.port:04X}"]


def test_the_key_is_not_told(keyed: Any) -> None:
    assert keyed.key not in (keyed.curl or "") and "Authorization: Bearer $" in (keyed.curl or "")
    assert keyed.key not in Path(f"/proc/{keyed.process.pid}/cmdline").read_text()


def refused(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    began = time.monotonic()
    ran = subprocess.run(
        [*QWENKIT, *flags], capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )
    assert ran.returncode != 0
    lines = ran.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), ran.stderr
    assert time.monotonic() - began < 20
    return ran


def test_what_cannot_start_says_why_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "in use" in refused("--port", str(taken.getsockname()[1])).stderr
    assert "no key" in refused("--host", "0.0.0.0").stderr
    assert "no key" in refused("--host", "::").stderr
    assert "Every web page" in refused("--allowed-origin", "*").stderr
    assert "no path" in refused("--allowed-origin", "https://a.example/x").stderr
    assert "cannot be read" in refused("--api-key-file", "/nonexistent").stderr
    assert "nowhere" in refused("./nowhere").stderr
    assert "port" in refused("--port", "70000").stderr
    assert refused("--host", "0.0.0.0", "--api-key", "").returncode == 2


def test_an_open_address_is_fine_with_a_key_or_on_demand(live_of: Callable[..., Any]) -> None:
    locked = live_of("--host", "0.0.0.0", key="sk-1")
    assert locked.host == "127.0.0.1"
    assert httpx.get(f"{locked.url}/v1/models").status_code == 401
    assert locked.stop() == 0
    opened = live_of("--host", "0.0.0.0", "--unprotected")
    assert httpx.get(f"{opened.url}/v1/models", headers={"host": "a.example"}).status_code == 200
    assert opened.stop() == 0 and "everybody" in "".join(opened.log)


def test_idle_it_stops_at_once(live_of: Callable[..., Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = live_of()
        began = time.monotonic()
        assert server.stop(number) == 0
        assert time.monotonic() - began < 5


def test_asked_while_it_loads_it_leaves() -> None:
    process = subprocess.Popen([*QWENKIT, "--port", "0"], stderr=subprocess.PIPE)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM), "before Python runs, the system's default"
    assert process.stderr is not None
    process.stderr.close()


def test_draining_lets_streams_finish_and_takes_no_more(live_of: Callable[..., Any]) -> None:
    server = live_of("--drain-timeout", "60")
    readers = [Reader(server, {**LONG, "max_tokens": 150}) for _ in range(10)]
    for reader in readers:
        assert reader.first.wait(60)
    kept = httpx.Client(base_url=server.url, timeout=30)
    assert kept.get("/ready").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    ready = kept.get("/ready")
    assert ready.status_code == 503 and ready.headers["connection"] == "close"
    assert kept.get("/health").status_code == 200, "it lives on"
    late = httpx.post(f"{server.url}/v1/chat/completions", json=HI, timeout=30)
    assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
    assert late.json()["error"]["code"] == "service_unavailable"
    assert {reader.ending for reader in readers} == {"done"}
    assert server.stop() == 0
    kept.close()


def test_what_is_not_done_in_time_is_told_so(live_of: Callable[..., Any]) -> None:
    server = live_of("--drain-timeout", "1")
    readers = [Reader(server, {**LONG, "max_tokens": 1900}) for _ in range(10)]
    plain: list[httpx.Response] = []

    def ask() -> None:
        body = {**LONG, "stream": False, "max_tokens": 1900}
        plain.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    for reader in readers:
        assert reader.first.wait(60)
    pids = children(server.process.pid)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 1 + 2 + 2, "drain + 2 s, and the time to reap"
    assert {reader.ending for reader in readers} == {"error"}
    last = json.loads(readers[0].events[-2])["error"]
    assert last["code"] == "service_unavailable" and list(last) == [
        "message",
        "type",
        "param",
        "code",
    ]
    asking.join(30)
    assert plain[0].status_code == 503 and plain[0].headers["retry-after"]
    time.sleep(0.5)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "no process is left"


def test_a_second_signal_ends_it_at_once(live_of: Callable[..., Any]) -> None:
    server = live_of("--drain-timeout", "60")
    reader = Reader(server, {**LONG, "max_tokens": 1900})
    assert reader.first.wait(60)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert server.process.poll() is None
    began = time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 4
    assert reader.ending == "error"


def test_stopped_and_continued_it_goes_on(live: Any) -> None:
    reader = Reader(live, {**LONG, "max_tokens": 60})
    assert reader.first.wait(60)
    live.process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    live.process.send_signal(signal.SIGCONT)
    assert reader.ending == "done"


def test_disconnects_free_their_places(live: Any) -> None:
    """Before the first token, in the middle, at the end: the engine is idle again right behind."""
    for count in (0, 1, 5):
        for _ in range(5):
            with httpx.stream(
                "POST",
                f"{live.url}/v1/chat/completions",
                json={**LONG, "max_tokens": 1900},
                timeout=60,
            ) as response:
                for number, _line in enumerate(response.iter_lines()):
                    if number >= 2 * count:
                        break
    with pytest.raises(httpx.ReadTimeout):
        body = {**LONG, "stream": False, "max_tokens": 1900}
        httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=0.3)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        page = httpx.get(f"{live.url}/metrics").text
        gauges = [
            line.split()[-1]
            for line in page.splitlines()
            if line.startswith("qwenkit:num_requests_")
        ]
        if gauges == ["0.0", "0.0"] and "kv_cache_usage_perc" in page:
            break
        time.sleep(0.05)
    else:
        pytest.fail("requests of clients that have gone still run")
    assert "Traceback" not in "".join(live.log)
