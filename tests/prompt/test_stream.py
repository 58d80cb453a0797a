"""Text while it is generated: characters over several tokens, stop strings over several pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.errors import RequestError, TokenizerError
from qwenkit.prompt.stream import TextStream, ToolCallParser, collect
from qwenkit.prompt.tokenizer import Tokenizer

RELAXED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """One id for each byte: the worst case for characters."""
    table = {
        tokenizer.id_to_bytes(i): i
        for i in range(tokenizer.vocab_size)
        if len(tokenizer.id_to_bytes(i)) == 1
    }
    return [table[bytes([byte])] for byte in text.encode("utf-8")]


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push([index]) for index in ids), stream.finish()]


@pytest.mark.parametrize("row", ["62"])
def test_no_flicker_in_characters_over_several_tokens(toy: Tokenizer, row: str) -> None:
    text = "a🙂你é👩‍👩‍👧z"
    out = pieces(TextStream(toy), byte_ids(toy, text))
    assert "".join(out) == text and not any("\ufffd" in piece for piece in out)
    assert out[:5] == ["a", "", "", "", "🙂"]


@settings(max_examples=200, **RELAXED)
@given(ids=st.lists(st.integers(0, 10**6), max_size=40), skip=st.booleans(), size=st.integers(1, 5))
def test_joined_equals_decode(toy: Tokenizer, ids: list[int], skip: bool, size: int) -> None:
    ids = [index % toy.vocab_size for index in ids]
    stream = TextStream(toy, skip_special=skip)
    out = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "".join([*out, stream.finish()]) == toy.decode(ids, skip_special=skip)


@pytest.mark.parametrize("row", ["67"])
def test_half_a_character_at_the_end(toy: Tokenizer, row: str) -> None:
    stream = TextStream(toy)
    assert stream.push(byte_ids(toy, "a🙂")[:3]) == "a"
    assert stream.finish() == "\ufffd" and stream.finish() == ""


def cut(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition: end at the earliest completed stop string, of those the longest."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300, **RELAXED)
@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_stop_strings(toy: Tokenizer, text: str, stop: list[str], sizes: list[int]) -> None:
    stream, ids, out, turn = TextStream(toy, stop), byte_ids(toy, text), "", 0
    expected, matched = cut(text, stop)
    pos = 0
    while pos < len(ids):
        size = sizes[turn % len(sizes)]
        out += stream.push(ids[pos : pos + size])
        pos, turn = pos + size, turn + 1
        assert expected.startswith(out)
        if not stream.stopped:
            held = text[len(out) : pos]
            assert held == "" or any(
                s.startswith(held) for s in stop
            )  # held exactly as long as needed
    out += stream.finish()
    assert (
        out == expected
        and stream.stop_string == matched
        and stream.stopped == (matched is not None)
    )
    if stream.stopped:
        assert stream.push(ids) == ""


@pytest.mark.parametrize("row", ["45"])
def test_stop_string_over_several_tokens(toy: Tokenizer, row: str) -> None:
    stream = TextStream(toy, ["\nUser:", "END"])
    out = [stream.push([index]) for index in toy.encode("Hello\nUs\nUser: more")]
    assert "".join(out) == "Hello\nUs" and stream.stop_string == "\nUser:"
    assert stream.finish() == ""


def test_a_beginning_that_is_no_stop_string_comes_out(toy: Tokenizer) -> None:
    stream = TextStream(toy, ["END"])
    assert stream.push(toy.encode("xEN")) == "x"
    assert stream.finish() == "EN" and not stream.stopped


def test_stop_string_completed_by_the_last_byte(toy: Tokenizer) -> None:
    stream = TextStream(toy, ["b\ufffd"])
    assert stream.push([*byte_ids(toy, "ab"), byte_ids(toy, "🙂")[0]]) == "a"
    assert stream.finish() == "" and stream.stop_string == "b\ufffd"


@pytest.mark.parametrize("stop", [[""], ["a", ""], "abc", [1]])
def test_bad_stop(toy: Tokenizer, stop: list[str]) -> None:
    with pytest.raises(RequestError, match="stop") as caught:
        TextStream(toy, stop)
    assert caught.value.param == "stop"


@pytest.mark.parametrize("row", ["66"])
def test_a_bad_id_is_an_error(toy: Tokenizer, row: str) -> None:
    with pytest.raises(TokenizerError, match="out of range"):
        TextStream(toy).push([toy.vocab_size])


def test_tool_call_through_the_stream(toy: Tokenizer) -> None:
    text = 'Look.\n<tool_call>\n{"name": "f", "arguments": {"a": "你"}}\n</tool_call><|im_end|>'
    stream, parser = TextStream(toy), ToolCallParser()
    deltas = []
    for index in toy.encode(text, allow_special=True):
        deltas += parser.push(stream.push([index]))
    deltas += [*parser.push(stream.finish()), *parser.finish()]
    content, (call,) = collect(deltas)
    assert content == "Look." and (call.name, call.arguments) == ("f", '{"a": "你"}')


def test_time_is_linear(toy: Tokenizer) -> None:
    letter = toy.token_to_id("a")

    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(2):
            stream = TextStream(toy, ["a" * 500 + "b", "ab"])
            start = time.thread_time()
            for _ in range(count):
                stream.push([letter])
            stream.finish()
            best = min(best, time.thread_time() - start)
        return best

    assert seconds(40_000) <= 2.5**2 * seconds(10_000) + 0.02
