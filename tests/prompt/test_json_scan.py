"""The incremental scanner agrees with `json.loads`, however the text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.prompt.json_scan import MAX_DEPTH, CallScanner, parse_object

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


def scan(text: str, cuts: list[int] | None = None, **options: Any) -> tuple[CallScanner, str, int]:
    """Feed in pieces; → (scanner, arguments, characters consumed)."""
    scanner, rest, used, arguments = CallScanner(**options), "", 0, ""
    edges = sorted({min(cut, len(text)) for cut in cuts or []} | {0, len(text)})
    for start, end in zip(edges, edges[1:], strict=False):
        data = rest + text[start:end]
        stop = scanner.feed(data, 0)
        used, rest = used + stop, data[stop:]
        if scanner.status != "open":
            break
        arguments += scanner.new_arguments()
    if scanner.status == "done":
        last = scanner.last_arguments()
        arguments = arguments + last if last is not None else ""
    return scanner, arguments, used


@settings(max_examples=200, deadline=None)
@given(
    arguments=st.dictionaries(st.text(max_size=6), JSON, max_size=4),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_valid_calls(
    arguments: dict[str, Any], indent: int | None, ascii_only: bool, cuts: list[int]
) -> None:
    text = json.dumps({"name": "f", "arguments": arguments}, indent=indent, ensure_ascii=ascii_only)
    scanner, found, used = scan(text + " tail", cuts)
    assert scanner.status == "done" and scanner.name == "f" and used == len(text)
    assert json.loads(found) == arguments and found in text


@settings(max_examples=300, deadline=None)
@given(
    text=st.text('{}[]",:\\n01-.e tufalsr\n"', max_size=30).map(
        lambda t: '{"name":"f","arguments":{' + t
    ),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_agrees_with_json(text: str, cuts: list[int]) -> None:
    whole, piecewise = scan(text), scan(text, cuts)
    assert (whole[0].status, whole[2]) == (piecewise[0].status, piecewise[2]) or whole[
        0
    ].status == "open"
    if whole[0].status == "done":
        value = json.loads(text[: whole[2]])
        assert value["name"] == "f" and json.loads(whole[1]) == value["arguments"]
    else:
        with pytest.raises(ValueError, match=r"."):
            json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": 5',
        '{"name": "a b"',
        '{"name": ""',
        '{"name": "f", "name"',
        '{"name": "f", "arguments": [',
        '{"name": "f", "arguments": null',
        '{"name": "f", "arguments": {"a": 01}',
        '{"name": "f", "arguments": {"a": +1}',
        '{"name": "f", "arguments": {"a": NaN}',
        '{"name": "f", "arguments": {"a": "x\n',
        '{"name": "f", "arguments": {"a": "\\x"',
        '{"name": "f", "arguments": {"a": 1,}',
        '{"name": "f", "arguments": {} {',
        '{"name": "f",, ',
        "{,",
        "[",
        "{]",
        '{"a" 1',
        '{"a": [1}',
        '{"a": ' + "1" * 500 + ",",
        '{"a": ' + "[" * (MAX_DEPTH + 1),
        '{"x": truex,',
    ],
)
def test_fails_at_once(text: str) -> None:
    scanner, _, used = scan(text)
    assert scanner.status == "failed" and used <= len(text)
    assert scanner.raw == text[:used]
    assert CallScanner.feed(scanner, text, used) == used


def test_names_and_keys_can_be_limited() -> None:
    assert (
        scan('{"name": "f", "arguments": {}}', names={"f"}, only_call_keys=True)[0].status == "done"
    )
    assert scan('{"name": "g"', names={"f"})[0].status == "failed"
    assert scan('{"id": ', only_call_keys=True)[0].status == "failed"
    assert scan('{"id": 1, "arguments": {"x": 1}, "name": "f"}')[1] == '{"x": 1}'


def test_arguments_as_text_are_unpacked() -> None:
    assert scan('{"name": "f", "arguments": "{\\"a\\": 1}"}')[1] == '{"a": 1}'
    scanner, found, _ = scan('{"name": "f", "arguments": "no"}')
    assert scanner.status == "done" and found == "" and scanner.last_arguments() is None
    assert scan('{"name": "f"}')[0].last_arguments() is None


def test_parse_object() -> None:
    assert parse_object('{"a": [1]}') == {"a": [1]}
    assert [parse_object(text) for text in ("[]", "", "{", '{"a": Infinity}', "[" * 10**5)] == [
        None
    ] * 5
