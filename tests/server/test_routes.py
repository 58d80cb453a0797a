"""The application's own table of routes: who may come in, and that every refusal is an envelope."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator
from starlette.routing import Route
from starlette.testclient import TestClient

from qwenkit.server.gate import ADMIN, PUBLIC

OPEN = {"/health", "/ping", "/ready"}
"""Written down here a second time: a route does not become public by one edit."""


def table(client: TestClient) -> list[tuple[str, str]]:
    """(method, path) of every route, as registered; a path's parameter is filled in."""
    app: Any = client.app
    found = []
    for route in app.routes:
        assert isinstance(route, (APIRoute, Route)), f"{route} hides routes from this test"
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        found += [(method, path) for method in sorted(route.methods or ())]
    return found


def envelope(response: Any) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.fixture(scope="module")
def locked(client_of: Callable[..., TestClient], key: str) -> Iterator[TestClient]:
    with client_of(key=key) as client:
        del client.headers["authorization"]
        yield client


def test_the_public_routes_are_the_three_that_are_listed(locked: TestClient) -> None:
    assert PUBLIC == OPEN
    assert {path for _, path in table(locked)} > OPEN
    assert ADMIN == {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}


def test_every_route_wants_the_key(locked: TestClient) -> None:
    asked = 0
    for method, path in table(locked):
        response = locked.request(method, path)
        if path in OPEN:
            assert response.status_code == 200, path
            continue
        asked += 1
        assert response.status_code == 401, (method, path)
        if method != "HEAD":
            error = envelope(response)
            assert (error["type"], error["param"], error["code"]) == (
                "invalid_request_error",
                None,
                None,
            )
    assert asked > 8


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "bearer KEY")],
        [("authorization", "Basic KEY")],
        [("authorization", "KEY")],
        [("authorization", "Bearer KEYx")],
        [("authorization", "Bearer KE")],
        [("authorization", "Bearer  KEY")],
        [("authorization", "Bearer KEY KEY")],
        [("authorization", "Bearer KEY"), ("authorization", "Bearer KEY")],
        [("x-api-key", "KEY")],
        [("api-key", "KEY")],
        [("cookie", "authorization=Bearer KEY")],
        [("authorization", "Bearer é".encode("latin-1").decode("latin-1"))],
        [("authorization", "Bearer " + "k" * 60_000)],
    ],
    ids=str,
)
def test_what_is_not_exactly_the_key_is_refused(
    locked: TestClient, key: str, headers: list[tuple[str, str]]
) -> None:
    sent = [(name.encode(), value.replace("KEY", key).encode("latin-1")) for name, value in headers]
    response = locked.get("/v1/models", headers=sent)  # type: ignore[arg-type]
    assert response.status_code == 401
    error = envelope(response)
    known = [value for name, value in sent if name == b"authorization"]
    given = len(known) == 1 and known[0].startswith(b"Bearer ") and known[0][7:].strip()
    assert error["code"] == ("invalid_api_key" if given else None)
    assert key not in response.text


def test_the_key_in_the_address_is_no_key(locked: TestClient, key: str) -> None:
    for query in (f"api_key={key}", f"key={key}", f"authorization=Bearer%20{key}"):
        assert locked.get(f"/v1/models?{query}").status_code == 401


