"""A task makes examples and scores answers; the same object trains and evaluates.

An `Example` is either a chat (`messages`, the last one is the assistant's, with optional `tools`)
or a raw completion (`prompt` → `completion`, special tokens in them are meant). A `Task` draws
examples from a `random.Random`, so a seed names a data set, and decides whether an output is right.

The held-out split is a property of the example and not of the seed: `is_held_out` hashes what the
model is asked. Training skips those examples, evaluation uses only those, so no question can be in
both.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

LANGUAGES = ("en", "zh")
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Example:
    """One question with its right answer."""

    skill: str
    lang: str
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | None = None
    completion: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """What `score` needs beyond the gold answer (for instance unit tests of a function)."""

    def question(self) -> str:
        """What the model is given, as canonical text: the key of the held-out split."""
        if self.messages is None:
            return self.prompt or ""
        return json.dumps([self.messages[:-1], self.tools], ensure_ascii=False, sort_keys=True)

    def is_held_out(self) -> bool:
        """True for one question in ten, by its SHA-256 alone."""
        digest = hashlib.sha256(self.question().encode("utf-8")).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


class Task(Protocol):
    """A skill. `sample` must be a pure function of the generator's state."""

    name: str

    def sample(self, rng: random.Random, lang: str) -> Example:
        """Draw one example in `lang` ("en" or "zh")."""
        ...

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """Whether `answer` is exactly right. `answer` is an assistant message: `content` (str, ""
        if none) and optional `tool_calls` ([{"function": {"name": str, "arguments": dict}}]); a raw
        completion has `content`.
        """
        ...


def examples(task: Task, lang: str, seed: int, *, held_out: bool) -> Iterator[Example]:
    """Endless examples of one split; the same seed gives the same stream."""
    rng = random.Random(f"{task.name}/{lang}/{seed}/{held_out}")
    while True:
        example = task.sample(rng, lang)
        if example.is_held_out() == held_out:
            yield example
