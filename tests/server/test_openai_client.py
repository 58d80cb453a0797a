"""The official client against a real server in a process of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "tiny-instruct"
SUM: Any = [{"role": "user", "content": "What is 12 + 30?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
UNUSABLE: Any = {
    "type": "function",
    "function": {"name": "odd", "parameters": {"properties": {"a": {"$ref": "http://a/b"}}}},
}
NAMED: Any = {"type": "function", "function": {"name": "odd"}}
ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def api(live: Any, client_for: Callable[..., OpenAI]) -> OpenAI:
    return client_for(live)


# --- answers ----------------------------------------------------------------------------------


def test_a_chat(api: OpenAI) -> None:
    answer = api.chat.completions.create(model=MODEL, messages=SUM)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer._request_id and answer._request_id.startswith("req_")
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and "42" in (choice.message.content or "")
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    usage = answer.usage
    assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens is not None
    timings = answer.model_extra["timings"]  # type: ignore[index]
    assert timings["predicted_n"] == usage.completion_tokens and timings["prompt_ms"] > 0


def test_a_stream_joined_is_the_whole_answer(api: OpenAI) -> None:
    whole = api.chat.completions.create(model=MODEL, messages=SUM)
    chunks = list(
        api.chat.completions.create(
            model=MODEL, messages=SUM, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1]) and not chunks[-1].choices
    usage = chunks[-1].usage
    assert usage and whole.usage and usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens


def test_without_the_wish_no_usage_is_streamed(api: OpenAI) -> None:
    for chunk in api.chat.completions.create(model=MODEL, messages=SUM, stream=True, max_tokens=4):
        assert chunk.choices and chunk.usage is None


def test_the_async_client(live: Any) -> None:
    async def main() -> tuple[list[str], str]:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as api:
            ask = api.chat.completions.create
            answers = await asyncio.gather(*(ask(model=MODEL, messages=SUM) for _ in range(8)))
            stream = await ask(model=MODEL, messages=SUM, stream=True)
            pieces = [c.choices[0].delta.content or "" async for c in stream]
            return [a.choices[0].message.content or "" for a in answers], "".join(pieces)

    texts, streamed = asyncio.run(main())
    assert set(texts) == {streamed}


def test_the_streaming_helper_collects_the_answer(api: OpenAI) -> None:
    with api.chat.completions.stream(model=MODEL, messages=SUM) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "42" in (final.choices[0].message.content or "")


def test_several_choices(api: OpenAI) -> None:
    story: Any = [{"role": "user", "content": "Tell me a story."}]
    wish: Any = {"model": MODEL, "messages": story, "n": 3, "seed": 5, "temperature": 2}
    whole = api.chat.completions.create(**wish, max_tokens=12)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    again = api.chat.completions.create(**wish, max_tokens=12)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.message.content for choice in again.choices] == texts
    streamed = ["", "", ""]
    for chunk in api.chat.completions.create(**wish, max_tokens=12, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts and len(set(texts)) > 1


def test_stop_length_and_penalties(api: OpenAI) -> None:
    ask = api.chat.completions.create
    cut = ask(model=MODEL, messages=SUM, stop=["30"])
    assert cut.choices[0].message.content == "12+" and cut.choices[0].finish_reason == "stop"
    short = ask(model=MODEL, messages=SUM, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage
    assert short.usage.completion_tokens == 3
    go_on: Any = {"model": MODEL, "prompt": "Once", "max_tokens": 12}
    free, held = (
        api.completions.create(**go_on),
        api.completions.create(**go_on, presence_penalty=2, frequency_penalty=2),
    )
    assert free.choices[0].text != held.choices[0].text


def test_logit_bias_forces_a_token(live: Any, api: OpenAI) -> None:
    tokens = httpx.post(f"{live.url}/tokenize", json={"model": MODEL, "prompt": "!"}).json()
    wanted = tokens["tokens"][0]
    answer = api.chat.completions.create(
        model=MODEL, messages=SUM, logit_bias={str(wanted): 100}, max_tokens=3
    )
    assert answer.choices[0].message.content == "!!!"


def test_logprobs(api: OpenAI) -> None:
    answer = api.chat.completions.create(
        model=MODEL, messages=SUM, logprobs=True, top_logprobs=3, max_tokens=5
    )
    found = answer.choices[0].logprobs
    assert found and found.content and len(found.content) == 5
    for entry in found.content:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[2].logprob
        assert bytes(entry.bytes or []).decode("utf-8", "replace") == entry.token
    text = "".join(entry.token for entry in found.content)
    assert text == answer.choices[0].message.content
    streamed: list[str] = []
    for chunk in api.chat.completions.create(
        model=MODEL, messages=SUM, logprobs=True, top_logprobs=1, max_tokens=5, stream=True
    ):
        probs = chunk.choices[0].logprobs
        streamed += [entry.token for entry in (probs.content if probs else None) or []]
    assert "".join(streamed) == text
    bare = api.chat.completions.create(model=MODEL, messages=SUM, logprobs=True, max_tokens=2)
    assert bare.choices[0].logprobs and bare.choices[0].logprobs.content
    assert bare.choices[0].logprobs.content[0].top_logprobs == []


def test_the_extras_come_through_extra_body(api: OpenAI) -> None:
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0, "min_tokens": 2}
    answer = api.chat.completions.create(model=MODEL, messages=SUM, temperature=2, extra_body=extra)
    assert "42" in (answer.choices[0].message.content or ""), "top_k = 1 is greedy"
    on = api.chat.completions.create(
        model=MODEL, messages=SUM, extra_body={"ignore_eos": True}, max_tokens=60
    )
    assert on.usage and on.usage.completion_tokens == 60
    kwargs = {"chat_template_kwargs": {"add_vision_id": True}}
    assert api.chat.completions.create(model=MODEL, messages=SUM, extra_body=kwargs).choices


def test_every_documented_parameter_that_changes_nothing_is_taken(api: OpenAI) -> None:
    answer = api.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is 12 + 30?"}],
                "name": "a",
            },
        ],
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        modalities=["text"],
        reasoning_effort="none",
        verbosity="medium",
        parallel_tool_calls=True,
        prompt_cache_key="k",
        safety_identifier="s",
        response_format={"type": "text"},
        top_p=0.9,
        seed=1,
        max_tokens=4,
    )
    assert answer.usage and answer.usage.completion_tokens == 4


def test_a_completion(api: OpenAI) -> None:
    one = api.completions.create(model=MODEL, prompt="Once upon", max_tokens=5)
    assert one.object == "text_completion" and one.choices[0].finish_reason == "length"
    both = api.completions.create(
        model=MODEL,
        prompt=["Once upon", "The sky"],
        max_tokens=5,
        n=2,
        best_of=2,
        seed=3,
        temperature=1,
    )
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    echoed = api.completions.create(model=MODEL, prompt="Once upon", max_tokens=5, echo=True)
    assert echoed.choices[0].text == "Once upon" + one.choices[0].text
    pieces = api.completions.create(model=MODEL, prompt="Once upon", max_tokens=5, stream=True)
    assert "".join(c.choices[0].text for c in pieces) == one.choices[0].text
    ids = api.completions.create(model=MODEL, prompt=[[1, 2], [3]], max_tokens=2, logprobs=2)
    assert len(ids.choices) == 2 and ids.choices[0].logprobs
    assert len(ids.choices[0].logprobs.tokens or []) == len(
        ids.choices[0].logprobs.token_logprobs or []
    )


def test_several_prompts_in_one_stream(api: OpenAI) -> None:
    wish: Any = {"model": MODEL, "prompt": ["Once upon", "The sky"], "max_tokens": 6}
    whole = api.completions.create(**wish)
    texts, usage = ["", ""], None
    for chunk in api.completions.create(
        **wish, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage and whole.usage and usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_hole_is_filled_or_refused_by_name(api: OpenAI) -> None:
    answer = api.completions.create(
        model=MODEL, prompt="def f(a):\n", suffix="\n    return b", max_tokens=8
    )
    assert answer.choices[0].text is not None


# --- models -----------------------------------------------------------------------------------


def test_models(api: OpenAI) -> None:
    assert [model.id for model in api.models.list()] == [MODEL]
    assert api.models.retrieve(MODEL).owned_by == "qwenkit"
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("../../etc/passwd")
    assert caught.value.code == "model_not_found"


# --- tools ------------------------------------------------------------------------------------


def test_a_tool_is_called_and_its_result_is_read(api: OpenAI) -> None:
    first = api.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER])
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    call: Any = (choice.message.tool_calls or [])[0]
    assert call.type == "function" and call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments)["city"]
    messages = [
        *ASK,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21}'},
    ]
    second = api.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content and second.choices[0].finish_reason == "stop"


def test_streamed_calls_join_to_the_whole_ones(api: OpenAI) -> None:
    for choice in ("auto", "required", {"type": "function", "function": {"name": "get_weather"}}):
        wish: Any = {"model": MODEL, "messages": ASK, "tools": [WEATHER], "tool_choice": choice}
        whole: Any = api.chat.completions.create(**wish).choices[0]
        name, arguments, ids, pieces, reason = "", "", set(), 0, None
        for chunk in api.chat.completions.create(**wish, stream=True):
            delta = chunk.choices[0].delta
            reason = chunk.choices[0].finish_reason or reason
            for call in delta.tool_calls or []:
                assert call.index == 0 and call.function
                name += call.function.name or ""
                arguments += call.function.arguments or ""
                ids |= {call.id} if call.id else set()
                pieces += 1
        told = whole.message.tool_calls[0].function
        assert (name, arguments) == (told.name, told.arguments)
        assert len(ids) == 1 and reason == whole.finish_reason == "tool_calls"
        assert choice == "auto" or pieces > 2, "where only calls can come, arguments are streamed"


def test_tool_choice_forces_forbids_and_names(api: OpenAI) -> None:
    tools = [WEATHER, TIME]

    def names(choice: Any, messages: Any = SUM, **more: Any) -> list[str]:
        answer = api.chat.completions.create(
            model=MODEL, messages=messages, tools=tools, tool_choice=choice, max_tokens=80, **more
        )
        calls: Any = answer.choices[0].message.tool_calls or []
        for call in calls:
            if answer.choices[0].finish_reason == "tool_calls":
                assert list(json.loads(call.function.arguments)) == ["city"]
        return [call.function.name for call in calls]

    assert names("none", ASK) == []
    assert names("required") and set(names("required")) <= {"get_weather", "get_time"}
    only: Any = {"type": "function", "function": {"name": "get_time"}}
    assert names(only) == ["get_time"]
    assert len(names("required", parallel_tool_calls=False)) == 1


def test_parallel_calls(api: OpenAI) -> None:
    ask: Any = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
    wish: Any = {"model": MODEL, "messages": ask, "tools": [WEATHER]}
    calls: Any = api.chat.completions.create(**wish).choices[0].message.tool_calls
    streamed: dict[int, list[str]] = {}
    for chunk in api.chat.completions.create(**wish, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            assert piece.function
            entry = streamed.setdefault(piece.index, ["", ""])
            entry[0] += piece.function.name or ""
            entry[1] += piece.function.arguments or ""
    told = [[call.function.name, call.function.arguments] for call in calls]
    assert list(streamed.values()) == told and list(streamed) == list(range(len(told)))


# --- structured outputs -----------------------------------------------------------------------


class City(BaseModel):
    name: str
    inhabitants: int
    capital: bool


def test_parse_gives_a_checked_object(api: OpenAI) -> None:
    answer = api.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell about Paris."}],
        response_format=City,
        max_tokens=200,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, City)


def test_json_mode_and_the_guided_extras(api: OpenAI) -> None:
    ask = api.chat.completions.create
    loose = ask(
        model=MODEL,
        messages=SUM,
        response_format={"type": "json_object"},
        max_tokens=100,
        stop=["}"],
    )
    assert (loose.choices[0].message.content or "").startswith("{")

    def text(**extra: Any) -> str:
        answer = ask(model=MODEL, messages=SUM, extra_body=extra, max_tokens=40)
        return answer.choices[0].message.content or ""

    assert text(guided_choice=["yes", "no"]) in ("yes", "no")
    assert text(structured_outputs={"choice": ["red"]}) == "red"
    assert len(text(guided_regex="[a-f]{7}")) == 7
    assert text(structured_outputs={"regex": "ab+c"}).startswith("ab")
    assert text(guided_grammar='start: "x" "y"') == "xy"
    value = json.loads(text(guided_json={"type": "integer", "minimum": 3, "maximum": 5}))
    assert value in (3, 4, 5)
    done = api.completions.create(
        model=MODEL, prompt="Red or blue?", extra_body={"guided_choice": ["red", "blue"]}
    )
    assert done.choices[0].text in ("red", "blue")


# --- errors -----------------------------------------------------------------------------------

UNKNOWN = "unknown_parameter"
CALLS = [
    {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in "ab"
]
ASKS = {"role": "assistant", "content": None, "tool_calls": CALLS}
GOT = {"role": "tool", "tool_call_id": "b", "content": "x"}
BAD: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": "a", "x": 1}]},
        "messages[0].x",
        "unknown_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[0].content[0].text",
        "invalid_type",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        "messages[0].content[0]",
        "invalid_value",
    ),
    (
        {"messages": [*SUM, {"role": "tool", "tool_call_id": "no", "content": "x"}]},
        "messages[1].tool_call_id",
        "invalid_value",
    ),
    ({"messages": [*SUM, ASKS]}, "messages[1].tool_calls", "invalid_value"),
    ({"messages": [*SUM, ASKS, GOT, *SUM]}, "messages[1].tool_calls", "invalid_value"),
    (
        {"messages": [*SUM, ASKS, GOT, {"role": "tool", "content": "x"}]},
        "messages[3].tool_call_id",
        "missing_required_parameter",
    ),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"n": 9}, "n", "integer_above_max_value"),
    ({"n": True}, "n", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": "10"}, "max_tokens", "invalid_type"),
    ({"max_tokens": 2**63}, "max_tokens", "integer_above_max_value"),
    ({"max_tokens": 100_000}, "messages", "context_length_exceeded"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    ({"top_p": 1.0001}, "top_p", "decimal_above_max_value"),
    ({"presence_penalty": -2.0001}, "presence_penalty", "decimal_below_min_value"),
    ({"frequency_penalty": 2.0001}, "frequency_penalty", "decimal_above_max_value"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"abc": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"5": 1, "05": -1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
    ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
    ({"stop": [""]}, "stop[0]", "empty_string"),
    ({"stop": "x" * 257}, "stop", "string_above_max_length"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"seed": 2**64}, "seed", "integer_above_max_value"),
    ({"seed": 1.5}, "seed", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"user": "x" * 513}, "user", "string_above_max_length"),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [UNUSABLE], "tool_choice": "required"}, "tools", "invalid_value"),
    ({"tools": [WEATHER, UNUSABLE], "tool_choice": NAMED}, "tools", "invalid_value"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}},
        "tool_choice",
        "invalid_value",
    ),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "invalid_value"),
    ({"tools": [TIME] * 129}, "tools", "array_above_max_length"),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "invalid_value",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format", None),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "strin"}},
            }
        },
        "response_format",
        None,
    ),
    ({"extra_body": {"guided_regex": "("}}, "guided_regex", "invalid_value"),
    (
        {"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}},
        "guided_choice",
        "invalid_value",
    ),
    (
        {"extra_body": {"structured_outputs": {"regex": "["}}},
        "structured_outputs.regex",
        "invalid_value",
    ),
    ({"extra_body": {"top_k": -2}}, "top_k", "integer_below_min_value"),
    ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty", "decimal_below_min_value"),
    ({"extra_body": {"stop_token_ids": [10**6]}}, "stop_token_ids", "invalid_value"),
    (
        {"extra_body": {"chat_template_kwargs": {"tokenize": 1}}},
        "chat_template_kwargs",
        "invalid_value",
    ),
    ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template", UNKNOWN),
    ({"extra_body": {"nonsense": 1}}, "nonsense", UNKNOWN),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("wish", "param", "code"), BAD, ids=[str(bad[0])[:60] for bad in BAD])
def test_what_is_wrong_is_a_bad_request(
    api: OpenAI, wish: dict[str, Any], param: str | None, code: str | None, stream: bool
) -> None:
    """The same with a stream: before its first byte an error is an answer, not an event."""
    if "stream_options" in wish and stream:
        pytest.skip("right with a stream")
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(**{"model": MODEL, "messages": SUM, "stream": stream, **wish})
    error = caught.value
    assert (error.param, error.code) == (param, code), error.message
    assert error.type == "invalid_request_error" and error.request_id
    told = error.response.json()["error"]["message"]
    assert "0x" not in told and "Traceback" not in told


def test_the_context_is_told_in_numbers(api: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"2048 tokens.*max_tokens is 2040"):
        api.chat.completions.create(model=MODEL, messages=SUM, max_tokens=2040)
    for wish, param in (
        ({"prompt": "x " * 40_000}, "prompt"),
        ({"prompt": "x" * 4_000_000}, "prompt"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            api.completions.create(model=MODEL, **wish)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


@pytest.mark.parametrize(
    ("wish", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "empty_array"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": ["a", ""]}, "prompt", "empty_array"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [10**9]}, "prompt", "invalid_value"),
        ({"prompt": [1.5]}, "prompt[0]", "invalid_type"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_type"),
        ({"prompt": ["a"] * 129}, "prompt", "array_above_max_length"),
        ({"prompt": ["a"] * 100, "n": 2}, "prompt", "array_above_max_length"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "integer_above_max_value"),
        ({"prompt": "a", "best_of": 2}, "best_of", "unsupported_parameter"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of", "unsupported_parameter"),
        ({"prompt": "a", "best_of": 0}, "best_of", "integer_below_min_value"),
        ({"prompt": [1], "suffix": "b"}, "suffix", "invalid_value"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"prompt": "a", "max_tokens": 0, "echo": True}, "max_tokens", "integer_below_min_value"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_completion(
    api: OpenAI, wish: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model=MODEL, **wish)
    assert (caught.value.param, caught.value.code) == (param, code), caught.value.message


def test_an_unknown_model_and_a_missing_one(live: Any, api: OpenAI) -> None:
    for name in ("gpt-4o", "../../etc/passwd", "a" * 1024, "\x00", ""):
        with pytest.raises(openai.NotFoundError) as caught:
            api.chat.completions.create(model=name, messages=SUM)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": SUM})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "missing_required_parameter"


def test_keys(keyed: Any, client_for: Callable[..., OpenAI]) -> None:
    assert client_for(keyed).models.list().data
    with pytest.raises(openai.AuthenticationError) as caught:
        client_for(keyed, "sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key" and caught.value.status_code == 401
    bare = httpx.get(f"{keyed.url}/v1/models")
    assert bare.status_code == 401 and bare.json()["error"]["code"] is None
    assert keyed.key not in "".join(keyed.log)


def test_other_statuses_have_their_classes(live: Any, api: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        api.post(
            "/chat/completions",
            body={},
            cast_to=object,
            options={"headers": {"content-type": "text/plain"}},
        )
    assert caught.value.status_code == 415
    with pytest.raises(openai.NotFoundError):
        api.get("/nothing", cast_to=object)
    big = httpx.post(
        f"{live.url}/v1/chat/completions",
        content=b"x" * (33 << 20),
        headers={"content-type": "application/json"},
    )
    assert big.status_code == 413 and big.json()["error"]["code"] == "request_too_large"
