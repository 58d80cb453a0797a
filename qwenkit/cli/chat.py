"""`qwenkit chat`: a conversation in the terminal, or one line after the other from a pipe.

In a terminal: markdown as it streams, a prompt with history, `/` commands (`commands.py`), Ctrl-C
stops the answer only. From a pipe: each line is a turn, answers are plain text. The whole
conversation is sent each time; when it no longer fits the context that is an error with the counts,
and nothing is forgotten silently.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.text import Text

from qwenkit.cli import load as loading
from qwenkit.cli.commands import Leave, run_command, say
from qwenkit.cli.markdown import MarkdownStream
from qwenkit.cli.output import console, errors, hint
from qwenkit.cli.run import Answer, as_json
from qwenkit.errors import ContextLengthError, QwenkitError
from qwenkit.options import SAMPLING, ChatOptions

if TYPE_CHECKING:
    from qwenkit.llm import LLM

T = TypeVar("T")
PROMPT = "> "


def chat(options: ChatOptions) -> int:
    """Talk until the end of input or /exit."""
    tools = loading.read_tools(options.tools)
    with loading.load(options) as llm:
        options = options.with_defaults(checkpoint_sampling(llm), "the checkpoint")
        talk = Chat(llm, options, tools)
        if sys.stdin.isatty():
            _interactive(talk)
        else:
            _piped(talk)
    return talk.exit_code


def checkpoint_sampling(llm: LLM) -> dict[str, Any]:
    """The sampling values that the checkpoint asks for, to be shown by /set."""
    defaults = llm.generation
    values = {name: getattr(defaults, name) for name in SAMPLING if hasattr(defaults, name)}
    if not defaults.do_sample:
        values["temperature"] = 0.0
    return values


class Chat:
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

    def turn(self, role: str, content: str, **more: str) -> Answer | None:
        """Send one message and show the answer; None if it failed: then nothing is remembered."""
        asked = [*self.messages, {"role": role, "content": content, **more}]
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
    """The pieces, up to a Ctrl-C, which ends them and nothing else; the stream is closed at the
    end.

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


def _piped(talk: Chat) -> None:
    """Every line of standard input is one turn, or a command."""
    for line in sys.stdin:
        try:
            text = run_command(talk, line.rstrip("\n"))
        except Leave:
            return
        except QwenkitError as error:
            talk.exit_code = error.exit_code
            print(f"error: {error}", file=sys.stderr)
            continue
        if text and text.strip():
            talk.turn("user", text)


def _interactive(talk: Chat) -> None:
    ask = _reader()
    say(
        f"{talk.options.model}, {talk.llm.context_length} tokens of context; /help, Ctrl-D to leave"
    )
    while True:
        try:
            text = run_command(talk, ask(PROMPT))
        except KeyboardInterrupt:
            continue  # Ctrl-C at the prompt clears the line
        except (EOFError, Leave):
            break
        except QwenkitError as error:
            complain(error)
            continue
        if not text or not text.strip():
            continue
        answer = talk.turn("user", text)
        while answer is not None and answer.calls:
            answer = _answer_calls(talk, ask, answer)
        print()
    talk.exit_code = 0
    hint('qwenkit run -p "…" answers one prompt in a script')


def complain(error: QwenkitError, advice: str = "") -> None:
    """An error that does not end the conversation."""
    errors().print(Text("error: ", style="red") + Text(f"{error}{advice}"), soft_wrap=True)


def _answer_calls(talk: Chat, ask: Callable[[str], str], answer: Answer) -> Answer | None:
    """Ask the person for what each called tool returns; an empty line leaves it unanswered."""
    results: list[dict[str, str]] = []
    for call in answer.calls:
        if talk.pretty:
            console().print(Text(f"{call['name']}({as_json(call['arguments'])})", style="cyan"))
        try:
            result = ask(f"result of {call['name']}> ")
        except (KeyboardInterrupt, EOFError):
            result = ""
        if not result.strip():
            return None
        results.append({"role": "tool", "content": result, "tool_call_id": call["id"] or ""})
    talk.messages += results[:-1]
    return talk.turn("tool", results[-1]["content"], tool_call_id=results[-1]["tool_call_id"])


def _reader() -> Callable[[str], str]:
    """A line editor with history in the user's data folder; plain input where that cannot work."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    home = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "qwenkit"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = home / "history"
        file.touch(mode=0o600)
        history: FileHistory | InMemoryHistory = FileHistory(str(file))
    except OSError:
        history = InMemoryHistory()  # a read-only home only costs the history
    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: PromptSession[str] = PromptSession(history=history, key_bindings=keys)
    return session.prompt
