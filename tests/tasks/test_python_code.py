"""The gold functions are run here, on inputs with known results, in every variant of their
parameters' names.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
from collections.abc import Callable
from itertools import islice
from string import Template
from typing import Any

import pytest

from qwenkit.tasks.base import LANGUAGES, Example, examples
from qwenkit.tasks.synth import python_code
from qwenkit.tasks.synth.python_code import PythonComplete, PythonFill, draw_function, same_program
from qwenkit.tasks.synth.python_functions import ROWS, Row

K = 5
# First name and number of parameters → (arguments, result) pairs, with the constant 5.
CASES: dict[tuple[str, int], list[tuple[tuple[Any, ...], Any]]] = {
    ("is_even", 1): [((4,), True), ((7,), False), ((0,), True)],
    ("is_odd", 1): [((4,), False), ((7,), True), ((-3,), True)],
    ("square", 1): [((-3,), 9), ((12,), 144)],
    ("cube", 1): [((-3,), -27), ((2,), 8)],
    ("add_number", 1): [((2,), 7)],
    ("subtract_number", 1): [((2,), -3)],
    ("multiply", 1): [((7,), 35)],
    ("is_multiple", 1): [((35,), True), ((36,), False)],
    ("is_greater", 1): [((6,), True), ((5,), False)],
    ("is_positive", 1): [((1,), True), ((0,), False)],
    ("absolute", 1): [((-4,), 4), ((4,), 4)],
    ("sign", 1): [((-4,), -1), ((0,), 0), ((9,), 1)],
    ("factorial", 1): [((5,), 120), ((0,), 1)],
    ("fibonacci", 1): [((0,), 0), ((1,), 1), ((10,), 55)],
    ("sum_to", 1): [((100,), 5050)],
    ("is_prime", 1): [((1,), False), ((2,), True), ((91,), False), ((97,), True)],
    ("digit_sum", 1): [((1905,), 15)],
    ("count_digits", 1): [((1905,), 4)],
    ("countdown", 1): [((3,), [3, 2, 1])],
    ("divisors", 1): [((12,), [1, 2, 3, 4, 6, 12])],
    ("fizzbuzz", 1): [((15,), "FizzBuzz"), ((9,), "Fizz"), ((10,), "Buzz"), ((7,), "7")],
    ("is_leap_year", 1): [((2000,), True), ((1900,), False), ((2024,), True), ((2023,), False)],
    ("add", 2): [((2, 3), 5)],
    ("maximum", 2): [((2, 3), 3), ((3, 2), 3)],
    ("minimum", 2): [((2, 3), 2), ((3, 2), 2)],
    ("gcd", 2): [((12, 18), 6), ((7, 5), 1)],
    ("power", 2): [((2, 10), 1024), ((5, 0), 1)],
    ("safe_divide", 2): [((1, 0), None), ((9, 2), 4.5)],
    ("distance", 2): [((2, 9), 7), ((9, 2), 7)],
    ("clamp", 3): [((1, 2, 4), 2), ((3, 2, 4), 3), ((9, 2, 4), 4)],
    ("in_range", 3): [((1, 2, 4), False), ((4, 2, 4), True)],
    ("average", 3): [((1, 2, 6), 3)],
    ("celsius_to_fahrenheit", 1): [((100,), 212)],
    ("fahrenheit_to_celsius", 1): [((212,), 100)],
    ("rectangle_area", 2): [((3, 4), 12)],
    ("perimeter", 2): [((3, 4), 14)],
    ("to_seconds", 2): [((1, 2), 3720)],
    ("discount", 1): [((200,), 190)],
    ("reverse", 1): [(("abc",), "cba")],
    ("is_palindrome", 1): [(("level",), True), (("lever",), False)],
    ("count_vowels", 1): [(("Apple",), 2)],
    ("remove_vowels", 1): [(("apple",), "ppl")],
    ("count_words", 1): [(("a bc  d",), 3)],
    ("remove_spaces", 1): [((" a b ",), "ab")],
    ("count_char", 2): [(("banana", "a"), 3)],
    ("repeat", 2): [(("ab", 3), "ababab")],
    ("first_chars", 1): [(("abcdefg",), "abcde")],
    ("last_chars", 1): [(("abcdefg",), "cdefg")],
    ("initials", 1): [(("red green blue",), "rgb")],
    ("find_max", 1): [(([3, 9, 4],), 9)],
    ("find_min", 1): [(([3, 9, 2],), 2)],
    ("sum_list", 1): [(([3, 9, 2],), 14)],
    ("product", 1): [(([3, 9, 2],), 54)],
    ("average", 1): [(([3, 9, 3],), 5)],
    ("spread", 1): [(([3, 9, 2],), 7)],
    ("unique", 1): [(([3, 1, 3],), [1, 3])],
    ("is_sorted", 1): [(([1, 1, 2],), True), (([2, 1],), False), (([],), True)],
    ("running_sum", 1): [(([3, 9, 2],), [3, 12, 14])],
    ("second_largest", 1): [(([3, 9, 2],), 3)],
    ("contains", 2): [(([3, 9], 9), True), (([3, 9], 1), False)],
    ("index_of", 2): [(([3, 9], 9), 1), (([3, 9], 1), -1)],
    ("chunks", 2): [(([1, 2, 3], 2), [[1, 2], [3]])],
    ("flatten", 1): [(([[1], [], [2, 3]],), [1, 2, 3])],
    ("common", 2): [(([3, 1, 2], [2, 3, 4]), [2, 3])],
    ("dot", 2): [(([1, 2], [3, 4]), 11)],
    ("take", 1): [(([1, 2, 3, 4, 5, 6],), [1, 2, 3, 4, 5])],
    ("longest", 1): [((["a", "abc", "ab"],), "abc")],
    ("join_words", 1): [((["a", "b"],), "a b")],
    ("lengths", 1): [((["a", "abc"],), [1, 3])],
    ("count_items", 1): [((["a", "b", "a"],), {"a": 2, "b": 1})],
    ("invert", 1): [(({"a": 1},), {1: "a"})],
    ("merge", 2): [(({"a": 1}, {"b": 2}), {"a": 1, "b": 2})],
    ("make_dict", 2): [((["a", "b"], [1, 2]), {"a": 1, "b": 2})],
    ("lookup", 2): [(({"a": 1}, "a"), 1), (({"a": 1}, "b"), 5)],
}


def key(row: Row) -> tuple[str, int]:
    return row.names.split("|")[0], len(row.params.split())


def compiled(source: str) -> Callable[..., Any]:
    space: dict[str, Any] = {}
    exec(compile(source, "gold", "exec"), space)
    functions = [value for name, value in space.items() if name != "__builtins__"]
    assert len(functions) == 1
    function: Callable[..., Any] = functions[0]
    return function


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, key(row))))
def test_every_row_does_what_it_says_in_every_variant(row: Row) -> None:
    choices = [param.split(",") for param in row.params.split()]
    low, high = row.constant
    assert low <= K <= high or row.constant == (0, 0)
    assert bool(re.search(r"\$k\b", row.body, re.ASCII)) == (row.constant != (0, 0))
    for chosen in itertools.product(*choices):
        assert len(set(chosen)) == len(chosen)
        values = {names[0]: name for names, name in zip(choices, chosen, strict=True)} | {
            "k": str(K)
        }
        body = Template(row.body).substitute(values).replace("\n", "\n    ")
        function = compiled(f"def f({', '.join(chosen)}):\n    {body}\n")
        for arguments, expected in CASES[key(row)]:
            assert function(*arguments) == expected
    for doc in (row.en + "|" + row.zh).split("|"):
        Template(doc).substitute(dict.fromkeys([names[0] for names in choices] + ["k"], "x"))
        if row.constant != (0, 0):
            assert re.search(r"\$k\b", doc, re.ASCII)


def test_rows_have_cases_and_variants() -> None:
    assert {key(row) for row in ROWS} == set(CASES)
    assert len({key(row) for row in ROWS}) == len(ROWS) >= 60
    for row in ROWS:
        assert len(row.names.split("|")) == len(set(row.names.split("|"))) == 3
        assert len(row.en.split("|")) == len(row.zh.split("|")) == 2


def test_a_signature_and_docstring_have_one_body() -> None:
    rng = random.Random(5)
    seen: dict[str, str] = {}
    for lang in LANGUAGES:
        for _ in range(10_000):
            function = draw_function(rng, lang)
            assert seen.setdefault(function.head, function.body) == function.body
    assert len(seen) > 5_000


NUMBERS = [-7, -4, -1, 0, 3, 4, 6, 15, 29, 33]


def test_number_grammar_means_what_its_docstring_says() -> None:
    rng = random.Random(2)
    conditions: dict[str, Callable[[int, int], bool]] = {
        "even": lambda x, k: x % 2 == 0,
        "odd": lambda x, k: x % 2 == 1,
        "positive": lambda x, k: x > 0,
        "negative": lambda x, k: x < 0,
        "large": lambda x, k: x > k,
        "small": lambda x, k: x < k,
        "multiples": lambda x, k: x % k == 0,
    }
    mappings: dict[str, Callable[[int], float]] = {
        "squares": lambda x: x**2,
        "cubes": lambda x: x**3,
        "doubles": lambda x: 2 * x,
        "halves": lambda x: x / 2,
    }
    collections: dict[str, Callable[[list[float]], Any]] = {
        "list": list,
        "sum": sum,
        "max": max,
        "min": min,
    }
    for _ in range(600):
        function = python_code._from_numbers(rng, "en")
        name = function.head[4 : function.head.index("(")].split("_")
        doc = function.head.split('"""')[1]
        k = next((int(word.rstrip(".")) for word in doc.split() if word.rstrip(".").isdigit()), 0)
        kept = [
            x for x in NUMBERS if all(conditions[word](x, k) for word in name if word in conditions)
        ]
        mapped: list[float] = list(kept)
        for word in name:
            if word in mappings:
                mapped = [mappings[word](x) for x in kept]
        if mapped:
            got = compiled(function.head + function.body)(NUMBERS)
            assert got == collections[name[0]](mapped), function


