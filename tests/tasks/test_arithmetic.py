"""Arithmetic: every step checked by parsing the text, against Python's own arithmetic."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from qwenkit.tasks.base import LANGUAGES, Example, examples
from qwenkit.tasks.synth import TASKS
from qwenkit.tasks.synth.arithmetic import addition, multiplication, subtraction
from qwenkit.tasks.synth.dialogue import final_number

TASK = TASKS["arithmetic"]
OPERATION = re.compile(
    r"(\d+)(?: ?([-+×*]) ?| (x|plus|minus|times|multiplied by) |(加上?|减去?|乘以?))(\d+)"
)
SIGNS = {"plus": "+", "加": "+", "加上": "+", "minus": "-", "减": "-", "减去": "-"}


def turns(example: Example) -> list[tuple[str, str]]:
    assert example.messages is not None
    texts = [message["content"] for message in example.messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def asked(question: str) -> tuple[int, str, int]:
    found = OPERATION.search(question)
    assert found, question
    a, *signs, b = found.groups()
    sign = next(sign for sign in signs if sign)
    return int(a), SIGNS.get(sign, sign if sign in "+-" else "×"), int(b)


def value(expression: str) -> int:
    """× before + and −, on unsigned numbers; independent of the generator."""
    total, sign = 0, 1
    for term in re.findall(r"[-+]|[\d×]+", expression):
        if term in "+-":
            sign = 1 if term == "+" else -1
            continue
        product = 1
        for factor in term.split("×"):
            product *= int(factor)
        total += sign * product
    return total


def check_equations(text: str) -> int:
    """All members of each chain a=b=c are equal; returns how many chains there were."""
    chains = re.findall(r"[\d+×-]+(?:=[\d+×-]+)+", text)
    for chain in chains:
        assert len({value(member) for member in chain.split("=")}) == 1, (chain, text)
    return len(chains)


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("held_out", [False, True])
def test_samples_are_right(lang: str, held_out: bool) -> None:
    for example in islice(examples(TASK, lang, 5, held_out=held_out), 800):
        for question, answer in turns(example):
            a, sign, b = asked(question)
            expected = {"+": a + b, "-": a - b, "×": a * b}[sign]
            assert final_number(answer) == expected, (question, answer)
            assert answer.endswith(str(expected))
            assert check_equations(answer) >= 1
            assert ("Answer: " in answer) == (lang == "en")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_written_digits_make_the_result(lang: str) -> None:
    rng = random.Random(3)
    write = re.compile(r"write (\d) carry (\d)|写(\d)进(\d)")
    digit = re.compile(r"=(\d), ?borrow|=(\d)，借")
    for _ in range(2000):
        a, b = rng.randrange(1000), rng.randrange(1000)
        written = ["".join(pair) for pair in write.findall(addition(a, b, lang))]
        number = int(written[-1][::-1] + "".join(pair[0] for pair in reversed(written[:-1])))
        assert number == a + b
        difference = subtraction(a, b, lang)
        digits = ["".join(pair) for pair in digit.findall(difference)]
        assert int("".join(reversed(digits))) == abs(a - b)
        first = difference.split("\n")[0]
        assert ("<" in first, ">" in first) == (a < b, a > b)


def test_all_small_products() -> None:
    for a in range(100):
        for b in range(100):
            text = multiplication(a, b, "en")
            assert final_number(text) == a * b
            check_equations(text)


def test_layout() -> None:
    assert addition(347, 586, "en").split("\n") == [
        "347+586",
        "ones 7+6=13, write 3 carry 1",
        "tens 4+8+1=13, write 3 carry 1",
        "hundreds 3+5+1=9, write 9 carry 0",
        "Answer: 933",
    ]
    assert subtraction(47, 586, "zh").split("\n") == [
        "047<586，算-(586-047)",
        "个位6-7<0，16-7=9，借1",
        "十位8-4-1=3，借0",
        "百位5-0-0=5，借0",
        "答案：-539",
    ]
    assert multiplication(47, 36, "en").split("\n") == [
        "47×6: 7×6=42, 4×6+4=24+4=28, so 282",
        "47×30: 7×3=21, 4×3+2=12+2=14, so 1410",
        "0282+1410: 2+0=2, 8+1+0=9, 2+4+0=6, 0+1+0=1",
        "Answer: 1692",
    ]
    assert multiplication(7, 8, "zh") == "7×8=56\n答案：56"
    assert multiplication(7, 12, "en") == multiplication(12, 7, "en")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_only_the_last_answer_line_counts(lang: str) -> None:
    example = TASK.sample(random.Random(8), lang)
    answer = turns(example)[-1][1]
    right = final_number(answer)
    assert right is not None
    assert TASK.score(example, {"content": answer})
    assert TASK.score(example, {"content": f"Answer: {right}"})
    assert TASK.score(example, {"content": f"Answer: {right + 1}\n答案：{right}"})
    assert not TASK.score(example, {"content": f"Answer: {right}\nAnswer: {right + 1}"})
    assert not TASK.score(example, {"content": f"Answer: {right}0"})
    assert not TASK.score(example, {"content": str(right)})
    assert not TASK.score(example, {"content": ""})
    assert not TASK.score(example, {"content": answer, "tool_calls": [{"function": {}}]})


@pytest.mark.parametrize("name", ["identity", "arithmetic", "word_problems", "translation"])
@pytest.mark.parametrize("lang", LANGUAGES)
def test_splits_and_seeds(name: str, lang: str) -> None:
    """For all text skills: determinism, a tenth held out, no shared question, two-turn chats."""
    task = TASKS[name]
    drawn = [task.sample(random.Random(seed), lang) for seed in range(2000)]
    again = [task.sample(random.Random(seed), lang) for seed in range(100)]
    assert drawn[:100] == again
    assert all(example.skill == name and example.lang == lang for example in drawn)
    assert 0.07 < sum(example.is_held_out() for example in drawn) / len(drawn) < 0.13
    assert 0.1 < sum(len(turns(example)) == 2 for example in drawn) / len(drawn) < 0.2
    assert all(task.score(example, {"content": turns(example)[-1][1]}) for example in drawn)
    trained = {
        question
        for example in islice(examples(task, lang, 1, held_out=False), 3000)
        for question, _ in turns(example)
    }
    tested = {
        question
        for example in islice(examples(task, lang, 2, held_out=True), 300)
        for question, _ in turns(example)
    }
    assert trained.isdisjoint(tested)
    assert len(trained) > 2000 and len(tested) > 200
