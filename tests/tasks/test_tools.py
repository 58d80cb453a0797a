from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from qwenkit.tasks.base import LANGUAGES, Example, examples
from qwenkit.tasks.synth import TASKS
from qwenkit.tasks.synth.tool_pool import TOOLS
from qwenkit.tasks.synth.tools import FAILED, ToolAnswer, ToolCall

TYPES = {"string": str, "integer": int, "boolean": bool}


def draw(name: str, lang: str, count: int = 1500, *, held_out: bool = False) -> list[Example]:
    return list(islice(examples(TASKS[name], lang, 7, held_out=held_out), count))


def function(example: Example, index: int) -> dict[str, Any]:
    assert example.messages is not None
    call = example.messages[index]["tool_calls"][0]
    assert call["type"] == "function"
    value: dict[str, Any] = call["function"]
    return value


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", ["tool_call", "tool_answer"])
def test_tools_are_valid_and_the_call_fits_its_schema(name: str, lang: str) -> None:
    sizes: Counter[int] = Counter()
    for example in draw(name, lang):
        assert example.tools is not None and example.messages is not None
        sizes[len(example.tools)] += 1
        schemas = {tool["function"]["name"]: tool["function"] for tool in example.tools}
        assert len(schemas) == len(example.tools)
        for schema in schemas.values():
            assert set(schema) == {"name", "description", "parameters"} and schema["description"]
            properties = schema["parameters"]["properties"]
            assert 1 <= len(properties) <= 3
            assert set(schema["parameters"]["required"]) <= set(properties)
        for start in range(0, len(example.messages), 4):
            call = function(example, start + 1)
            parameters = schemas[call["name"]]["parameters"]
            properties, required = parameters["properties"], set(parameters["required"])
            assert required <= set(call["arguments"]) <= set(properties)
            request = example.messages[start]["content"]
            for key, value in call["arguments"].items():
                assert type(value) is TYPES[properties[key]["type"]]
                assert isinstance(value, bool) or str(value) in request
    assert set(sizes) == {1, 2, 3, 4} and min(sizes.values()) > 75


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_tool_is_asked_for_under_each_of_its_names(lang: str) -> None:
    called = {function(example, 1)["name"] for example in draw("tool_call", lang)}
    assert called == {name for tool in TOOLS for name in tool.names}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_an_optional_parameter_is_given_only_if_the_request_names_it(lang: str) -> None:
    counts = {
        len(function(example, 1)["arguments"])
        for example in draw("tool_answer", lang)
        if function(example, 1)["name"] in ("find_flight", "search_flights")
    }
    assert counts == {2, 3}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_sentence_holds_the_result(lang: str) -> None:
    errors = 0
    rounds: Counter[int] = Counter()
    for example in draw("tool_answer", lang):
        assert example.messages is not None
        roles = [message["role"] for message in example.messages]
        rounds[len(roles) // 4] += 1
        assert roles == ["user", "assistant", "tool", "assistant"] * (len(roles) // 4)
        result = json.loads(example.messages[-2]["content"])
        sentence = example.messages[-1]["content"]
        if "error" in result:
            errors += 1
            assert sentence == FAILED[lang].format(**result)
            continue
        shown = [value for value in result.values() if not isinstance(value, bool)]
        assert all(str(value) in sentence for value in shown), (result, sentence)
        assert "{" not in sentence and sentence.isprintable()
    assert 30 < errors < 130
    assert set(rounds) == {1, 2, 3} and min(rounds.values()) > 300


@pytest.mark.parametrize("lang", LANGUAGES)
def test_held_out_conversations_are_nearly_all_of_one_round(lang: str) -> None:
    drawn = draw("tool_answer", lang, 150, held_out=True)
    assert sum(len(example.messages or []) == 4 for example in drawn) > 120


def test_sums_and_translations_in_results_are_right() -> None:
    checked = 0
    for example in draw("tool_answer", "en", 3000):
        assert example.messages is not None
        result = json.loads(example.messages[-2]["content"])
        if "expression" in result:
            left, sign, right = result["expression"].split()
            a, b = int(left), int(right)
            assert result["result"] == {"+": a + b, "-": a - b, "*": a * b}[sign]
            checked += 1
        if result.get("language") == "German":
            asked = next(iter(function(example, -3)["arguments"].values()))
            expected = {"bread": "Brot", "water": "Wasser", "friend": "Freund"}.get(asked)
            assert expected is None or result["translation"] == expected
    assert checked > 80


def mutations(gold: dict[str, Any]) -> list[dict[str, Any]]:
    """Wrong answers close to a right one."""
    call = gold["tool_calls"][0]["function"]
    key, value = next(iter(call["arguments"].items()))

    def with_call(**changes: Any) -> dict[str, Any]:
        return {**gold, "tool_calls": [{"function": {**call, **changes}}]}

    return [
        with_call(name=call["name"] + "_"),
        with_call(arguments={}),
        with_call(arguments={**call["arguments"], "extra": 1}),
        with_call(arguments={**call["arguments"], key: f"{value} "}),
        with_call(arguments={**call["arguments"], key: [value]}),
        with_call(arguments=json.dumps(call["arguments"])),
        {**gold, "content": "Sure."},
        {**gold, "tool_calls": gold["tool_calls"] * 2},
        {**gold, "tool_calls": []},
        {"role": "assistant", "content": ""},
    ]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_call_score_accepts_the_gold_and_nothing_near_it(lang: str) -> None:
    task = ToolCall()
    for example in draw("tool_call", lang, 400):
        assert example.messages is not None
        gold = example.messages[-1]
        assert task.score(example, gold)
        assert task.score(example, json.loads(json.dumps(gold)) | {"role": "assistant"})
        assert not any(task.score(example, wrong) for wrong in mutations(gold))


def test_a_number_is_not_its_text() -> None:
    task = ToolCall()
    for example in draw("tool_call", "en", 500):
        assert example.messages is not None
        call = function(example, -1)
        as_text = {key: str(value) for key, value in call["arguments"].items()}
        answer = {"content": "", "tool_calls": [{"function": {**call, "arguments": as_text}}]}
        assert task.score(example, answer) == (as_text == call["arguments"])


@pytest.mark.parametrize("lang", LANGUAGES)
def test_answer_score_is_the_exact_sentence(lang: str) -> None:
    task = ToolAnswer()
    for example in draw("tool_answer", lang, 300):
        assert example.messages is not None
        gold = example.messages[-1]
        assert task.score(example, gold)
        assert task.score(example, {"content": gold["content"] + "\n"})
        assert not task.score(example, {"content": gold["content"][:-1]})
        assert not task.score(example, {"content": ""})
        assert not task.score(example, {**gold, "tool_calls": example.messages[1]["tool_calls"]})


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_call_of_the_held_out_split_is_ever_trained(lang: str) -> None:
    held_out = {example.question() for example in draw("tool_call", lang, 600, held_out=True)}
    trained = {example.question() for example in draw("tool_call", lang, 3000)}
    for example in draw("tool_answer", lang, 3000):
        assert example.messages is not None
        for start in range(0, len(example.messages), 4):
            one = [example.messages[start : start + size] for size in (2, 4)]
            call, answer = (Example("", lang, messages=each, tools=example.tools) for each in one)
            trained.add(call.question())
            assert not answer.is_held_out()
    assert not held_out & trained
    assert len(held_out) > 500


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_seed_names_a_data_set(task: Any) -> None:
    for lang in LANGUAGES:
        first = list(islice(examples(task, lang, 3, held_out=False), 20))
        assert first == list(islice(examples(task, lang, 3, held_out=False), 20))
        assert first != list(islice(examples(task, lang, 4, held_out=False), 20))
        assert task.sample(random.Random(1), lang) == task.sample(random.Random(1), lang)
