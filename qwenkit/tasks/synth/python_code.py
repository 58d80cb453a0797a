"""Two skills on raw text: `python_complete` finishes a short function, `python_fill` fills in the
middle of one.

Functions come from the rows of python_functions.py and from two grammars that compose a selection,
a mapping and a collection over numbers or words. The docstring is in the language of the example;
code is code. The middle that is to be filled in starts and ends where the published tokenizer
splits, as an editor's cursor mostly does. Scoring compares syntax trees and runs nothing. Not
covered: classes, imports, several functions, equivalent but different programs.
"""

from __future__ import annotations

import ast
import random
import re
import warnings
from dataclasses import dataclass
from string import Template
from typing import Any

from qwenkit.tasks.base import Example
from qwenkit.tasks.synth.python_functions import ROWS

FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
GRAMMAR_SHARE = 0.3
"""Share of the functions that a grammar composes."""
WHOLE_LINES_SHARE = 0.5
"""Share of the fill-in examples whose middle is whole lines; in the rest it is a part of one line.
"""
MATCHED_NAMES_SHARE = 0.7
"""Share of the functions whose parameters are named alike: (left, right),
but sometimes (left, y)."""

# The pre-tokenizer's split, in Python's own syntax: [^\W\d_] is a letter.
_PIECE = re.compile(
    r"(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Function:
    """A function's source in two parts: `head` ends with the docstring's line, `body` with a
    newline.
    """

    head: str
    body: str


def _function(name: str, params: list[str], doc: str, body: str) -> Function:
    indented = "".join(f"    {line}\n" for line in body.split("\n"))
    return Function(f'def {name}({", ".join(params)}):\n    """{doc}"""\n', indented)


def _from_row(rng: random.Random, lang: str) -> Function:
    row = rng.choice(ROWS)
    choices = [param.split(",") for param in row.params.split()]
    if rng.random() < MATCHED_NAMES_SHARE and len({len(names) for names in choices}) == 1:
        index = rng.randrange(len(choices[0]))
        chosen = [names[index] for names in choices]
    else:
        chosen = [rng.choice(names) for names in choices]
    values = {names[0]: name for names, name in zip(choices, chosen, strict=True)}
    values["k"] = str(rng.randint(*row.constant))
    doc = rng.choice((row.en if lang == "en" else row.zh).split("|"))
    fill = Template(doc).substitute(values), Template(row.body).substitute(values)
    return _function(rng.choice(row.names.split("|")), chosen, *fill)


# (words of a name, English, Chinese, code); v is the loop variable, k a constant.
_SELECTIONS = (
    ("", "numbers in {xs}", "{xs}中的数", ""),
    ("even", "even numbers in {xs}", "{xs}中的偶数", " if {v} % 2 == 0"),
    ("odd", "odd numbers in {xs}", "{xs}中的奇数", " if {v} % 2 == 1"),
    ("positive", "positive numbers in {xs}", "{xs}中的正数", " if {v} > 0"),
    ("negative", "negative numbers in {xs}", "{xs}中的负数", " if {v} < 0"),
    ("large", "numbers in {xs} greater than {k}", "{xs}中大于{k}的数", " if {v} > {k}"),
    ("small", "numbers in {xs} less than {k}", "{xs}中小于{k}的数", " if {v} < {k}"),
    ("multiples", "multiples of {k} in {xs}", "{xs}中{k}的倍数", " if {v} % {k} == 0"),
)
_MAPPINGS = (
    ("", "", "", "{v}"),
    ("squares", "squares of the ", "的平方", "{v} * {v}"),
    ("cubes", "cubes of the ", "的立方", "{v} ** 3"),
    ("doubles", "doubles of the ", "的两倍", "{v} * 2"),
    ("halves", "halves of the ", "的一半", "{v} / 2"),
)
_COLLECTIONS = (
    ("list", "Return a list of the {what}.", "返回{what}的列表。", "[{code}]"),
    ("sum", "Return the sum of the {what}.", "返回{what}之和。", "sum({code})"),
    ("max", "Return the maximum of the {what}.", "返回{what}的最大值。", "max({code})"),
    ("min", "Return the minimum of the {what}.", "返回{what}的最小值。", "min({code})"),
)


def _from_numbers(rng: random.Random, lang: str) -> Function:
    """`sum(x * x for x in xs if x > 3)` and its like."""
    which, which_en, which_zh, condition = rng.choice(_SELECTIONS)
    how, how_en, how_zh, value = rng.choice(_MAPPINGS)
    end, end_en, end_zh, shape = rng.choice(_COLLECTIONS)
    words = {
        "xs": rng.choice(("xs", "numbers", "values", "data")),
        "k": str(rng.randint(2, 30)),
        "v": "x",
    }
    what = how_en + which_en if lang == "en" else which_zh + how_zh
    doc = (end_en if lang == "en" else end_zh).format(what=what.format(**words))
    code = (value + " for {v} in {xs}" + condition).format(**words)
    name = "_".join(word for word in (end, which, how) if word)
    if name == end:
        name = f"{end}_of_numbers"
    return _function(name, [words["xs"]], doc, "return " + shape.format(code=code))


_WORD_SELECTIONS = (
    ("", "words in {xs}", "{xs}中的单词", ""),
    (
        "long",
        "words in {xs} with more than {k} letters",
        "{xs}中超过{k}个字母的单词",
        " if len({v}) > {k}",
    ),
    (
        "short",
        "words in {xs} with fewer than {k} letters",
        "{xs}中少于{k}个字母的单词",
        " if len({v}) < {k}",
    ),
    (
        "starting",
        "words in {xs} that start with {c}",
        "{xs}中以{c}开头的单词",
        " if {v}.startswith({c})",
    ),
    ("ending", "words in {xs} that end with {c}", "{xs}中以{c}结尾的单词", " if {v}.endswith({c})"),
    ("containing", "words in {xs} that contain {c}", "{xs}中含有{c}的单词", " if {c} in {v}"),
)
_WORD_MAPPINGS = (
    ("", "Return the {what}.", "返回{what}。", "[{v}{rest}]"),
    ("upper", "Return the {what} in upper case.", "返回{what}，改为大写。", "[{v}.upper(){rest}]"),
    ("lower", "Return the {what} in lower case.", "返回{what}，改为小写。", "[{v}.lower(){rest}]"),
    ("lengths", "Return the lengths of the {what}.", "返回{what}的长度。", "[len({v}){rest}]"),
    ("sorted", "Return the {what}, sorted.", "返回{what}，并排序。", "sorted({v}{rest})"),
    ("count", "Count the {what}.", "统计{what}的个数。", "sum(1{rest})"),
)


def _from_words(rng: random.Random, lang: str) -> Function:
    """`[word.upper() for word in words if word.startswith("a")]` and its like."""
    which, which_en, which_zh, condition = rng.choice(_WORD_SELECTIONS)
    how, how_en, how_zh, shape = rng.choice(_WORD_MAPPINGS)
    letter = f"'{rng.choice('abcdefghijklmnopqrstuvwxyz')}'"
    words = {
        "xs": rng.choice(("words", "names", "strings", "lines")),
        "k": str(rng.randint(2, 15)),
        "c": letter,
        "v": "word",
    }
    what = (which_en if lang == "en" else which_zh).format(**words)
    doc = (how_en if lang == "en" else how_zh).format(what=what)
    rest = (" for {v} in {xs}" + condition).format(**words)
    name = "_".join(word for word in (how, which, "words") if word)
    return _function(name, [words["xs"]], doc, "return " + shape.format(v="word", rest=rest))


def draw_function(rng: random.Random, lang: str) -> Function:
    """One function with its docstring in `lang`."""
    if rng.random() >= GRAMMAR_SHARE:
        return _from_row(rng, lang)
    return rng.choice((_from_numbers, _from_words))(rng, lang)


def same_program(left: str, right: str) -> bool:
    """Whether two sources have the same syntax tree: layout and comments do not count. Runs
    nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            return ast.dump(ast.parse(left)) == ast.dump(ast.parse(right))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False


class PythonComplete:
    """Signature and docstring → the body."""

    name = "python_complete"

    def sample(self, rng: random.Random, lang: str) -> Example:
        function = draw_function(rng, lang)
        return Example(self.name, lang, prompt=function.head, completion=function.body)

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """The finished function has the gold function's syntax tree."""
        assert example.prompt is not None and example.completion is not None
        return same_program(
            example.prompt + str(answer["content"]), example.prompt + example.completion
        )


class PythonFill:
    """The text before and after a gap in a function's body → the text of the gap."""

    name = "python_fill"

    def sample(self, rng: random.Random, lang: str) -> Example:
        while True:
            function = draw_function(rng, lang)
            # The same function may be completed elsewhere: keep whole functions on one side of the
            # split.
            whole = Example(PythonComplete.name, lang, prompt=function.head)
            example = self._cut(rng, lang, function)
            if whole.is_held_out() == example.is_held_out():
                return example

    def _cut(self, rng: random.Random, lang: str, function: Function) -> Example:
        cut = _whole_lines if rng.random() < WHOLE_LINES_SHARE else _part_of_line
        start, end = cut(rng, function.body)
        before, after = function.head + function.body[:start], function.body[end:]
        prompt = f"{FIM_PREFIX}{before}{FIM_SUFFIX}{after}{FIM_MIDDLE}"
        meta = {"before": before, "after": after}
        return Example(
            self.name, lang, prompt=prompt, completion=function.body[start:end], meta=meta
        )

    def score(self, example: Example, answer: dict[str, Any]) -> bool:
        """The function with the gap filled has the gold function's syntax tree."""
        before, after = example.meta["before"], example.meta["after"]
        return same_program(
            f"{before}{answer['content']}{after}", f"{before}{example.completion}{after}"
        )


def _whole_lines(rng: random.Random, body: str) -> tuple[int, int]:
    """One to three lines of the body, without the last line's newline."""
    lines = body.splitlines(keepends=True)
    first = rng.randrange(len(lines))
    count = rng.randint(1, min(3, len(lines) - first))
    start = len("".join(lines[:first]))
    return start, start + len("".join(lines[first : first + count])) - 1


def _part_of_line(rng: random.Random, body: str) -> tuple[int, int]:
    """At least two pieces of one line, with something to say in them; never the indentation."""
    lines = body.splitlines(keepends=True)
    index = rng.randrange(len(lines))
    offset = len("".join(lines[:index]))
    line = lines[index].rstrip("\n")
    bounds = [match.start() for match in _PIECE.finditer(line) if match.group().strip()] + [
        len(line)
    ]
    if len(bounds) <= 2:
        return offset, offset + len(line)
    first = rng.randrange(len(bounds) - 2)
    last = rng.randrange(first + 2, len(bounds))
    return offset + bounds[first], offset + bounds[last]
