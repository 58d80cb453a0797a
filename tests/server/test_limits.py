"""Every limit on every way in, and enforced before what it limits has been paid for.

A new way in is a row of `WAYS`; it inherits every limit that applies to its fields. The limits of
connections and heads are the same for all, and are in `test_protocol.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.testclient import TestClient

from qwenkit.llm import LLM
from qwenkit.server.openai import tokens

MODEL = "tiny-instruct"
ENTRIES, ABOVE = "array_above_max_length", "integer_above_max_value"
LONG = "context_length_exceeded"
SAY = {"role": "user", "content": "Hi"}
SCORED = {"echo": True, "logprobs": 2, "max_tokens": 1, "stream": False}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Way:
    """A route with a request that it answers; `kinds` says which limits apply to it."""

    path: str
    body: dict[str, Any]
    kinds: set[str]
    prompt: str = "messages"
    """Where its prompt stands."""

    def saying(self, text: str) -> dict[str, Any]:
        """Its request with another prompt."""
        changed: Any = [{"role": "user", "content": text}] if self.prompt == "messages" else text
        return {**self.body, self.prompt: changed}


CHAT = {"any", "fits", "generates", "chat"}
RESPONSE = {"any", "fits", "responds", "at once"}
WAYS = {
    "chat": Way("/v1/chat/completions", {"model": MODEL, "messages": [SAY]}, CHAT),
    "chat stream": Way(
        "/v1/chat/completions", {"model": MODEL, "messages": [SAY], "stream": True}, CHAT
    ),
    "completion": Way(
        "/v1/completions",
        {"model": MODEL, "prompt": "Hi"},
        {"any", "fits", "generates", "raw"},
        "prompt",
    ),
    "completion stream": Way(
        "/v1/completions",
        {"model": MODEL, "prompt": "Hi", "stream": True},
        {"any", "fits", "generates", "raw"},
        "prompt",
    ),
    "embeddings": Way(
        "/v1/embeddings", {"model": MODEL, "input": "Hi"}, {"any", "fits", "embeds"}, "input"
    ),
    "response": Way("/v1/responses", {"model": MODEL, "input": "Hi"}, RESPONSE, "input"),
    "response stream": Way(
        "/v1/responses", {"model": MODEL, "input": "Hi", "stream": True}, RESPONSE, "input"
    ),
    "response in the background": Way(
        "/v1/responses",
        {"model": MODEL, "input": "Hi", "background": True},
        RESPONSE - {"at once"},
        "input",
    ),
    "tokenize": Way("/tokenize", {"model": MODEL, "prompt": "Hi"}, {"any"}, "prompt"),
    "tokenize chat": Way("/tokenize", {"model": MODEL, "messages": [SAY]}, {"any", "messages"}),
    "detokenize": Way("/detokenize", {"model": MODEL, "tokens": [1]}, {"any"}, "tokens"),
}


@dataclass(frozen=True)
class Limit:
    """What is over it, as a change of a request (or raw bytes), and the answer."""

    kind: str
    change: dict[str, Any] | Callable[[Way], bytes]
    status: int = 400
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


def nested(depth: int) -> Callable[[Way], bytes]:
    def make(way: Way) -> bytes:
        inner = "[" * (depth - 1) + "]" * (depth - 1)
        return (json.dumps(way.body)[:-1] + f', "metadata": {inner}}}').encode()

    return make


def twice(way: Way) -> bytes:
    return (json.dumps(way.body)[:-1] + f', "model": "{MODEL}"}}').encode()


def big(way: Way) -> bytes:
    return json.dumps(way.body).encode() + b" " * 100_000


def many(way: Way) -> bytes:
    return (json.dumps(way.body)[:-1] + ', "metadata": [' + "1," * 20_000 + "1]}").encode()


NAMES = [str(number) for number in range(5001)]
UNCOMPUTED = {
    "body": Limit("any", big, 413, "request_too_large"),
    "depth": Limit("any", nested(65)),
    "absurd depth": Limit("any", nested(40_000)),
    "values": Limit("any", many),
    "duplicate key": Limit("any", twice),
    "content type": Limit("any", {}, 415, "unsupported_media_type", {"content-type": "text/plain"}),
    "compressed": Limit("any", {}, 415, "unsupported_media_type", {"content-encoding": "gzip"}),
    "model": Limit("any", {"model": "other"}, 404, "model_not_found"),
    "model's length": Limit("any", {"model": "x" * 1025}, 400, "string_above_max_length"),
    "unknown field": Limit("any", {"nonsense": 1}, 400, "unknown_parameter"),
    "n": Limit("generates", {"n": 9}, 400, ABOVE),
    "n at all": Limit("generates", {"n": 2**31}, 400, ABOVE),
    "max_tokens": Limit("generates", {"max_tokens": 2**63}, 400, ABOVE),
    "stops": Limit("generates", {"stop": ["a"] * 5}, 400, ENTRIES),
    "stops at all": Limit("generates", {"stop": ["a"] * 5000}, 400, ENTRIES),
    "stop": Limit("generates", {"stop": "a" * 257}, 400, "string_above_max_length"),
    "logit_bias": Limit("generates", {"logit_bias": dict.fromkeys(NAMES[:1025], 1)}, 400, ENTRIES),
    "stop_token_ids": Limit("generates", {"stop_token_ids": [1] * 65}, 400, ENTRIES),
    "user": Limit("generates", {"user": "a" * 513}, 400, "string_above_max_length"),
    "choices": Limit("generates", {"guided_choice": ["a"] * 1001}, 400, ENTRIES),
    "messages": Limit("chat", {"messages": [SAY] * 4097}, 400, ENTRIES),
    "messages at all": Limit("chat", {"messages": [SAY] * 10_001}, 400, ENTRIES),
    "messages to count": Limit("messages", {"messages": [SAY] * 4097}, 400, ENTRIES),
    "tools": Limit("chat", {"tools": [TOOL] * 129}, 400, ENTRIES),
    "logprobs": Limit("chat", {"logprobs": True, "top_logprobs": 21}, 400, ABOVE),
    "logprobs of text": Limit("raw", {"logprobs": 21}, 400, ABOVE),
    "metadata": Limit("chat", {"metadata": {str(i): "a" for i in range(17)}}, 400, ENTRIES),
    "prompts": Limit("raw", {"prompt": ["a"] * 129}, 400, ENTRIES),
    "prompts times n": Limit("raw", {"prompt": ["a"] * 100, "n": 2}, 400, ENTRIES),
    "inputs": Limit("embeds", {"input": ["a"] * 2049}, 400, ENTRIES),
    "tokens of all inputs": Limit("embeds", {"input": [[1] * 2048] * 147}, 400, ENTRIES),
    "dimensions": Limit("embeds", {"dimensions": 2**31}, 400, ABOVE),
    "user of inputs": Limit("embeds", {"user": "a" * 513}, 400, "string_above_max_length"),
    "output tokens": Limit("responds", {"max_output_tokens": 2**63}, 400, ABOVE),
    "items": Limit("responds", {"input": [SAY] * 4097}, 400, ENTRIES),
    "items at all": Limit("responds", {"input": [SAY] * 10_001}, 400, ENTRIES),
    "functions": Limit("responds", {"tools": [FUNCTION] * 129}, 400, ENTRIES),
    "top_logprobs": Limit("responds", {"top_logprobs": 21}, 400, ABOVE),
    "keys": Limit("responds", {"metadata": {str(i): "a" for i in range(17)}}, 400, ENTRIES),
    "user of a response": Limit("responds", {"user": "a" * 513}, 400, "string_above_max_length"),
    "no such response": Limit(
        "responds", {"previous_response_id": "resp_x"}, 400, "previous_response_not_found"
    ),
}
PARTS = " & ".join(f"/(?s:.*)a.{{{i}}}b(?s:.*)/" for i in range(60))
HOSTILE = {"guided_grammar": f"start: A\nA: {PARTS}"}
"""Holds the compiler up for minutes, if it may."""
UNSTARTED = {
    "context": Limit("generates", {"max_tokens": 5000}, 400, "context_length_exceeded"),
    "context of a response": Limit(
        "at once", {"max_output_tokens": 5000}, 400, "context_length_exceeded"
    ),
    "context of an input": Limit("embeds", {"input": [1] * 2049}, 400, "context_length_exceeded"),
    "dimensions of the model": Limit("embeds", {"dimensions": 60_000}, 400, "invalid_value"),
    "schema of a response": Limit(
        "at once",
        {
            "text": {
                "format": {"type": "json_schema", "name": "a", "schema": {"enum": ["x" * 70_000]}}
            }
        },
        400,
        "invalid_json_schema",
    ),
    "schema bytes": Limit(
        "generates", {"guided_json": {"enum": ["x" * 70_000]}}, 400, "invalid_value"
    ),
    "schema depth": Limit("generates", {"guided_json": {"type": "array"}}, 400, "invalid_value"),
    "schema enum": Limit(
        "generates", {"guided_json": {"enum": list(range(1001))}}, 400, "invalid_value"
    ),
    "schema properties": Limit(
        "generates",
        {"guided_json": {"properties": dict.fromkeys(NAMES, True)}},
        400,
        "invalid_value",
    ),
    "regex bytes": Limit("generates", {"guided_regex": "a" * 70_000}, 400, "invalid_value"),
    "scored tokens": Limit("raw", {**SCORED, "prompt": [[1] * 2000] * 76}, 400, "invalid_value"),
    "scored context": Limit("raw", {**SCORED, "prompt": [1] * 2048}, 400, LONG),
    "hostile grammar": Limit("generates", HOSTILE, 400, "invalid_value"),
    "remote schema": Limit(
        "generates", {"guided_json": {"$ref": "http://127.0.0.1:9/a"}}, 400, "invalid_value"
    ),
}
deep: dict[str, Any] = {"type": "string"}
for _ in range(11):
    deep = {"type": "array", "items": deep}
UNSTARTED["schema depth"].change["guided_json"] = deep  # type: ignore[index]


class Untouchable:
    """An LLM that fails whoever asks it to do anything that costs."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        assert name in ("tokenizer", "context_length", "driver", "adapters"), f"{name} was paid for"
        return getattr(self._llm, name)


