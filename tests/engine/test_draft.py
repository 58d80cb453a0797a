"""The draft model: what it guesses, that it follows the large one, and that its faults cost nobody
anything. (That no output changes: test_speculate.py.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwenkit.engine import Driver, Engine, Request, RequestOutput, SamplingParams
from qwenkit.engine.draft import DraftModel
from qwenkit.errors import OptionError
from qwenkit.model.batch import Batch
from qwenkit.model.qwen import Qwen

Drain = Callable[[Engine], dict[str, list[RequestOutput]]]


def eager(model: Qwen, draft: Qwen, **options: Any) -> Engine:
    """An engine that guesses as much as it can."""
    engine = Engine(model, **{"num_blocks": 64, **options}, draft_model=draft)
    assert engine.speculation is not None
    engine.speculation.fixed_rows, engine.speculation.proposer.price = 1000.0, 1.0
    return engine


def new_ids(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.new_ids]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_model_itself_guesses_everything_right(
    temperature: float, model: Qwen, make_prompts: Callable[..., Any], drain: Drain
) -> None:
    """Also behind a shared beginning, a prompt in pieces, and when it was paused."""
    prompts = make_prompts(6, longest=40)
    prompts += [[*prompts[0], 5], prompts[0]]
    engine = eager(model, model, num_blocks=24, block_size=4, max_batch_tokens=24, max_sequences=6)
    for i, ids in enumerate(prompts):
        params = SamplingParams(max_tokens=24, temperature=temperature, seed=i)
        engine.add(Request(str(i), ids, params))
    outputs = drain(engine)
    stats = engine.stats()
    assert stats.preemptions and stats.cached_tokens
    assert stats.accepted_tokens > 0.97 * stats.draft_tokens > 80
    last = outputs["0"][-1]
    assert (last.num_drafted, last.num_accepted) != (0, 0)
    proposer = engine.speculation.proposer  # type: ignore[union-attr]
    assert isinstance(proposer, DraftModel) and not proposer._computed
    assert len(proposer.runner._free_rows) == 6


def test_another_model_with_more_rows_and_a_short_context(
    model: Qwen, make_model: Callable[..., Qwen], drain: Drain
) -> None:
    draft = make_model(vocab_size=160, max_position_embeddings=24, num_key_value_heads=4)
    params = SamplingParams(max_tokens=40)
    plain = Engine(model, num_blocks=64)
    engine = eager(model, draft)
    for each in (plain, engine):
        each.add(Request("a", [1, 2, 3], params))
    assert new_ids(drain(engine)["a"]) == new_ids(drain(plain)["a"])
    assert 0 < engine.stats().draft_tokens <= 24 * 16


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_draft_model_that_fails_is_nobodys_fault(
    fault: str, model: Qwen, make_model: Callable[..., Qwen], drain: Drain
) -> None:
    draft = make_model(tie_word_embeddings=False)
    if fault == "nan":
        draft.lm_head.weight.data.fill_(torch.nan)  # type: ignore[union-attr]
    else:

        def fail(batch: Batch, rows: Any = None) -> torch.Tensor:
            raise RuntimeError("kernel")

        draft.forward = fail  # type: ignore[method-assign]
    plain, engine = Engine(model, num_blocks=64), eager(model, draft)
    for each in (plain, engine):
        each.add(Request("a", [1, 2, 3], SamplingParams(max_tokens=20)))
    assert new_ids(drain(engine)["a"]) == new_ids(drain(plain)["a"])
    assert engine.stats().draft_tokens == 0


def test_both_caches_together_keep_to_the_bytes(model: Qwen) -> None:
    alone = Engine(model, kv_bytes=1 << 20)
    both = Engine(model, kv_bytes=1 << 20, draft_model=model)
    assert both.cache_tokens == alone.cache_tokens // 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"speculate": "magic"}, "speculate is 'magic'"),
        ({"speculate": "draft"}, "no draft_model"),
        ({"speculate": "lookup", "draft_model": "model"}, "leave one out|Leave one out"),
        ({"draft_model": "small"}, "100 rows for tokens, of which there are 128"),
    ],
)
def test_what_does_not_go_together_is_named(
    options: dict[str, Any], match: str, model: Qwen, make_model: Callable[..., Qwen]
) -> None:
    models = {"model": model, "small": make_model(vocab_size=100)}
    if "draft_model" in options:
        options = {**options, "draft_model": models[options["draft_model"]]}
    with pytest.raises(OptionError, match=match):
        Engine(model, **options)


def test_who_has_got_something_is_woken_before_the_draft_models_kernels(
    model: Qwen, make_model: Callable[..., Qwen], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    draft, ended = make_model(), threading.Event()
    forward = draft.forward

    def watched(*what: Any) -> torch.Tensor:
        events.append("drafts")
        return forward(*what)

    monkeypatch.setattr(draft, "forward", watched)
    driver = Driver(eager(model, draft))

    def sink(output: RequestOutput) -> None:
        events.append("output")
        if output.finished:
            ended.set()

    request = Request("a", [1, 2, 3], SamplingParams(max_tokens=12))
    driver.submit([request], sink, lambda: events.append("wake"))
    assert ended.wait(20)
    driver.close()
    behind = [events[i + 1] for i, event in enumerate(events) if event == "output"]
    assert "drafts" in events and set(behind) == {"wake"}