def test_word_grammar_examples() -> None:
    rng = random.Random(3)
    words = ["apple", "Pear", "fig", "banana-split-and-more"]
    for _ in range(600):
        function = python_code._from_words(rng, rng.choice(LANGUAGES))
        result = compiled(function.head + function.body)(words)
        name = function.head[4 : function.head.index("(")].split("_")
        plain = isinstance(result, list) and name[0] not in (
            "upper",
            "lower",
            "lengths",
            "sorted",
            "count",
        )
        assert not plain or [word for word in words if word in result] == result
        if name[0] == "upper":
            assert all(word == word.upper() for word in result)
        elif name[0] == "count":
            assert isinstance(result, int) and 0 <= result <= len(words)
        elif name[0] == "sorted":
            assert result == sorted(result)


def draw(
    task: PythonComplete | PythonFill, lang: str, count: int, *, held_out: bool = False
) -> list[Example]:
    return list(islice(examples(task, lang, 5, held_out=held_out), count))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_complete_examples_parse_and_score(lang: str) -> None:
    task = PythonComplete()
    for example in draw(task, lang, 800):
        assert example.prompt is not None and example.completion is not None
        assert example.prompt.endswith('"""\n') and example.completion.endswith("\n")
        tree = ast.parse(example.prompt + example.completion)
        assert len(tree.body) == 1 and isinstance(tree.body[0], ast.FunctionDef)
        doc = ast.get_docstring(tree.body[0]) or ""
        assert doc.isascii() == (lang == "en")
        gold = example.completion
        assert task.score(example, {"content": gold})
        assert task.score(example, {"content": gold.rstrip("\n")})
        assert task.score(example, {"content": gold.rstrip() + "  # done\n"})
        wrong = [
            "",
            "    pass\n",
            gold + "\nprint(1)\n",
            gold.replace("return ", "return not ", 1),
            gold[4:] + ")",
        ]
        assert not any(task.score(example, {"content": bad}) for bad in wrong)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_fill_examples_rebuild_the_function(lang: str) -> None:
    task = PythonFill()
    lines = 0
    for example in draw(task, lang, 800):
        assert example.prompt is not None and example.completion is not None
        before, after = example.meta["before"], example.meta["after"]
        assert example.prompt == f"<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>"
        middle = example.completion
        ast.parse(before + middle + after)
        assert middle.strip() and after.endswith("\n") and before.count('"""') == 2
        lines += middle.startswith("    ")
        assert task.score(example, {"content": middle})
        assert not task.score(example, {"content": ""})
        assert not task.score(example, {"content": middle + " + 1 +"})
    assert 200 < lines < 600


@pytest.mark.parametrize("lang", LANGUAGES)
def test_held_out_functions_are_trained_nowhere(lang: str) -> None:
    held_out = {example.prompt for example in draw(PythonComplete(), lang, 400, held_out=True)}
    trained = {example.prompt for example in draw(PythonComplete(), lang, 2000)}
    for example in draw(PythonFill(), lang, 2000):
        source = example.meta["before"] + (example.completion or "") + example.meta["after"]
        trained.add(source[: source.index('"""\n') + 4])
    assert not held_out & trained
    fills = {example.prompt for example in draw(PythonFill(), lang, 400, held_out=True)}
    assert not fills & {example.prompt for example in draw(PythonFill(), lang, 2000)}


def test_same_program_never_raises_and_runs_nothing() -> None:
    assert same_program("x=1", "x = 1  # one")
    for bad in ("x = ", "\x00", "(" * 5000, "x = 1 is 1 if", "def f(:\n", "\ud800"):
        assert not same_program(bad, "x = 1")
    assert not same_program("raise SystemExit", "x = 1")
    assert same_program("1 is 1", "1 is 1")
