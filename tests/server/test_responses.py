"""`/v1/responses` through the official client against a real server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from starlette.testclient import TestClient

from qwenkit.llm import LLM
from qwenkit.server.errors import ApiError
from qwenkit.server.stored import Stored, StoredResponses

MODEL = "tiny-instruct"
SUM = "What is 12 + 30?"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
ASK = "What is the weather in Paris?"


@pytest.fixture(scope="module")
def api(live: Any, client_for: Callable[..., OpenAI]) -> OpenAI:
    return client_for(live)


def test_an_answer_and_its_fields(api: OpenAI) -> None:
    answer = api.responses.create(
        model=MODEL, input=SUM, instructions="You add numbers.", metadata={"a": "b"}
    )
    assert answer.object == "response" and answer.id.startswith("resp_")
    assert answer.status == "completed" and "42" in answer.output_text
    assert answer.instructions == "You add numbers." and answer.metadata == {"a": "b"}
    message: Any = answer.output[0]
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = answer.usage
    assert usage and usage.total_tokens == usage.input_tokens + usage.output_tokens
    again = api.responses.create(model=MODEL, input=SUM, instructions="You add numbers.")
    assert again.output_text == answer.output_text
    assert again.usage and again.usage.input_tokens_details.cached_tokens > 0


def test_every_field_that_open_responses_requires(live: Any) -> None:
    """https://github.com/openresponses/openresponses, schema/components/schemas."""
    required = """id object created_at completed_at status incomplete_details model instructions
        previous_response_id output error tools tool_choice truncation parallel_tool_calls text
        top_p presence_penalty frequency_penalty top_logprobs temperature reasoning user usage
        max_output_tokens max_tool_calls store background service_tier metadata safety_identifier
        prompt_cache_key""".split()
    tool = {"type": "function", "name": "f"}
    form = {"type": "json_schema", "name": "a", "schema": {"type": "integer"}}
    body = {"model": MODEL, "input": SUM, "max_output_tokens": 9, "safety_identifier": "s"}
    asked = {**body, "tools": [tool], "text": {"format": form}, "tool_choice": "none", "top_p": 0.5}
    plain, full = (
        httpx.post(f"{live.url}/v1/responses", json=each, timeout=60).json()
        for each in (body, asked)
    )
    for found in (plain, full):
        assert set(required) <= set(found)
        numbers = (found[k] for k in ("temperature", "frequency_penalty", "presence_penalty"))
        assert list(numbers) == [0, 0, 0]
        assert (found["service_tier"], found["safety_identifier"]) == ("default", "s")
    assert (plain["top_p"], full["top_p"]) == (1, 0.5)
    assert full["tools"] == [{**tool, "description": None, "parameters": None, "strict": None}]
    assert full["text"]["format"] == {**form, "description": None, "strict": True}


def test_it_says_what_a_chat_says(api: OpenAI) -> None:
    story: Any = {"temperature": 1.5, "seed": 7}
    chat = api.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}],
        max_tokens=20,
        **story,
    )
    answer = api.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": [{"type": "input_text", "text": "Hi!"}]}],
        instructions="Be brief.",
        max_output_tokens=20,
        temperature=1.5,
        extra_body={"seed": 7},
    )
    assert answer.output_text == chat.choices[0].message.content
    assert chat.usage and answer.usage and chat.usage.prompt_tokens == answer.usage.input_tokens


def test_the_events_of_a_stream(api: OpenAI) -> None:
    events = list(api.responses.create(model=MODEL, input=SUM, stream=True))
    kinds = [event.type for event in events]
    inner = [kind for kind in kinds if kind != "response.output_text.delta"]
    assert inner == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    whole = api.responses.create(model=MODEL, input=SUM)
    assert text == last.response.output_text == whole.output_text
    assert last.response.usage.output_tokens == whole.usage.output_tokens  # type: ignore[union-attr]
    assert api.responses.retrieve(last.response.id).output_text == text


def test_the_wire_has_event_names_and_no_done(live: Any) -> None:
    with httpx.stream(
        "POST",
        f"{live.url}/v1/responses",
        json={"model": MODEL, "input": SUM, "stream": True},
        timeout=60,
    ) as answer:
        text = answer.read().decode()
    assert "[DONE]" not in text
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]


