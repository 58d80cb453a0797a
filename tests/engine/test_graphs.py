"""Decoding as CUDA graphs. Without a GPU only what the graphs read is checked, not the capture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qwenkit import ops
from qwenkit.engine import Engine, SamplingParams
from qwenkit.engine.graphs import DecodeGraphs, StaticBatch, make_graphs, sizes_up_to
from qwenkit.engine.kv_cache import KVCache
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.qwen import Qwen

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_sizes() -> None:
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(5) == [1, 2, 4, 5]
    assert sizes_up_to(40) == [1, 2, 4, 8, 16, 32, 40]


def decode_batch(cache: KVCache, tables: list[list[int]], lens: list[int]) -> Batch:
    """The token after `lens` − 1 cached ones in each sequence."""
    at, blocks = torch.tensor(lens) - 1, torch.tensor(tables, dtype=torch.int32)
    slots = blocks[torch.arange(len(lens)), at // cache.block_size].long() * cache.block_size
    slots += at % cache.block_size
    kv = PagedKV(cache.k, cache.v, slots, blocks, torch.tensor(lens, dtype=torch.int32))
    bounds = torch.arange(len(lens) + 1, dtype=torch.int32)
    return Batch(at * 5 + 1, at.expand(3, -1), bounds, kv)


def test_a_filled_up_batch_has_the_same_logits_and_writes_nothing_else(model: Qwen) -> None:
    generator = torch.Generator().manual_seed(0)
    caches = [KVCache(model.config, 9, 4, dtype=torch.float32, device="cpu") for _ in range(2)]
    for one, two in zip(caches[0].k + caches[0].v, caches[1].k + caches[1].v, strict=True):
        one.copy_(torch.randn(one.shape, generator=generator))
        two.copy_(one)
    static = StaticBatch(caches[1], 4, 6, torch.device("cpu"))
    with torch.inference_mode():
        for tables, lens in (([[3, 5], [7, 1]], [6, 3]), ([[2], [0], [8]], [1, 4, 2])):
            want = model(decode_batch(caches[0], tables, lens))
            static.fill(decode_batch(caches[1], tables, lens))
            got = model(static.batch)[: len(lens)]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    for one, two in zip(caches[0].k + caches[0].v, caches[1].k + caches[1].v, strict=True):
        torch.testing.assert_close(two, one, atol=1e-5, rtol=0)


def test_there_are_none_without_a_gpu(model: Qwen) -> None:
    cache = KVCache(model.config, 4, 4, dtype=torch.float32, device="cpu")
    assert make_graphs(model, cache, 2, 4) is None


def test_a_capture_that_fails_is_told_once_and_decoding_goes_on(
    model: Qwen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(DecodeGraphs, "_capture", fails)
    cache = KVCache(model.config, 9, 4, dtype=torch.float32, device="cpu")
    graphs, batch = DecodeGraphs(model, cache, 4, 6), decode_batch(cache, [[3], [7]], [1, 1])
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(graphs.forward(batch), model(batch))
    assert caplog.text.count("the capture failed (operation not permitted") == 1


@pytest.mark.gpu
@needs_gpu
def test_replayed_steps_draw_the_same_tokens(
    make_model: Callable[..., Qwen],
    make_prompts: Callable[..., list[list[int]]],
    complete: Callable[..., list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts = make_model().to("cuda"), make_prompts(5)
    params = SamplingParams(max_tokens=20)
    found = {}
    for body in ("triton", "torch"):
        monkeypatch.setattr("qwenkit.engine.graphs.ops.gpu_backend", lambda body=body: body)
        engine = Engine(model, num_blocks=64, max_sequences=8)
        assert (engine.runner._graphs is not None) == (body == "triton")
        found[body] = complete(engine, prompts, params)
    assert ops.gpu_backend() and found["triton"] == found["torch"]
