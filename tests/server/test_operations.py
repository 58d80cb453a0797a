"""What operators see: metrics, log lines, health; and a server whose engine fails."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from qwenkit.errors import EngineError, QueueFullError
from qwenkit.llm import LLM
from qwenkit.options import ServeOptions, resolve
from qwenkit.server import logs

SECRET = "What is 12 + 30?"
HI = {"model": "tiny-instruct", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8}


def metric(page: str, name: str) -> float:
    match = re.search(rf"^qwenkit:{name}(?:\{{[^}}]*\}})? (\S+)$", page, flags=re.M)
    assert match, name
    return float(match[1])


def test_metrics_under_the_names_of_vllm(client: TestClient, tiny: LLM) -> None:
    while tiny.driver.engine.has_work:  # what an earlier test has left
        time.sleep(0.01)
    before = client.get("/metrics").text
    client.post("/v1/chat/completions", json=HI)
    client.post("/v1/chat/completions", json={**HI, "stream": True})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    page = response.text
    names = set(re.findall(r"^# TYPE qwenkit:(\S+) (?:gauge|counter|histogram)$", page, flags=re.M))
    vllm = (
        "num_requests_running num_requests_waiting kv_cache_usage_perc prompt_tokens "
        "generation_tokens prefix_cache_queries prefix_cache_hits num_preemptions request_success "
        "time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds "
        "request_prompt_tokens request_generation_tokens"
    )
    bare = {name.removesuffix("_total") for name in names}
    assert set(vllm.split()) <= bare
    for name, growth in (
        ("generation_tokens_total", 16),
        ("time_to_first_token_seconds_count", 2),
        ("e2e_request_latency_seconds_count", 2),
        ("request_generation_tokens_sum", 16),
    ):
        assert metric(page, name) - metric(before, name) == growth, name
    assert 'finished_reason="length"' in page
    assert 'http_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in page


def test_what_clients_type_is_no_label(client: TestClient) -> None:
    for path in ("/v1/models/some-secret", "/some-secret", "/v1/some-secret?some-secret"):
        client.request("SECRET" if "?" in path else "GET", path)
    page = client.get("/metrics").text
    assert "secret" not in page.lower()
    assert 'route="/v1/models/{model:path}"' in page and 'route="unknown"' in page


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log as JSON lines."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(logs.JsonLines().format(record))

    handler, before = Keep(), logs.log.level
    logs.log.addHandler(handler)
    logs.log.setLevel(logging.INFO)
    yield found
    logs.log.removeHandler(handler)
    logs.log.setLevel(before)


def test_a_line_for_each_request_without_its_words(
    client_of: Callable[..., TestClient], key: str, lines: list[str]
) -> None:
    client = client_of(key=key)
    answer = client.post("/v1/chat/completions", json=HI)
    client.post("/v1/chat/completions", json={**HI, "n": "x", "user": SECRET})
    client.get("/v1/models/" + SECRET)
    client.get("/v1/models", headers={"authorization": "Bearer " + SECRET})
    entries = [json.loads(line) for line in lines]
    first = entries[0]
    assert first["request_id"] == answer.headers["x-request-id"]
    assert first["status"] == 200 and first["route"] == "/v1/chat/completions"
    assert first["completion_tokens"] == 8 and first["finish_reason"] == "length"
    assert first["ms"] > 0 and first["first_token_ms"] > 0
    assert re.fullmatch("[0-9a-f]{12}", first["tenant"])
    assert [entry.get("error") for entry in entries[1:]] == [
        "invalid_type",
        "model_not_found",
        "invalid_api_key",
    ]
    for hidden in (SECRET, key, answer.json()["choices"][0]["message"]["content"]):
        assert hidden not in "".join(lines)


def test_text_lines() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "request", (), None)
    record.fields = {"status": 200}
    assert re.fullmatch(r"\d\d:\d\d:\d\d info request status=200", logs.TextLines().format(record))


class Failing:
    """An LLM whose answers fail in a given way, after some pieces if they are streamed."""

    def __init__(self, llm: LLM, error: Exception, pieces: int = 0) -> None:
        self._llm, self._error, self._pieces = llm, error, pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    async def achat(self, **_: Any) -> Any:
        raise self._error

    async def astream(self, **asked: Any) -> Any:
        number = 0
        async for delta in self._llm.astream(**asked):
            if number == self._pieces:
                raise self._error
            yield delta
            number += 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFullError(4, 7), 503, "server_is_overloaded"),
        (QueueFullError(4, 7, tenant="a"), 429, "rate_limit_exceeded"),
        (QueueFullError(4, 7, reason="No turn."), 503, "server_is_overloaded"),
        (EngineError("x", code="timeout"), 503, "server_is_overloaded"),
        (EngineError("x", code="closed"), 503, "service_unavailable"),
        (EngineError("x", code="not_finite"), 500, "not_finite"),
        (EngineError("x", code="out_of_memory"), 500, "out_of_memory"),
        (EngineError("0x7fff /srv/secret", code="failed"), 500, "internal_error"),
        (EngineError("x", code="grammar"), 400, "grammar_failed"),
        (ValueError("0x7fff /srv/secret"), 500, "internal_error"),
        (MemoryError("0x7fff /srv/secret"), 500, "internal_error"),
        (RecursionError("0x7fff /srv/secret"), 500, "internal_error"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_each_failure_has_its_answer(
    client_of: Callable[..., TestClient],
    tiny: LLM,
    error: Exception,
    status: int,
    code: str,
    stream: bool,
) -> None:
    client = client_of(llm=Failing(tiny, error))
    response = client.post("/v1/chat/completions", json={**HI, "stream": stream})
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert found["code"] == code
    assert "0x7fff" not in response.text and "secret" not in response.text
    if status in (429, 503):
        wait = error.retry_after if isinstance(error, QueueFullError) else 5
        assert int(response.headers["retry-after"]) == wait
    elif status == 500:
        assert response.headers["x-should-retry"] == "false"
    if code == "internal_error":
        assert response.headers["x-request-id"] in found["message"]


def test_a_bug_is_logged_once(
    client_of: Callable[..., TestClient], tiny: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(llm=Failing(tiny, ValueError("a bug")))
    with caplog.at_level(logging.ERROR, logger="qwenkit.server"):
        response = client.post("/v1/chat/completions", json=HI)
    (record,) = caplog.records
    assert record.exc_info and str(record.exc_info[1]) == "a bug"
    assert vars(record)["fields"] == {"request_id": response.headers["x-request-id"]}


def test_a_failure_in_the_middle_of_a_stream_is_an_event(
    client_of: Callable[..., TestClient], tiny: LLM
) -> None:
    client = client_of(llm=Failing(tiny, ValueError("0x7fff"), pieces=3))
    response = client.post("/v1/chat/completions", json={**HI, "stream": True})
    assert response.status_code == 200
    events = [line[6:] for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]" and "0x7fff" not in response.text
    error = json.loads(events[-2])["error"]
    assert error["type"] == "server_error" and response.headers["x-request-id"] in error["message"]
    assert len(events) >= 5


def test_health_tells_of_an_engine_that_has_died_or_hangs(
    client_of: Callable[..., TestClient], tiny: LLM
) -> None:
    well = SimpleNamespace(healthy=True, busy_seconds=0.0, engine=tiny.driver.engine)
    client = client_of(llm=SimpleNamespace(driver=well))
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    for trouble in ({"healthy": False}, {"busy_seconds": 301.0}):
        vars(well).update(trouble)
        assert client.get("/health").status_code == client.get("/ready").status_code == 503
        assert client.post("/v1/chat/completions", json=HI).status_code == 503
        vars(well).update(healthy=True, busy_seconds=0.0)
    service: Any = client.app.state.service  # type: ignore[attr-defined]
    service.draining = True
    assert client.get("/health").status_code == 200
    ready = client.get("/ready")
    assert ready.status_code == 503 and ready.headers["connection"] == "close"


def test_the_log_can_be_set_up_twice() -> None:
    before = logging.getLogger("qwenkit").handlers
    for form in ("json", "text"):
        logs.set_up(resolve(ServeOptions, {"log_format": form}, env={}))
        assert len(logging.getLogger("qwenkit").handlers) == 1
    logging.getLogger("qwenkit").handlers = before
    logging.getLogger("qwenkit").propagate = True
