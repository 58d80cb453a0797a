"""Log-probabilities of given texts: held against the model's logits, whatever shares a forward; and
beside a running engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from qwenkit.errors import ContextLengthError, EngineError, RequestError
from qwenkit.llm import LLM, Scores
from qwenkit.llm import score as score_module
from qwenkit.model.load import init_model

PROMPTS: list[str | list[int]] = [
    "a",
    "some words",
    "x" * 39,
    "y" * 40,
    "long " * 30,
    "b",
    [260, 1, 9],
]


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(checkpoint, max_batch_tokens=40, max_sequences=4) as llm:
        yield llm


def check(llm: LLM, found: Scores, top: int, adapter: str | None = None) -> None:
    """Against the logits of a forward over this text alone."""
    size = llm.tokenizer.vocab_size
    logits = llm.logits(found.ids, adapter=adapter)[:-1, :size]
    want = logits.log_softmax(-1)
    own = want[range(len(found.ids) - 1), found.ids[1:]]
    torch.testing.assert_close(found.logprobs, own, atol=1e-4, rtol=0)
    assert found.top.shape == found.top_ids.shape == (len(found.ids) - 1, top)
    torch.testing.assert_close(found.top, want.topk(top).values, atol=1e-4, rtol=0)
    torch.testing.assert_close(want.gather(1, found.top_ids), found.top, atol=1e-4, rtol=0)


@pytest.mark.parametrize("logits", [1 << 24, 2000], ids=["whole", "in pieces"])
def test_the_scores_are_those_of_the_logits(
    llm: LLM, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that share a forward, fill one, need several, and have one token alone."""
    monkeypatch.setattr(score_module, "LOGITS", logits)
    found = llm.scorer.score(PROMPTS, top=3)
    for prompt, scores in zip(PROMPTS, found, strict=True):
        assert scores.ids == (llm.tokenize(prompt) if isinstance(prompt, str) else prompt)
        check(llm, scores, 3)
    assert llm.scorer.score(["a"])[0].logprobs.shape == (0,)


def test_an_adapter_is_part_of_the_model(
    llm: LLM, write_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    llm.adapters.load("a", write_adapter(tmp_path / "a", llm.config, seed=1))
    prompts = ["short", "long " * 30]
    plain, own = llm.scorer.score(prompts), llm.scorer.score(prompts, adapter="a")
    for before, after in zip(plain, own, strict=True):
        check(llm, after, 0, "a")
        assert not torch.allclose(before.logprobs, after.logprobs, atol=0.1)
    with pytest.raises(RequestError, match="no adapter"):
        llm.scorer.score(prompts, adapter="b")


def test_no_piece_is_larger_than_a_step(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs between two steps of the engine: a forward, or so many logits."""
    monkeypatch.setattr(score_module, "LOGITS", 2000)
    lengths, rows = list[int](), list[int]()
    hidden, logits = llm.model.hidden, llm.model.logits
    monkeypatch.setattr(
        llm.model, "hidden", lambda b: lengths.append(len(b.input_ids)) or hidden(b)
    )
    monkeypatch.setattr(llm.model, "logits", lambda x: rows.append(len(x)) or logits(x))
    ids = [llm.tokenize("long " * 30), llm.tokenize("b" * 30)]
    work, pieces = score_module.scored(llm.model, ids, 1, vocab_size=250, most=40), 0
    for _ in work:
        pieces += 1
    assert max(lengths) <= 40 and sum(lengths) == 180
    assert max(rows) <= 2000 // 250 and sum(rows) == 178
    assert pieces == len(lengths) + len(rows)


def test_answers_and_scores_at_the_same_time(llm: LLM) -> None:
    alone = llm.generate("Once", max_tokens=100, temperature=0).text
    wanted = [each.logprobs for each in llm.scorer.score(["some words", "long " * 30])]

    async def main() -> tuple[list[str], list[list[Scores]]]:
        ids = llm.scorer.ids(["some words", "long " * 30])
        answers = [llm.agenerate("Once", max_tokens=100, temperature=0) for _ in range(4)]
        scores = [llm.scorer.ascore(ids) for _ in range(6)]
        done = await asyncio.gather(asyncio.gather(*answers), asyncio.gather(*scores))
        return [each.text for each in done[0]], done[1]

    texts, found = asyncio.run(main())
    assert texts == [alone] * 4
    for scores in found:
        assert all(torch.equal(a.logprobs, b) for a, b in zip(scores, wanted, strict=True))


def test_what_is_wrong_is_named(llm: LLM) -> None:
    for prompts, param in (([], "prompt"), (["a", []], "prompt[1]"), ([[10**6]], "prompt")):
        with pytest.raises(RequestError) as caught:
            llm.scorer.score(prompts)
        assert caught.value.param == param
    with pytest.raises(ContextLengthError, match="256"):
        llm.scorer.ids(["x" * 256], answer=1)
    assert len(llm.scorer.ids(["x" * 256])[0]) == 256
    with pytest.raises(RequestError, match="more than 100 tokens"):
        llm.scorer.ids(["x" * 60, "y" * 60], max_tokens=100)
    with pytest.raises(RequestError, match="top"):
        llm.scorer.score(["a"], top=-1)


def test_logits_that_are_no_numbers_are_an_error(llm: LLM) -> None:
    model = init_model(llm.config, seed=1)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with LLM(model, tokenizer=llm.tokenizer) as broken, pytest.raises(EngineError) as caught:
        broken.scorer.score(["some words"])
    assert caught.value.code == "not_finite"
