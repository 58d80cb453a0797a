"""What no client library would send; and patience with those who are slow."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
WAIT = b"Content-Length: 999\r\n\r\n"
HI = {"model": "tiny-instruct", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}


@pytest.fixture(scope="module")
def quick(live_of: Callable[..., Any]) -> Any:
    """A server without patience."""
    flags = "--header-timeout 1 --body-timeout 1 --write-timeout 2 --keep-alive 2 "
    flags += "--max-connections 40 --drain-timeout 2 --max-body-bytes 100000"
    return live_of(*flags.split())


def connect(server: Any) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=20)


def reply(sock: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return found
        if not piece:
            return found
        found += piece


def running(server: Any) -> float:
    """How many requests the engine computes."""
    page = httpx.get(f"{server.url}/metrics", timeout=20).text
    found = re.search(r"^qwenkit:num_requests_running\S* (\S+)", page, flags=re.M)
    assert found
    return float(found[1])


def talk(server: Any, data: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes; status and JSON of the one answer, behind which the server closes."""
    with connect(server) as sock:
        sock.sendall(data)
        raw = reply(sock)
    head, _, body = raw.partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1.1 (\d+)", head)
    assert match, raw
    return int(match[1]), json.loads(body) if body else {}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"HELLO\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET /health\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 300_000, 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (CHAT + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (CHAT + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
        (CHAT + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (CHAT + b"Content-Length: -2\r\n\r\n", 400),
        (CHAT + b"Content-Length: 0x2\r\n\r\n", 400),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (CHAT + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (CHAT + b"Content-Length: 100001\r\n\r\n", 413),
        (CHAT + b"Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n", 413),
        (CHAT + b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n", 415),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n", 403),
    ],
    ids=range(21),
)
def test_what_is_no_request_is_refused_in_the_envelope(
    quick: Any, data: bytes, status: int
) -> None:
    found, body = talk(quick, data)
    assert found == status
    assert list(body["error"]) == ["message", "type", "param", "code"]


def test_a_body_without_an_end_is_cut_at_the_limit(quick: Any) -> None:
    with connect(quick) as sock:
        sock.sendall(CHAT + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 10_000_000:
                sock.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
                sent += 0x4000
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 5_000_000, "the kernel's buffers, and no more"


def chunked(head: bytes, body: bytes, trailers: bytes) -> bytes:
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s" % (
        len(body),
        body,
        trailers,
    )


def test_trailers_are_neither_key_nor_host_nor_kept(keyed: Any, quick: Any) -> None:
    body = json.dumps({**HI, "max_tokens": 1}).encode()
    key = b"Authorization: Bearer %s\r\n" % keyed.key.encode()
    late = b"Host: a/b\r\nContent-Encoding: gzip\r\nConnection: close\r\n"
    status, found = talk(keyed, chunked(CHAT, body, key + b"\r\n"))
    assert (status, found["error"]["code"]) == (401, None)
    head = CHAT + key + b"Connection: close\r\n"
    status, found = talk(keyed, chunked(head, body, late + b"\r\n"))
    assert (status, found["object"]) == (200, "chat.completion")
    for endless in (b"A: " + b"x" * 600_000, b"A: b\r\n" * 100_000):
        status, found = talk(quick, chunked(CHAT, body, endless))
        assert (status, found["error"]["code"]) == (431, "headers_too_large")


