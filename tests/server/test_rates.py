"""Token buckets: never more than allowed, told when to come back, set right behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from qwenkit.server.errors import ApiError
from qwenkit.server.rates import Rates

BODY = {"model": "tiny-instruct", "messages": [{"role": "user", "content": "Hi"}]}


def test_a_bucket_empties_and_refills() -> None:
    now = 0.0
    rates = Rates(2, None, clock=lambda: now)
    assert [rates.take("a", "requests", 1) for _ in range(2)] == [1, 1]
    with pytest.raises(ApiError) as caught:
        rates.take("a", "requests", 1)
    error = caught.value
    assert (error.status, error.kind, error.code) == (429, "requests", "rate_limit_exceeded")
    assert error.headers["retry-after"] == "30"
    assert rates.take("b", "requests", 1) == 1, "another key has its own"
    now = 30.0
    assert rates.take("a", "requests", 1) == 1
    now = 1e6
    assert dict(rates.headers("a"))[b"x-ratelimit-remaining-requests"] == b"2"


def test_without_limits_nothing_is_counted() -> None:
    rates = Rates(None, None)
    assert rates.take("a", "requests", 1) == 0 and rates.take("a", "tokens", 10**9) == 0
    assert rates.headers("a") == []


def test_what_was_not_used_comes_back_and_debt_is_paid_first() -> None:
    now = 0.0
    rates = Rates(None, 60, clock=lambda: now)
    assert rates.take("a", "tokens", 1000) == 60, "a minute's worth is the most"
    rates.settle("a", "tokens", 60, 20)
    assert rates.take("a", "tokens", 40) == 40
    rates.settle("a", "tokens", 40, 100)
    assert dict(rates.headers("a"))[b"x-ratelimit-remaining-tokens"] == b"0"
    now = 60.0
    with pytest.raises(ApiError):
        rates.take("a", "tokens", 1)
    now = 62.0
    assert rates.take("a", "tokens", 1) == 1


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 9)), max_size=60))
def test_never_more_than_the_limit_and_what_time_brings(steps: list[tuple[float, int]]) -> None:
    now = 0.0
    rates = Rates(10, None, clock=lambda: now)
    taken = 0
    for pause, amount in steps:
        now += pause
        try:
            taken += rates.take("a", "requests", amount)
        except ApiError as error:
            assert error.retry_after is not None and error.retry_after > 0
        assert taken <= 10 + now * 10 / 60 + 1e-6


def test_the_server_counts_and_tells(client_of: Callable[..., TestClient]) -> None:
    client = client_of(requests_per_minute=2, tokens_per_minute=100)
    first = client.post("/v1/chat/completions", json={**BODY, "max_tokens": 4})
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    after = client.get("/v1/models").headers
    used = first.json()["usage"]["total_tokens"]
    assert 100 - used <= int(after["x-ratelimit-remaining-tokens"]) < 100
    assert client.post("/v1/chat/completions", json={}).status_code == 400
    third = client.post("/v1/chat/completions", json=BODY)
    assert third.status_code == 429
    assert third.json()["error"]["type"] == "requests"
    assert int(third.headers["retry-after"]) >= 1


def test_many_at_once_cannot_share_the_room_of_one(client_of: Callable[..., TestClient]) -> None:
    app = client_of(tokens_per_minute=100, max_waiting=500).app

    async def main() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {**BODY, "max_tokens": 60}
            posts = [client.post("/v1/chat/completions", json=body) for _ in range(100)]
            return [response.status_code for response in await asyncio.gather(*posts)]

    codes = asyncio.run(main())
    assert codes.count(200) == 1 and codes.count(429) == 99
