"""What callers may ask of an answer, and which error names what they may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwenkit.errors import RequestError
from qwenkit.prompt.constraint import MAX_BYTES, checked_tool_choice, constraint_of, measure

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ADD = {"type": "function", "function": {"name": "add", "strict": True, "parameters": {}}}


def spec(**asked: Any) -> dict[str, Any]:
    found = constraint_of(**asked)
    assert found is not None
    loaded: dict[str, Any] = json.loads(found.spec)
    return loaded


def schema(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value, **more}}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"response_format": {"type": "text"}},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": "auto"},
        {"tools": [WEATHER, ADD], "tool_choice": "none"},
        {"tools": [], "parallel_tool_calls": True},
        {"tools": [WEATHER], "parallel_tool_calls": True},
    ],
)
def test_free_answers(asked: dict[str, Any]) -> None:
    assert constraint_of(**asked) is None


def test_each_way_to_ask() -> None:
    assert spec(regex="a+")["body"] == {"kind": "regex", "pattern": "a+"}
    assert spec(grammar="start: /a/")["body"] == {"kind": "lark", "text": "start: /a/"}
    assert spec(choice=["b", "a", "b"])["body"] == {"kind": "choice", "texts": ["b", "a"]}
    assert spec(response_format={"type": "json_object"})["body"] == {"kind": "json_object"}
    strict = spec(response_format=schema({"type": "null"}))["body"]
    assert strict == {"kind": "json_schema", "schema": {"type": "null"}, "strict": True}
    assert spec(response_format=schema(True, strict=False))["body"]["strict"] is False


def test_tools_that_must_be_called_win_over_the_format() -> None:
    both = spec(tools=[WEATHER, ADD], tool_choice="required", regex="a+")
    assert both["body"] is None
    assert [tool["name"] for tool in both["calls"]["tools"]] == ["weather", "add"]
    assert both["calls"]["many"]
    named = {"type": "function", "function": {"name": "add"}}
    one = spec(tools=[WEATHER, ADD], tool_choice=named)
    assert [tool["name"] for tool in one["calls"]["tools"]] == ["add"]
    assert not one["calls"]["many"]


def test_tools_that_may_be_called_stand_beside_the_format() -> None:
    either = spec(tools=[WEATHER], response_format={"type": "json_object"})
    assert either["body"] == {"kind": "json_object"} and either["calls"]["tools"]
    free = spec(tools=[WEATHER, ADD])  # one of them is strict
    assert free["body"] == {"kind": "text"} and free["calls"]["many"]
    single = spec(tools=[WEATHER], parallel_tool_calls=False)
    assert single["body"] == {"kind": "text"} and not single["calls"]["many"]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"regex": "a", "choice": ["a"]}, "choice"),
        ({"regex": ""}, "regex"),
        ({"regex": 3}, "regex"),
        ({"grammar": ["start"]}, "grammar"),
        ({"choice": "yes"}, "choice"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": ["a", 1]}, "choice"),
        ({"choice": ["x"] * 1001}, "choice"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": schema([])}, "response_format"),
        ({"response_format": schema({}, strict="yes")}, "response_format"),
        ({"response_format": schema({"const": "x" * MAX_BYTES})}, "response_format"),
        (
            {"response_format": schema({"enum": [f"x{i}" for i in range(100_000)]})},
            "response_format",
        ),
        ({"response_format": schema({"const": float("nan")})}, "response_format"),
        ({"response_format": schema({"const": float("inf")})}, "response_format"),
        ({"response_format": schema({"const": 10**1000})}, "response_format"),
        ({"response_format": schema({"const": "\ud800"})}, "response_format"),
        ({"response_format": schema({"const": {1: 2}})}, "response_format"),
        ({"response_format": schema({"const": {1, 2}})}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [ADD]}, "tool_choice"),
        ({"tool_choice": {"function": {"name": "sub"}}, "tools": [ADD]}, "tool_choice"),
        ({"parallel_tool_calls": 1.5, "tools": [ADD]}, "parallel_tool_calls"),
        ({"tools": [{"function": {"name": "f", "strict": "no"}}]}, "tools"),
        (
            {
                "tools": [
                    {"function": {"name": f"f{i}", "parameters": {"const": "x" * 60_000}}}
                    for i in range(5)
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_refused(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        constraint_of(**asked)
    assert error.value.param == param
    assert len(str(error.value)) < 400


def test_depth_is_bounded_without_recursion() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="nested over 64 levels"):
        measure(deep, "It", "x")
    while deep != 1:  # Python's own way to take it apart recurses
        deep = deep[0]


def test_tool_choice_by_name() -> None:
    assert checked_tool_choice("auto", []) is None
    assert checked_tool_choice("none", []) == "none"
    assert checked_tool_choice({"function": {"name": "f"}}, ["f"]) == "=f"
