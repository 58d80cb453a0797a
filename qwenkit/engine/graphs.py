"""Decoding as CUDA graphs: one for each batch size, captured when that size first comes.

A decode step launches some hundred small kernels; replaying a graph launches them at once. A graph
reads and writes fixed places, so a batch is copied into a `StaticBatch` of the next size and filled
up with copies of its first sequence: these write the same keys and values to the same slot, and
their logits are dropped. Steps that do anything else than one new token a sequence, or that scale
positions (YaRN), run as they are.

Only for dense models on CUDA with Triton's bodies, whose work does not depend on numbers that the
CPU would have to wait for. A capture that fails is told once, and decoding goes on without graphs.
Not covered: prefill. Has not run on a GPU yet: the tests of the capture
need one, and without one only `StaticBatch` is checked.
Legend: S sequences, T slots of a block.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.engine.kv_cache import KVCache
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.qwen import Qwen

_log = logging.getLogger("qwenkit.engine")
_WARM_UPS = 2
"""Runs before the capture: they compile kernels and make tables, which a capture must not do."""


def sizes_up_to(most: int) -> list[int]:
    """Batch sizes that get a graph: 1, 2, 4, 8, then every 16, and the largest."""
    return [size for size in (1, 2, 4, 8, *range(16, most, 16)) if size < most] + [most]


class StaticBatch:
    """A decode batch of a fixed size, whose tensors stay where they are."""

    def __init__(self, cache: KVCache, size: int, max_blocks: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.positions = zeros(size)
        kv = PagedKV(
            k=cache.k,
            v=cache.v,
            slots=zeros(size),
            block_tables=zeros(size, max_blocks, dtype=torch.int32),
            context_lens=zeros(size, dtype=torch.int32) + 1,
        )
        bounds = torch.arange(size + 1, dtype=torch.int32, device=device)
        self.kv, self.batch = kv, Batch(zeros(size), self.positions.expand(3, -1), bounds, kv)

    def fill(self, batch: Batch) -> None:
        """Copy a decode batch of as many sequences or fewer."""
        assert batch.kv is not None and batch.scaled is None
        count, width = batch.kv.block_tables.shape
        pairs = (
            (self.batch.input_ids, batch.input_ids),
            (self.positions, batch.positions[0]),
            (self.kv.slots, batch.kv.slots),
            (self.kv.context_lens, batch.kv.context_lens),
            (self.kv.block_tables[:, :width], batch.kv.block_tables),
        )
        for to, given in pairs:
            to[:count] = given
            to[count:] = given[:1]


class DecodeGraphs:
    """The graphs of a model and its cache. Use under `torch.inference_mode`."""

    def __init__(self, model: Qwen, cache: KVCache, max_sequences: int, max_blocks: int) -> None:
        self._model, self._cache, self._max_blocks = model, cache, max_blocks
        self._sizes = sizes_up_to(max_sequences)
        self._captured: dict[int, tuple[StaticBatch, torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def forward(self, batch: Batch) -> Tensor:
        """Logits (S, V) of a batch with one new token a sequence."""
        count = len(batch.input_ids)
        size = next((size for size in self._sizes if size >= count), 0)
        if size and size not in self._captured and batch.scaled is None:
            try:
                self._captured[size] = self._capture(size, batch)
            except RuntimeError as error:  # out of memory is one of these
                _log.warning("decoding without CUDA graphs: the capture failed (%s)", error)
                self._sizes = []
        if size not in self._captured or batch.scaled is not None:
            logits: Tensor = self._model(batch)
            return logits
        static, graph, out = self._captured[size]
        static.fill(batch)
        graph.replay()
        return out[:count].clone()  # the next replay writes there

    def _capture(self, size: int, batch: Batch) -> tuple[StaticBatch, torch.cuda.CUDAGraph, Tensor]:
        static = StaticBatch(self._cache, size, self._max_blocks, self._model.device)
        static.fill(batch)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._model(static.batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = self._model(static.batch)
        return static, graph, out


def make_graphs(
    model: Qwen, cache: KVCache, max_sequences: int, max_blocks: int
) -> DecodeGraphs | None:
    """The graphs of a model that they are for, else None."""
    if model.device.type != "cuda" or ops.gpu_backend() != "triton" or model.config.num_experts:
        return None
    if not cache.k[0].is_floating_point():  # no kernel of Triton reads int8
        return None
    return DecodeGraphs(model, cache, max_sequences, max_blocks)
