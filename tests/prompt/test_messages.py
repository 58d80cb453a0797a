"""Conversations and tools that are wrong, each with the path of the offending part."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from qwenkit.errors import RequestError
from qwenkit.prompt.messages import (
    MAX_MESSAGES,
    canonical,
    check_messages,
    check_tools,
    plain,
    tool_names,
)

USER = {"role": "user", "content": "hi"}


def call(**changes: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}", **changes}}


def assistant(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


WRONG: dict[str, tuple[Any, str]] = {
    "31-empty": ([], "messages"),
    "32-no role": ([{"content": "x"}], "messages[0].role"),
    "32-unknown role": ([USER, {"role": "developer", "content": "x"}], "messages[1].role"),
    "32-number role": ([{"role": 3, "content": "x"}], "messages[0].role"),
    "33-content null": ([{"role": "assistant", "content": None}], "messages[0].content"),
    "33-content missing": ([{"role": "user"}], "messages[0].content"),
    "33-empty calls": ([assistant()], "messages[0].content"),
    "35-too many": ([USER] * (MAX_MESSAGES + 1), "messages"),
    "51-image": (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}],
            }
        ],
        "messages[0].content[1]",
    ),
    "51-video key": ([{"role": "user", "content": [{"video": "x"}]}], "messages[0].content[0]"),
    "text part without text": (
        [{"role": "user", "content": [{"type": "text"}]}],
        "messages[0].content[0].text",
    ),
    "part no object": ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    "content number": ([{"role": "user", "content": 5}], "messages[0].content"),
    "not a list": ("hello", "messages"),
    "a mapping": (USER, "messages"),
    "message no object": ([USER, "x"], "messages[1]"),
    "193-unknown call id": (
        [USER, {"role": "tool", "tool_call_id": "c9", "content": "r"}],
        "messages[1].tool_call_id",
    ),
    "calls of a user": (
        [{"role": "user", "content": "x", "tool_calls": [call()]}],
        "messages[0].tool_calls",
    ),
    "calls no list": (
        [{"role": "assistant", "content": "", "tool_calls": {}}],
        "messages[0].tool_calls",
    ),
    "call no object": ([assistant("x")], "messages[0].tool_calls[0]"),
    "function no object": ([assistant({"function": 1})], "messages[0].tool_calls[0].function"),
    "call without name": (
        [assistant(call(), {"function": {"arguments": {}}})],
        "messages[0].tool_calls[1].function.name",
    ),
    "197-name with quote": (
        [assistant(call(name='f", "x'))],
        "messages[0].tool_calls[0].function.name",
    ),
    "197-name with markup": (
        [assistant(call(name="<|im_end|>"))],
        "messages[0].tool_calls[0].function.name",
    ),
    "flat without name": ([assistant({"arguments": {}})], "messages[0].tool_calls[0].name"),
    "arguments a list": (
        [assistant(call(arguments=[1]))],
        "messages[0].tool_calls[0].function.arguments",
    ),
    "arguments missing": ([assistant({"name": "f"})], "messages[0].tool_calls[0].arguments"),
    "call id a number": ([assistant({**call(), "id": 1})], "messages[0].tool_calls[0].id"),
    "NaN": ([{**USER, "x": float("nan")}], "messages[0].x"),
    "bytes": ([{"role": "user", "content": b"x"}], "messages[0].content"),
    "set": ([{**USER, "x": {1}}], "messages[0].x"),
    "key no text": ([{**USER, 5: 1}], "messages[0]"),
    "huge number": ([{**USER, "x": 10**5000}], "messages[0].x"),
}


@pytest.mark.parametrize("row", WRONG)
def test_wrong_messages(row: str) -> None:
    messages, where = WRONG[row]
    with pytest.raises(RequestError) as caught:
        check_messages(messages)
    assert caught.value.param == where
    assert where in str(caught.value) and "\n" not in str(caught.value)


def test_deep_nesting_is_refused() -> None:
    value: Any = 1
    for _ in range(3000):
        value = [value]
    with pytest.raises(RequestError, match="nested deeper"):
        check_messages([{**USER, "x": value}])


@pytest.mark.parametrize(
    ("tools", "where"),
    [
        ("x", "tools"),
        ([1], "tools[0]"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
        ([{"name": "x" * 65}], "tools[0].name"),
        ([{"name": "ok"}, {"description": "d"}], "tools[1].name"),
        ([{"name": "f"}, {"function": {"name": "f"}}], "tools[1].function.name"),
        ([{"function": "f"}], "tools[0].function"),
        ([{"name": "f", "parameters": []}], "tools[0].parameters"),
        ([{"name": f"f{i}"} for i in range(129)], "tools"),
    ],
)
def test_wrong_tools(tools: Any, where: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_tools(tools)
    assert caught.value.param == where


def test_tools_keep_form_and_order() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": {}}}},
        {"name": "g"},
    ]
    checked = check_tools(tuple(tools))
    assert checked == tools and canonical(checked) == canonical(tools)
    assert checked is not None and checked[0] is not tools[0]
    assert tool_names(checked) == ("f", "g") and tool_names(None) == ()
    assert check_tools([]) is None and check_tools(None) is None


def test_both_forms_of_calls_become_one() -> None:
    flat = {"name": "f", "arguments": {"a": 1}}
    nested = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    for given in (flat, nested):
        (message,) = check_messages([assistant(given)])
        assert message["content"] == ""
        assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize("row", ["194"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("{broken", "{broken"),
        ("[1]", "[1]"),
        ('{"a": NaN}', '{"a": NaN}'),
        ("", {}),
        (" ", {}),
        ("5", "5"),
    ],
)
def test_arguments_that_are_no_object_stay_text(row: str, arguments: str, expected: Any) -> None:
    (message,) = check_messages([assistant(call(arguments=arguments))])
    assert message["tool_calls"][0]["function"]["arguments"] == expected


def test_tool_results_may_name_an_earlier_call() -> None:
    messages = [
        USER,
        assistant(call()),
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
        USER,
    ]
    assert [m["role"] for m in check_messages(messages)] == ["user", "assistant", "tool", "user"]
    assert (
        check_messages([{"role": "tool", "content": [{"type": "text", "text": "r"}]}])[0]["content"]
        == "r"
    )


def test_text_parts_are_joined_and_surrogates_replaced() -> None:
    parts = [{"type": "text", "text": "a\ud800"}, {"text": "b"}]
    assert check_messages([{"role": "user", "content": parts}])[0]["content"] == "a\ufffdb"


def test_the_callers_messages_are_untouched() -> None:
    messages = [assistant(call())]
    before = canonical(messages)
    check_messages(messages)[0]["tool_calls"].clear()
    assert canonical(messages) == before


def test_plain_strips_subclasses() -> None:
    class Text(str):
        def __str__(self) -> str:
            return "other"

    class Color(enum.IntEnum):
        RED = 2

    value = plain({Text("k"): (Text("v"), Color.RED, True, None, 1.5)}, "x")
    assert value == {"k": ["v", 2, True, None, 1.5]}
    assert [type(item) for item in value["k"]] == [str, int, bool, type(None), float]
