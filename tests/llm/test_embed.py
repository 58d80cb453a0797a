"""Vectors: held against a direct forward, whatever the batches and chunks; and beside a running
engine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qwenkit.engine import Driver, Engine
from qwenkit.errors import ContextLengthError, EngineError, QueueFullError, RequestError
from qwenkit.llm import LLM
from qwenkit.llm.embed import pooled
from qwenkit.model.batch import Batch
from qwenkit.model.load import init_model


def states(llm: LLM, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return llm.model.hidden(Batch.from_sequences([ids])).float()


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with LLM(checkpoint, max_batch_tokens=40, max_sequences=4) as llm:
        yield llm


def result(work: Generator[None, None, Tensor]) -> Tensor:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


INPUTS = ["a", "some words", "x" * 39, "y" * 40, "long " * 30, "the end"]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_vectors_are_those_of_a_direct_forward(llm: LLM, pooling: str) -> None:
    """Inputs that share a forward, fill one, and need several."""
    found = llm.embed(INPUTS, pooling=pooling)  # type: ignore[arg-type]
    ids = [llm.tokenize(text) for text in INPUTS]
    assert max(map(len, ids)) > 3 * 40 and found.prompt_tokens == sum(map(len, ids))
    for vector, own in zip(found.vectors, ids, strict=True):
        direct = states(llm, own)
        wanted = direct[-1] if pooling == "last" else direct.mean(0)
        torch.testing.assert_close(vector, functional.normalize(wanted, dim=0), atol=2e-5, rtol=0)
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(len(INPUTS)))


def test_yarn_is_for_the_inputs_that_need_it(llm: LLM) -> None:
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = dataclasses.replace(llm.config, rope_scaling=yarn)
    model = init_model(config, seed=1)
    short, long = list(range(50)), [i % 200 for i in range(100)]
    work = pooled(model, [short, long], "mean", most=500)
    chunked = pooled(model, [long], "mean", most=30)

    both = result(work)
    batch = Batch.from_sequences([long])
    batch.scaled = torch.ones(len(long), dtype=torch.bool)
    with torch.no_grad():
        plain = model.hidden(Batch.from_sequences([short])).mean(0)
        stretched = model.hidden(batch).mean(0)
    wanted = functional.normalize(torch.stack([plain, stretched]), dim=-1)
    torch.testing.assert_close(both, wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(result(chunked)[0], wanted[1], atol=2e-5, rtol=0)


def test_dimensions_keep_the_first_numbers(llm: LLM) -> None:
    whole = llm.embed(["some words"]).vectors
    short = llm.embed(["some words"], dimensions=8).vectors
    assert short.shape == (1, 8)
    torch.testing.assert_close(short, functional.normalize(whole[:, :8], dim=-1))


@pytest.mark.parametrize(
    ("inputs", "more", "param"),
    [
        ([], {}, "input"),
        ([""], {}, "input"),
        (["a", []], {}, "input[1]"),
        ([[-1]], {}, "input"),
        ([[1, 270]], {}, "input"),
        ([[True]], {}, "input"),
        (["a"], {"dimensions": 0}, "dimensions"),
        (["a"], {"dimensions": 33}, "dimensions"),
        (["a"], {"pooling": "max"}, "pooling"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(llm: LLM, inputs: list[object], more: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        llm.embed(inputs, **more)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_sizes_are_judged_before_anything_is_computed(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="256"):
        llm.embed(["x" * 300])
    with pytest.raises(RequestError, match="more than 100 tokens"):
        asyncio.run(llm.aembed(["x" * 60, "y" * 60], max_tokens=100))
    assert asyncio.run(llm.aembed(["x" * 60, "y" * 40], max_tokens=100)).prompt_tokens == 100


def test_answers_and_vectors_at_the_same_time(llm: LLM) -> None:
    """Neither changes the other: both run on the one thread."""
    alone = llm.generate("Once", max_tokens=100, temperature=0).text
    wanted = llm.embed(INPUTS).vectors

    async def main() -> tuple[list[str], list[Tensor]]:
        answers = [llm.agenerate("Once", max_tokens=100, temperature=0) for _ in range(4)]
        vectors = [llm.aembed(INPUTS) for _ in range(6)]
        done = await asyncio.gather(asyncio.gather(*answers), asyncio.gather(*vectors))
        return [each.text for each in done[0]], [each.vectors for each in done[1]]

    texts, found = asyncio.run(main())
    assert texts == [alone] * 4
    for vectors in found:
        assert torch.equal(vectors, wanted)


def test_works_take_turns_end_when_cancelled_and_are_bounded(llm: LLM) -> None:
    model = init_model(llm.config, seed=2)
    driver = Driver(Engine(model, vocab_size=270), max_waiting=2)
    seen, gate = list[str](), threading.Event()

    def work(name: str) -> Generator[None, None, str]:
        for _ in range(3):
            gate.wait()
            seen.append(name)
            yield
        return name

    def endless() -> Generator[None, None, None]:
        while True:
            time.sleep(0.001)
            yield

    def broken() -> Generator[None, None, None]:
        yield
        raise ValueError("its own fault")

    first, second = driver.lend(work("a")), driver.lend(work("b"))
    third = driver.lend(broken())
    with pytest.raises(QueueFullError):
        for _ in range(3):
            driver.lend(endless())
    gate.set()
    assert (first.result(30), second.result(30)) == ("a", "b")
    assert seen == ["a", "b", "a", "b", "a", "b"]
    with pytest.raises(ValueError, match="own fault"):
        third.result(30)
    cancelled = endless()
    future = driver.lend(cancelled)
    assert future.cancel()
    deadline = time.monotonic() + 30
    while cancelled.gi_frame is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert cancelled.gi_frame is None
    last = driver.lend(endless())
    driver.close()
    with pytest.raises(EngineError, match="closed"):
        last.result(30)
    with pytest.raises(EngineError):
        driver.lend(endless())
