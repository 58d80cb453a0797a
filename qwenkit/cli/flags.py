"""Flags and help, generated from an options class: nothing of either is written by hand.

argparse splits the words and lays out the help; values stay text here, and are read and checked
together with all other sources by `qwenkit.options.resolve`. `--max_tokens` is as good as
`--max-tokens`.
"""

from __future__ import annotations

import argparse
import os
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from qwenkit.errors import OptionError
from qwenkit.options import Options, flag_name, suggest

_FILE = "_file"


@dataclass(frozen=True)
class Parsed:
    """What the command line said: flag values by option name, and the options file."""

    values: dict[str, Any]
    file: str | None


def parse(cls: type[Options], argv: Sequence[str], *, prog: str) -> Parsed:
    """Split `argv` into the flags of `cls`. `--help` prints and exits 0.

    With a field of its own called `config`, or when trained from a recipe, the options file is the
    first positional; else it is `--config FILE`. Errors: OptionError, unknown flags with the
    nearest known one.
    """
    parser = build_parser(cls, prog=prog)
    known, extra = parser.parse_known_args(_tidy(argv, parser))
    if extra:
        raise _unexpected(cls, extra[0], prog)
    values = vars(known)
    file = values.pop(_FILE, None)
    return Parsed(values, file)


def build_parser(cls: type[Options], *, prog: str) -> argparse.ArgumentParser:
    """The parser of one verb; every default is "not given"."""
    parser = _Parser(
        prog=prog,
        usage=_usage(cls, prog),
        description=(cls.__doc__ or "").strip(),
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    arguments = parser.add_argument_group("arguments")
    groups: dict[str, Any] = {"options": parser.add_argument_group("options")}
    if takes_recipe(cls):
        arguments.add_argument(
            _FILE, nargs="?", metavar="CONFIG.yaml", help="options, flat or by sections"
        )
    for name in cls.model_fields:
        group = cls.flag(name).group
        groups.setdefault(group, parser.add_argument_group(group))
        _add(arguments if cls.flag(name).positional else groups[group], cls, name)
    if not takes_recipe(cls):
        groups["options"].add_argument(
            "--config", dest=_FILE, metavar="FILE.yaml", help="read options from"
        )
    groups["options"].add_argument("-h", "--help", action="help", help="show this help and stop")
    return parser


def _usage(cls: type[Options], prog: str) -> str:
    places = [cls.flag(name).metavar for name in cls.model_fields if cls.flag(name).positional]
    places += ["CONFIG.yaml"] if takes_recipe(cls) else []
    return " ".join([prog, *(f"[{place}]" for place in places), "[options]"])


def takes_recipe(cls: type[Options]) -> bool:
    """Whether the verb reads its options file as a positional argument (the training verbs do)."""
    return cls.group == "train"


def _add(group: Any, cls: type[Options], name: str) -> None:
    field, flag = cls.model_fields[name], cls.flag(name)
    kinds = _plain(field.annotation)
    text = (field.description or "").replace("%", "%%") + _default_text(
        field.default, field.is_required()
    )
    if flag.positional:
        group.add_argument(cls.key(name), nargs="?", metavar=flag.metavar, help=text)
        return
    names = [f"-{flag.short}"] if flag.short else []
    names.append(flag_name(cls.key(name)))
    hidden = [flag_name(alias) for alias in flag.aliases]
    arguments: dict[str, Any] = {"dest": cls.key(name), "help": text}
    if bool in kinds:
        arguments["action"] = "store_const"
        group.add_argument(*names, const="true", **arguments)
        hidden_off = flag_name("no_" + cls.key(name))
        arguments["help"] = (
            argparse.SUPPRESS if field.default is False else f"switch {names[-1]} off"
        )
        group.add_argument(hidden_off, const="false", **arguments)
    else:
        choices = [value for value in typing.get_args(field.annotation) if isinstance(value, str)]
        arguments["metavar"] = flag.metavar or ("|".join(choices) if choices else "N")
        if list in kinds:
            arguments["action"] = "append"
        group.add_argument(*names, **arguments)
    if hidden:
        arguments["help"] = argparse.SUPPRESS
        extra = {"const": "true"} if bool in kinds else {}
        group.add_argument(*hidden, **arguments, **extra)


def _plain(annotation: Any) -> set[Any]:
    parts = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    return {origin or annotation, *(typing.get_origin(part) or part for part in parts)}


def _default_text(default: Any, required: bool) -> str:
    if required:
        return " (required)"
    shown = default not in (None, False, [], "")
    text = ", ".join(default) if isinstance(default, list) else default
    return f" (default: {text})" if shown and default is not True else ""


def _tidy(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Flags in kebab-case, and values that look like flags (`-p "-5 + 3?"`) tied to theirs."""
    takes_value = {
        name: action.nargs != 0 for action in parser._actions for name in action.option_strings
    }
    words = list(argv)
    tail = words[words.index("--") :] if "--" in words else []
    head = words[: len(words) - len(tail)]
    tidy: list[str] = []
    while head:
        word = _kebab(head.pop(0))
        odd = head and head[0].startswith("-") and len(head[0]) > 1
        if takes_value.get(word) and odd and _kebab(head[0]).partition("=")[0] not in takes_value:
            word = f"{word}={head.pop(0)}" if word.startswith("--") else word + head.pop(0)
        tidy.append(word)
    return tidy + tail


def _kebab(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _unexpected(cls: type[Options], word: str, prog: str) -> OptionError:
    if word.startswith("-") and len(word) > 1:
        name = word.partition("=")[0]
        flags = {flag_name(known): field for known, field in cls.names().items()}
        near = suggest(name, [*flags, "--config", "--help"])
        hint = f"Did you mean {near}?" if near else f"See `{prog} --help`."
        if near in flags and cls.flag(flags[near]).positional:
            hint = f"Write it without: `{prog} {cls.flag(flags[near]).metavar}`."
        return OptionError(f"{name} is not a flag of `{prog}`.", hint)
    if "prompt" in cls.model_fields:
        return OptionError(
            f"{word!r} is one word too many.", f'Write `{prog} [MODEL] -p "your prompt"`.'
        )
    return OptionError(f"{word!r} is one word too many for `{prog}`.", f"See `{prog} --help`.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(
            message[:1].upper() + message[1:].rstrip(".") + ".", f"See `{self.prog} --help`."
        )

    def print_help(self, file: Any = None) -> None:
        self._print_message(self.format_help(), file or sys.stdout)


class _Help(argparse.HelpFormatter):
    """Help at most 96 columns wide, with room for the longest flag."""

    def __init__(self, prog: str, **_: Any) -> None:
        width = min(int(os.environ.get("COLUMNS") or 0) or _terminal_width(), 96)
        super().__init__(prog, max_help_position=30, width=width)


def _terminal_width() -> int:
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, 40)
    except (OSError, ValueError, AttributeError):
        return 80
