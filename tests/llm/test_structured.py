"""Structured answers through the front door: random models and scripts held to what is asked."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from qwenkit.errors import EngineError, RequestError
from qwenkit.llm import LLM
from qwenkit.prompt.grammar import Matcher

Scripted = Callable[..., SimpleNamespace]

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "record", "schema": RECORD}}
ARGUMENTS = {
    "properties": {"c": {"enum": ["x", "yz"]}},
    "required": ["c"],
    "additionalProperties": False,
}
GET, PUT = {"name": "get", "parameters": ARGUMENTS}, {"name": "p"}


def valid(text: str) -> bool:
    jsonschema.validate(json.loads(text), RECORD)
    return True


def test_a_random_model_writes_valid_records(llm: LLM) -> None:
    result = llm.chat("a", response_format=FORMAT, temperature=1.0, seed=1, n=8, max_tokens=120)
    assert {choice.finish_reason for choice in result.choices} == {"stop"}
    texts = {choice.content for choice in result.choices}
    assert len(texts) > 1 and all(map(valid, texts))


def test_the_same_alone_and_among_others(llm: LLM) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 120}
    alone = llm.chat("b", response_format=FORMAT, **options).text
    many = llm.chat_many(["b", "b", "c"], response_format=FORMAT, **options)
    assert [m.text for m in many][:2] == [alone, alone]
    pieces = "".join(d.text for d in llm.stream("b", response_format=FORMAT, **options))
    assert pieces == alone


def test_coroutines(llm: LLM) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 120}

    async def main() -> list[str]:
        chat = await llm.achat("b", response_format=FORMAT, **options)
        pieces = [d.text async for d in llm.astream("b", response_format=FORMAT, **options)]
        raw = await llm.agenerate("b", choice=["one", "two"], **options)
        return [chat.text, "".join(pieces), raw.text]

    chat, streamed, raw = asyncio.run(main())
    assert valid(chat) and chat == streamed and raw in ("one", "two")


def test_regex_choice_and_grammar(llm: LLM) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "n": 6, "max_tokens": 60}
    # Not \d: the compiler's Unicode has digits that Python's does not know yet.
    for choice in llm.generate("a", regex=r"[a-c]{3}-[0-9]{2}", **options).choices:
        assert re.fullmatch(r"[a-c]{3}-[0-9]{2}", choice.content)
    for choice in llm.chat("a", choice=["ja", "nein", "是"], **options).choices:
        assert choice.content in ("ja", "nein", "是")
    grammar = 'start: "(" inner ")"\ninner: /[0-9]/ | start'
    for choice in llm.chat("a", grammar=grammar, **options).choices:
        if choice.finish_reason == "stop":
            assert re.fullmatch(r"(\(+)[0-9](\)+)", choice.content)


def test_an_answer_that_is_cut_says_so(llm: LLM) -> None:
    result = llm.chat("a", response_format=FORMAT, max_tokens=9)
    assert result.finish_reason == "length" and result.usage.completion_tokens == 9


def test_it_goes_with_the_other_parameters(llm: LLM) -> None:
    space = llm.tokenize(" ")[0]
    result = llm.chat(
        "a",
        choice=["ab", "abcabcabc"],
        logit_bias={space: 100.0, llm.tokenize("a")[0]: -100.0},
        min_tokens=5,
        repetition_penalty=2.0,
        presence_penalty=1.0,
        logprobs=2,
        top_p=0.9,
        temperature=1.0,
    )
    assert result.text == "abcabcabc"
    assert result.logprobs is not None and len(result.logprobs) == 9
    assert b"".join(p.bytes for p in result.logprobs) == b"abcabcabc"
    stopped = llm.chat("a", regex="[a-c]+x[a-c]+y", stop="x", max_tokens=80, temperature=1.0)
    assert stopped.finish_reason in ("stop", "length") and "x" not in stopped.text
    short = llm.chat("a", choice=["ab"], min_tokens=50, max_tokens=60)
    assert (short.text, short.finish_reason) == ("ab", "stop")


def test_tools_that_must_be_called(llm: LLM) -> None:
    options: dict[str, Any] = {"max_tokens": 45, "temperature": 1.0, "seed": 2}
    named = {"type": "function", "function": {"name": "get"}}
    result = llm.chat("a", [GET, PUT], tool_choice=named, **options)
    assert result.finish_reason == "tool_calls" and result.content == ""
    (call,) = result.tool_calls
    assert call.name == "get"
    jsonschema.validate(json.loads(call.arguments), {"type": "object", **ARGUMENTS})
    result = llm.chat("a", [GET], tool_choice="required", parallel_tool_calls=False, **options)
    assert [call.name for call in result.tool_calls] == ["get"]
    both = llm.chat("a", [GET], tool_choice="required", response_format=FORMAT, **options)
    assert both.tool_calls or both.finish_reason == "length"


def test_tool_choice_none_hides_the_tools(scripted: Scripted) -> None:
    call = '<tool_call>\n{"name": "get", "arguments": {"c": "x"}}\n</tool_call>'
    s = scripted(call)
    assert s.llm.chat("a", [GET]).tool_calls
    hidden = s.llm.chat("a", [GET], tool_choice="none")
    assert not hidden.tool_calls and hidden.text == call
    assert "get" not in s.llm.detokenize(s.model.last_prompt)


def test_a_script_is_bent_into_the_grammar(scripted: Scripted) -> None:
    """The model would say something else; what it says is the nearest that is allowed."""
    s = scripted('{"name": "Anna", "age": 30, "tags": ["x"], "more": 1}')
    result = s.llm.chat("a", response_format=FORMAT, max_tokens=100)
    assert valid(result.text) and result.text.startswith(
        '{"name": "Anna", "age": 30, "tags": ["x"]'
    )
    s = scripted("maybe")
    assert s.llm.chat("a", choice=["no", "may"], max_tokens=20).text == "may"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"ignore_eos": True, "regex": "a"}, "ignore_eos"),
        ({"regex": "("}, "regex"),
        ({"grammar": "start: x"}, "grammar"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
         "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"regex": "a", "max_tokens": 10_000}, "messages"),
    ],
)  # fmt: skip
def test_errors_come_before_anything_runs(llm: LLM, options: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        llm.chat("a", **options)
    assert error.value.param == param
    with pytest.raises(RequestError):
        llm.stream("a", **options)
    assert llm.driver.engine.stats().prompt_tokens == 0


def test_tool_choice_goes_with_messages(llm: LLM) -> None:
    for name, value in (("tool_choice", "auto"), ("parallel_tool_calls", True)):
        with pytest.raises(RequestError) as error:
            llm.generate("a", **{name: value})
        assert error.value.param == name


def test_a_dead_end_ends_one_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Matcher.fill

    def broken(self: Matcher, row: Any) -> None:
        fill(self, row)
        raise EngineError("The grammar allows no token here.")

    expected = llm.chat("a", max_tokens=20).text
    monkeypatch.setattr(Matcher, "fill", broken)
    with pytest.raises(EngineError) as error:
        llm.chat("a", choice=["x"])
    assert error.value.code == "grammar"
    assert llm.chat("a", max_tokens=20).text == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--count", "48"], ["--count", "150", "--random"]])
def test_answers_to_random_schemas_validate(options: list[str]) -> None:
    """The short form of `bench/structured.py`, which draws 10,000 schemas."""
    bench = Path(__file__).resolve().parents[2] / "bench" / "structured.py"
    ran = subprocess.run([sys.executable, str(bench), *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "answers that do not validate 0 (goal: 0)" in ran.stdout
