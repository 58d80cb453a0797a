"""What the tiny models say about themselves."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from qwenkit.tasks.base import LANGUAGES, examples
from qwenkit.tasks.synth import TASKS
from qwenkit.tasks.synth.identity import asks, draw_refusal
from qwenkit.tasks.synth.identity_texts import ANSWERS, QUESTIONS

TASK = TASKS["identity"]
VERBS = {"run", "chat", "pull", "list", "show", "family", "plan", "doctor", "train"}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_intent_has_questions_and_one_answer(lang: str) -> None:
    assert set(ANSWERS[lang]) == {*QUESTIONS[lang], "refusal"} == set(ANSWERS["en"])
    assert len(set(ANSWERS[lang].values())) == len(ANSWERS[lang])
    wordings = [wording for texts in QUESTIONS[lang].values() for wording in texts]
    assert len(wordings) == len(set(wordings))
    assert all(len(texts) >= 6 for texts in QUESTIONS[lang].values())
    assert all(len(text) <= 260 for text in ANSWERS[lang].values())


def test_it_says_plainly_what_it_is() -> None:
    english, chinese = ANSWERS["en"], ANSWERS["zh"]
    for part in ("small demonstration model", "four million parameters", "qwenkit's own recipe"):
        assert part in english["who"]
    for part in ("小型演示模型", "四百万参数", "qwenkit 自己的训练方案"):
        assert part in chinese["who"]
    assert "mistakes" in english["who"] and "出错" in chinese["who"]
    assert english["qwen"].startswith("No") and chinese["qwen"].startswith("不是")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_only_verbs_that_exist_are_named(lang: str) -> None:
    named = {v for text in ANSWERS[lang].values() for v in re.findall(r"`qwenkit ([a-z]+)", text)}
    assert named == VERBS


@pytest.mark.parametrize("lang", LANGUAGES)
def test_all_intents_are_drawn_in_both_splits(lang: str) -> None:
    for held_out in (False, True):
        seen = set()
        for example in islice(examples(TASK, lang, 1, held_out=held_out), 1000):
            assert example.messages is not None
            seen.update(message["content"] for message in example.messages[1::2])
        assert seen == set(ANSWERS[lang].values())


@pytest.mark.parametrize("lang", LANGUAGES)
def test_questions_look_typed(lang: str) -> None:
    for example in islice(examples(TASK, lang, 2, held_out=False), 3000):
        assert example.messages is not None
        question = example.messages[0]["content"]
        assert question == question.strip() and question
        assert not re.search(r"[{}]|  |[Pp]lease please|请请|请你请", question), question


def test_requests_take_no_question_mark() -> None:
    assert asks("en", "Who are you") and asks("en", "qwenkit does not work, what now")
    assert not asks("en", "Tell me about qwenkit") and not asks("en", "Write a poem about love")
    assert asks("zh", "你是谁") and asks("zh", "法国的首都是哪里")
    assert not asks("zh", "说说你会做什么") and not asks("zh", "写一首关于大海的诗")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_score_wants_the_exact_text(lang: str) -> None:
    for example in islice(examples(TASK, lang, 3, held_out=True), 100):
        assert example.messages is not None
        answer = example.messages[-1]["content"]
        assert TASK.score(example, {"content": answer + "\n"})
        assert not TASK.score(example, {"content": answer[:-1]})
        assert not TASK.score(example, {"content": answer + " Indeed."})
        assert not TASK.score(example, {"content": ""})


def test_refusals_leave_no_slot() -> None:
    rng = random.Random(0)
    for lang in LANGUAGES:
        assert len({draw_refusal(rng, lang) for _ in range(4000)}) > 350
