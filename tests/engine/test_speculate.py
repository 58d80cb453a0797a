"""Guesses and how many of them: prompt lookup, scores, room; and that nobody's output changes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwenkit.engine import Engine, Request, RequestOutput, SamplingParams
from qwenkit.engine.blocks import BlockPool
from qwenkit.engine.scheduler import Scheduler
from qwenkit.engine.speculate import MOST_DRAFTS, PROBE, Lookup, Proposer, Speculation
from qwenkit.model.batch import Batch
from qwenkit.model.qwen import Qwen

Drain = Callable[[Engine], dict[str, list[RequestOutput]]]
EAGER = 1000.0
"""Rows that a step is said to cost anyway: so many that every guess is worth a try."""


def guess(ids: list[int], most: int = 8) -> list[int]:
    lookup, request = Lookup(), Request("a", ids, SamplingParams())
    count, _ = lookup.find(request, most)
    return lookup.propose([(request, count)])[0] if count else []


def test_lookup_goes_on_as_the_text_did_before() -> None:
    assert guess([1, 2, 3, 4, 5, 6, 1, 2], most=3) == [3, 4, 5]
    assert guess([1, 2, 3, 9, 1, 2, 4, 8, 1, 2], most=2) == [4, 8], "the latest place"
    assert guess([7, 1, 2, 3, 8, 1, 2, 3, 9, 0, 7, 1, 2, 3], most=1) == [8], "the longest beginning"
    assert guess([1, 2, 3, 4]) == guess([]) == guess([5, 5]) == []


def test_lookup_goes_round_in_a_text_that_repeats_itself() -> None:
    assert guess([9, 1, 2, 3, 1, 2, 3], most=7) == [1, 2, 3, 1, 2, 3, 1]
    assert guess([4, 4, 4], most=3) == [4, 4, 4]


def test_lookup_compares_tokens_and_not_bytes() -> None:
    """Four bytes a token: these two texts have the same bytes, one byte apart."""
    shifted = [0x02000001, 0x03000002, 0x00000000, 0x00000102, 0x00000203]
    assert guess([*shifted, 5, 0x00010200, 0x00020300]) == []


def test_lookup_follows_a_growing_request() -> None:
    lookup, request = Lookup(), Request("a", [1, 2, 3], SamplingParams())
    assert lookup.find(request, 4)[0] == 0
    request.token_ids += [1, 2]
    assert lookup.find(request, 4)[0] == 4
    assert lookup.propose([(request, 2)]) == [[3, 1]]
    lookup.forget(request)
    assert not lookup._texts and not lookup._found


class Scripted(Proposer):
    """Guesses 7s, with a likelihood that the test chooses."""

    likely = 0.5

    def find(self, request: Request, most: int) -> tuple[int, float]:
        return most, self.likely

    def propose(self, wanted: Any) -> list[list[int]]:
        return [[7] * count for _, count in wanted]


def decoding(
    count: int, *, tokens: int = 512, blocks: int = 512, max_tokens: int = 100
) -> Scheduler:
    """So many requests whose prompts are done."""
    s = Scheduler(BlockPool(blocks, 4), max_batch_tokens=tokens, max_sequences=count)
    for i in range(count):
        s.add(Request(str(i), [i + 1, 2, 3], SamplingParams(max_tokens=max_tokens)))
    while any(r.num_pending > 1 for r in s.running) or len(s.running) < count:
        plan = s.schedule()
        s.commit(plan, [5 for _ in plan.sampling])
    return s


def drafted(s: Scheduler, speculation: Speculation) -> list[int]:
    plan = s.schedule()
    speculation.extend(plan, s)
    return [len(span.drafts) for span in plan.spans]


def test_the_surer_the_guess_and_the_dearer_the_step_the_more_is_guessed() -> None:
    proposer = Scripted()
    alone = []
    for proposer.likely in (0.1, 0.4, 0.8, 0.99):
        alone += drafted(decoding(1), Speculation(proposer, fixed_rows=6))
    assert alone == sorted(alone) and alone[0] == 0 and alone[-1] == MOST_DRAFTS
    proposer.likely = 0.8
    assert drafted(decoding(1), Speculation(proposer, fixed_rows=0)) == [0]
    proposer.likely = 0.7
    assert drafted(decoding(1), Speculation(proposer, fixed_rows=6))[0] > 0
    assert not any(drafted(decoding(16), Speculation(proposer, fixed_rows=6))), (
        "sixteen rows fill a step by themselves"
    )


def test_a_dear_guess_must_be_worth_its_price() -> None:
    proposer = Scripted()
    cheap = drafted(decoding(1), Speculation(proposer, fixed_rows=6))
    proposer.price = 4
    assert drafted(decoding(1), Speculation(proposer, fixed_rows=6)) < cheap


def test_never_more_than_the_request_the_batch_and_the_cache_have_room_for() -> None:
    s = decoding(1, max_tokens=4)
    assert drafted(s, Speculation(Scripted(), EAGER)) == [2], "one is drawn behind the drafts"
    s = decoding(3, tokens=8)
    counts = drafted(s, Speculation(Scripted(), EAGER))
    assert sum(counts) == 5


def test_blocks_for_guesses_are_never_taken_from_others() -> None:
    s = decoding(2, blocks=6, max_tokens=12)
    free = s.pool.num_free
    assert free == 4, "a block of four tokens each"
    first, second = s.running
    assert s.grow(first, 10) == 8 and s.pool.num_free == 2, "the next blocks of the two stay free"
    assert s.grow(second, 10) == 0 and s.num_preemptions == 0
    assert s.grow(first, 3) == 3


def test_guesses_in_vain_stop_and_are_tried_again_now_and_then() -> None:
    s, speculation = decoding(1, blocks=4096, max_tokens=9999), Speculation(Scripted(), 6.0)
    counts = []
    for _ in range(300):
        plan = s.schedule()
        speculation.extend(plan, s)
        counts.append(len(plan.spans[0].drafts))
        s.commit(plan, [5])
        speculation.learn(plan)
    assert sum(counts[:20]) <= 8 and 0 < sum(counts[100:]) <= 200 / PROBE
    assert speculation.num_drafted == sum(counts) and speculation.num_accepted == 0
    for _ in range(3 * 64):  # now they are right
        plan = s.schedule()
        speculation.extend(plan, s)
        plan.spans[0].passed = len(plan.spans[0].drafts)
        s.commit(plan, [5])
        speculation.learn(plan)
    assert len(plan.spans[0].drafts) > 8


def test_speculation_remembers_nobody_who_has_ended(model: Qwen, drain: Drain) -> None:
    engine = Engine(model, num_blocks=64, speculate="lookup")
    engine.add(Request("a", [1, 2, 1, 2, 1, 2], SamplingParams(max_tokens=20)))
    drain(engine)
    speculation = engine.speculation
    assert speculation is not None and isinstance(speculation.proposer, Lookup)
    assert not speculation._scores and not speculation._asked and not speculation.proposer._texts


def test_no_torch() -> None:
    code = (
        "import sys, types; pkg = types.ModuleType('qwenkit.engine'); "
        "import qwenkit; pkg.__path__ = [path + '/engine' for path in qwenkit.__path__]; "
        "sys.modules['qwenkit.engine'] = pkg; "
        "import qwenkit.engine.speculate; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The output stays what it is


def outcome(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> list[Any]:
    """Tokens and finish reason of each, and a flat list of all log-probabilities."""
    for i, (ids, each) in enumerate(zip(prompts, params, strict=True)):
        engine.add(Request(str(i), ids, each))
    found: dict[str, list[RequestOutput]] = {str(i): [] for i in range(len(prompts))}
    while engine.has_work:
        for output in engine.step():
            found[output.id].append(output)
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    result: list[Any] = []
    for outputs in found.values():
        tokens = [token for o in outputs for token in o.new_ids]
        logprobs = [p for o in outputs for p in o.logprobs or []]
        assert not logprobs or [p.id for p in logprobs] == tokens
        result += [tokens, outputs[-1].finish_reason]
        result += [pytest.approx(p.logprob, abs=1e-3) for p in logprobs]
    return result


def plain(result: list[Any]) -> list[Any]:
    """Expected numbers for `approx` to compare with."""
    return [each.expected if hasattr(each, "expected") else each for each in result]


def repeating(rng: random.Random, count: int) -> list[list[int]]:
    """Prompts that say a few things again and again."""
    prompts = []
    for _ in range(count):
        words = [rng.randrange(128) for _ in range(rng.randint(1, 6))]
        prompts.append((words * 8)[: rng.randint(1, 40)])
    return prompts


def any_params(rng: random.Random) -> SamplingParams:
    most = rng.randint(1, 60)
    return SamplingParams(
        max_tokens=most,
        min_tokens=rng.randint(0, most),
        temperature=rng.choice([0, 0, 0.3, 1.0]),
        top_k=rng.choice([0, 3]),
        top_p=rng.choice([1.0, 0.9]),
        seed=rng.randrange(100),
        repetition_penalty=rng.choice([1.0, 1.0, 0.7]),
        presence_penalty=rng.choice([0.0, -1.0]),
        frequency_penalty=rng.choice([0.0, -0.3]),
        logit_bias=rng.choice([{}, {3: 2.0}]),
        logprobs=rng.choice([None, 2]),
        stop_token_ids=tuple(rng.sample(range(128), 3)),
    )


@pytest.mark.parametrize("kind", ["lookup", "draft", "itself"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_output_changes_whatever_the_parameters_and_the_batch(
    kind: str, seed: int, make_model: Callable[..., Qwen]
) -> None:
    rng = random.Random(seed)
    model = make_model()
    draft = {"lookup": None, "draft": make_model(num_hidden_layers=1), "itself": model}[kind]
    prompts = repeating(rng, rng.randint(1, 5))
    params = [any_params(rng) for _ in prompts]
    blocks, size = rng.choice([(200, 1), (30, 4), (64, 16)])
    options: dict[str, Any] = {
        "num_blocks": blocks,
        "block_size": size,
        "max_batch_tokens": rng.choice([9, 64]),
        "max_sequences": rng.choice([1, 4, 8]),
    }
    expected = outcome(Engine(model, **options), prompts, params)
    engine = Engine(model, speculate="draft" if draft else kind, draft_model=draft, **options)  # type: ignore[arg-type]
    assert engine.speculation is not None
    engine.speculation.fixed_rows, engine.speculation.proposer.price = EAGER, 1
    assert plain(outcome(engine, prompts, params)) == expected


def test_text_that_repeats_itself_takes_fewer_steps(model: Qwen) -> None:
    prompts, params = [[5, 6, 7, 8] * 5], [SamplingParams(max_tokens=60, logit_bias={5: 4.0})]
    expected = outcome(Engine(model, num_blocks=64), prompts, params)
    engine = Engine(model, num_blocks=64, speculate="lookup")
    assert plain(outcome(engine, prompts, params)) == expected
    stats = engine.stats()
    assert stats.generation_tokens == 60 > 2 * (60 - stats.accepted_tokens)
    assert stats.accepted_tokens <= stats.draft_tokens


def test_graphs_get_no_step_with_draft_tokens(model: Qwen, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are captured for one token a sequence."""
    prompts, params = [[5, 6, 7, 8] * 5], [SamplingParams(max_tokens=60, logit_bias={5: 4.0})]
    engine = Engine(model, num_blocks=64, speculate="lookup")
    seen: list[int] = []

    def forward(batch: Batch) -> Tensor:
        seen.append(len(batch.input_ids))
        logits: Tensor = model(batch)
        return logits

    monkeypatch.setattr(engine.runner, "_graphs", SimpleNamespace(forward=forward))
    outcome(engine, prompts, params)
    assert engine.stats().accepted_tokens and seen and set(seen) == {1}


