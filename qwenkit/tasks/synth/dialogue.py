"""A skill that answers in plain text: one question, one right answer; now and then two in a chat.

A subclass writes `turn(rng, lang) -> (question, answer)`; this class makes the `Example`. In a chat
of two turns both questions belong to the split of the whole chat, so that no question of the
held-out split is ever trained on, not even as the first turn. Not covered: tools, raw completions.
"""

from __future__ import annotations

import abc
import random
import re
from typing import Any

from qwenkit.tasks.base import Example

TWO_TURN_SHARE = 0.15
MAX_DRAWS = 2000
FINAL_NUMBER = re.compile(r"(?:Answer|答案)[:：] ?(-?\d+)")


class TextSkill(abc.ABC):
    """Base of the skills whose answer is text. `name` is the key in `TASKS`."""

    name: str

    @abc.abstractmethod
    def turn(self, rng: random.Random, lang: str) -> tuple[str, str]:
        """One question and its right answer."""

    def sample(self, rng: random.Random, lang: str) -> Example:
        """Draw a chat of one turn, or (15 %) of two independent turns."""
        question, answer = self.turn(rng, lang)
        single = self.example(lang, [(question, answer)])
        if rng.random() >= TWO_TURN_SHARE:
            return single
        for _ in range(MAX_DRAWS):
            turns = [(question, answer), self.turn(rng, lang)]
            both = self.example(lang, turns)
            parts = {single.is_held_out(), self.example(lang, turns[1:]).is_held_out()}
            if turns[0][0] != turns[1][0] and parts == {both.is_held_out()}:
                return both
        return single

    def example(self, lang: str, turns: list[tuple[str, str]]) -> Example:
        """The chat of these turns."""
        messages: list[dict[str, Any]] = []
        for question, answer in turns:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return Example(skill=self.name, lang=lang, messages=messages)

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """Right when the text equals the gold answer (outer white space aside), without a call."""
        return not answer.get("tool_calls") and answer["content"].strip() == gold(example)


class NumberSkill(TextSkill):
    """A text skill of which only the number on the last "Answer:" line counts."""

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """Right when the last "Answer:" (or "答案:") number is the gold one, without a call."""
        if answer.get("tool_calls"):
            return False
        found = final_number(answer["content"])
        return found is not None and found == final_number(gold(example))


def gold(example: Example) -> str:
    """The right answer's text."""
    assert example.messages is not None
    content = example.messages[-1]["content"]
    assert isinstance(content, str)
    return content


def final_number(text: str) -> int | None:
    """The number after the last "Answer:" or "答案:"; None if there is none."""
    found = FINAL_NUMBER.findall(text)
    return int(found[-1]) if found else None


def answer_line(lang: str, number: int) -> str:
    """The line that ends every answer whose result is a number."""
    return f"Answer: {number}" if lang == "en" else f"答案：{number}"