def test_the_streaming_helper_and_structured_outputs(api: OpenAI) -> None:
    class Answer(BaseModel):
        value: int

    with api.responses.stream(model=MODEL, input=SUM, text_format=Answer) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Answer)
    parsed = api.responses.parse(model=MODEL, input=SUM, text_format=Answer)
    assert parsed.output_parsed == final.output_parsed
    loose = api.responses.create(
        model=MODEL,
        input="Give JSON.",
        text={"format": {"type": "json_object"}},
        max_output_tokens=60,
    )
    assert loose.status == "incomplete" or isinstance(json.loads(loose.output_text), dict)


def test_a_call_its_output_and_what_follows(api: OpenAI) -> None:
    first = api.responses.create(model=MODEL, input=ASK, tools=[WEATHER], tool_choice="required")
    call: Any = first.output[0]
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert list(json.loads(call.arguments)) == ["city"]
    output: Any = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": '{"temperature": 21}',
    }
    chained = api.responses.create(
        model=MODEL, previous_response_id=first.id, input=[output], tools=[WEATHER]
    )
    by_hand = api.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": ASK}, call, output],  # type: ignore[list-item]
        tools=[WEATHER],
    )
    assert chained.output_text == by_hand.output_text != ""
    assert chained.usage and by_hand.usage
    assert chained.usage.input_tokens == by_hand.usage.input_tokens
    assert chained.previous_response_id == first.id


def test_arguments_are_streamed(api: OpenAI) -> None:
    wish: Any = {"model": MODEL, "input": ASK, "tools": [WEATHER], "tool_choice": "required"}
    events = list(api.responses.create(**wish, stream=True))
    kinds = [event.type for event in events]
    assert kinds.count("response.function_call_arguments.done") >= 1
    done: Any = next(e for e in events if e.type == "response.function_call_arguments.done")
    pieces = [
        event.delta
        for event in events
        if event.type == "response.function_call_arguments.delta" and event.item_id == done.item_id
    ]
    assert "".join(pieces) == done.arguments and len(pieces) > 1


