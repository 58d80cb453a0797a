"""From words to a verb, and to the function that does the work, imported when needed.

A verb's function takes its options and returns an exit code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qwenkit.cli.overview import VERBS, Verb
from qwenkit.errors import OptionError
from qwenkit.options import suggest

ALIASES = {"ls": "list"}


def find(words: Sequence[str]) -> tuple[Verb | None, list[str]]:
    """The verb and the rest; (None, []) asks for the list of `train`. Errors: OptionError."""
    table = {verb.words: verb for verb in VERBS}
    first = ALIASES.get(words[0], words[0])
    if first == "train":
        return _find_train(words, table)
    if first == "config-schema" and list(words[1:2]) == ["train"] and len(words) > 2:
        return table[first], [" ".join(words[1:3]), *words[3:]]
    if first in table:
        return table[first], list(words[1:])
    near = suggest(first, [*table, "train", "help"])
    hint = f"Did you mean {near}?" if near else "See `qwenkit --help`."
    raise OptionError(f"{words[0]!r} is not a verb of qwenkit.", hint)


def _find_train(words: Sequence[str], table: dict[str, Verb]) -> tuple[Verb | None, list[str]]:
    if list(words[1:2]) in ([], ["-h"], ["--help"]):
        return None, []
    found = table.get(f"train {words[1]}")
    if found is not None:
        return found, list(words[2:])
    kinds = [name.removeprefix("train ") for name in table if name.startswith("train ")]
    near = suggest(words[1], kinds)
    hint = f"Did you mean {near}?" if near else f"There are {', '.join(kinds)}."
    raise OptionError(f"`qwenkit train {words[1]}` does not exist.", hint)


def work(verb: Verb) -> Callable[[Any], int]:
    """The function of a verb."""
    match verb.words:
        case "chat":
            from qwenkit.cli.chat import chat

            return chat
        case "run":
            from qwenkit.cli.run import run

            return run
        case "serve":
            from qwenkit.cli.serve import serve

            return serve
        case "pull":
            from qwenkit.cli.models import pull

            return pull
        case "list":
            from qwenkit.cli.models import show_list

            return show_list
        case "show":
            from qwenkit.cli.show import show

            return show
        case "family":
            from qwenkit.cli.plan import family

            return family
        case "plan":
            from qwenkit.cli.plan import plan

            return plan
        case "train tokenizer":
            from qwenkit.cli.train import tokenizer

            return tokenizer
        case "train pretrain":
            from qwenkit.cli.train import pretrain

            return pretrain
        case "train sft":
            from qwenkit.cli.train import sft

            return sft
        case "eval":
            from qwenkit.cli.train import evaluate

            return evaluate
        case "doctor":
            from qwenkit.cli.doctor import doctor

            return doctor
        case _:
            from qwenkit.cli.schema import schema

            return schema
