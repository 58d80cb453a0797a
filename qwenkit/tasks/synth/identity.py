"""What the tiny models say about themselves, about qwenkit, and about what they cannot do.

One fixed answer for each intent and language; the questions vary (openers, wording, punctuation,
case). Whatever lies outside the skills gets one fixed, honest refusal. Not covered: follow-up
questions that lean on an earlier turn.
"""

from __future__ import annotations

import random

from qwenkit.tasks.synth import identity_refusals as frame
from qwenkit.tasks.synth.dialogue import TextSkill
from qwenkit.tasks.synth.identity_texts import ANSWERS, QUESTIONS

REFUSAL_SHARE = 0.25
SMALL_TALK_SHARE = 0.06
LOWER_CASE_SHARE = 0.25


class Identity(TextSkill):
    """Who are you, what can you do, how do I use qwenkit; and honest refusals."""

    name = "identity"

    def turn(self, rng: random.Random, lang: str) -> tuple[str, str]:
        kind = rng.random()
        if kind < REFUSAL_SHARE:
            return dress(rng, lang, draw_refusal(rng, lang)), ANSWERS[lang]["refusal"]
        if kind < REFUSAL_SHARE + SMALL_TALK_SHARE:
            intent = rng.choice(frame.SMALL_TALK)
            wording = rng.choice(QUESTIONS[lang][intent])
            mark = rng.choice(frame.SMALL_TALK_ENDINGS[lang])
            return lower_some(rng, wording + mark), ANSWERS[lang][intent]
        intent = rng.choice([i for i in QUESTIONS[lang] if i not in frame.SMALL_TALK])
        wording = rng.choice(QUESTIONS[lang][intent]).format(other=rng.choice(frame.OTHERS))
        return dress(rng, lang, wording), ANSWERS[lang][intent]


def draw_refusal(rng: random.Random, lang: str) -> str:
    """A question outside the skills, without its final mark."""
    subjects = {slot: rng.choice(words) for slot, words in frame.SUBJECTS[lang].items()}
    return rng.choice(frame.REFUSALS[lang]).format(**subjects)


def asks(lang: str, wording: str) -> bool:
    """Whether the wording is a question (and not a request)."""
    if lang == "en":
        return wording.split()[0].lower() in frame.ASKING["en"]
    return not wording.startswith(frame.ORDERS_ZH) and any(
        mark in wording for mark in frame.ASKING["zh"]
    )


def dress(rng: random.Random, lang: str, wording: str) -> str:
    """Put an opener before the wording and a mark after it, as people type."""
    if asks(lang, wording):
        opener, mark = rng.choice(frame.OPENERS[lang]), rng.choice(frame.ENDINGS[lang])
    else:
        opener, mark = rng.choice(frame.ORDER_OPENERS[lang]), rng.choice(frame.ORDER_ENDINGS[lang])
    if opener and not opener.endswith("! "):
        wording = wording[0].lower() + wording[1:]
    return lower_some(rng, opener + wording + mark)


def lower_some(rng: random.Random, text: str) -> str:
    """The text in lower case, now and then."""
    return text.lower() if rng.random() < LOWER_CASE_SHARE else text
