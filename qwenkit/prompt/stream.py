"""Token ids → text while they are generated: no half characters, no stop strings.

Contract: `TextStream.push(ids)` returns the text that is certain now, `finish` the rest. Without
stop strings the pieces joined equal `tokenizer.decode` of all ids: a character whose bytes are
still coming is held back, so U+FFFD appears only where the whole text has it too. With stop
strings, text is held back exactly as long as it could be the beginning of one; the first one
completed ends the text in front of it (of several completed by the same character, the
longest). Work is linear in the text for each stop string (Knuth, Morris and Pratt, 1977),
whatever the pieces.

Tool calls are parsed by `ToolCallParser`, which takes this text; see `tools.py`.

Not covered: stop strings that name tokens which `skip_special` drops; stop on their ids instead.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from qwenkit.errors import RequestError
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tools import Delta, ToolCall, ToolCallParser, collect, parse_tool_calls

__all__ = ["Delta", "TextStream", "ToolCall", "ToolCallParser", "collect", "parse_tool_calls"]


class TextStream:
    """Incremental decoder of one sequence.

    Args:
        tokenizer: the tokenizer of the model.
        stop: strings that end the text; they are not part of it.
        skip_special: drop special tokens, as in `Tokenizer.decode`.

    Errors: RequestError for an empty stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), skip_special: bool = True
    ) -> None:
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise RequestError(
                "stop must be a list of non-empty strings.", "Remove the empty one.", param="stop"
            )
        self.stop_string: str | None = None
        """The stop string that was matched."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.skipped_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matchers = [_Matcher(text) for text in dict.fromkeys(stop)]
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text; everything pushed later is dropped."""
        return self.stop_string is not None

    def push(self, ids: Iterable[int]) -> str:
        """Take more ids; return new text that stays. Errors: TokenizerError for a bad id."""
        if self.stopped:
            return ""
        data = b"".join(
            self._tokenizer.id_to_bytes(index) for index in ids if index not in self._skipped
        )
        return self._scan(self._decoder.decode(data))

    def finish(self) -> str:
        """End of the ids: the rest of the text. Bytes that never became a character are U+FFFD."""
        if self.stopped:
            return ""
        text = self._scan(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _scan(self, new: str) -> str:
        """Run the matchers over `new`; return what can go out."""
        if not self._matchers:
            return new
        ends = [(matcher.feed(new), -len(matcher.text), matcher) for matcher in self._matchers]
        hits = [(end, order, matcher.text) for end, order, matcher in ends if end is not None]
        text = self._held + new
        if hits:
            end, order, self.stop_string = min(hits)
            self._held = ""
            return text[: len(text) - len(new) + end + order]
        keep = max(matcher.state for matcher in self._matchers)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


class _Matcher:
    """Knuth–Morris–Pratt automaton; `state` is how much of the string the text ends in."""

    def __init__(self, text: str) -> None:
        self.text, self.state = text, 0
        self._fallback = [0] * len(text)
        length = 0
        for index in range(1, len(text)):
            while length and text[index] != text[length]:
                length = self._fallback[length - 1]
            length += text[index] == text[length]
            self._fallback[index] = length

    def feed(self, new: str) -> int | None:
        """Advance over `new`; return the index behind the first match, or None."""
        text, state, fallback, pos = self.text, self.state, self._fallback, 0
        while pos < len(new):
            if not state:
                pos = new.find(text[0], pos)
                if pos < 0:
                    break
            while state and new[pos] != text[state]:
                state = fallback[state - 1]
            state += new[pos] == text[state]
            pos += 1
            if state == len(text):
                return pos
        self.state = state
        return None
