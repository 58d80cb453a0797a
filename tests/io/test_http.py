"""The HTTP client: patience, redirects, pages and messages that leak nothing."""

from __future__ import annotations

import dataclasses
import socket
import time
from email.message import Message
from typing import Any

import pytest

from qwenkit.errors import HubError
from qwenkit.io import http
from qwenkit.io.http import Policy, StatusError, UnreachableError, get_json, host_of, next_page

QUICK = Policy(timeout=20, attempts=3, connect_attempts=2, backoff=0.001, max_wait=0.01)


def test_waiting_grows_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(http.time, "sleep", slept.append)
    policy = Policy(backoff=0.5, max_wait=30)
    for failures in range(1, 10):
        policy.wait(failures)
    assert slept[:3] == [
        pytest.approx(0.5, rel=0.3),
        pytest.approx(1, rel=0.3),
        pytest.approx(2, rel=0.3),
    ]
    assert slept[-1] == 30
    policy.wait(1, retry_after=7.0)
    policy.wait(1, retry_after=1e9)
    assert slept[-2:] == [7.0, 30]


def test_a_status_is_kept_and_named(hub: Any) -> None:
    with pytest.raises(StatusError, match=r"127.0.0.1:\d+ answered 404 Not Found") as caught:
        get_json(f"{hub.url}/nothing?signature=secret", {}, QUICK)
    assert caught.value.code == 404 and not caught.value.transient
    assert "secret" not in str(caught.value)


def test_transient_answers_are_retried_and_then_given_up(hub: Any) -> None:
    hub.repos["a/b"] = {"config.json": b"{}"}
    hub.faults["*"] = [("status", 503, {"Retry-After": "0"}), ("status", 429, {})]
    answer, _ = get_json(f"{hub.url}/api/models/a/b/revision/main", {}, QUICK)
    assert answer["id"] == "a/b" and len(hub.requests) == 3
    hub.faults["*"] = [("status", 500, {})] * 3
    with pytest.raises(StatusError) as caught:
        get_json(f"{hub.url}/api/models/a/b/revision/main", {}, QUICK)
    assert caught.value.transient and len(hub.requests) == 6


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/x", "refused"),
        ("http://no-such-host.invalid/x", "name cannot be looked up"),
        ("nonsense", "unknown url type"),
        ("file:///etc/passwd", "unknown url type"),
        ("ftp://127.0.0.1/x", "unknown url type"),
    ],
)
def test_unreachable(hub: Any, url: str, reason: str) -> None:
    with pytest.raises(HubError, match=reason):
        get_json(url, {}, QUICK)


def test_a_silent_server_times_out(hub: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        patience = dataclasses.replace(QUICK, timeout=0.3)
        with pytest.raises(UnreachableError, match="did not answer in time"):
            get_json(f"http://127.0.0.1:{silent.getsockname()[1]}/", {}, patience)
        assert time.monotonic() - started > 0.55, "asked twice"


def test_too_much_json_is_refused(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["a/b"] = {"config.json": b"{}"}
    monkeypatch.setattr(http, "MAX_JSON_BYTES", 10)
    with pytest.raises(HubError, match="more than 10 bytes"):
        get_json(f"{hub.url}/api/models/a/b/revision/main", {}, QUICK)


def test_an_endless_redirect_is_cut(hub: Any) -> None:
    hub.faults["*"] = [("status", 302, {"Location": f"{hub.url}/{i}"}) for i in range(20)]
    with pytest.raises(StatusError):
        get_json(f"{hub.url}/start", {}, QUICK)
    assert len(hub.requests) <= 7


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_renamed_repository_is_followed_with_credentials(hub: Any, code: int) -> None:
    hub.repos["new/name"] = {"config.json": b"{}"}
    hub.faults["*"] = [("status", code, {"Location": "/api/models/new/name/revision/main"})]
    headers = {"Authorization": "Bearer secret"}
    answer, _ = get_json(f"{hub.url}/api/models/old/name/revision/main", headers, QUICK)
    assert answer["id"] == "new/name"
    assert hub.requests[-1][2]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (None, None),
        ("", None),
        ('<https://h/a?cursor=2>; rel="next"', "https://h/a?cursor=2"),
        ("</a?cursor=2>; rel=next", "https://h/a?cursor=2"),
        ('<https://h/a>; rel="prev"', None),
        ('<http://evil/a?cursor=2>; rel="next"', "https://h/a?cursor=2"),
    ],
)
def test_next_page(link: str | None, expected: str | None) -> None:
    headers = Message()
    if link is not None:
        headers["Link"] = link
    assert next_page(headers, "https://h/a") == expected


def test_hosts_in_messages_hide_user_names() -> None:
    assert host_of("https://user:password@host:1/path?secret=1") == "host:1"
