"""Translation: one right sentence each way, and grammar rules checked on the text itself."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from qwenkit.tasks.base import LANGUAGES, examples
from qwenkit.tasks.synth import TASKS, pools
from qwenkit.tasks.synth.translation import PATTERNS, WEIGHTS, sentence

TASK = TASKS["translation"]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    rng = random.Random(11)
    return [sentence(rng) for _ in range(40000)]


def test_each_sentence_has_one_translation(pairs: list[tuple[str, str]]) -> None:
    forward: dict[str, str] = {}
    backward: dict[str, str] = {}
    for english, chinese in pairs:
        assert forward.setdefault(english, chinese) == chinese
        assert backward.setdefault(chinese, english) == english
    assert len(forward) > 25000


def test_english_agrees(pairs: list[tuple[str, str]]) -> None:
    plurals = {noun.many for noun in pools.NOUNS}
    singulars = {noun.one for noun in pools.NOUNS}
    he = [s.en for s in pools.SUBJECTS if s.person == "he"]
    others = [s.en for s in pools.SUBJECTS if s.person != "he"]
    verbs = [*pools.ACTIONS.values(), *pools.STATES.values(), *pools.ACTIVITIES]
    bases = {verb.base.split()[0] for verb in verbs} | {"go"}
    thirds = {verb.third.split()[0] for verb in verbs} | {"goes"}
    same = {verb.base.split()[0] for verb in verbs if verb.past == verb.base}
    often = {english for english, _ in pools.FREQUENCIES}
    for english, _ in pairs:
        assert re.fullmatch(r"[A-Z][A-Za-z ]+[.?]", english), english
        assert "  " not in english and not re.search(r"\ba [aeiou]|\ban [^aeiou]", english), english
        for number, _ in pools.NUMBERS[1:]:
            for phrase in re.findall(rf"\b{number} ((?:\w+ )?\w+)", english.rstrip(".?")):
                assert not singulars & {phrase.split()[0]}, english
        assert not re.search(r"\ban? (\w+ )?(" + "|".join(plurals) + r")\b", english), english
        lowered = english[0].lower() + english[1:]
        for who in he:
            found = re.match(rf"{who} (\w+)(?: (\w+))?", lowered if who[0].islower() else english)
            if found:
                word = found[2] if found[1] in often else found[1]
                assert word not in bases - same, english
        for who in others:
            found = re.match(rf"{who} (\w+)(?: (\w+))?", english if who == "I" else lowered)
            if found:
                word = found[2] if found[1] in often else found[1]
                assert word not in thirds, english


def test_chinese_measures(pairs: list[tuple[str, str]]) -> None:
    number = "[一两三四五六七八九十]"
    measured = {noun.zh: noun.measure for noun in (*pools.NOUNS, *pools.MASSES)}
    adjectives = "|".join(sorted({zh for zh, _ in pools.ADJECTIVES.values()}, key=len))
    classes = "[" + "".join(set(measured.values())) + "]"
    nouns = "|".join(sorted(measured, key=len, reverse=True))
    seen = set()
    for english, chinese in pairs:
        assert re.fullmatch(r"[\u4e00-\u9fff]+[。？]", chinese), chinese
        assert chinese.endswith("吗？") == english.endswith("?"), (english, chinese)
        assert "二" not in chinese and "的的" not in chinese
        for measure, noun in re.findall(
            rf"(?:{number}|这|那)({classes})(?:{adjectives})?({nouns})", chinese
        ):
            assert measured[noun] == measure, chinese
            seen.add(noun)
    assert seen == set(measured)


def test_tense_follows_the_time(pairs: list[tuple[str, str]]) -> None:
    for english, chinese in pairs:
        body = english.rstrip(".?")
        if body.endswith(tuple(f" {when}" for when, _ in pools.PAST_TIMES)):
            assert "了" in chinese or "没" in chinese, (english, chinese)
            assert " will " not in english.lower()
        if body.endswith(tuple(f" {when}" for when, _ in pools.FUTURE_TIMES)):
            assert "will " in english.lower() and "会" in chinese
        if " not " in english or "cannot" in english:
            assert "不" in chinese or "没" in chinese, (english, chinese)


def test_every_word_is_used(pairs: list[tuple[str, str]]) -> None:
    text = " ".join(english for english, _ in pairs)
    words = set(re.findall(r"[a-z]+", text.lower()))
    assert 200 <= len(words) <= 350
    for noun in pools.NOUNS:
        assert noun.one in words and noun.many in words
    for key in (*pools.ACTIONS, *pools.STATES):
        assert key in words
    assert len(PATTERNS) == len(WEIGHTS)


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("This apple is very big.", "这个苹果很大。"),
        ("The bag is under the bed.", "包在床下面。"),
        ("She is resting.", "她正在休息。"),
        ("I need coffee.", None),
    ],
)
def test_known_pairs(pairs: list[tuple[str, str]], english: str, chinese: str | None) -> None:
    assert dict(pairs).get(english) == chinese


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_language_of_the_request(lang: str) -> None:
    for example in islice(examples(TASK, lang, 6, held_out=True), 200):
        assert example.messages is not None
        answer = example.messages[-1]["content"]
        chinese = bool(re.search(r"[\u4e00-\u9fff]", answer))
        assert chinese == (lang == "en")
        assert TASK.score(example, {"content": answer})
        assert TASK.score(example, {"content": f" {answer}\n"})
        assert not TASK.score(example, {"content": answer[:-1]})
        assert not TASK.score(example, {"content": answer + answer})
        assert not TASK.score(example, {"content": answer, "tool_calls": [{"function": {}}]})
