"""From a plan to logits: builds the ragged batch of a step and runs the model on it.

Everything per token is computed on the device from three numbers a sequence (where it starts, how
many tokens, which row of the block table), so the Python cost of a step grows with sequences and
not with tokens. Legend: N tokens, S sequences, M sampling rows, V vocab, T slots of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.engine.graphs import make_graphs
from qwenkit.engine.kv_cache import KVCache
from qwenkit.engine.request import Request
from qwenkit.engine.scheduler import Plan
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.qwen import Qwen


class Runner:
    """Owns the block tables on the device; one row for each running request, from its first step to
    `release`.
    """

    def __init__(self, model: Qwen, cache: KVCache, *, max_sequences: int, max_blocks: int) -> None:
        self.model, self.cache = model, cache
        self.device = model.device
        self._graphs = make_graphs(model, cache, max_sequences, max_blocks)
        self.tables = torch.zeros(
            (max_sequences, max_blocks), dtype=torch.int32, device=self.device
        )
        self._rows: dict[str, int] = {}
        self._free_rows = list(range(max_sequences - 1, -1, -1))

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Tensor:
        """Store the plan's keys and values; logits (M, V) float32 of its sampling spans, in batch
        order.
        """
        batch = self._batch(plan)
        ends, n = [], 0
        for span in plan.spans:
            n += span.count
            if span.samples:
                ends.append(n - 1)
        rows = None
        if len(ends) < n:
            rows = torch.tensor(ends, dtype=torch.int64).to(self.device)
        elif self._graphs is not None:
            return self._graphs.forward(batch)
        logits: Tensor = self.model(batch, rows)
        return logits

    def release(self, request: Request) -> None:
        """Forget a request that has ended. Unknown ones (it never ran) are none of our business."""
        row = self._rows.pop(request.id, None)
        if row is not None:
            self._free_rows.append(row)

    def _row(self, request: Request) -> int:
        row = self._rows.get(request.id)
        if row is None:
            row = self._rows[request.id] = self._free_rows.pop()
            blocks = torch.tensor(request.blocks, dtype=torch.int32)
            self.tables[row, : len(blocks)] = blocks.to(self.device)
        return row

    def _batch(self, plan: Plan) -> Batch:
        spans, size = plan.spans, self.cache.block_size
        ids: list[int] = []
        for span in spans:
            tokens = span.request.token_ids
            if span.count == 1:
                ids.append(tokens[span.start])
            else:
                ids += tokens[span.start : span.start + span.count]
        numbers = (
            [s.start for s in spans],
            [s.count for s in spans],
            [self._row(s.request) for s in spans],
        )
        start, count, row = torch.tensor(numbers, dtype=torch.int64).to(self.device)  # (S) each
        input_ids = torch.tensor(ids, dtype=torch.int64).to(self.device)
        cu_seqlens = torch.zeros(len(spans) + 1, dtype=torch.int32, device=self.device)
        torch.cumsum(count, 0, dtype=torch.int32, out=cu_seqlens[1:])
        scaled = None
        if any(span.request.scaled for span in spans):
            scaled = torch.tensor([span.request.scaled for span in spans], device=self.device)
        positions, token_row = start, row
        if len(ids) > len(spans):
            of = torch.arange(len(spans), device=self.device)
            of = torch.repeat_interleave(of, count, output_size=len(ids))  # (N): which span
            positions = torch.arange(len(ids), device=self.device) + (start - cu_seqlens[:-1])[of]
            token_row = row[of]
            scaled = None if scaled is None else scaled[of]
        blocks = self.tables[token_row, positions // size].long()
        longest = max(span.start + span.count for span in spans)
        kv = PagedKV(
            k=self.cache.k,
            v=self.cache.v,
            slots=blocks * size + positions % size,
            block_tables=self.tables[:, : -(-longest // size)][row],
            context_lens=(start + count).to(torch.int32),
        )
        return Batch(input_ids, positions.expand(3, -1), cu_seqlens, kv, scaled)