def test_the_key_opens(locked: TestClient, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200
    assert locked.get("/openapi.json", headers=headers).status_code == 200
    assert locked.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "//v1//models",
        "/v1/models/",
        "/V1/models",
        "/v1/../v1/models",
        "/%2e%2e/v1/models",
        "/health/../v1/models",
        "/health/",
        "/health;/v1/models",
        "/v1%2fmodels",
        "/health%00",
        "/openapi.json/",
    ],
)
def test_other_spellings_of_a_path_open_nothing(locked: TestClient, key: str, path: str) -> None:
    assert locked.get(path).status_code == 401
    answer = locked.get(path, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code in (200, 404), path
    if answer.status_code == 404:
        assert envelope(answer)["code"] in ("unknown_url", "model_not_found")


@pytest.mark.parametrize("host", ["a/b", "a?b", "user@a", "a#b", "a b", "", "a:b", "[::1", "a,b"])
def test_a_host_that_is_none_is_refused(client: TestClient, locked: TestClient, host: str) -> None:
    assert locked.get("/v1/models", headers={"host": host}).status_code == 400
    response = client.get("/v1/models", headers={"host": host})
    assert response.status_code == 400
    assert "Host" in envelope(response)["message"]


def test_without_a_key_only_names_of_this_machine_are_answered(
    client_of: Callable[..., TestClient], key: str
) -> None:
    """A page on the web may have its name lead to 127.0.0.1 (DNS rebinding)."""
    open_client = client_of(allowed_host=["box.example"])
    for host in ("localhost", "127.0.0.1:8000", "[::1]:1", "LOCALHOST", "box.example:80"):
        assert open_client.get("/v1/models", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.2", "0.0.0.0"):
        response = open_client.get("/v1/models", headers={"host": host})
        assert response.status_code == 403, host
        assert envelope(response)["code"] == "unknown_host"
    assert client_of(key=key).get("/v1/models", headers={"host": "a.b"}).status_code == 200


def test_no_other_origin_is_let_in(client: TestClient) -> None:
    for origin in ("null", "https://evil.example"):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        response = client.options("/v1/chat/completions", headers=headers)
        assert response.status_code == 405
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_unknown_routes_and_methods(client: TestClient) -> None:
    response = client.get("/v1/nothing")
    assert (response.status_code, envelope(response)["code"]) == (404, "unknown_url")
    response = client.delete("/v1/chat/completions")
    assert (response.status_code, envelope(response)["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    for path, allowed in (
        ("/v1/files", "GET, POST"),
        ("/v1/files/a", "DELETE, GET"),
        ("/v1/batches", "GET, POST"),
        ("/v1/responses/a", "DELETE, GET"),
        ("/v1/responses/a/cancel", "POST"),
    ):
        assert client.put(path).headers["allow"] == allowed


def test_probes_may_ask_with_head(locked: TestClient) -> None:
    for path in sorted(OPEN):
        asked, got = locked.head(path), locked.get(path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-length"] == str(len(got.content))
        assert locked.put(path).headers["allow"] == "GET, HEAD"


def test_the_request_id_is_ours(client: TestClient) -> None:
    seen = set()
    for theirs in ("mine", "a" * 5000, "req_" + "0" * 32):
        given = client.get("/health", headers={"x-request-id": theirs}).headers["x-request-id"]
        assert given != theirs
        seen.add(given)
    assert len(seen) == 3


def test_the_document_names_every_route_and_its_body(client: TestClient) -> None:
    found = client.get("/openapi.json").json()
    paths = {re.sub(r"\{[^}]+\}", "x", path) for path in found["paths"]}
    assert {path for _, path in table(client)} - paths == {"/openapi.json"}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            assert "requestBody" in operation or method != "post", path
            assert operation["responses"]["400"], path
    text = json.dumps(found)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in found["components"]["schemas"]
    assert found["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False


SAY = {"role": "user", "content": "Hi"}
ARGUMENTS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CALLED = {"type": "function", "name": "f", "parameters": ARGUMENTS}
TOOL = {"type": "function", "function": {"name": "f", "parameters": ARGUMENTS}}
ASKS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [SAY]},
        {"messages": [SAY], "n": 2, "logprobs": True, "top_logprobs": 2},
        {"messages": [SAY], "stream_options": {"include_usage": True}},
        {"messages": [SAY], "tools": [TOOL], "tool_choice": "required", "max_tokens": 40},
    ],
    "/v1/completions": [
        {"prompt": "Hi"},
        {"prompt": ["a", "b"], "n": 2, "logprobs": 2, "echo": False},
        {"prompt": "Hi", "stream_options": {"include_usage": True}},
    ],
    "/v1/responses": [
        {"input": "Hi"},
        {"input": "Hi", "top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        {"input": "Hi", "max_output_tokens": 40, "tools": [CALLED], "tool_choice": "required"},
    ],
}


@pytest.mark.parametrize("path", ASKS)
def test_events_are_what_the_document_says(client: TestClient, path: str) -> None:
    """Every event of every kind of stream, with nothing in it that the document does not know."""
    document = client.get("/openapi.json").json()
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    schema = content["text/event-stream"]["schema"]
    data = schema["properties"]["data"]
    ends = "anyOf" in data
    if ends:
        assert data["anyOf"][0] == {"const": "[DONE]"}
        data = data["anyOf"][1]
    parts = copy.deepcopy(document["components"])
    for part in parts["schemas"].values():
        if "properties" in part:
            part.setdefault("additionalProperties", False)
    judge = Draft202012Validator({**data["contentSchema"], "components": parts})
    for ask in ASKS[path]:
        body = {"model": "tiny-instruct", "max_tokens": 4, "stream": True, **ask}
        if path == "/v1/responses":
            body["max_output_tokens"] = body.pop("max_tokens")
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        events = answer.text.removesuffix("\n\n").split("\n\n")
        if ends:
            assert events.pop() == "data: [DONE]"
        assert len(events) > 1
        for event in events:
            judge.validate(json.loads(event.rpartition("data: ")[2]))
