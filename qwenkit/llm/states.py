"""The last hidden states of given tokens, beside the engine: in forwards of a bounded size, so that
whoever computes them on the engine's thread (`Driver.lend`) can let a step pass between two.
Legend: N tokens, C hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qwenkit.engine.kv_cache import KVCache
from qwenkit.errors import ContextLengthError, RequestError
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.lora import Adapter, AdapterRows
from qwenkit.model.qwen import Qwen
from qwenkit.prompt.tokenizer import Tokenizer

BLOCK = 16
States = list[tuple[int, Tensor]]
"""Numbers of inputs, each with states (N, C) of its next N tokens."""


def checked_ids(
    tokenizer: Tokenizer,
    inputs: Sequence[str | Sequence[int]],
    context: int,
    *,
    param: str,
    answer: int = 0,
    max_tokens: int | None = None,
) -> list[list[int]]:
    """Token ids of each input, which with `answer` more fits into the context; `max_tokens`: of all
    of them together. Errors: RequestError, ContextLengthError; they name `param`.
    """
    if not inputs:
        raise RequestError(f"{param} is empty.", "Give at least one text.", param=param)
    found, total, rows = list[list[int]](), 0, tokenizer.vocab_size
    for number, each in enumerate(inputs):
        where = f"{param}[{number}]" if len(inputs) > 1 else param
        ids = tokenizer.encode(each) if isinstance(each, str) else list(each)
        if not ids:
            raise RequestError(f"{where} is empty.", "Leave it out.", param=where)
        if not all(type(i) is int and 0 <= i < rows for i in ids):
            raise RequestError(f"Ids are integers from 0 to {rows - 1}.", param=where)
        if len(ids) + answer > context:
            raise ContextLengthError(len(ids), answer, context, param=where)
        total += len(ids)
        if max_tokens is not None and total > max_tokens:
            text = f"The {param}s have more than {max_tokens} tokens together."
            raise RequestError(text, "Send fewer at once.", param=param)
        found.append(ids)
    return found


def hidden_states(
    model: Qwen, inputs: Sequence[Sequence[int]], *, most: int, adapter: Adapter | None = None
) -> Iterator[States]:
    """One forward of at most `most` tokens for each item, the inputs in order: short ones share a
    forward, a long one is computed in chunks with a cache of its own.
    """
    rows: AdapterRows = [] if adapter is None else [(slice(None), adapter)]
    shared: list[int] = []
    total = 0
    for number, ids in enumerate(inputs):
        if shared and total + len(ids) > most:
            yield _together(model, inputs, shared, rows)
            shared, total = [], 0
        if len(ids) > most:
            for states in _in_chunks(model, ids, most, rows):
                yield [(number, states)]
        else:
            shared.append(number)
            total += len(ids)
    if shared:
        yield _together(model, inputs, shared, rows)


@torch.inference_mode()
def _together(
    model: Qwen, inputs: Sequence[Sequence[int]], numbers: list[int], rows: AdapterRows
) -> States:
    """One forward without a cache."""
    chosen = [inputs[number] for number in numbers]
    batch = Batch.from_sequences(chosen, model.device)
    batch.adapters = rows
    scaled = [_is_scaled(model, ids) for ids in chosen]
    if any(scaled):
        lengths = torch.tensor([len(ids) for ids in chosen])
        batch.scaled = torch.tensor(scaled).repeat_interleave(lengths).to(model.device)
    parts = torch.split(model.hidden(batch), [len(ids) for ids in chosen])
    return list(zip(numbers, parts, strict=True))


def _in_chunks(model: Qwen, ids: Sequence[int], most: int, rows: AdapterRows) -> Iterator[Tensor]:
    """One long input, `most` tokens a forward."""
    blocks = -(-len(ids) // BLOCK)
    cache = KVCache(model.config, blocks, BLOCK, dtype=model.dtype, device=model.device)
    for start in range(0, len(ids), most):
        yield _chunk(model, ids, start, min(start + most, len(ids)), cache, rows)


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