def test_http_1_0_and_pipelined_requests(quick: Any) -> None:
    with connect(quick) as sock:
        sock.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert reply(sock).startswith(b"HTTP/1.1 200")
    with connect(quick) as sock:
        one = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
        sock.sendall(one % b"/health" + one % b"/nothing" + one % b"/ready")
        raw = reply(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", raw) == [b"200", b"404", b"200"]


def test_expect_100_continue_is_answered(quick: Any) -> None:
    body = json.dumps({**HI, "max_tokens": 1}).encode()
    with connect(quick) as sock:
        sock.sendall(CHAT + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /hea",
        CHAT,
        CHAT + b"Content-Length: 50\r\n\r\n",
        CHAT + b"Content-Length: 50\r\n\r\n{",
    ],
    ids=["nothing", "half a line", "half a head", "no body", "half a body"],
)
def test_who_sends_nothing_is_closed_in_time(quick: Any, start: bytes) -> None:
    began = time.monotonic()
    with connect(quick) as sock:
        sock.sendall(start)
        raw = reply(sock)
    assert 0.8 < time.monotonic() - began < 15
    assert raw.startswith(b"HTTP/1.1 408") and b'"error"' in raw


@pytest.mark.parametrize(
    "start", [b"GET /health HTTP/1.1\r\nA: ", CHAT + b"Content-Length: 999\r\n\r\n"]
)
def test_who_drips_is_closed_all_the_same(quick: Any, start: bytes) -> None:
    """A byte now and then does not start the patience again."""
    began = time.monotonic()
    with connect(quick) as sock:
        sock.sendall(start)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                sock.sendall(b"x")
                time.sleep(0.2)
    assert time.monotonic() - began < 15


def test_an_idle_connection_is_closed(quick: Any) -> None:
    with connect(quick) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = time.monotonic()
        assert b'"ok"' in reply(sock)
        assert 1 < time.monotonic() - began < 15


def test_the_oldest_idle_connection_makes_room(live_of: Callable[..., Any]) -> None:
    """On a server with so much patience that nothing else can have closed it."""
    patient = live_of("--max-connections", "40", "--header-timeout", "600", "--drain-timeout", "2")
    idle = [connect(patient) for _ in range(60)]
    try:
        answer = httpx.get(f"{patient.url}/health", timeout=20)
        assert answer.status_code == 200
        assert idle[0].recv(1) == b"", "closed, without waiting for its patience to end"
    finally:
        for sock in idle:
            sock.close()


def test_a_reader_who_stalls_loses_the_stream_and_frees_its_place(quick: Any) -> None:
    """Four answers of 1,900 tokens with their log-probabilities have 10 MB, more than the buffers
    of a socket hold. Nothing is read before the server has given up, however long that takes: the
    engine may be done much earlier.
    """
    wish = {**HI, "stream": True, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    body = json.dumps({**wish, "max_tokens": 1900, "n": 4}).encode()
    before = len(quick.log)

    def given_up() -> bool:
        return any("route=/v1/chat/completions" in line for line in quick.log[before:])

    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((quick.host, quick.port))
    with sock:
        sock.sendall(CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        end = time.monotonic() + 240
        while not given_up():
            assert time.monotonic() < end
            time.sleep(0.1)
        while running(quick):
            assert time.monotonic() < end
            time.sleep(0.1)
        sock.settimeout(60)
        raw = reply(sock)
        assert raw.startswith(b"HTTP/1.1 200") and b"data: [DONE]" not in raw


def test_a_reset_in_the_middle_of_an_upload_leaves_nothing(quick: Any) -> None:
    before = len(quick.log)
    for _ in range(20):
        with connect(quick) as sock:
            sock.sendall(CHAT + b"Content-Length: 5000\r\n\r\n" + b" " * 100)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    time.sleep(0.5)
    assert httpx.get(f"{quick.url}/health").status_code == 200
    assert "Traceback" not in "".join(quick.log[before:])


def test_healthy_clients_go_on_among_slow_ones(quick: Any) -> None:
    stop = threading.Event()

    def drip() -> None:
        while not stop.is_set():
            try:
                with connect(quick) as sock:
                    sock.sendall(CHAT)
                    reply(sock)
            except OSError:
                pass

    threads = [threading.Thread(target=drip, daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            answer = httpx.post(
                f"{quick.url}/v1/chat/completions", json={**HI, "max_tokens": 3}, timeout=30
            )
            assert answer.status_code == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert "Traceback" not in "".join(quick.log)
