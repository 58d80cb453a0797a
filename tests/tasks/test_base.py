"""The example, its question, and the held-out split."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

from qwenkit.tasks.base import HELD_OUT_SHARE, Example, examples


class Echo:
    """Asks for a number back."""

    name = "echo"

    def sample(self, rng: random.Random, lang: str) -> Example:
        number = str(rng.randrange(10**6))
        return Example("echo", lang, prompt=f"{lang} {number} ", completion=number)

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        return bool(answer["content"] == example.completion)


def chat(question: str, answer: str, **more: Any) -> Example:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Example("chat", "en", messages=messages, **more)


def test_the_question_leaves_the_answer_out() -> None:
    assert chat("Hi", "Hello").question() == chat("Hi", "Good day").question()
    assert chat("Hi", "Hello").question() != chat("Hi!", "Hello").question()
    assert Example("fill", "en", prompt="abc", completion="d").question() == "abc"


def test_offered_tools_are_part_of_the_question() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert chat("Hi", "Hello", tools=[tool]).question() != chat("Hi", "Hello").question()
    other = {"function": {"name": "f"}, "type": "function"}
    assert chat("a", "b", tools=[tool]).question() == chat("a", "b", tools=[other]).question()


def test_the_split_is_pinned() -> None:
    held_out = [n for n in range(60) if Example("x", "en", prompt=str(n)).is_held_out()]
    assert held_out == [9, 39, 49, 51, 55]


def test_one_question_in_ten_is_held_out() -> None:
    rng = random.Random(1)
    drawn = [Echo().sample(rng, "en") for _ in range(20000)]
    share = sum(example.is_held_out() for example in drawn) / len(drawn)
    assert abs(share - HELD_OUT_SHARE) < 0.01


def test_streams_are_determined_by_seed_and_split() -> None:
    def draw(seed: int, held_out: bool, lang: str = "en") -> list[Example]:
        return list(islice(examples(Echo(), lang, seed, held_out=held_out), 200))

    assert draw(1, True) == draw(1, True)
    assert draw(1, True) != draw(2, True)
    assert draw(1, True, "zh") != draw(1, True)
    assert all(example.is_held_out() for example in draw(3, True))
    assert not any(example.is_held_out() for example in draw(3, False))
    trained = {example.question() for example in draw(1, False)}
    assert trained.isdisjoint(example.question() for example in draw(2, True))
