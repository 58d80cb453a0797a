"""One conversation: messages, options and tools, and turns that stream to the terminal.

Ctrl-C ends the answer and nothing else. The whole conversation is sent each time; when it no longer
fits the context, that is an error with the counts: nothing is forgotten silently.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from qwenkit.cli.markdown import MarkdownStream
from qwenkit.cli.output import complain, console, say
from qwenkit.cli.run import Answer
from qwenkit.errors import ContextLengthError, QwenkitError
from qwenkit.options import ChatOptions

if TYPE_CHECKING:
    from qwenkit.llm import LLM

T = TypeVar("T")


class Talk:
    """The state of one conversation."""

    def __init__(self, llm: LLM, options: ChatOptions, tools: list[dict[str, Any]] | None) -> None:
        self.llm, self.options, self.tools = llm, options, tools
        self.messages: list[dict[str, Any]] = []
        self.exit_code = 0
        self.pretty = options.markdown and console().is_terminal
        self.clear()

    def clear(self) -> None:
        """Forget the turns; the system message stays."""
        system = self.options.system
        self.messages = [{"role": "system", "content": system}] if system is not None else []

    def turn(self, *news: dict[str, Any]) -> Answer | None:
        """Send messages and show the answer; None if it failed: then nothing is remembered."""
        asked = [*self.messages, *news]
        try:
            answer = self._answer(asked)
        except QwenkitError as error:
            self.exit_code = error.exit_code
            advice = " /clear starts over." if isinstance(error, ContextLengthError) else ""
            complain(error, advice)
            return None
        self.messages = [*asked, answer.message()]
        return answer

    def _answer(self, messages: list[dict[str, Any]]) -> Answer:
        answer = Answer(echo=not self.pretty)
        with contextlib.ExitStack() as stack:
            pieces = self.llm.stream(messages, self.tools, **self.options.sampling())
            view = stack.enter_context(MarkdownStream(console())) if self.pretty else None
            for piece in until_ctrl_c(pieces):
                answer.push(piece)
                if view is not None and piece.text:
                    view.push(piece.text)
        answer.finish_reason = answer.finish_reason or "abort"
        answer.finish()
        note = {"abort": "stopped", "length": "ends at the token limit, see /set max_tokens"}
        if answer.finish_reason in note:
            say(f"({note[answer.finish_reason]})")
        return answer


def until_ctrl_c(pieces: Iterator[T]) -> Iterator[T]:
    """The pieces, up to a Ctrl-C, which ends them and nothing else; then the stream is closed.

    While a piece is awaited Ctrl-C breaks the wait; while one is drawn, it takes effect after that.
    """
    state = {"waiting": False, "stopped": False}

    def handler(signum: int, frame: FrameType | None) -> None:
        if state["waiting"] or state["stopped"]:
            raise KeyboardInterrupt
        state["stopped"] = True

    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, handler) if ours else None
    try:
        while not state["stopped"]:
            state["waiting"] = True
            try:
                piece = next(pieces)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                state["waiting"] = False
            yield piece
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
        close: Callable[[], None] | None = getattr(pieces, "close", None)
        if close is not None:
            close()  # aborts the request