def test_the_distribution_is_the_models(make_model: Callable[..., Qwen]) -> None:
    """Unseeded draws of two tokens, the second one always guessed, against their joint
    probabilities: chi squared over 16 cells, of which five standard deviations are allowed.
    """
    model = make_model(vocab_size=4)
    prompt, count = [1, 2, 3, 1, 2, 3, 1], 1500
    with torch.no_grad():
        first = model(Batch.from_sequences([prompt]))[-1].softmax(-1)
        after = model(Batch.from_sequences([[*prompt, token] for token in range(4)]))
    joint = first[:, None] * after[len(prompt) :: len(prompt) + 1].softmax(-1)
    engine = Engine(model, num_blocks=256, max_sequences=64, speculate="lookup")
    assert engine.speculation is not None
    engine.speculation = Speculation(Always(), EAGER)
    for i in range(count):
        engine.add(Request(str(i), prompt, SamplingParams(max_tokens=3, temperature=1.0)))
    tokens: dict[str, list[int]] = {str(i): [] for i in range(count)}
    while engine.has_work:
        for output in engine.step():
            tokens[output.id] += output.new_ids
    stats = engine.stats()
    assert 0.05 < stats.accepted_tokens / stats.draft_tokens < 0.95, "both outcomes are tested"
    found = torch.zeros(4, 4)
    for ids in tokens.values():
        found[ids[0], ids[1]] += 1
    chi = ((found - count * joint) ** 2 / (count * joint)).sum()
    assert chi < 15 + 5 * (2 * 15) ** 0.5


class Always(Scripted):
    """Guesses another token for each text, so that likely and unlikely ones are put to the test."""

    likely = 1.0

    def propose(self, wanted: Any) -> list[list[int]]:
        return [[sum(request.token_ids) % 4] * count for request, count in wanted]