def pairs(limits: dict[str, Limit]) -> list[Any]:
    return [
        pytest.param(way, limit, id=f"{way}: {limit}")
        for way in WAYS
        for limit in limits
        if limits[limit].kind in WAYS[way].kinds
    ]


def ask(client: TestClient, way: Way, limit: Limit) -> Any:
    change = limit.change
    raw = json.dumps({**way.body, **change}).encode() if isinstance(change, dict) else change(way)
    headers = {"content-type": "application/json", **limit.headers}
    return client.post(way.path, content=raw, headers=headers)


def check(response: Any, limit: Limit) -> None:
    error = response.json()["error"]
    assert response.status_code == limit.status, error
    assert error["type"] == "invalid_request_error" and error["code"] == limit.code, error
    assert "retry-after" not in response.headers


@pytest.mark.parametrize(("way", "limit"), pairs(UNCOMPUTED))
def test_a_limit_is_enforced_before_anything_is_computed(
    client_of: Callable[..., TestClient], tiny: LLM, way: str, limit: str
) -> None:
    small = {"max_body_bytes": 90_000} if limit == "body" else {}
    values = {"max_json_values": 15_000} if limit == "values" else {}
    client = client_of(llm=Untouchable(tiny), **small, **values)
    check(ask(client, WAYS[way], UNCOMPUTED[limit]), UNCOMPUTED[limit])


