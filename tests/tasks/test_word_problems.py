"""Word problems: right equations, made of the question's numbers, that lead to the answer."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from qwenkit.tasks.base import LANGUAGES, examples
from qwenkit.tasks.synth import TASKS
from qwenkit.tasks.synth.dialogue import final_number
from qwenkit.tasks.synth.word_problems import EQUATIONS, KINDS, TEMPLATES

TASK = TASKS["word_problems"]
EQUATION = re.compile(r"(\d+)([-+×÷])(\d+)=(\d+)")


def apply(a: int, sign: str, b: int) -> int:
    if sign == "÷":
        assert a % b == 0
        return a // b
    return {"+": a + b, "-": a - b, "×": a * b}[sign]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_reasoning_holds(lang: str) -> None:
    for example in islice(examples(TASK, lang, 4, held_out=False), 3000):
        assert example.messages is not None
        for question, answer in zip(example.messages[::2], example.messages[1::2], strict=True):
            known = Counter(int(n) for n in re.findall(r"\d+", question["content"]))
            *lines, reasoning, _ = answer["content"].split("\n")
            equations = EQUATION.findall(reasoning)
            check_work(lines, equations)
            assert 1 <= len(equations) <= 2
            result = None
            for left, sign, right, stated in equations:
                a, b, result = int(left), int(right), int(stated)
                assert a in known and b in known, (question, answer)
                assert apply(a, sign, b) == result
                assert 0 < result < 200 and a < 200 and b < 100
                known[result] += 1
            assert result == final_number(answer["content"])
            assert "{" not in question["content"] + answer["content"]


def check_work(lines: list[str], equations: list[tuple[str, str, str, str]]) -> None:
    """Each line restates its equation (padded) and ends in its result; all its steps are right."""
    wide = [a for a in equations if a[1] in "+-" and max(len(a[0]), len(a[2])) > 1]
    assert len(lines) == (len(equations) if wide else 0)
    for line, (left, sign, right, result) in zip(lines, equations, strict=False):
        if (left, sign, right, result) not in wide:
            assert line == f"{left}{sign}{right}={result}"
            continue
        head = re.match(r"(\d+)([-+])(\d+)", line)
        assert head and (int(head[1]), head[2], int(head[3])) == (int(left), sign, int(right))
        assert re.search(r"\d+$", line)[0] == result  # type: ignore[index]
        steps = re.findall(r"([-+\d]+)=(\d+)", line)
        assert len(steps) == len(head[1])
        for terms, stated in steps:
            parts = [int(part) for part in re.findall(r"[-+]?\d+", terms)]
            assert sum(parts) == int(stated)
        digits = [stated[-1] for _, stated in steps]
        lead = steps[-1][1][:-1] if sign == "+" else ""
        assert int(lead + "".join(reversed(digits))) == int(result)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_templates_are_complete(lang: str) -> None:
    templates = TEMPLATES[lang]
    assert len(templates) >= 15
    assert {kind for kind, _, _ in templates} == set(KINDS) == set(EQUATIONS)
    for kind, story, reasoning in templates:
        letters = set(re.findall(r"[abc]", kind))
        assert letters == set(re.findall(r"\{([abc])\}", story)), story
        steps = 1 if isinstance(EQUATIONS[kind], str) else 2
        assert re.findall(r"\{(e\d)\}", reasoning) == ["e1", "e2"][:steps]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_wrong_number_is_refused(lang: str) -> None:
    for example in islice(examples(TASK, lang, 9, held_out=True), 100):
        assert example.messages is not None
        answer = example.messages[-1]["content"]
        right = final_number(answer)
        assert right is not None
        assert TASK.score(example, {"content": answer})
        assert not TASK.score(example, {"content": answer.replace(str(right), str(right + 1))})
        assert not TASK.score(example, {"content": answer.split("\n")[0]})
