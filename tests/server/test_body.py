"""JSON by the letter, and no more of it than allowed."""

from __future__ import annotations

import gc
import json
import time

import pytest

from qwenkit.options import ServeOptions, resolve
from qwenkit.server.body import parse_json
from qwenkit.server.errors import ApiError

OPTIONS = resolve(ServeOptions, {}, env={})


def refused(raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_json(raw, OPTIONS)
    assert caught.value.status == 400
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    return caught.value


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "byte order mark"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "UTF-8"),
        (b"[" * 100_000, "deeper|not valid"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "deeper than 64"),
        (b"[" + b"1," * 1_000_001 + b"1]", "more than 1000000 values"),
        (b'{"a": "x\ny"}', "control character"),
    ],
)
def test_what_is_no_json_is_refused(raw: bytes, words: str) -> None:
    import re

    assert re.search(words, refused(raw).message, flags=re.I), refused(raw).message


def test_what_is_json_is_read() -> None:
    value = {"a": [1, -2.5, True, None, "é\u0000😀"], "b": {"c": {}}}
    assert parse_json(json.dumps(value).encode(), OPTIONS) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), OPTIONS) == value
    deep = b'{"a":' * 63 + b"[]" + b"}" * 63
    assert parse_json(deep, OPTIONS)


def test_lone_surrogates_become_the_replacement_character() -> None:
    raw = rb'{"a\udfff": ["\ud800", {"b": "x\uD83D"}], "c": "\ud83d\ude00"}'
    assert parse_json(raw, OPTIONS) == {"a�": ["�", {"b": "x�"}], "c": "😀"}


def test_parsing_takes_time_in_proportion() -> None:
    """A body twice as long costs at most 2.5 times as much, measured in processor time."""

    def spent(count: int) -> float:
        raw = b'{"a": [' + b'{"b": [1, "x"]},' * count + b"1]}"
        best = 1e9
        gc.disable()  # its passes take longer the more objects other tests have left
        try:
            for _ in range(3):
                start = time.thread_time()
                parse_json(raw, OPTIONS)
                best = min(best, time.thread_time() - start)
        finally:
            gc.enable()
        return best

    ratios = [spent(100_000) / spent(50_000) for _ in range(3)]
    assert min(ratios) < 2.5, ratios