@pytest.mark.parametrize(("way", "limit"), pairs(UNSTARTED))
def test_a_limit_is_enforced_before_the_engine_hears_of_it(
    client: TestClient, tiny: LLM, way: str, limit: str
) -> None:
    before = tiny.driver.engine.stats()
    check(ask(client, WAYS[way], UNSTARTED[limit]), UNSTARTED[limit])
    assert tiny.driver.engine.stats() == before


@pytest.mark.parametrize("way", [way for way in WAYS if "fits" in WAYS[way].kinds])
def test_a_prompt_that_cannot_fit_is_not_even_tokenised(
    client_of: Callable[..., TestClient], tiny: LLM, way: str
) -> None:
    client = client_of(llm=Untouchable(tiny))
    response = client.post(WAYS[way].path, json=WAYS[way].saying("x" * 3_000_000))
    check(response, Limit("", {}, 400, "context_length_exceeded"))
    assert response.json()["error"]["param"] == WAYS[way].prompt


@pytest.mark.parametrize("way", WAYS)
def test_one_key_too_few_a_closed_door_and_no_room(
    client_of: Callable[..., TestClient], tiny: LLM, key: str, way: str
) -> None:
    """Nobody, a draining server, a full one: each said before the body is read."""
    locked = client_of(llm=Untouchable(tiny), key=key)
    wrong = locked.post(WAYS[way].path, headers={"authorization": "Bearer no"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    service: Any = locked.app.state.service  # type: ignore[attr-defined]
    service.draining = True
    closed = locked.post(WAYS[way].path, content=b"no json")
    assert closed.status_code == 503 and closed.headers["connection"] == "close"
    assert closed.json()["error"]["code"] == "service_unavailable"
    full = client_of(llm=Untouchable(tiny), max_sequences=1, max_waiting=0)
    gate: Any = full.app.middleware_stack or full.app.build_middleware_stack()  # type: ignore[attr-defined]
    full.app.middleware_stack = gate  # type: ignore[attr-defined]
    gate._working = 1
    refused = full.post(WAYS[way].path, content=b"no json")
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "server_is_overloaded"
    assert full.get("/health").status_code == 200


@pytest.mark.parametrize("way", ["chat", "completion", "embeddings", "response"])
def test_the_lines_of_a_batch_have_the_same_limits(
    client_of: Callable[..., TestClient], way: str
) -> None:
    """Every limit that is a change of the body, as a line; and none of them is computed."""
    chosen = WAYS[way]
    limits = {
        name: limit
        for name, limit in {**UNCOMPUTED, **UNSTARTED}.items()
        if limit.kind in chosen.kinds and isinstance(limit.change, dict) and not limit.headers
    }
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": chosen.path,
            "body": {**chosen.body, **limit.change},  # type: ignore[dict-item]
        }
        for name, limit in limits.items()
    ]
    text = "\n".join(map(json.dumps, lines))
    with client_of() as client:
        form: Any = {"files": {"file": ("a", text)}, "data": {"purpose": "batch"}}
        file = client.post("/v1/files", **form).json()["id"]
        wish = {"input_file_id": file, "endpoint": chosen.path, "completion_window": "24h"}
        url = "/v1/batches/" + client.post("/v1/batches", json=wish).json()["id"]
        while (batch := client.get(url).json())["status"] != "completed":
            time.sleep(0.02)
        assert batch["request_counts"] == {
            "total": len(limits),
            "completed": 0,
            "failed": len(limits),
        }
        found = client.get(f"/v1/files/{batch['error_file_id']}/content").text
    for line, (name, limit) in zip(found.splitlines(), limits.items(), strict=True):
        record = json.loads(line)
        assert record["custom_id"] == name
        told = (record["response"]["status_code"], record["error"]["code"])
        assert told == (limit.status, limit.code), name


