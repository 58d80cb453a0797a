"""Texts as vectors: the last hidden states of the model, pooled over the tokens of each text.

"last" takes the state of the last token, the only one that has seen the whole text; "mean" the
average of all. Vectors have length 1. With `dimensions` the first so many numbers are kept and
brought to length 1 again, as OpenAI does; what that loses depends on how the model was trained.
The sums are made in float32. Legend: N tokens, S sequences, C hidden.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qwenkit.engine import Driver
from qwenkit.engine.kv_cache import KVCache
from qwenkit.errors import ContextLengthError, EngineError, RequestError
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.lora import Adapter, AdapterRows
from qwenkit.model.qwen import Qwen
from qwenkit.prompt.tokenizer import Tokenizer

Pooling = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean")
BLOCK = 16


@dataclass(frozen=True)
class Embeddings:
    """One vector for each input, in order: (S, C) float32 on the CPU; and how many tokens the
    inputs had together.
    """

    vectors: Tensor
    prompt_tokens: int


class Embedder:
    """Checks inputs, and has them embedded by the thread that steps the engine."""

    def __init__(self, driver: Driver, tokenizer: Tokenizer) -> None:
        self._driver, self._tokenizer = driver, tokenizer

    def ids(self, inputs: Sequence[str | Sequence[int]], max_tokens: int | None) -> list[list[int]]:
        """Token ids of each input. Errors: RequestError, ContextLengthError."""
        if not inputs:
            raise RequestError("input is empty.", "Give at least one text.", param="input")
        engine, found, total = self._driver.engine, list[list[int]](), 0
        rows = self._tokenizer.vocab_size
        for number, each in enumerate(inputs):
            where = f"input[{number}]" if len(inputs) > 1 else "input"
            ids = self._tokenizer.encode(each) if isinstance(each, str) else list(each)
            if not ids:
                raise RequestError(f"{where} is empty.", "Leave it out.", param=where)
            if not all(type(i) is int and 0 <= i < rows for i in ids):
                raise RequestError(f"Ids are integers from 0 to {rows - 1}.", param=where)
            if len(ids) > engine.context_length:
                raise ContextLengthError(len(ids), 0, engine.context_length, param=where)
            total += len(ids)
            if max_tokens is not None and total > max_tokens:
                text = f"The inputs have more than {max_tokens} tokens together."
                raise RequestError(text, "Send fewer at once.", param="input")
            found.append(ids)
        return found

    def check(self, pooling: str, dimensions: int | None) -> None:
        """Errors: RequestError."""
        if pooling not in POOLINGS:
            raise RequestError(f"pooling must be one of {', '.join(POOLINGS)}.", param="pooling")
        most = self._driver.engine.model.config.hidden_size
        if dimensions is not None and not 1 <= dimensions <= most:
            text = f"dimensions must be an integer from 1 to {most}."
            raise RequestError(text, param="dimensions")

    def start(
        self,
        ids: list[list[int]],
        pooling: Pooling,
        dimensions: int | None,
        adapter: Adapter | None,
    ) -> Future[Embeddings]:
        """Errors: QueueFullError, EngineError; the same in the future."""
        engine = self._driver.engine
        computed = pooled(
            engine.model, ids, pooling, most=engine.scheduler.max_batch_tokens, adapter=adapter
        )
        return self._driver.lend(_embed(computed, sum(map(len, ids)), dimensions))


def _embed(
    computed: Generator[None, None, Tensor], tokens: int, dimensions: int | None
) -> Generator[None, None, Embeddings]:
    try:
        vectors = yield from computed
    except MemoryError as error:
        raise EngineError(f"Out of memory: {error}", code="out_of_memory") from error
    if not bool(torch.isfinite(vectors).all()):
        raise EngineError("The states are not finite.", code="not_finite")
    return Embeddings(shortened(vectors, dimensions).cpu(), tokens)


def pooled(
    model: Qwen,
    inputs: Sequence[Sequence[int]],
    pooling: Pooling,
    *,
    most: int,
    adapter: Adapter | None = None,
) -> Generator[None, None, Tensor]:
    """Pooled states (S, C) float32 of length 1. A forward has at most `most` tokens: short inputs
    share one, a long one is computed in chunks with a cache of its own. Yields between forwards.
    """
    rows: AdapterRows = [] if adapter is None else [(slice(None), adapter)]
    found: list[Tensor] = []
    shared: list[Sequence[int]] = []
    for ids in inputs:
        if shared and sum(map(len, shared)) + len(ids) > most:
            found += _together(model, shared, pooling, rows)
            shared = []
            yield
        if len(ids) > most:
            found.append((yield from _in_chunks(model, ids, pooling, most, rows)))
        else:
            shared.append(ids)
    if shared:
        found += _together(model, shared, pooling, rows)
    return functional.normalize(torch.stack(found), dim=-1)


@torch.inference_mode()
def _together(
    model: Qwen, inputs: Sequence[Sequence[int]], pooling: Pooling, rows: AdapterRows
) -> list[Tensor]:
    """One forward without a cache."""
    batch = Batch.from_sequences(inputs, model.device)
    batch.adapters = rows
    scaled = [_is_scaled(model, ids) for ids in inputs]
    if any(scaled):
        lengths = torch.tensor([len(ids) for ids in inputs])
        batch.scaled = torch.tensor(scaled).repeat_interleave(lengths).to(model.device)
    parts = torch.split(model.hidden(batch), [len(ids) for ids in inputs])
    return [_pool(part, pooling) for part in parts]


def _pool(states: Tensor, pooling: Pooling) -> Tensor:
    return states[-1].float() if pooling == "last" else states.float().mean(0)


def _in_chunks(
    model: Qwen, ids: Sequence[int], pooling: Pooling, most: int, rows: AdapterRows
) -> Generator[None, None, Tensor]:
    """One long input, `most` tokens a forward."""
    blocks = -(-len(ids) // BLOCK)
    cache = KVCache(model.config, blocks, BLOCK, dtype=model.dtype, device=model.device)
    total = torch.zeros(model.config.hidden_size, device=model.device)
    for start in range(0, len(ids), most):
        if start:
            yield
        states = _chunk(model, ids, start, min(start + most, len(ids)), cache, rows)
        last = states[-1].float()
        total += states.float().sum(0)
    return last if pooling == "last" else total / len(ids)


@torch.inference_mode()
def _chunk(
    model: Qwen, ids: Sequence[int], start: int, end: int, cache: KVCache, rows: AdapterRows
) -> Tensor:
    """States of tokens start … end - 1; their keys and values go into block after block."""
    device, places = model.device, torch.arange(start, end)
    kv = PagedKV(
        k=cache.k,
        v=cache.v,
        slots=places.to(device),
        block_tables=torch.arange(cache.num_blocks, dtype=torch.int32)[None].to(device),
        context_lens=torch.tensor([end], dtype=torch.int32).to(device),
    )
    batch = Batch(
        torch.tensor(ids[start:end]).to(device),
        places.expand(3, -1).to(device),
        torch.tensor([0, end - start], dtype=torch.int32).to(device),
        kv,
        torch.ones(end - start, dtype=torch.bool).to(device) if _is_scaled(model, ids) else None,
        rows,
    )
    return model.hidden(batch)


def _is_scaled(model: Qwen, ids: Sequence[int]) -> bool:
    config = model.config
    return config.yarn is not None and len(ids) > config.original_context_length


def shortened(vectors: Tensor, dimensions: int | None) -> Tensor:
    """The first `dimensions` numbers of each vector (S, C), of length 1 again."""
    if dimensions is None:
        return vectors
    return functional.normalize(vectors[:, :dimensions], dim=-1)
