"""From a plan to logits: builds the ragged batch of a step and runs the model on it.

Everything per token is computed in numpy from three numbers a sequence (where it starts, how many
tokens, which row of the block table): its steps cost a tenth of torch's, and their number does not
grow with the tokens. Legend: N tokens, S sequences, M sampling rows, V vocab, T slots of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.engine.graphs import make_graphs
from qwenkit.engine.kv_cache import KVCache
from qwenkit.engine.request import Request, SamplingParams
from qwenkit.engine.scheduler import Plan, Span
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.lora import Adapter, AdapterRows, Rows
from qwenkit.model.qwen import Qwen

Array = np.ndarray[Any, np.dtype[Any]]


class Runner:
    """Owns the block tables; one row for each running request, from its first step to
    `release`, filled as the request gets blocks.

    invariant: compute each request to the same bits whatever else is in the batch.
    adapters: whether the requests' adapters are for this model.
    """

    def __init__(
        self,
        model: Qwen,
        cache: KVCache,
        *,
        max_sequences: int,
        max_blocks: int,
        invariant: bool = False,
        adapters: bool = True,
    ) -> None:
        self.model, self.cache, self.invariant = model, cache, invariant
        self.adapters = adapters
        self.device = model.device
        self.meanwhile: Callable[[], None] | None = None
        """Called when a batch is ready for the model: what it sets off runs beside the kernels."""
        self._graphs = None
        if not invariant:  # whether the ops can keep that is theirs to say, at every step
            self._graphs = make_graphs(model, cache, max_sequences, max_blocks)
        self._host = model.device.type == "cpu"
        self._tables = np.zeros((max_sequences, max_blocks), dtype=np.int32)
        self._filled = [0] * max_sequences
        self._each = np.arange(max_sequences)
        self._held: dict[int, _Decoding] = {}
        self._rows: dict[str, int] = {}
        self._free_rows = list(range(max_sequences - 1, -1, -1))

    def forward(self, plan: Plan) -> Tensor:
        """Store the plan's keys and values; logits (M, V) float32 of its sampling spans in batch
        order, a row for each draft token and one more. To be called in `torch.inference_mode`.
        """
        spans = plan.spans
        plain = [span for span in spans if span.request.adapter is None]
        if not (self.adapters and 0 < len(plain) < len(spans) and self.model.fused):
            return self._logits(spans)
        # Layers in one kernel know no adapters. Who has none shall get them all the same, to the
        # same bits as alone: two forwards.
        others = [span for span in spans if span.request.adapter is not None]
        logits = torch.cat([self._logits(plain), self._logits(others)])
        counts = [(1 + len(s.drafts)) * s.samples for s in (*plain, *others)]
        parts = dict(zip(map(id, (*plain, *others)), torch.split(logits, counts), strict=True))
        return torch.cat([parts[id(span)] for span in spans])

    def _logits(self, spans: Sequence[Span]) -> Tensor:
        """One forward."""
        batch = self._batch(spans)
        ends: list[int] = []
        n = 0
        for span in spans:
            n += span.count
            if span.samples:
                ends += range(n - 1 - len(span.drafts), n)
        if self.meanwhile is not None:
            self.meanwhile()
        rows = None
        if len(ends) < n:
            rows = self._tensor(np.array(ends, dtype=np.int64))
        elif self._graphs is not None and n == len(spans) and not batch.adapters:
            return self._graphs.forward(batch)
        if not self.invariant:
            logits: Tensor = self.model(batch, rows)
            return logits
        with ops.batch_invariant():
            logits = self.model(batch, rows)
        return logits

    @torch.inference_mode()
    def probe(self) -> None:
        """Compute one token into a block that nobody holds. Errors: what the ops have to say."""
        request = Request("", [0], SamplingParams(max_tokens=1))
        request.blocks = [0]
        self.forward(Plan([Span(request, 0, 1, True)]))
        self.release(request)

    def release(self, request: Request) -> None:
        """Forget a request that has ended or lost its blocks. Unknown ones (it never ran) are none
        of our business.
        """
        row = self._rows.pop(request.id, None)
        if row is not None:
            self._free_rows.append(row)
            self._filled[row] = 0

    def _row(self, request: Request) -> int:
        row = self._rows.get(request.id)
        if row is None:
            row = self._rows[request.id] = self._free_rows.pop()
        filled, blocks = self._filled[row], request.blocks
        if filled < len(blocks):
            self._tables[row, filled : len(blocks)] = blocks[filled:]
            self._filled[row] = len(blocks)
        return row

    def _batch(self, spans: Sequence[Span]) -> Batch:
        if self._host and all(span.count == 1 for span in spans):
            return self._decoding(spans)
        size = self.cache.block_size
        start = np.array([span.start for span in spans])  # (S)
        count = np.array([span.count for span in spans])
        row = np.array([self._row(span.request) for span in spans])
        cu_seqlens = np.concatenate(([0], count.cumsum())).astype(np.int32)
        of = np.arange(len(spans)).repeat(count)  # (N), which span
        positions = np.arange(len(of)) + (start - cu_seqlens[:-1])[of]  # (N)
        blocks = self._tables[row[of], positions // size].astype(np.int64)
        widest = -(-int((start + count).max()) // size)
        kv = PagedKV(
            k=self.cache.k,
            v=self.cache.v,
            slots=self._tensor(blocks * size + positions % size),
            block_tables=self._tensor(self._tables[row, :widest]),
            context_lens=self._tensor((start + count).astype(np.int32)),
        )
        return Batch(
            self._tensor(np.array(_ids(spans))),
            self._tensor(positions).expand(3, -1),
            self._tensor(cu_seqlens),
            kv,
            self._scaled(spans, of),
            self._adapter_rows(spans, of),
        )

    def _decoding(self, spans: Sequence[Span]) -> Batch:
        """The batch of one token each. Its tensors are written over by the next such batch of as
        many: after a pass over the weights, each small one that is made anew costs ten times what
        it costs in a loop.
        """
        size, count = self.cache.block_size, len(spans)
        held = self._held.get(count)
        if held is None:
            held = self._held[count] = _Decoding(count)
        rows, longest = [], 0
        for i, span in enumerate(spans):
            request, start = span.request, span.start
            rows.append(self._row(request))
            held.at[0, i], held.at[1, i] = request.token_ids[start], start
            held.at[2, i] = request.blocks[start // size] * size + start % size
            held.lengths[i] = start + 1
            longest = max(longest, start + 1)
        tables = torch.from_numpy(self._tables[rows, : -(-longest // size)])
        kv = PagedKV(self.cache.k, self.cache.v, held.slots, tables, held.context_lens)
        of = self._each[:count]
        scaled, adapters = self._scaled(spans, of), self._adapter_rows(spans, of)
        return Batch(held.ids, held.positions, held.cu_seqlens, kv, scaled, adapters)

    def _scaled(self, spans: Sequence[Span], of: Array) -> Tensor | None:
        if not any(span.request.scaled for span in spans):
            return None
        return self._tensor(np.array([span.request.scaled for span in spans])[of])

    def _adapter_rows(self, spans: Sequence[Span], of: Array) -> AdapterRows:
        """The rows of each adapter in the batch; `of` (N): which span a row is of."""
        if not self.adapters:
            return []
        spans_of: dict[Adapter, list[int]] = {}
        for i, span in enumerate(spans):
            if span.request.adapter is not None:
                spans_of.setdefault(span.request.adapter, []).append(i)
        found: list[tuple[Rows, Adapter]] = []
        for adapter, which in spans_of.items():
            rows = np.flatnonzero(np.isin(of, which))
            first, end = int(rows[0]), int(rows[-1]) + 1
            together = end - first == len(rows)
            found.append((slice(first, end) if together else self._tensor(rows), adapter))
        return found

    def _tensor(self, values: Array) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor if self._host else tensor.to(self.device)


class _Decoding:
    """Tensors of a batch in which each of S sequences has one token, and views of their memory: of
    ids, positions and slots `at` (3, S), of the context's `lengths` (S).
    """

    def __init__(self, count: int) -> None:
        numbers = torch.empty(3, count, dtype=torch.int64)
        self.ids, positions, self.slots = numbers
        self.positions = positions.expand(3, -1)
        self.context_lens = torch.empty(count, dtype=torch.int32)
        self.at, self.lengths = numbers.numpy().data, self.context_lens.numpy().data
        self.cu_seqlens = torch.arange(count + 1, dtype=torch.int32)


def _ids(spans: Sequence[Span]) -> list[int]:
    """The tokens (N) of the spans."""
    ids: list[int] = []
    for span in spans:
        ids += span.request.token_ids[span.start : span.start + span.count]
        ids += span.drafts
    return ids
