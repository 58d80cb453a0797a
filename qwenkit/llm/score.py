"""The model's own numbers about given tokens: logits, and how likely each token of a text is.
Legend: N tokens, C hidden, V vocabulary, K most likely ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwenkit.engine import Driver
from qwenkit.errors import ContextLengthError, EngineError, RequestError
from qwenkit.llm.adapters import Adapters
from qwenkit.llm.states import checked_ids, hidden_states
from qwenkit.model.batch import Batch
from qwenkit.model.lora import Adapter
from qwenkit.model.qwen import Qwen
from qwenkit.prompt.tokenizer import Tokenizer

LOGITS = 1 << 24
"""Most logits at once: 64 MiB, computed between two steps of the engine."""


@dataclass(frozen=True)
class Scores:
    """Of a text's N tokens all but the first: `logprobs` (N - 1), each given what stands before it;
    `top` (N - 1, K) and `top_ids`: the most likely tokens at its place, in falling order. float32
    and int64 on the CPU.
    """

    ids: list[int]
    logprobs: Tensor
    top: Tensor
    top_ids: Tensor


class Scorer:
    """How likely given texts are, computed by the thread that steps the engine."""

    def __init__(self, driver: Driver, tokenizer: Tokenizer, adapters: Adapters) -> None:
        self._driver, self._tokenizer, self._adapters = driver, tokenizer, adapters

    def ids(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        answer: int = 0,
        max_tokens: int | None = None,
    ) -> list[list[int]]:
        """Token ids of each prompt, as `checked_ids`. Errors: RequestError, ContextLengthError."""
        sizes: Any = {"answer": answer, "max_tokens": max_tokens}
        context = self._driver.engine.context_length
        return checked_ids(self._tokenizer, prompts, context, param="prompt", **sizes)

    def score(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        top: int = 0,
        adapter: str | Adapter | None = None,
    ) -> list[Scores]:
        """One `Scores` for each text or id list, with the `top` most likely tokens. Errors:
        RequestError, ContextLengthError, QueueFullError, EngineError.
        """
        return self._start(self.ids(prompts), top, adapter).result()

    async def ascore(
        self, ids: list[list[int]], *, top: int = 0, adapter: str | Adapter | None = None
    ) -> list[Scores]:
        """`score` for coroutines, of what `ids` gave; cancelling it ends the work."""
        return await asyncio.wrap_future(self._start(ids, top, adapter))

    def _start(
        self, ids: list[list[int]], top: int, adapter: str | Adapter | None
    ) -> Future[list[Scores]]:
        engine, own = self._driver.engine, self._adapters.find(adapter)
        rows, most = self._tokenizer.vocab_size, engine.scheduler.max_batch_tokens
        if not 0 <= top <= rows:
            raise RequestError(f"top must be an integer from 0 to {rows}.", param="top")
        return self._driver.lend(
            _finite(scored(engine.model, ids, top, vocab_size=rows, most=most, adapter=own))
        )


def _finite(
    work: Generator[None, None, list[Scores]],
) -> Generator[None, None, list[Scores]]:
    try:
        found = yield from work
    except MemoryError as error:
        raise EngineError(f"Out of memory: {error}", code="out_of_memory") from error
    if not all(bool(torch.isfinite(each.logprobs).all()) for each in found):
        raise EngineError("The logits are not finite.", code="not_finite")
    return found


def scored(
    model: Qwen,
    inputs: Sequence[Sequence[int]],
    top: int,
    *,
    vocab_size: int,
    most: int,
    adapter: Adapter | None = None,
) -> Generator[None, None, list[Scores]]:
    """Scores of each input over the first `vocab_size` rows of the head. Yields after each forward
    of at most `most` tokens, and after each `LOGITS` numbers of the head.
    """
    found = [(torch.empty(0), torch.empty(0, top), torch.empty(0, top, dtype=torch.int64))]
    starts = [0] * len(inputs)
    for group in hidden_states(model, inputs, most=most, adapter=adapter):
        yield
        rows, followers = list[Tensor](), list[int]()
        for number, x in group:
            end = starts[number] + len(x)
            nexts = inputs[number][starts[number] + 1 : end + 1]
            starts[number] = end
            rows.append(x[: len(nexts)])
            followers += nexts
        if not followers:
            continue
        size = max(LOGITS // vocab_size, 1)
        parts = torch.split(torch.cat(rows), size), torch.split(torch.tensor(followers), size)
        for part, ids in zip(*parts, strict=True):
            found.append(_rated(model, part, ids, top, vocab_size))
            yield
    counts = [len(ids) - 1 for ids in inputs]
    columns = [torch.split(torch.cat(column), counts) for column in zip(*found, strict=True)]
    return [Scores(list(ids), *own) for ids, *own in zip(inputs, *columns, strict=True)]


@torch.inference_mode()
def _rated(
    model: Qwen, x: Tensor, followers: Tensor, top: int, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C), the ids that follow (N) → log-probabilities (N), (N, K) and their ids."""
    logprobs = model.logits(x)[:, :vocab_size].log_softmax(-1)  # (N, V)
    own = logprobs.gather(1, followers[:, None].to(x.device))[:, 0]
    values, ids = logprobs.topk(top, -1)
    return own.cpu(), values.cpu(), ids.cpu()


def logits_of(model: Qwen, ids: list[int], adapter: Adapter | None = None) -> Tensor:
    """`LLM.logits`: (N, V) float32. Errors: RequestError, ContextLengthError."""
    config = model.config
    if not ids or not all(type(i) is int and 0 <= i < config.vocab_size for i in ids):
        raise RequestError(
            f"token_ids must be at least one integer from 0 to {config.vocab_size - 1}.",
            param="token_ids",
        )
    if len(ids) > config.context_length:
        raise ContextLengthError(len(ids), 0, config.context_length, param="token_ids")
    batch = Batch.from_sequences([ids], model.device)
    if config.yarn and len(ids) > config.original_context_length:
        batch.scaled = torch.ones(len(ids), dtype=torch.bool, device=model.device)
    if adapter is not None:
        batch.adapters = [(slice(0, len(ids)), adapter)]
    with torch.no_grad():
        logits: Tensor = model(batch)
    return logits