def test_cut_answers_are_incomplete(api: OpenAI) -> None:
    answer = api.responses.create(model=MODEL, input=SUM, max_output_tokens=2)
    assert answer.status == "incomplete" and answer.incomplete_details
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage and answer.usage.output_tokens == 2
    *_, last = api.responses.create(model=MODEL, input=SUM, max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"


def test_logprobs(api: OpenAI) -> None:
    wish: Any = {"model": MODEL, "input": SUM, "include": ["message.output_text.logprobs"]}
    answer: Any = api.responses.create(**wish, top_logprobs=2)
    part = answer.output[0].content[0]
    assert part.logprobs and all(len(each.top_logprobs) == 2 for each in part.logprobs)
    assert "".join(each.token for each in part.logprobs).startswith(part.text)


def test_chains_and_what_is_kept(api: OpenAI) -> None:
    first = api.responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=8)
    second = api.responses.create(
        model=MODEL, input=SUM, previous_response_id=first.id, max_output_tokens=8
    )
    chat = api.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": SUM},
        ],
        max_tokens=8,
    )
    assert second.output_text == chat.choices[0].message.content
    kept = api.responses.retrieve(second.id)
    assert kept.output_text == second.output_text and kept.usage == second.usage
    items: Any = list(api.responses.input_items.list(second.id))
    assert [item.content[0].text for item in items] == [SUM]
    api.responses.delete(first.id)
    for ask in (
        lambda: api.responses.retrieve(first.id),
        lambda: api.responses.delete(first.id),
        lambda: api.responses.input_items.list(first.id),
        lambda: api.responses.cancel(first.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        api.responses.create(model=MODEL, input="x", previous_response_id=second.id)
    assert bad.value.code == "previous_response_not_found"
    unkept = api.responses.create(model=MODEL, input="x", store=False, max_output_tokens=1)
    assert unkept.id
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(unkept.id)


def test_pages_of_input_items(api: OpenAI) -> None:
    turns: Any = [{"role": "user", "content": f"number {i}"} for i in range(5)]
    answer = api.responses.create(model=MODEL, input=turns, max_output_tokens=1)
    first = api.responses.input_items.list(answer.id, limit=2, order="asc")
    assert first.has_more
    texts = [item.content[0].text for item in first]  # type: ignore[union-attr]
    assert texts == [f"number {i}" for i in range(5)]
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=no"):
        with pytest.raises(openai.BadRequestError) as caught:
            api.get(f"/responses/{answer.id}/input_items?{query}", cast_to=object)
        assert caught.value.param == query.partition("=")[0]


def test_in_the_background(api: OpenAI) -> None:
    wish: Any = {"model": MODEL, "background": True, "temperature": 2}
    begun = api.responses.create(**wish, input=SUM, max_output_tokens=20)
    assert begun.status == "queued" and begun.background
    deadline = time.monotonic() + 60
    while (found := api.responses.retrieve(begun.id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert found.status in ("completed", "incomplete") and found.usage and found.output_text
    long = api.responses.create(**wish, input="Tell me a story.", extra_body={"min_p": 0.0})
    cancelled = api.responses.cancel(long.id)
    assert cancelled.status in ("cancelled", "completed")
    time.sleep(0.3)
    assert api.responses.retrieve(long.id).status == cancelled.status
    again = api.responses.cancel(begun.id)
    assert again.status == found.status
    plain = api.responses.create(model=MODEL, input=SUM, max_output_tokens=1)
    with pytest.raises(openai.BadRequestError):
        api.responses.cancel(plain.id)


USER = {"role": "user", "content": "x"}
CALLED = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
DEEP: dict[str, Any] = {"type": "json_schema", "name": "a", "schema": {"type": "strin"}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("wish", "param", "code"),
    [
        ({"input": []}, "input", "empty_array"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [USER, {"role": "user", "content": 5}]}, "input[1].content", "invalid_type"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type", "invalid_value"),
        ({"input": [{"type": 5}]}, "input[0].type", "invalid_value"),
        ({"input": [{**USER, "x": 1}]}, "input[0].x", "unknown_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "invalid_value",
        ),
        (
            {
                "input": [
                    USER,
                    {"type": "function_call_output", "call_id": "no", "output": "x"},
                ]
            },
            "input[1].call_id",
            "invalid_value",
        ),
        ({"input": [USER, CALLED]}, "input[1]", "invalid_value"),
        ({"input": "x" * 4_000_000}, "input", "context_length_exceeded"),
        ({"input": [USER] * 4097}, "input", "array_above_max_length"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"max_output_tokens": 100_000}, "input", "context_length_exceeded"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"previous_response_id": "no"}, "previous_response_id", "previous_response_not_found"),
        ({"text": {"format": DEEP}}, "text.format.schema", "invalid_json_schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "string_above_max_length"),
        ({"extra_body": {"nonsense": 1}}, "nonsense", "unknown_parameter"),
        ({"extra_body": {"n": 2}}, "n", "unknown_parameter"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_wrong_is_a_bad_request(
    api: OpenAI, wish: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(**{"model": MODEL, "input": SUM, "stream": stream, **wish})
    error = caught.value
    assert (error.param, error.code) == (param, code), error.message


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"input": [{"role": "user", "content": []}, CALLED]}, "'input[1]': the result of"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content is"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'"),
        ({"input": [USER, "x"]}, "'input[1]': expected an object, but got a string"),
        ({"max_output_tokens": 100_000}, "lower max_output_tokens"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name repeats"),
    ],
    ids=range(6),
)
def test_messages_speak_the_words_of_this_endpoint(
    api: OpenAI, wish: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(**{"model": MODEL, "input": SUM, **wish})
    assert words in caught.value.message


def test_an_unknown_model(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        api.responses.create(model="other", input="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_another_key_finds_nothing(client_of: Callable[..., TestClient], tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-one one\nsk-two two\n")
    with client_of(api_key_file=str(keys)) as client:

        def ask(method: str, path: str, key: str, **more: Any) -> Any:
            headers = {"authorization": f"Bearer {key}"}
            return client.request(method, f"/v1/responses{path}", headers=headers, **more)

        body = {"model": MODEL, "input": "x", "max_output_tokens": 1}
        mine = ask("POST", "", "sk-one", json=body).json()["id"]
        for method, path in (
            ("GET", f"/{mine}"),
            ("DELETE", f"/{mine}"),
            ("POST", f"/{mine}/cancel"),
            ("GET", f"/{mine}/input_items"),
        ):
            found = ask(method, path, "sk-two")
            assert found.status_code == 404, (method, path)
        chained = ask("POST", "", "sk-two", json={**body, "previous_response_id": mine})
        assert chained.json()["error"]["code"] == "previous_response_not_found"
        assert ask("GET", f"/{mine}", "sk-one").status_code == 200


def test_a_failure_behind_the_first_event_is_told_in_events(
    client_of: Callable[..., TestClient], tiny: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LLM.astream

    async def breaks(self: LLM, *what: Any, **more: Any) -> Any:
        async for delta in real(self, *what, **more):
            yield delta
            raise RuntimeError("a bug at 0xdeadbeef")

    monkeypatch.setattr(LLM, "astream", breaks)
    with client_of() as client:
        body = {"model": MODEL, "input": SUM, "stream": True}
        text = client.post("/v1/responses", json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == "internal_error" and "0xdead" not in text
    assert events[-1]["response"]["error"]["code"] == "server_error"
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(events)))


def test_what_the_background_holds_is_bounded(
    client_of: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies and earlier items count while they are held, and no longer."""
    most, begun, go = 40_000, threading.Semaphore(0), asyncio.Event()
    real = LLM.astream

    async def waits(self: LLM, *what: Any, **more: Any) -> Any:
        begun.release()
        await go.wait()
        async for delta in real(self, *what, **more):
            yield delta

    with client_of(max_stored_bytes=most) as client:

        def ask(chars: int, **more: Any) -> Any:
            body = {"model": MODEL, "input": "x " * (chars // 2), "max_output_tokens": 1, **more}
            return client.post("/v1/responses", json={"background": True, **body})

        def error(answer: Any) -> tuple[int, str]:
            return answer.status_code, answer.json()["error"]["code"]

        def running() -> list[Stored]:
            own = client.app.state.service.responses._tenants.get("", {})  # type: ignore[attr-defined]
            return [each for each in own.values() if each.work is not None]

        def wait(count: int) -> None:
            deadline = time.monotonic() + 60
            while len(running()) > count:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        first = ask(2000, background=False).json()["id"]
        monkeypatch.setattr(LLM, "astream", waits)
        assert error(ask(most, previous_response_id=first)) == (413, "request_too_large")
        chained = ask(2, previous_response_id=first).json()["id"]
        assert begun.acquire(timeout=60) and running()[0].size > 2000
        client.post(f"/v1/responses/{chained}/cancel")
        wait(0)
        # Twice 3,000 bytes each: the body and the items; and the response.
        ids = []
        while (answer := ask(3000)).status_code == 200:
            ids.append(answer.json()["id"])
            assert begun.acquire(timeout=60)
            assert sum(each.size for each in running()) <= most
        assert len(ids) == 5 and error(answer) == (503, "server_is_overloaded")
        assert int(answer.headers["retry-after"]) > 0
        client.post(f"/v1/responses/{ids[0]}/cancel")
        wait(4)
        assert ask(3000).status_code == 200
        client.delete(f"/v1/responses/{ids[1]}")
        wait(4)
        assert ask(3000).status_code == 200
        client.portal.call(go.set)  # type: ignore[union-attr]
        wait(0)
        for each in ids[2:]:
            found = client.get(f"/v1/responses/{each}").json()
            assert found["status"] in ("completed", "incomplete"), found["error"]
        assert not running()
        assert ask(3000).status_code == 200


def response(
    number: int, size: int = 0, previous: str | None = None, background: bool = False
) -> dict[str, Any]:
    found: dict[str, Any] = {"id": str(number), "previous_response_id": previous, "store": True}
    found |= {"background": background, "status": "completed", "output": []}
    return {**found, "text": "x" * size}


def test_the_store_is_bounded_for_each_tenant() -> None:
    store = StoredResponses(3, 2000)
    for number in range(5):
        store.put("a", response(number), [])
    store.put("b", response(0), [])
    assert [store.has("a", str(i)) for i in range(5)] == [False, False, True, True, True]
    store.get("a", "2")
    store.put("a", response(5, size=1700), [])
    assert store.has("a", "2") and not store.has("a", "3") and store.has("b", "0")
    large = response(6, size=3000)
    store.put("a", large, [])
    assert not store.has("a", "6") and large["store"] is False
    with pytest.raises(ApiError):
        store.get("b", "5")
    store.put("a", response(8, background=True), [], work=object(), held=1000)
    store.put("a", response(9, size=500), [])
    assert store.has("a", "8") and store.has("a", "9")
    large = response(10, size=900)
    store.put("a", large, [])
    assert store.has("a", "8") and not store.has("a", "10") and large["store"] is False
    store.put("a", response(8, size=1500, background=True), [])
    assert store.has("a", "8")
    store.put("a", response(7, previous="gone"), [])
    with pytest.raises(ApiError) as caught:
        store.chain("a", "7")
    assert caught.value.code == "previous_response_not_found"
