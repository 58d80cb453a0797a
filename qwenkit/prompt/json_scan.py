"""A JSON object read as it arrives, knowing at each character whether it can still become valid.

`CallScanner` follows one object of the form `{"name": …, "arguments": …}`. It accepts exactly RFC
8259 (no raw line breaks in strings, no NaN) down to `MAX_DEPTH` levels, works in linear time for
any chunking, and hands out the text of `arguments` while it grows. It fails at the first character
that no valid call can have there.

Not covered: JSON values other than objects at the top; repairing broken JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Literal

MAX_DEPTH = 64
MAX_NUMBER_LEN = 400
CALL_NAME = re.compile(r"[^\s\"\\<>{}\x00-\x1f\x7f]{1,128}")

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_START = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_SCALAR_RUN = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")

_State = Literal["value", "first_value", "key", "first_key", "colon", "after", "string", "scalar"]


class CallScanner:
    """Feed it the text from the opening brace on.

    Args:
        names: the tool names allowed; None allows every well-formed one.
        only_call_keys: fail at a top-level key other than `name` and `arguments`.
    """

    def __init__(
        self, names: Collection[str] | None = None, *, only_call_keys: bool = False
    ) -> None:
        self.status: Literal["open", "done", "failed"] = "open"
        self.name: str | None = None
        self._names, self._only_call_keys = names, only_call_keys
        self._state: _State = "value"
        self._stack: list[str] = []
        self._is_key = False
        self._capture: list[str] | None = None
        self._scalar = ""
        self._key = ""
        self._seen: set[str] = set()
        self._raw: list[str] = []
        self._arguments: list[str] = []
        self._inside = False
        self._taken = 0

    @property
    def raw(self) -> str:
        """All the text consumed."""
        return "".join(self._raw)

    def new_arguments(self) -> str:
        """The text of the `arguments` object that came since the last call of this method."""
        new = "".join(self._arguments[self._taken :])
        self._taken = len(self._arguments)
        return new

    def feed(self, data: str, start: int) -> int:
        """Consume `data` from `start`; return where it stopped.

        It stops at the end, behind the closing brace, at the offending character, or before an
        escape sequence whose rest has not arrived (give that rest again together with it).
        """
        pos, piece = start, start
        while self.status == "open" and pos < len(data):
            was_inside, before = self._inside, pos
            if self._state == "string":
                pos = self._feed_string(data, pos)
                if pos == before and self.status == "open" and self._state == "string":
                    break
            elif self._state == "scalar":
                pos = self._feed_scalar(data, pos)
            else:
                pos = self._feed_structure(data, pos)
            if was_inside != self._inside:
                if was_inside:
                    self._arguments.append(data[piece:pos])
                piece = pos - 1
        if self._inside and pos > piece:
            self._arguments.append(data[piece:pos])
        self._raw.append(data[start:pos])
        return pos

    def last_arguments(self) -> str | None:
        """After "done": the rest of the arguments' text, or None when this object is no call.

        Arguments that came as a JSON string which itself holds an object are unpacked.
        """
        value = json.loads(self.raw)
        if self.name is None or "arguments" not in value:
            return None
        if isinstance(value["arguments"], dict):
            return self.new_arguments()
        return None if parse_object(value["arguments"]) is None else str(value["arguments"])

    def _feed_string(self, data: str, pos: int) -> int:
        match = _STRING_RUN.match(data, pos)
        end = match.end() if match else pos
        if self._capture is not None:
            self._capture.append(data[pos:end])
        if end == len(data):
            return end
        if data[end] == '"':
            self._end_string()
            return end + 1 if self.status == "open" else end
        escape = _ESCAPE.match(data, end)
        if escape:
            if self._capture is not None:
                self._capture.append(escape.group())
            return escape.end()
        if not _ESCAPE_START.fullmatch(data, end):
            self.status = "failed"
        return end

    def _end_string(self) -> None:
        text = None if self._capture is None else json.loads('"' + "".join(self._capture) + '"')
        self._capture = None
        self._state = "colon" if self._is_key else "after"
        if text is None:
            return
        if self._is_key:
            allowed = text not in self._seen and (
                not self._only_call_keys or text in ("name", "arguments")
            )
            self._key = text
            self._seen.add(text)
        else:
            allowed = bool(CALL_NAME.fullmatch(text)) and (
                self._names is None or text in self._names
            )
            self.name = text if allowed else None
        if not allowed:
            self.status = "failed"

    def _feed_scalar(self, data: str, pos: int) -> int:
        match = _SCALAR_RUN.match(data, pos)
        end = match.end() if match else pos
        self._scalar += data[pos:end]
        if len(self._scalar) > MAX_NUMBER_LEN or (
            end < len(data) and not _SCALAR.fullmatch(self._scalar)
        ):
            self.status = "failed"
        elif end < len(data):
            self._state = "after"
        return end

    def _feed_structure(self, data: str, pos: int) -> int:
        match = _SPACE.match(data, pos)
        pos = match.end() if match else pos
        if pos == len(data):
            return pos
        char, state = data[pos], self._state
        if state in ("key", "first_key") and char == '"':
            self._is_key = True
            self._capture = [] if len(self._stack) == 1 else None
            self._state = "string"
        elif state in ("value", "first_value") and self._value_allowed(char):
            return self._start_value(char, pos)
        elif state == "colon" and char == ":":
            self._state = "value"
        elif state == "after" and char == ",":
            self._state = "key" if self._stack[-1] == "{" else "value"
        elif (state in ("after", "first_key") and char == "}" and self._stack[-1] == "{") or (
            state in ("after", "first_value") and char == "]" and self._stack[-1] == "["
        ):
            self._close()
        else:
            self.status = "failed"
            return pos
        return pos + 1

    def _value_allowed(self, char: str) -> bool:
        """At the top level, `name` must be a string and `arguments` an object or a string."""
        if not self._stack:
            return char == "{"
        if len(self._stack) == 1 and self._key in ("name", "arguments"):
            return char == '"' or (char == "{" and self._key == "arguments")
        return char in '{["-tfn0123456789'

    def _start_value(self, char: str, pos: int) -> int:
        if char == '"':
            self._is_key = False
            self._capture = [] if len(self._stack) == 1 and self._key == "name" else None
            self._state = "string"
            return pos + 1
        if char not in "{[":
            self._scalar, self._state = "", "scalar"
            return pos
        if len(self._stack) == MAX_DEPTH:
            self.status = "failed"
            return pos
        if len(self._stack) == 1 and self._key == "arguments":
            self._inside = True
        self._stack.append(char)
        self._state = "first_key" if char == "{" else "first_value"
        return pos + 1

    def _close(self) -> None:
        self._stack.pop()
        self._state = "after"
        if len(self._stack) == 1:
            self._inside = False
        if not self._stack:
            self.status = "done"


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` spells, or None. NaN and Infinity are not JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
