"""The `/` commands of `qwenkit chat`: a table of name, arguments, meaning and function."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from qwenkit.cli.load import read_tools
from qwenkit.cli.output import errors, say
from qwenkit.cli.talk import Talk
from qwenkit.errors import OptionError
from qwenkit.options import SAMPLING, suggest
from qwenkit.options.resolve import from_text
from qwenkit.utils import write_json


class Leave(Exception):
    """The person wants to go."""


@dataclass(frozen=True)
class Command:
    """`do(talk, rest of the line)`."""

    name: str
    arguments: str
    meaning: str
    do: Callable[[Talk, str], None]


def run_command(talk: Talk, line: str) -> str | None:
    """Do what a line says if it is a command; else the text to send.

    A path (`/etc/hosts is …`) is no command, and `//` at the beginning sends one slash.
    Errors: OptionError for a wrong command, Leave to stop.
    """
    word, _, rest = line.strip().partition(" ")
    if not word.startswith("/"):
        return line
    if word.startswith("//"):
        return line.strip()[1:]
    if "/" in word[1:]:
        return line
    found = next((command for command in COMMANDS if command.name == word), None)
    if found is None:
        near = suggest(word, [command.name for command in COMMANDS])
        advice = f"Did you mean {near}?" if near else "See /help."
        raise OptionError(f"{word} is no command.", advice)
    found.do(talk, rest.strip())
    return None


def _help(talk: Talk, rest: str) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for command in COMMANDS:
        grid.add_row(Text(f"{command.name} {command.arguments}", style="bold"), command.meaning)
    grid.add_row(Text("Ctrl-C", style="bold"), "stop the answer; Ctrl-D leaves")
    if sys.stdin.isatty():
        grid.add_row(Text("Alt-Enter", style="bold"), "new line without sending")
    errors().print(grid)


def _clear(talk: Talk, rest: str) -> None:
    talk.clear()
    say("forgotten; the system message stays")


def _system(talk: Talk, rest: str) -> None:
    if not rest:
        say(talk.options.system if talk.options.system is not None else "the template's own")
        return
    talk.options = talk.options.replace({"system": rest}, "/system")
    talk.clear()
    say("new system message, new conversation")


def _set(talk: Talk, rest: str) -> None:
    name, _, value = rest.replace("=", " ").partition(" ")
    if not name:
        for known in SAMPLING:
            current = getattr(talk.options, known)
            shown = "not set" if current is None or current == [] else current
            say(f"{known} = {shown}  ({talk.options.origin(known)})")
        return
    cls = type(talk.options)
    field = cls.names().get(name.replace("-", "_"))
    if field not in SAMPLING:
        near = suggest(name, SAMPLING)
        advice = f"Did you mean {near}?" if near else f"There are {', '.join(SAMPLING)}."
        raise OptionError(f"{name!r} cannot be set.", advice)
    if not value.strip():
        say(f"{field} = {getattr(talk.options, field)}  ({talk.options.origin(field)})")
        return
    talk.options = talk.options.replace(
        {field: from_text(cls, field, value.strip(), "/set")}, "/set"
    )
    say(f"{field} = {getattr(talk.options, field)}")


def _tools(talk: Talk, rest: str) -> None:
    if rest in ("off", "none"):
        talk.tools = None
    elif rest:
        talk.tools = read_tools(rest)
    names = [tool["function"]["name"] for tool in talk.tools or []]
    say(f"tools: {', '.join(names)}" if names else "no tools")


def _save(talk: Talk, rest: str) -> None:
    if not rest:
        raise OptionError(
            "/save needs a file name.", "Write /save talk.json, or talk.jsonl to append."
        )
    path = Path(rest).expanduser()
    try:
        if path.suffix == ".jsonl":
            row = {"messages": talk.messages, **({"tools": talk.tools} if talk.tools else {})}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            write_json(path, talk.messages)
    except OSError as error:
        raise OptionError(
            f"{path} cannot be written: {error.strerror}.", "Choose another."
        ) from error
    say(f"{len(talk.messages)} messages written to {path}")


def _leave(talk: Talk, rest: str) -> None:
    raise Leave


COMMANDS = (
    Command("/help", "", "this list", _help),
    Command("/clear", "", "forget the conversation", _clear),
    Command("/system", "[TEXT]", "set the system message and start over", _system),
    Command("/set", "[NAME VALUE]", "sampling, as in /set temperature 0.7; alone: show all", _set),
    Command("/tools", "[FILE.json|off]", "offer tools to the model", _tools),
    Command("/save", "FILE", "write the conversation (.json, or append to .jsonl)", _save),
    Command("/exit", "", "leave", _leave),
)
