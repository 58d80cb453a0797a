"""What draft tokens bring and cost: the same requests with and without, in turn, in one run.

    python bench/widen.py tiny-instruct out/wide
    python bench/speculate.py out/wide [--draft tiny-instruct]

`out/wide` says what tiny-instruct says at the cost of the 0.5B shape (bench/widen.py). Greedy
unless said otherwise; tokens must be the same with and without. Printed are medians over the
rounds: tokens/s without, the ratio with to without, and the share of draft tokens that were right.

    repeat        one request: repeat this text, but write one word instead of another. A random
                  checkpoint of the 0.5B shape computes, and its answer is dictated, since no model
                  here has learnt to repeat: what a model that does would gain
    asked again   the second turn of a conversation whose question was asked before, but for a digit
    answers       one request after the other, all skills of tiny-instruct
    answers, T=1  the same at temperature 1, seeded
    no guess      the same with a proposer that is always wrong: the most that it can cost
    16 at once    the same in one batch
    draft         answers, with the small model that the large one was made from as its draft model
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import checkpoint

from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.engine.speculate import Proposer, Speculation
from qwenkit.eval.speed import cores_for_kernels
from qwenkit.llm import LLM
from qwenkit.model.qwen import Qwen
from qwenkit.tasks.synth import TASKS

TEXTS = (
    (
        "first",
        "other",
        "The value of the first word is not the name of the file but the path of the object that "
        "has the data, and the list with the key is for the string of the second line.",
    ),
    (
        "name",
        "path",
        "Return the name of the list when the file is open and not read, then use the index of "
        "each value for the test of the result and print the length of the word.",
    ),
)
QUESTIONS = (
    ("What is 123 + 456?", "What is 123 + 457?"),
    ("Who are you?", "Who are you?"),
    ("你是谁？", "你是谁？"),
    ("What is 37 * 48?", "What is 37 * 49?"),
)
NEW_TOKENS = 64


class Dictated:
    """A matcher that lets one text through, token by token."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.place = tokens, 0

    def fill(self, row: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        row[:] = 0
        word, bit = divmod(self.tokens[self.place], 32)
        row.view(np.uint32)[word] = 1 << bit

    def accept(self, token: int) -> bool:
        fits = self.place < len(self.tokens) and self.tokens[self.place] == token
        self.place += fits
        return fits

    def rollback(self, count: int) -> None:
        self.place -= count


class Wrong(Proposer):
    """Guesses what is hardly ever right, and claims to be likely."""

    def find(self, request: Request, most: int) -> tuple[int, float]:
        return most, 0.8

    def propose(self, wanted: Sequence[tuple[Request, int]]) -> list[list[int]]:
        return [[(request.token_ids[-1] * 7 + 3) % 8000] * count for request, count in wanted]


@dataclass
class Case:
    """Prompts for one engine without and one with draft tokens."""

    name: str
    engines: tuple[Engine, Engine]
    prompts: list[list[int]]
    params: SamplingParams
    together: bool = False
    answers: list[list[int]] | None = None
    """What is dictated."""


def run(engine: Engine, case: Case) -> tuple[float, list[list[int]], int, int]:
    """Tokens a second after the first one, the tokens, and draft tokens made and right."""
    engine.forget_prefixes()
    before = engine.stats()
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(case.prompts))}
    batches = [range(len(case.prompts))] if case.together else [[i] for i in range(len(tokens))]
    seconds, counted = 0.0, 0
    for batch in batches:
        for i in batch:
            request = Request(str(i), case.prompts[i], case.params.replace(seed=i))
            if case.answers is not None:
                request.params = case.params.replace(max_tokens=len(case.answers[i]))
                request.matcher = Dictated(case.answers[i])
            engine.add(request)
        while any(r.num_pending != 1 for r in engine.scheduler.running) or engine.stats().waiting:
            for output in engine.step():
                tokens[output.id] += output.new_ids
        counted -= sum(len(tokens[str(i)]) for i in batch)
        start = time.perf_counter()
        while engine.has_work:
            for output in engine.step():
                tokens[output.id] += output.new_ids
        seconds += time.perf_counter() - start
        counted += sum(len(tokens[str(i)]) for i in batch)
    after = engine.stats()
    drafted = after.draft_tokens - before.draft_tokens
    return (
        counted / seconds,
        list(tokens.values()),
        drafted,
        after.accepted_tokens - before.accepted_tokens,
    )