@pytest.mark.parametrize("way", WAYS)
def test_within_the_limits_it_is_answered(client: TestClient, way: str) -> None:
    body = {**WAYS[way].body, **({"max_tokens": 2} if "generates" in WAYS[way].kinds else {})}
    assert client.post(WAYS[way].path, json=body).status_code == 200


FIELDS = {
    "max_tokens": {"generates"},
    "n": {"generates"},
    "seed": {"generates"},
    "top_k": {"generates"},
    "min_tokens": {"generates"},
    "temperature": {"generates"},
    "top_p": {"generates"},
    "min_p": {"generates"},
    "presence_penalty": {"generates"},
    "frequency_penalty": {"generates"},
    "repetition_penalty": {"generates"},
    "top_logprobs": {"chat"},
    "max_completion_tokens": {"chat"},
    "logprobs": {"raw"},
}
NUMBERS = ["-1", "0", "1", "128", "129", "2147483648", "9223372036854775808", "1e308", "1e-45"]
NUMBERS += ["NaN", "true", '"1"', "1.5", "-0.0", "99999999999999999999"]


@pytest.mark.parametrize("way", ["tokenize", "tokenize chat"])
def test_only_so_much_text_is_tokenised_at_once(
    client: TestClient, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_CHARS", 100)
    for count, status in ((100, 200), (101, 400)):
        response = client.post(WAYS[way].path, json=WAYS[way].saying("x" * count))
        assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (WAYS[way].prompt, "string_above_max_length")


@pytest.mark.parametrize("way", ["chat", "completion stream"])
@pytest.mark.parametrize("name", FIELDS)
def test_no_number_is_a_server_error(client: TestClient, way: str, name: str) -> None:
    if not FIELDS[name] & WAYS[way].kinds:
        pytest.skip("not a field of this one")
    for number in NUMBERS:
        start = json.dumps({"max_tokens": 2, **WAYS[way].body})
        if name == "max_tokens":
            start = json.dumps(WAYS[way].body)
        raw = f'{start[:-1]}, "{name}": {number}}}'
        response = client.post(
            WAYS[way].path, content=raw, headers={"content-type": "application/json"}
        )
        assert response.status_code in (200, 400), (name, number, response.text)
        if response.status_code == 400 and number not in ("NaN", "99999999999999999999"):
            assert response.json()["error"]["code"], (name, number)
