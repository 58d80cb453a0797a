"""Who guesses keys is slowed down, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from qwenkit.server import auth
from qwenkit.server.auth import WrongKeys
from qwenkit.server.errors import ApiError


def refused(wrong: WrongKeys, address: str) -> bool:
    try:
        wrong.check(address)
    except ApiError as error:
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert int(error.headers["retry-after"]) >= 1
        return True
    return False


def test_an_address_must_wait_and_may_try_again() -> None:
    now = 0.0
    wrong = WrongKeys(60, clock=lambda: now)
    for _ in range(60):
        assert not refused(wrong, "192.0.2.1")
        wrong.count("192.0.2.1")
    assert refused(wrong, "192.0.2.1") and not refused(wrong, "192.0.2.2")
    now = 1.0
    assert not refused(wrong, "192.0.2.1")
    wrong.count("192.0.2.1")
    assert refused(wrong, "192.0.2.1")
    now = 1000.0
    assert not refused(wrong, "192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "127.0.0.1", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    wrong = WrongKeys(1)
    wrong.count(one)
    assert refused(wrong, one) and refused(wrong, other) is same


def test_a_hundred_thousand_guesses_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and one address among them gets through no more than its minute's."""
    monkeypatch.setattr(auth, "MAX_ADDRESSES", 100)
    wrong = WrongKeys(300, clock=lambda: 0.0)
    looked_at = 0
    for number in range(100_000):
        if not refused(wrong, "192.0.2.1"):
            looked_at += 1
            wrong.count("192.0.2.1")
        if number % 1000 == 0:
            wrong.count(f"10.0.{number // 1000}.1")
    assert looked_at == 300 and len(wrong._buckets) == 100


def test_while_an_address_must_wait_its_right_key_is_refused_too(
    client_of: Callable[..., TestClient], key: str
) -> None:
    """Else it would go on learning which key is right."""
    client = client_of(key=key, wrong_keys_per_minute=3)

    def ask(given: str | None) -> Any:
        client.headers.pop("authorization", None)
        headers = {} if given is None else {"authorization": f"Bearer {given}"}
        return client.get("/v1/models", headers=headers)

    assert ask(key).status_code == 200
    for guess in ("a", "%", "' OR 1=1 --"):
        assert ask(guess).status_code == 401
    answer = ask(key)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert ask(None).status_code == 401, "no key is no guess"
    assert client.get("/health").status_code == 200


def test_scripts_of_allowed_origins_may_ask(client_of: Callable[..., TestClient], key: str) -> None:
    client = client_of(key=key, allowed_origin=["https://app.example"])
    wanted = "authorization, content-type, x-stainless-os"
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": wanted,
    }
    page = {"origin": "https://app.example"}
    ahead = client.options("/v1/chat/completions", headers={**page, **asks})
    assert ahead.status_code == 200
    assert ahead.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in ahead.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in ahead.headers
    unknown = client.get("/v1/models", headers={**page, "authorization": "Bearer wrong"})
    assert unknown.status_code == 401
    assert unknown.headers["access-control-allow-origin"] == "https://app.example"
    for origin in ("https://other.example", "null"):
        other = client.options("/v1/chat/completions", headers={"origin": origin, **asks})
        assert "access-control-allow-origin" not in other.headers
        served = client.get("/v1/models", headers={"origin": origin})
        assert "access-control-allow-origin" not in served.headers


def test_without_the_option_no_page_may(client: TestClient) -> None:
    page = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    assert client.options("/v1/chat/completions", headers=page).status_code == 405
    served = client.get("/v1/models", headers=page)
    assert not [name for name in served.headers if name.startswith("access-control")]
