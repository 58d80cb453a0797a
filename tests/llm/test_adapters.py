"""Adapters by name: chosen, loaded, unloaded and replaced while others run; over any weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.config import ModelConfig
from qwenkit.errors import FormatError, OptionError, RequestError
from qwenkit.llm import LLM
from qwenkit.model.adapter import adaptable
from qwenkit.model.batch import Batch
from qwenkit.model.load import load_model
from qwenkit.prompt.tokenizer import Tokenizer

SAY: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="session")
def folders(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, write_adapter: Callable[..., Path]
) -> list[Path]:
    """Two adapters of the byte model."""
    at, config = tmp_path_factory.mktemp("adapters"), ModelConfig.from_dir(checkpoint)
    return [write_adapter(at / str(seed), config, seed=seed) for seed in (1, 2)]


def test_a_request_names_its_adapter(llm: LLM, folders: list[Path]) -> None:
    for name, folder in zip("ab", folders, strict=True):
        llm.adapters.load(name, folder)
    assert list(llm.adapters) == ["a", "b"] and len(llm.adapters) == 2
    names = (None, "a", "b")
    texts = [llm.generate("hello", adapter=name, **SAY).text for name in names]
    assert len(set(texts)) == 3
    with ThreadPoolExecutor(6) as pool:  # all in one batch
        found = pool.map(lambda n: llm.generate("hello", adapter=n, **SAY).text, names * 4)
    assert list(found) == texts * 4
    streamed = "".join(d.text for d in llm.stream(prompt="hello", adapter="a", **SAY))
    assert streamed == texts[1]
    two = llm.generate(["hello", "hello"], adapter="b", n=2, **SAY)
    assert [c.content for each in two for c in each.choices] == [texts[2]] * 4
    assert asyncio.run(llm.agenerate("hello", adapter="a", **SAY)).text == texts[1]
    chats = [llm.chat("hello", adapter=name, **SAY).text for name in names]
    assert len(set(chats)) == 3


def test_logits_and_vectors(llm: LLM, folders: list[Path]) -> None:
    adapter = llm.adapters.load("a", folders[0])
    ids = list(range(40))
    batch = Batch.from_sequences([ids])
    batch.adapters = [(slice(None), adapter)]
    with torch.no_grad():
        states = llm.model.hidden(batch)
    want = torch.nn.functional.normalize(states[-1:], dim=-1)
    assert torch.equal(llm.logits(ids, adapter="a"), llm.model.logits(states))
    assert not torch.allclose(llm.logits(ids), llm.logits(ids, adapter="a"), atol=0.1)
    torch.testing.assert_close(llm.embed([ids], adapter="a").vectors, want)
    assert not torch.allclose(llm.embed([ids]).vectors, want, atol=0.01)


def test_a_long_input_is_embedded_in_chunks(checkpoint: Path, folders: list[Path]) -> None:
    with LLM(checkpoint, max_batch_tokens=16, max_sequences=4) as llm:
        llm.adapters.load("a", folders[0])
        chunks = llm.embed([list(range(60))], adapter="a").vectors
    with LLM(checkpoint) as llm:
        llm.adapters.load("a", folders[0])
        whole = llm.embed([list(range(60))], adapter="a").vectors
    torch.testing.assert_close(chunks, whole, atol=1e-4, rtol=1e-4)


def test_what_runs_keeps_what_it_began_with(llm: LLM, folders: list[Path]) -> None:
    llm.adapters.load("a", folders[0])
    options = {**SAY, "max_tokens": 120}
    whole = llm.generate("hello", adapter="a", **options).text
    pieces = llm.stream(prompt="hello", adapter="a", **options)
    text = next(pieces).text
    llm.adapters.load("a", folders[1], replace=True)
    other = llm.generate("hello", adapter="a", **options).text
    llm.adapters.unload("a")
    assert text + "".join(piece.text for piece in pieces) == whole != other
    with pytest.raises(RequestError, match="no adapter 'a'"):
        llm.generate("hello", adapter="a")


@pytest.mark.parametrize("name", ["x", "", 3, True, ["a"]])
def test_an_unknown_name_names_the_known_ones(llm: LLM, folders: list[Path], name: Any) -> None:
    llm.adapters.load("a", folders[0])
    asks: list[Callable[[], Any]] = [
        lambda: llm.generate("hello", adapter=name),
        lambda: llm.chat("hello", adapter=name),
        lambda: llm.stream("hello", adapter=name),
        lambda: llm.embed(["hello"], adapter=name),
        lambda: llm.logits([1], adapter=name),
        lambda: asyncio.run(llm.achat("hello", adapter=name)),
        lambda: asyncio.run(llm.aembed(["hello"], adapter=name)),
    ]
    for ask in asks:
        with pytest.raises(RequestError, match=r"no adapter .* \(a\)") as caught:
            ask()
        assert caught.value.param == "adapter"


def test_names_and_numbers(llm: LLM, folders: list[Path]) -> None:
    llm.adapters.load("a", folders[0])
    for name, words in (("a", "already"), ("", "printable"), ("x" * 257, "256"), ("\n", "print")):
        with pytest.raises(OptionError, match=words):
            llm.adapters.load(name, folders[0])
    with pytest.raises(OptionError, match="There are 1 adapters"):
        llm.adapters.load("b", folders[0], most=1)
    llm.adapters.load("a", folders[0], most=1, replace=True)
    with pytest.raises(FormatError, match="is no folder"):
        llm.adapters.load("a", folders[0] / "nowhere", replace=True)
    with pytest.raises(RequestError, match="no adapter 'b'"):
        llm.adapters.unload("b")
    assert list(llm.adapters) == ["a"]


@pytest.mark.parametrize("kind", ["int4", "int8", "Q8_0", "Q4_0", "bfloat16"])
def test_over_any_weights(
    checkpoint: Path,
    folders: list[Path],
    tmp_path: Path,
    write_gguf: Callable[..., None],
    tokenizer: Tokenizer,
    kind: str,
) -> None:
    """Near what the same low-rank parts add to the de-quantised weights."""
    place: Path = checkpoint
    if kind.startswith("Q"):
        place = tmp_path / "model.gguf"
        write_gguf(checkpoint, place, kind)
    quantize = kind if kind.startswith("int") else None
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    ids = list(range(50))
    with LLM(place, quantize=quantize, dtype=dtype, tokenizer=tokenizer) as llm:
        adapter = llm.adapters.load("a", folders[0])
        found = llm.logits(ids, adapter="a")
        change = (found - llm.logits(ids)).abs().mean()
        plain = load_model(checkpoint, "float32")
        linears = adaptable(plain)
        for place_of, linear in adaptable(llm.model).items():
            part = adapter.layers[int(place_of.split(".")[2])][place_of.rpartition(".")[2]]
            weight: Any = linears[place_of].weight
            with torch.no_grad():
                weight.copy_(linear.dense().float() + part.b.float() @ part.a.float())  # type: ignore[operator]
        assert plain.lm_head is not None and llm.model.lm_head is not None
        with torch.no_grad():
            head, embedding = plain.lm_head.weight, plain.model.embed_tokens.weight
            head.copy_(llm.model.lm_head.dense())  # type: ignore[operator]
            every = torch.arange(len(embedding))
            embedding.copy_(llm.model.model.embed_tokens(every))
            want = plain(Batch.from_sequences([ids]))
        # Packed products round their inputs to 8 bits, bfloat16 everything.
        assert (found - want).abs().mean() < 0.1 * change
        text = llm.generate("hello", adapter="a", **SAY).text
        assert text != llm.generate("hello", **SAY).text