def measure(case: Case, rounds: int) -> None:
    rates: tuple[list[float], list[float]] = ([], [])
    drafted = accepted = 0
    for _ in range(rounds):
        found = []
        for engine, own in zip(case.engines, rates, strict=True):
            with cores_for_kernels(engine):
                rate, tokens, drafted, accepted = run(engine, case)
            own.append(rate)
            found.append(tokens)
        assert found[0] == found[1], f"{case.name}: the output has changed"
    ratio = statistics.median(b / a for a, b in zip(*rates, strict=True))
    share = f"{accepted / drafted:.0%} of {drafted}" if drafted else "none"
    print(
        f"| {case.name} | {statistics.median(rates[0]):.1f} | {ratio:.2f} | {share} |", flush=True
    )


def pair(model: Qwen, size: int, **options: Any) -> tuple[Engine, Engine]:
    """Two engines on one model, the second one with draft tokens."""
    shared: Any = {"kv_bytes": 256 << 20, "vocab_size": size}
    return Engine(model, **shared), Engine(model, **shared, **options)


def skills(llm: LLM, count: int) -> list[list[int]]:
    """Prompts of all skills, in turn."""
    prompts: list[list[int]] = []
    names, rng = sorted(TASKS), random.Random(3)
    while len(prompts) < count:
        task = TASKS[names[len(prompts) % len(names)]]
        example = task.sample(rng, rng.choice(["en", "zh"]))
        if example.messages is not None:
            prompts.append(list(llm.render(example.messages[:-1], example.tools).ids))
        else:
            prompts.append(llm.tokenize(example.prompt or ""))
    return prompts


def asked_again(llm: LLM) -> list[list[int]]:
    """Conversations whose second question differs from the first in a digit or not at all."""
    prompts = []
    for first, second in QUESTIONS:
        answer = llm.chat(first, max_tokens=NEW_TOKENS).text
        turns = [("user", first), ("assistant", answer), ("user", second)]
        messages = [{"role": role, "content": content} for role, content in turns]
        prompts.append(list(llm.render(messages).ids))
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--draft", default="tiny-instruct")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--only", help="cases whose name begins so")
    options = parser.parse_args()
    cases: list[Case] = []
    how: Any = {"quantize": options.quantize, "kv_bytes": 16 << 20}
    greedy = SamplingParams(max_tokens=NEW_TOKENS)
    llm = LLM(checkpoint("0.5B"), **how)
    wanted = "Repeat this text, but write {} instead of {}: {}"
    prompts = [list(llm.render(wanted.format(new, old, text)).ids) for old, new, text in TEXTS]
    answers = [llm.tokenize(text.replace(old, new)) for old, new, text in TEXTS]
    engines = pair(llm.model, llm.tokenizer.vocab_size, speculate="lookup")
    cases.append(Case("repeat", engines, prompts, greedy, answers=answers))
    llm = LLM(options.model, **how)
    size = llm.tokenizer.vocab_size
    engines = pair(llm.model, size, speculate="lookup")
    ends = tuple(llm.generation.eos_token_ids)
    cases.append(
        Case("asked again", engines, asked_again(llm), greedy.replace(stop_token_ids=ends))
    )
    prompts = skills(llm, options.prompts)
    cases.append(Case("answers", engines, prompts, greedy))
    cases.append(
        Case("answers, T=1", engines, prompts, greedy.replace(temperature=1.0, top_p=0.95))
    )
    wrong = pair(llm.model, size, speculate="lookup")
    speculation = wrong[1].speculation
    assert speculation is not None
    wrong[1].speculation = Speculation(Wrong(), speculation.fixed_rows)
    cases.append(Case("no guess", wrong, prompts, greedy))
    cases.append(Case("16 at once", engines, skills(llm, 16), greedy, together=True))
    draft = LLM(options.draft, kv_bytes=16 << 20)
    engines = pair(llm.model, size, draft_model=draft.model)
    cases.append(Case("draft", engines, prompts, greedy))
    cases.append(Case("draft, T=1", engines, prompts, greedy.replace(temperature=1.0)))
    print(f"{torch.get_num_threads()} threads, {options.quantize}, {options.rounds} rounds")
    print("| case | tokens/s without | ratio | right |\n|---|---|---|---|", flush=True)
    for case in cases:
        if case.name.startswith(options.only or ""):
            measure(case, options.rounds)


if __name__ == "__main__":
    main()
