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
    """The verb and the rest; (None, []) asks for the list of a group. Errors: OptionError."""
    table = {verb.words: verb for verb in VERBS}
    groups = {name.partition(" ")[0] for name in table if " " in name}
    first = ALIASES.get(words[0], words[0])
    if first in groups:
        return _find_in(first, words[1:], table)
    if first == "config-schema" and list(words[1:2]) == ["train"] and len(words) > 2:
        return table[first], [" ".join(words[1:3]), *words[3:]]
    if first in table:
        return table[first], list(words[1:])
    near = suggest(first, [*table, *groups, "help"])
    hint = f"Did you mean {near}?" if near else "See `qwenkit --help`."
    raise OptionError(f"{words[0]!r} is not a verb of qwenkit.", hint)


def _find_in(
    group: str, words: Sequence[str], table: dict[str, Verb]
) -> tuple[Verb | None, list[str]]:
    """A verb of two words, the first of which is known."""
    if list(words[:1]) in ([], ["-h"], ["--help"]):
        return None, []
    found = table.get(f"{group} {words[0]}")
    if found is not None:
        return found, list(words[1:])
    kinds = [name.removeprefix(f"{group} ") for name in table if name.startswith(f"{group} ")]
    near = suggest(words[0], kinds)
    hint = f"Did you mean {near}?" if near else f"There are {', '.join(kinds)}."
    raise OptionError(f"`qwenkit {group} {words[0]}` does not exist.", hint)


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
        case "bench decode":
            from qwenkit.cli.bench import decode

            return decode
        case "bench prefill":
            from qwenkit.cli.bench import prefill

            return prefill
        case "bench batch":
            from qwenkit.cli.bench import batch

            return batch
        case "dev random-checkpoint":
            from qwenkit.cli.dev import random_checkpoint

            return random_checkpoint
        case "doctor":
            from qwenkit.cli.doctor import doctor

            return doctor
        case _:
            from qwenkit.cli.schema import schema

            return schema
