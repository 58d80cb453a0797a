"""Tool calls out of generated text: whole and in pieces, well-formed and broken."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.prompt.tools import Delta, ToolCall, ToolCallParser, collect, parse_tool_calls

ARGUMENTS = '{"a": "}\\"{</tool_call>", "b": [1, {"c": null}]}'
ONE = f'<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call>'
NO_ARGUMENTS = '{"name": "f", "arguments": {}}'
G = '{"name": "g", "arguments": {}}'
OFFERED = ("f", "g")


def short(result: tuple[str, list[ToolCall]]) -> tuple[str, list[tuple[str, str]]]:
    return result[0], [(call.name, call.arguments) for call in result[1]]


def stream(text: str, sizes: list[int], tools: Any = None, *, eager: bool = True) -> list[Delta]:
    parser, deltas, pos, turn = ToolCallParser(tools, eager=eager), [], 0, 0
    while pos < len(text):
        size = sizes[turn % len(sizes)] if sizes else len(text)
        deltas += parser.push(text[pos : pos + size])
        pos, turn = pos + size, turn + 1
    return [*deltas, *parser.finish()]


CASES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "plain": ("just text", "just text", []),
    "one": (ONE, "", [("f", ARGUMENTS)]),
    "content before": (f"Let me see.\n{ONE}", "Let me see.", [("f", ARGUMENTS)]),
    "content after": (f"{ONE}\nDone.", "\nDone.", [("f", ARGUMENTS)]),
    "198-several": (f"{ONE}\n{ONE}\n", "", [("f", ARGUMENTS)] * 2),
    "two objects in one pair": (
        f"<tool_call>\n{NO_ARGUMENTS}\n{G}\n</tool_call>",
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    "closing tag forgotten": ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    "closing tag cut": (
        '<tool_call>{"name": "f", "arguments": {}}\n</tool',
        "\n</tool",
        [("f", "{}")],
    ),
    "arguments first": (
        '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>',
        "",
        [("f", '{"x": 1}')],
    ),
    "arguments as text": (
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        "",
        [("f", '{"x": 1}')],
    ),
    "extra key": (
        '<tool_call>{"id": 3, "name": "f", "arguments": {}}</tool_call>',
        "",
        [("f", "{}")],
    ),
    "195-unclosed": (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1',
        '<tool_call>\n{"name": "f", "arguments": {"a": 1',
        [],
    ),
    "195-broken": (
        '<tool_call>\n{"name": "f", "arguments": {"a": }}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": }}\n</tool_call>',
        [],
    ),
    "195-no name": (
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        [],
    ),
    "195-no arguments": (
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        [],
    ),
    "195-line break in a string": (
        '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>',
        [],
    ),
    "195-nested tags": (
        '<tool_call>{"name": "f", <tool_call>{"name": "g", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f",',
        [("g", "{}")],
    ),
    "195-second broken": (
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": }',
        '\n<tool_call>{"name": }',
        [("f", "{}")],
    ),
    "not an object": ("<tool_call>\nf(1)\n</tool_call>", "<tool_call>\nf(1)\n</tool_call>", []),
    "tag at the end": ("a <tool_call>", "a <tool_call>", []),
    "half a tag": ("a < b <tool_cal", "a < b <tool_cal", []),
    "white space only": (" \n ", " \n ", []),
    "closing tag alone": ("x</tool_call>\n", "x</tool_call>\n", []),
    "habits need tools": (
        '```json\n{"name": "f", "arguments": {}}\n```',
        '```json\n{"name": "f", "arguments": {}}\n```',
        [],
    ),
}
HABITS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "fenced": ('```json\n{"name": "f", "arguments": {"x": 1}}\n```', "", [("f", '{"x": 1}')]),
    "fenced without language": (
        'Sure:\n```\n{"name": "g", "arguments": {}}\n```\n',
        "Sure:",
        [("g", "{}")],
    ),
    "fenced twice": (
        f"```json\n{NO_ARGUMENTS}\n```\n```json\n{G}\n```",
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    "tools tag": ('<tools>\n{"name": "f", "arguments": {}}\n</tools>', "", [("f", "{}")]),
    "hermes too": (ONE, "", [("f", ARGUMENTS)]),
    "hermes of a tool not offered": (
        '<tool_call>{"name": "h", "arguments": {}}</tool_call>',
        "",
        [("h", "{}")],
    ),
    "unknown name": (
        '```json\n{"name": "h", "arguments": {}}\n```',
        '```json\n{"name": "h", "arguments": {}}\n```',
        [],
    ),
    "other keys": (
        '```json\n{"name": "f", "age": 3}\n```',
        '```json\n{"name": "f", "age": 3}\n```',
        [],
    ),
    "other json": ('```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', []),
    "other language": ('```python\nprint("{}")\n```', '```python\nprint("{}")\n```', []),
    "json5 is a language": (
        '```json5\n{"name": "f", "arguments": {}}\n```',
        '```json5\n{"name": "f", "arguments": {}}\n```',
        [],
    ),
    "backticks": ("use `x` and ``y`` here", "use `x` and ``y`` here", []),
    "unclosed fence": ('```json\n{"name": "f", "argum', '```json\n{"name": "f", "argum', []),
    "half a fence": ("a ```js", "a ```js", []),
}


@pytest.mark.parametrize("row", CASES)
def test_hermes(row: str) -> None:
    text, content, calls = CASES[row]
    assert short(parse_tool_calls(text)) == (content, calls)


@pytest.mark.parametrize("row", HABITS)
def test_habits_of_the_coder(row: str) -> None:
    text, content, calls = HABITS[row]
    assert short(parse_tool_calls(text, OFFERED)) == (content, calls)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_give_the_same(size: int, eager: bool) -> None:
    for tools, cases in ((None, CASES), (OFFERED, HABITS)):
        for text, content, calls in cases.values():
            assert short(collect(stream(text, [size], tools, eager=eager))) == (content, calls)


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<tools>",
        "</tools>",
        "```",
        "json",
        "\n",
        " ",
        "{",
        "}",
        '"',
        ":",
        ",",
        "[",
        "]",
    ]
    + [
        '{"name": "f", "arguments": {',
        '"a": "x\\"y"',
        "1",
        "\\",
        "\\u00e9",
        "text",
        "<",
        "你",
        '"name"',
        '"arguments"',
    ]
    + ['{"name": "g", "arguments": {"k": [true, null]}}']
)


@settings(max_examples=400, deadline=None)
@given(
    parts=st.lists(FRAGMENTS, max_size=14),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    tools=st.sampled_from([None, OFFERED]),
    eager=st.booleans(),
)
def test_any_chunking_gives_the_same(
    parts: list[str], sizes: list[int], tools: Any, eager: bool
) -> None:
    text = "".join(parts)
    expected = parse_tool_calls(text, tools)
    deltas = stream(text, sizes, tools, eager=eager)
    assert short(collect(deltas)) == short(expected)
    for call in expected[1]:
        assert isinstance(json.loads(call.arguments), dict)
    if not expected[1]:
        assert expected[0] == text
    assert eager or not any(delta.retracted for delta in deltas)


def test_name_and_arguments_come_early() -> None:
    parser = ToolCallParser()
    assert parser.push('Hm.\n<tool_call>\n{"name": "f') == [Delta(content="Hm.")]
    (first,) = parser.push('"')
    assert (first.index, first.name, first.arguments) == (0, "f", "") and first.id
    assert parser.push(', "arguments": {"a') == [Delta(index=0, arguments='{"a')]
    assert parser.push('": 1}') == [Delta(index=0, arguments='": 1}')]
    assert parser.push("}\n</tool_call>") == [] and parser.finish() == []


def test_retraction() -> None:
    deltas = stream('<tool_call>{"name": "f", "arguments": {"a": oops}}', [])
    assert [delta.retracted for delta in deltas] == [
        False
    ]  # nothing was announced: all came at once
    deltas = stream('<tool_call>{"name": "f", "arguments": {"a": oops}}', [4])
    assert [delta.retracted for delta in deltas if delta.index is not None][-1]
    content, calls = collect(deltas)
    assert content == '<tool_call>{"name": "f", "arguments": {"a": oops}}' and calls == []


def test_ids_are_unique_and_stable() -> None:
    deltas = stream(ONE + ONE, [5])
    _, calls = collect(deltas)
    assert len({call.id for call in calls}) == 2
    assert calls[0].as_message() == {
        "id": calls[0].id,
        "type": "function",
        "function": {"name": "f", "arguments": ARGUMENTS},
    }
    assert [delta.index for delta in deltas if delta.id] == [0, 1]


UNIT = 40
ADVERSARIAL = {
    "open tags": "<tool_call>",
    "open calls": '<tool_call>{"name": "f", "arguments": {"a": "',
    "tags in strings": '<tool_call>{"',
    "backslashes": "\\\\",
    "angle brackets": "<",
    "backticks": "`",
    "fences": "```json\n{",
    "spaces": " ",
    "brackets": '<tool_call>{"a": [[[[[[[[',
    "digits": '<tool_call>{"a": 111111111',
    "objects": '<tool_call>{"name": "f", "arguments": {}} {',
}


@pytest.mark.parametrize("row", ["196"])
@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize("prefix", ["", '<tool_call>{"name": "f", "arguments": {"a": "'])
def test_time_is_linear(row: str, kind: str, prefix: str) -> None:
    def seconds(length: int) -> float:
        text = prefix + ADVERSARIAL[kind] * (length // len(ADVERSARIAL[kind]))
        best = float("inf")
        for _ in range(2):
            parser = ToolCallParser(OFFERED)
            start = time.thread_time()
            for pos in range(0, len(text), UNIT):
                parser.push(text[pos : pos + UNIT])
            parser.finish()
            best = min(best, time.thread_time() - start)
        return best

    small, large = seconds(130_000), seconds(520_000)
    assert large <= 2.5**2 * small + 0.02


@pytest.mark.parametrize("row", ["196"])
def test_520_kilobytes_at_once(row: str) -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "' + "x\\n" * 170_000 + '"}}</tool_call>'
    content, calls = parse_tool_calls(text)
    assert content == "" and json.loads(calls[0].arguments)["a"] == "x\n" * 170_000
