"""Tool calls out of generated text, while it is generated.

Contract: text goes in by `push` in any pieces, `Delta`s come out: content, or a part of a tool
call. `finish` ends the text. `parse_tool_calls` does both for a whole text and gives the same
result. Time is linear. Understood are

- Hermes, the trained format: `<tool_call>` JSON `</tool_call>`, several calls, several objects in
  one pair of tags, the closing tag forgotten at the end;
- when the names of the offered tools are given, also the habits of Qwen2.5-Coder, for objects that
  have just the keys `name` (of an offered tool) and `arguments`: `<tools>` JSON `</tools>`, and a
  fenced block (three backticks, `json` or nothing).

A call exists once its JSON object is complete and has a name and arguments. What is broken, cut
off, or lacks either comes back as content, character by character as the model wrote it; nothing is
repaired or made up. White space between a call and its neighbours is not content.

Not covered: checking arguments against a tool's schema; formats before Qwen2.5 (✿FUNCTION✿).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from qwenkit.prompt.json_scan import CallScanner

_CLOSERS = {"<tool_call>": "</tool_call>", "<tools>": "</tools>", "```": "```"}
_HERMES = re.compile("<tool_call>")
_HABITS = re.compile("<tool_call>|<tools>|```")
_SPACE = " \t\r\n"
_SPACE_RUN = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class ToolCall:
    """A complete call. `arguments` is the JSON text of an object, as the model wrote it."""

    id: str
    name: str
    arguments: str

    def as_message(self) -> dict[str, Any]:
        """The entry for `tool_calls` of an assistant message, in OpenAI's form."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True)
class Delta:
    """One piece of news: content (`index` is None), or something about call number `index`.

    The first delta of a call has `id` and `name`, the following ones more text of its `arguments`.
    `retracted` says that the call announced under `index` turned out broken; its text follows as
    content and the index is free again.
    """

    content: str = ""
    index: int | None = None
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    retracted: bool = False


