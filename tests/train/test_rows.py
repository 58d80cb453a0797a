from __future__ import annotations

from typing import Any

import pytest

from qwenkit.errors import DataError
from qwenkit.train.rows import parse_row

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def roles(value: dict[str, Any]) -> list[tuple[str, str]]:
    messages = parse_row(value, "f:1").messages
    assert messages is not None
    return [(message["role"], message["content"]) for message in messages]


def test_openai_messages_with_tools() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    answered = {"role": "tool", "content": "2", "tool_call_id": "1"}
    row = parse_row({"messages": [USER, called, answered, ANSWER], "tools": [tool]}, "f:1")
    assert row.messages is not None and row.tools == [tool]
    assert row.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert row.messages[1]["content"] == ""


def test_sharegpt_alpaca_and_completion_shapes() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert roles({"conversations": turns, "system": "s"}) == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
    ]
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    told = {"from": "observation", "value": "r"}
    assert [r for r, _ in roles({"conversations": [turns[0], call, told, turns[1]]})] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert roles({"instruction": "do", "input": "this", "output": "done"}) == [
        ("user", "do\nthis"),
        ("assistant", "done"),
    ]
    assert roles({"instruction": "do", "output": "x", "history": [["a", "b"]], "system": "s"}) == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "do"),
        ("assistant", "x"),
    ]
    row = parse_row({"prompt": "1+1=", "completion": "2"}, "f:1")
    assert (row.prompt, row.completion, row.special) == ("1+1=", "2", False)
    assert parse_row({"text": "t"}, "f:1").text == "t"


@pytest.mark.parametrize(
    "value",
    [
        [],
        "text",
        {},
        {"text": ""},
        {"text": 3},
        {"prompt": "p", "completion": None},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [USER]},
        {"messages": [ANSWER]},
        {"messages": [USER, USER, ANSWER]},
        {"messages": [USER, ANSWER, ANSWER]},
        {"messages": [USER, ANSWER, {"role": "system", "content": "late"}]},
        {"messages": [USER, {"role": "bot", "content": "a"}]},
        {"messages": [USER, {"content": "a"}]},
        {"messages": [USER, {"role": "assistant", "content": ["a"]}]},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
        {"messages": [USER, {"role": "tool", "content": "r"}, ANSWER]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}],
                },
            ]
        },
        {"messages": [USER, ANSWER], "tools": {"name": "f"}},
        {"conversations": [{"from": "alien", "value": "q"}]},
        {"conversations": "q"},
        {"instruction": "do"},
        {"instruction": "do", "output": "x", "history": [["only one"]]},
    ],
)
def test_a_bad_row_is_an_error_with_its_place(value: Any) -> None:
    with pytest.raises(DataError, match=r"^f:7: "):
        parse_row(value, "f:7")
