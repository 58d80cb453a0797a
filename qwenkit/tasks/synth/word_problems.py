"""Word problems of one or two steps with small whole numbers.

A problem is a template over one of `KINDS`: the kind draws numbers and names the intermediate
results, the template tells the story and places the equations. Sums and differences of two-digit
numbers are first worked out digit by digit, a line each, before the sentence states them. All
results are whole, positive and below 200; nothing in the text is a distraction. Not covered:
fractions, conversion of units, more than two steps.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Mapping

from qwenkit.tasks.synth import pools
from qwenkit.tasks.synth.arithmetic import compact_difference, compact_sum
from qwenkit.tasks.synth.dialogue import NumberSkill, answer_line

Numbers = dict[str, int]


def draw_add(rng: random.Random) -> Numbers:
    """a + b = r."""
    a, b = rng.randint(2, 60), rng.randint(2, 39)
    return {"a": a, "b": b, "r": a + b}


def draw_subtract(rng: random.Random) -> Numbers:
    """a - b = r."""
    a = rng.randint(6, 99)
    b = rng.randint(2, a - 2)
    return {"a": a, "b": b, "r": a - b}


def draw_multiply(rng: random.Random) -> Numbers:
    """a × b = r."""
    a, b = rng.randint(2, 10), rng.randint(2, 10)
    return {"a": a, "b": b, "r": a * b}


def draw_divide(rng: random.Random) -> Numbers:
    """a ÷ b = r, exactly."""
    b, r = rng.randint(2, 9), rng.randint(2, 10)
    return {"a": b * r, "b": b, "r": r}


def draw_add_subtract(rng: random.Random) -> Numbers:
    """a + b = m, m - c = r."""
    a, b = rng.randint(5, 50), rng.randint(2, 30)
    c = rng.randint(2, a + b - 2)
    return {"a": a, "b": b, "m": a + b, "c": c, "r": a + b - c}


def draw_compare(rng: random.Random) -> Numbers:
    """a + b = m, a + m = r."""
    a, b = rng.randint(3, 40), rng.randint(2, 19)
    return {"a": a, "b": b, "m": a + b, "r": a + a + b}


def draw_multiply_add(rng: random.Random) -> Numbers:
    """a × b = m, m + c = r."""
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 18)
    return {"a": a, "b": b, "m": a * b, "c": c, "r": a * b + c}


def draw_multiply_subtract(rng: random.Random) -> Numbers:
    """a × b = m, m - c = r."""
    a, b = rng.randint(2, 9), rng.randint(3, 9)
    c = rng.randint(2, min(19, a * b - 2))
    return {"a": a, "b": b, "m": a * b, "c": c, "r": a * b - c}


def draw_subtract_divide(rng: random.Random) -> Numbers:
    """a - c = m, m ÷ b = r, exactly."""
    b, r, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 18)
    return {"a": b * r + c, "c": c, "m": b * r, "b": b, "r": r}


KINDS: dict[str, Callable[[random.Random], Numbers]] = {
    "a+b": draw_add,
    "a-b": draw_subtract,
    "a×b": draw_multiply,
    "a÷b": draw_divide,
    "a+b-c": draw_add_subtract,
    "a+(a+b)": draw_compare,
    "a×b+c": draw_multiply_add,
    "a×b-c": draw_multiply_subtract,
    "(a-c)÷b": draw_subtract_divide,
}
# One step: {a}+{b}={r} and so on; two steps: the first result is m.
EQUATIONS = {
    "a+b": "{a}+{b}={r}",
    "a-b": "{a}-{b}={r}",
    "a×b": "{a}×{b}={r}",
    "a÷b": "{a}÷{b}={r}",
    "a+b-c": ("{a}+{b}={m}", "{m}-{c}={r}"),
    "a+(a+b)": ("{a}+{b}={m}", "{a}+{m}={r}"),
    "a×b+c": ("{a}×{b}={m}", "{m}+{c}={r}"),
    "a×b-c": ("{a}×{b}={m}", "{m}-{c}={r}"),
    "(a-c)÷b": ("{a}-{c}={m}", "{m}÷{b}={r}"),
}
"""The equations of each kind, in order; the reasoning of a template holds exactly these."""


class WordProblems(NumberSkill):
    """Stories with a number to find."""

    name = "word_problems"

    def turn(self, rng: random.Random, lang: str) -> tuple[str, str]:
        kind, story, reasoning = rng.choice(TEMPLATES[lang])
        numbers = KINDS[kind](rng)
        words: Mapping[str, str] = draw_words(rng, lang)
        equations = EQUATIONS[kind]
        parts = (equations,) if isinstance(equations, str) else equations
        filled = {f"e{i + 1}": part.format(**numbers) for i, part in enumerate(parts)}
        question = story.format(**numbers, **words)
        answer = reasoning.format(**numbers, **words, **filled)
        return question, "\n".join(
            [*work(filled.values(), lang), answer, answer_line(lang, numbers["r"])]
        )


def work(equations: Collection[str], lang: str) -> list[str]:
    """A line for each sum or difference that has a number of two digits: its digits, then its
    result.
    """
    lines = []
    for equation in equations:
        task, result = equation.split("=")
        left, sign, right = re.split(r"([-+×÷])", task)
        if sign in "+-" and max(len(left), len(right)) > 1:
            digits = {"+": compact_sum, "-": compact_difference}[sign]
            end = ", so " if lang == "en" else "，得"
            lines.append(digits(int(left), int(right), lang) + end + result)
        else:
            lines.append(equation)
    return lines if any(line not in equations for line in lines) else []


def draw_words(rng: random.Random, lang: str) -> dict[str, str]:
    """Two different names, and a thing with its measure word (Chinese) or its plural (English)."""
    first, second = rng.sample(pools.NAMES[lang], 2)
    if lang == "en":
        return {"x": first, "y": second, "t": rng.choice(pools.THINGS_EN)}
    thing, measure = rng.choice(pools.THINGS_ZH)
    return {"x": first, "y": second, "t": thing, "n": measure}


TEMPLATES: dict[str, list[tuple[str, str, str]]] = {
    "en": [
        ("a+b", "{x} has {a} {t} and buys {b} more. How many {t} does {x} have now?",
         "{x} has {e1} {t}."),
        ("a+b", "{x} has {a} {t} and {y} has {b} {t}. How many {t} do they have together?",
         "Together they have {e1} {t}."),
        ("a+b", "There are {a} girls and {b} boys at a camp. How many children are there?",
         "There are {e1} children."),
        ("a+b", "{x} read {a} pages yesterday and {b} pages today. How many pages is that in all?",
         "In all {e1} pages."),
        ("a+b", "{x} is {a} years old. How old will {x} be in {b} years?",
         "{x} will be {e1} years old."),
        ("a-b", "{x} has {a} {t} and gives {b} of them to {y}. How many {t} are left?",
         "{e1} {t} are left."),
        ("a-b", "There were {a} people on a bus. {b} of them got off. How many are still on it?",
         "{e1} people are still on the bus."),
        ("a-b", "A shop had {a} {t} and sold {b} of them. How many {t} does it have left?",
         "The shop has {e1} {t} left."),
        ("a-b", "A book has {a} pages and {x} has read {b} of them. "
         "How many pages are left to read?",
         "{e1} pages are left."),
        ("a-b", "{x} has {a} {t} and {y} has {b}. How many more {t} does {x} have than {y}?",
         "{x} has {e1} more {t}."),
        ("a×b", "There are {a} boxes with {b} {t} in each box. How many {t} are there in all?",
         "There are {e1} {t}."),
        ("a×b", "One ticket costs {a} dollars. How many dollars do {b} tickets cost?",
         "They cost {e1} dollars."),
        ("a×b", "{x} reads {a} pages every day. How many pages does {x} read in {b} days?",
         "{x} reads {e1} pages."),
        ("a×b", "A garden has {a} rows of {b} trees. How many trees are there in the garden?",
         "There are {e1} trees."),
        ("a÷b", "{x} shares {a} {t} equally among {b} friends. How many {t} does each friend get?",
         "Each friend gets {e1} {t}."),
        ("a÷b", "{a} {t} are packed into boxes of {b}. How many boxes are needed?",
         "{e1} boxes are needed."),
        ("a÷b", "{a} children form {b} teams of the same size. How many children are in each team?",
         "There are {e1} children in each team."),
        ("a+b-c", "{x} has {a} {t}, gets {b} more and then gives {c} to {y}. "
         "How many {t} does {x} have now?",
         "First {x} has {e1} {t}. Then {x} has {e2} {t}."),
        ("a+b-c", "A bus carries {a} people. At a stop {b} people get on and {c} get off. "
         "How many people are on the bus now?",
         "After {b} get on: {e1} people. After {c} get off: {e2} people."),
        ("a+(a+b)", "{x} has {a} {t}. {y} has {b} more than {x}. "
         "How many {t} do they have together?",
         "{y} has {e1} {t}. Together they have {e2} {t}."),
        ("a×b+c", "{x} buys {a} bags with {b} {t} in each bag and finds {c} more {t} at home. "
         "How many {t} does {x} have now?",
         "The bags hold {e1} {t}. In all {x} has {e2} {t}."),
        ("a×b+c", "{x} buys {a} pens at {b} dollars each and a bag for {c} dollars. "
         "How many dollars does {x} pay?",
         "The pens cost {e1} dollars. In all {x} pays {e2} dollars."),
        ("a×b-c", "{x} has {a} boxes with {b} {t} in each and gives {c} {t} to {y}. "
         "How many {t} does {x} have left?",
         "The boxes hold {e1} {t}. {x} has {e2} {t} left."),
        ("(a-c)÷b", "{x} has {a} {t}, keeps {c} and shares the rest equally among {b} friends. "
         "How many {t} does each friend get?",
         "The rest is {e1} {t}. Each friend gets {e2} {t}."),
    ],
    "zh": [
        ("a+b", "{x}有{a}{n}{t}，又买了{b}{n}。{x}现在一共有多少{n}{t}？",
         "{x}现在有{e1}{n}{t}。"),
        ("a+b", "{x}有{a}{n}{t}，{y}有{b}{n}{t}。他们一共有多少{n}{t}？",
         "他们一共有{e1}{n}{t}。"),
        ("a+b", "夏令营里有{a}名女生和{b}名男生。一共有多少名学生？",
         "一共有{e1}名学生。"),
        ("a+b", "{x}昨天看了{a}页书，今天看了{b}页。两天一共看了多少页？",
         "两天一共看了{e1}页。"),
        ("a+b", "{x}今年{a}岁，{b}年后{x}多少岁？",
         "{b}年后{x}{e1}岁。"),
        ("a-b", "{x}有{a}{n}{t}，送给{y}{b}{n}。{x}还剩多少{n}{t}？",
         "{x}还剩{e1}{n}{t}。"),
        ("a-b", "公共汽车上有{a}人，到站后下车{b}人。车上还有多少人？",
         "车上还有{e1}人。"),
        ("a-b", "商店里有{a}{n}{t}，卖出了{b}{n}。还剩多少{n}{t}？",
         "还剩{e1}{n}{t}。"),
        ("a-b", "一本书有{a}页，{x}已经看了{b}页。还有多少页没看？",
         "还有{e1}页没看。"),
        ("a-b", "{x}有{a}{n}{t}，{y}有{b}{n}。{x}比{y}多多少{n}？",
         "{x}比{y}多{e1}{n}。"),
        ("a×b", "有{a}个盒子，每个盒子里有{b}{n}{t}。一共有多少{n}{t}？",
         "一共有{e1}{n}{t}。"),
        ("a×b", "一张票{a}元，买{b}张票要多少元？",
         "要{e1}元。"),
        ("a×b", "{x}每天看{a}页书，{b}天一共看多少页？",
         "一共看{e1}页。"),
        ("a×b", "果园里有{a}排树，每排{b}棵。果园里一共有多少棵树？",
         "一共有{e1}棵树。"),
        ("a÷b", "{x}把{a}{n}{t}平均分给{b}个朋友。每个朋友分到多少{n}？",
         "每个朋友分到{e1}{n}。"),
        ("a÷b", "有{a}{n}{t}，每{b}{n}装一盒。可以装多少盒？",
         "可以装{e1}盒。"),
        ("a÷b", "{a}名学生平均分成{b}组。每组有多少名学生？",
         "每组有{e1}名学生。"),
        ("a+b-c", "{x}有{a}{n}{t}，又得到{b}{n}，后来送给{y}{c}{n}。{x}现在有多少{n}{t}？",
         "先有{e1}{n}，后来有{e2}{n}。"),
        ("a+b-c", "车上有{a}人，到站后上来{b}人，下去{c}人。车上现在有多少人？",
         "上来以后有{e1}人，下去以后有{e2}人。"),
        ("a+(a+b)", "{x}有{a}{n}{t}，{y}比{x}多{b}{n}。两人一共有多少{n}{t}？",
         "{y}有{e1}{n}，两人一共有{e2}{n}。"),
        ("a×b+c", "{x}买了{a}袋{t}，每袋{b}{n}，家里还有{c}{n}。{x}一共有多少{n}{t}？",
         "买了{e1}{n}，一共有{e2}{n}。"),
        ("a×b+c", "{x}买了{a}支笔，每支{b}元，又买了一个{c}元的书包。{x}一共花了多少元？",
         "买笔花了{e1}元，一共花了{e2}元。"),
        ("a×b-c", "{x}有{a}盒{t}，每盒{b}{n}，送给{y}{c}{n}。{x}还剩多少{n}{t}？",
         "原来有{e1}{n}，还剩{e2}{n}。"),
        ("(a-c)÷b", "{x}有{a}{n}{t}，自己留下{c}{n}，"
         "剩下的平均分给{b}个朋友。每个朋友分到多少{n}？",
         "剩下{e1}{n}，每个朋友分到{e2}{n}。"),
    ],
}  # fmt: skip
