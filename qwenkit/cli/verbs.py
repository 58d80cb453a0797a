"""From words to a verb, and to the function that does the work, imported when needed.

A verb's function takes its options and returns an exit code.
"""

from __future__ import annotations

import importlib
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


_WORK = {
    "chat": ("chat", "chat"),
    "run": ("run", "run"),
    "serve": ("serve", "serve"),
    "pull": ("models", "pull"),
    "list": ("models", "show_list"),
    "show": ("show", "show"),
    "family": ("plan", "family"),
    "plan": ("plan", "plan"),
    "train tokenizer": ("train", "tokenizer"),
    "train pretrain": ("train", "pretrain"),
    "train sft": ("train", "sft"),
    "eval": ("train", "evaluate"),
    "bench decode": ("bench", "decode"),
    "bench prefill": ("bench", "prefill"),
    "bench batch": ("bench", "batch"),
    "dev random-checkpoint": ("dev", "random_checkpoint"),
    "doctor": ("doctor", "doctor"),
    "config-schema": ("schema", "schema"),
}
"""Where the function of each verb is; nothing is imported before it is wanted."""


def work(verb: Verb) -> Callable[[Any], int]:
    """The function of a verb."""
    module, name = _WORK[verb.words]
    found: Callable[[Any], int] = getattr(importlib.import_module(f"qwenkit.cli.{module}"), name)
    return found
