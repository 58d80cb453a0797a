"""Markdown that grows: finished blocks are printed for good, only the last one is drawn again.

Redrawing everything would garble the terminal once an answer is longer than the screen, so a block
that is longer than the screen shows its end until it is finished.
"""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)


def split_finished(text: str) -> int:
    """Where the last open block begins: after the last blank line that is outside a code fence."""
    end, fence, at = 0, "", 0
    for line in text.splitlines(keepends=True):
        match = _FENCE.match(line)
        mark = match.group(1) if match else ""
        if fence:
            closes = (
                mark[:1] == fence[0] and len(mark) >= len(fence) and not line.strip().strip(mark[0])
            )
            fence = "" if mark and closes else fence
        elif mark:
            fence = mark
        at += len(line)
        if not fence and not line.strip() and line.endswith("\n"):
            end = at
    return end


def as_written(text: str) -> Markdown:
    """Markdown whose single line breaks stay.

    Models write the steps of a sum on lines of their own; strict Markdown runs them together.
    """
    markdown = Markdown(text)
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return markdown


class _Tail:
    """The end of a block that may be longer than the screen."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(as_written(self.text), options, pad=False)
        for line in lines[-max(console.height - 2, 1) :]:
            yield from line
            yield Segment.line()


class MarkdownStream:
    """Use as a context manager; `push` text as it comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def push(self, text: str) -> None:
        """Draw what came."""
        self._text += text
        end = split_finished(self._text)
        if end:
            self._print(self._text[:end])
            self._text = self._text[end:]
        self._live.update(_Tail(self._text), refresh=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.update("", refresh=True)
        self._live.stop()
        self._print(self._text)

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(as_written(text.strip("\n")))
