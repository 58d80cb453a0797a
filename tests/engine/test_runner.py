"""The batch that a plan becomes: ids, positions, slots, tables, rows."""

from __future__ import annotations

import torch

from qwenkit.engine.kv_cache import KVCache
from qwenkit.engine.request import Request, SamplingParams
from qwenkit.engine.runner import Runner
from qwenkit.engine.scheduler import Plan, Span
from qwenkit.model.batch import Batch
from qwenkit.model.qwen import Qwen


class Recorder:
    """Stands in for the model and keeps what it was given."""

    device = torch.device("cpu")

    def __call__(self, batch: Batch, rows: torch.Tensor | None = None) -> torch.Tensor:
        self.batch, self.rows = batch, rows
        return torch.zeros(len(batch.input_ids) if rows is None else len(rows), 8)


def make(name: str, ids: list[int], blocks: list[int]) -> Request:
    request = Request(name, ids, SamplingParams())
    request.blocks = blocks
    return request


def test_a_mixed_plan(model: Qwen) -> None:
    recorder = Recorder()
    cache = KVCache(model.config, 16, 4, dtype=torch.float32, device="cpu")
    runner = Runner(recorder, cache, max_sequences=3, max_blocks=4)  # type: ignore[arg-type]
    decoding = make("a", [10, 11, 12, 13, 14, 15], [7, 2])
    prefilling, last = make("b", list(range(20, 29)), [5, 0, 3]), make("c", [30, 31], [9])
    last.scaled = True
    plan = Plan([Span(decoding, 5, 1, True), Span(prefilling, 3, 4, False), Span(last, 0, 2, True)])
    assert runner.forward(plan).shape == (2, 8)
    batch, kv = recorder.batch, recorder.batch.kv
    assert kv is not None and recorder.rows is not None and batch.scaled is not None
    assert batch.input_ids.tolist() == [15, 23, 24, 25, 26, 30, 31]
    assert batch.positions.tolist() == [[5, 3, 4, 5, 6, 0, 1]] * 3
    assert batch.cu_seqlens.tolist() == [0, 1, 5, 7]
    assert kv.slots.tolist() == [9, 23, 0, 1, 2, 36, 37]
    assert kv.context_lens.tolist() == [6, 7, 2]
    assert [row[:n] for row, n in zip(kv.block_tables.tolist(), (2, 2, 1), strict=True)] == [
        [7, 2],
        [5, 0],
        [9],
    ]
    assert recorder.rows.tolist() == [0, 6]
    assert batch.scaled.tolist() == [False] * 5 + [True] * 2
    assert batch.cu_seqlens.dtype == kv.context_lens.dtype == kv.block_tables.dtype == torch.int32


def test_pure_decode_asks_for_all_rows(model: Qwen) -> None:
    recorder = Recorder()
    cache = KVCache(model.config, 16, 4, dtype=torch.float32, device="cpu")
    runner = Runner(recorder, cache, max_sequences=2, max_blocks=4)  # type: ignore[arg-type]
    requests = [make("a", [1, 2], [3]), make("b", [4], [5])]
    runner.forward(Plan([Span(requests[0], 1, 1, True), Span(requests[1], 0, 1, True)]))
    assert recorder.rows is None and recorder.batch.scaled is None
    for request in requests:
        runner.release(request)
        runner.release(request)
    reused = [make("c", [1], [6]), make("d", [2], [7])]
    runner.forward(Plan([Span(request, 0, 1, True) for request in reused]))
    assert recorder.batch.kv is not None and recorder.batch.kv.slots.tolist() == [24, 28]


def test_a_plan_without_samples_computes_no_logits(model: Qwen) -> None:
    cache = KVCache(model.config, 16, 4, dtype=torch.float32, device="cpu")
    runner = Runner(model, cache, max_sequences=1, max_blocks=16)
    request = make("a", [1, 2, 3, 4], [0, 1])
    assert runner.forward(Plan([Span(request, 0, 3, False)])).shape == (0, 128)