class ToolCallParser:
    """Incremental parser; one object per answer.

    Args:
        tools: names of the offered tools; None or empty reads Hermes calls only.
        eager: True announces a call as soon as its name is known and passes on its arguments as
            they come, at the price that a call which breaks off must be retracted. False announces
            complete calls only, so there is never a `retracted` delta.
    """

    def __init__(self, tools: Collection[str] | None = None, *, eager: bool = True) -> None:
        self._tools, self._eager = frozenset(tools or ()), eager
        self._opener = _HABITS if self._tools else _HERMES
        self._state: Literal["text", "fence", "before", "object", "after"] = "text"
        self._form = "<tool_call>"
        self._rest = ""
        self._raw: list[str] = []
        self._space: list[str] = []
        self._after_call = False
        self._scanner = CallScanner()
        self._calls = 0
        self._id: str | None = None
        self._out: list[Delta] = []

    def push(self, text: str) -> list[Delta]:
        """Take the next piece of text; return what is certain now."""
        data, pos, before = self._rest + text, 0, -1
        step = {
            "text": self._text,
            "fence": self._fence,
            "before": self._before,
            "object": self._object,
        }
        while pos < len(data):
            state, before = self._state, pos
            pos = step.get(state, self._after)(data, pos)
            if pos == before and self._state == state:
                break
        self._rest = data[pos:]
        return self._take()

    def finish(self) -> list[Delta]:
        """End of the text: what was held back comes out; an unfinished call becomes content."""
        rest, self._rest = self._rest, ""
        if self._state in ("fence", "before", "object"):
            self._fail()
        elif self._state == "after":
            self._end_call()
        self._content(rest)
        if self._space and not self._after_call:
            self._out.append(Delta(content="".join(self._space)))
        self._space = []
        return self._take()

    def _take(self) -> list[Delta]:
        """Hand out the pending deltas, neighbours that are content joined."""
        joined: list[Delta] = []
        content: list[str] = []
        for delta in self._out:
            if delta.index is not None and content:
                joined.append(Delta(content="".join(content)))
                content = []
            if delta.index is None:
                content.append(delta.content)
            else:
                joined.append(delta)
        if content:
            joined.append(Delta(content="".join(content)))
        self._out = []
        return joined

    def _content(self, text: str) -> None:
        """Content, but white space at its end waits: it is dropped if a call follows."""
        solid = text.rstrip(_SPACE)
        if solid:
            self._out.append(Delta(content="".join([*self._space, solid])))
            self._space, self._after_call = [], False
        if len(solid) < len(text):
            self._space.append(text[len(solid) :])

    def _text(self, data: str, pos: int) -> int:
        match = self._opener.search(data, pos)
        if match is None:
            end = len(data) - _partial_len(
                data, pos, list(_CLOSERS) if self._tools else ["<tool_call>"]
            )
            self._content(data[pos:end])
            return end
        self._content(data[pos : match.start()])
        self._form, self._raw = match.group(), [match.group()]
        self._state = "fence" if self._form == "```" else "before"
        return match.end()

    def _fence(self, data: str, pos: int) -> int:
        """The language behind the backticks: `json` or nothing."""
        if data.startswith("json", pos):
            self._raw.append("json")
            self._state = "before"
            return pos + 4
        if not "json".startswith(data[pos:]):
            self._state = "before"
        return pos

    def _before(self, data: str, pos: int) -> int:
        """White space up to the opening brace."""
        end = _skip_space(data, pos)
        self._raw.append(data[pos:end])
        if end < len(data):
            if data[end] == "{":
                self._start_object()
            else:
                self._fail()
        return end

    def _start_object(self) -> None:
        habit = self._form != "<tool_call>"
        self._scanner = CallScanner(self._tools if habit else None, only_call_keys=habit)
        self._state, self._id = "object", None

    def _object(self, data: str, pos: int) -> int:
        scanner = self._scanner
        pos = scanner.feed(data, pos)
        last = scanner.last_arguments() if scanner.status == "done" else None
        if scanner.status == "failed" or (scanner.status == "done" and last is None):
            self._fail()
        elif last is not None:
            self._announce(last)
            self._space, self._after_call = [], True
            self._calls += 1
            self._state, self._raw = "after", []
        elif self._eager and scanner.name is not None:
            self._announce(scanner.new_arguments())
        return pos

    def _announce(self, arguments: str) -> None:
        """Emit what is new about the current call."""
        if self._id is None:
            self._id = f"call_{uuid.uuid4().hex[:24]}"
            self._out.append(
                Delta(index=self._calls, id=self._id, name=self._scanner.name, arguments=arguments)
            )
        elif arguments:
            self._out.append(Delta(index=self._calls, arguments=arguments))

    def _fail(self) -> None:
        """The candidate is no call: all of its text is content."""
        if self._state == "object":
            self._raw.append(self._scanner.raw)
            if self._id is not None:
                self._out.append(Delta(index=self._calls, retracted=True))
        self._state, self._id = "text", None
        self._content("".join(self._raw))
        self._raw = []

    def _after(self, data: str, pos: int) -> int:
        """Behind a complete object: the closing tag, another object, or something else."""
        end = _skip_space(data, pos)
        self._raw.append(data[pos:end])
        if end == len(data):
            return end
        closer = _CLOSERS[self._form]
        if data.startswith(closer, end):
            self._state, self._raw = "text", []
            return end + len(closer)
        if data[end] == "{":
            self._start_object()
        elif not closer.startswith(data[end:]):
            self._end_call()
        return end

    def _end_call(self) -> None:
        """No closing tag: the white space behind the object may belong to content."""
        self._state = "text"
        self._content("".join(self._raw))
        self._raw = []


def _skip_space(data: str, pos: int) -> int:
    match = _SPACE_RUN.match(data, pos)
    return match.end() if match else pos


def _partial_len(data: str, pos: int, tags: list[str]) -> int:
    """Length of the longest end of `data[pos:]` that begins one of the tags."""
    longest = max(map(len, tags)) - 1
    for length in range(min(longest, len(data) - pos), 0, -1):
        tail = data[len(data) - length :]
        if any(tag.startswith(tail) for tag in tags):
            return length
    return 0


def collect(deltas: Iterable[Delta]) -> tuple[str, list[ToolCall]]:
    """Put deltas together again: (content, tool calls)."""
    content: list[str] = []
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if delta.index is None:
            content.append(delta.content)
        elif delta.retracted:
            del calls[delta.index]
        elif delta.index == len(calls):
            calls.append({"id": delta.id, "name": delta.name, "arguments": [delta.arguments]})
        else:
            calls[delta.index]["arguments"].append(delta.arguments)
    return "".join(content), [ToolCall(c["id"], c["name"], "".join(c["arguments"])) for c in calls]


def parse_tool_calls(text: str, tools: Collection[str] | None = None) -> tuple[str, list[ToolCall]]:
    """A whole answer → (content, tool calls); `tools` are the names of the offered tools.

    Errors: none; what is no complete call stays content.
    """
    parser = ToolCallParser(tools, eager=False)
    return collect([*parser.push(text), *parser.finish()])
