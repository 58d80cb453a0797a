"""`qwenkit chat`: a conversation in the terminal, or one line after the other from a pipe.

In a terminal: markdown as it streams, a prompt with history, `/` commands (`commands.py`), Ctrl-C
stops the answer only (`talk.py`). From a pipe: each line is a turn, answers are plain text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from qwenkit.cli import load as loading
from qwenkit.cli.commands import Leave, run_command
from qwenkit.cli.output import complain, console, hint, say
from qwenkit.cli.run import Answer, as_json
from qwenkit.cli.talk import Talk
from qwenkit.errors import QwenkitError
from qwenkit.options import SAMPLING, ChatOptions

if TYPE_CHECKING:
    from qwenkit.llm import LLM

PROMPT = "> "


def chat(options: ChatOptions) -> int:
    """Talk until the end of input or /exit."""
    tools = loading.read_tools(options.tools)
    with loading.load(options) as llm:
        options = options.with_defaults(checkpoint_sampling(llm), "the checkpoint")
        talk = Talk(llm, options, tools)
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


def _piped(talk: Talk) -> None:
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
            talk.turn({"role": "user", "content": text})


def _interactive(talk: Talk) -> None:
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
        answer = talk.turn({"role": "user", "content": text})
        while answer is not None and answer.calls:
            answer = _answer_calls(talk, ask, answer)
        print()
    talk.exit_code = 0
    hint('qwenkit run -p "…" answers one prompt in a script')


def _answer_calls(talk: Talk, ask: Callable[[str], str], answer: Answer) -> Answer | None:
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
    return talk.turn(*results)


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
