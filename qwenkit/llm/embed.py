"""Texts as vectors: the last hidden states of the model, pooled over the tokens of each text.

"last" takes the state of the last token, the only one that has seen the whole text; "mean" the
average of all. Vectors have length 1. With `dimensions` the first so many numbers are kept and
brought to length 1 again, as OpenAI does; what that loses depends on how the model was trained.
The sums are made in float32. Legend: S sequences, C hidden.
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
from qwenkit.errors import EngineError, RequestError
from qwenkit.llm.states import checked_ids, hidden_states
from qwenkit.model.lora import Adapter
from qwenkit.model.qwen import Qwen
from qwenkit.prompt.tokenizer import Tokenizer

Pooling = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean")


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
        context = self._driver.engine.context_length
        return checked_ids(self._tokenizer, inputs, context, max_tokens=max_tokens, param="input")

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
    """Pooled states (S, C) float32 of length 1. Yields after each forward of `hidden_states`."""
    found = torch.zeros(len(inputs), model.config.hidden_size, device=model.device)
    for group in hidden_states(model, inputs, most=most, adapter=adapter):
        for number, x in group:
            if pooling == "last":
                found[number] = x[-1].float()
            else:
                found[number] += x.float().sum(0)  # of length 1 in the end, whatever the count
        yield
    return functional.normalize(found, dim=-1)


def shortened(vectors: Tensor, dimensions: int | None) -> Tensor:
    """The first `dimensions` numbers of each vector (S, C), of length 1 again."""
    if dimensions is None:
        return vectors
    return functional.normalize(vectors[:, :dimensions], dim=-1)
