"""The cache's shape and size, and what happens when it does not fit."""

from __future__ import annotations

import pytest
import torch

from qwenkit.engine import kv_cache
from qwenkit.engine.kv_cache import KVCache, blocks_in, bytes_per_token, default_kv_bytes
from qwenkit.errors import OutOfMemoryError
from qwenkit.model.qwen import Qwen

CPU = torch.device("cpu")


def test_one_pair_of_tensors_a_layer(model: Qwen) -> None:
    cache = KVCache(model.config, 5, 4, dtype=torch.bfloat16, device=CPU)
    assert len(cache.k) == len(cache.v) == 2
    assert {tuple(t.shape) for t in (*cache.k, *cache.v)} == {(5, 4, 2, 8)}
    assert cache.num_bytes == model.config.kv_bytes_per_token(2) * 20


def test_an_int8_cache_has_room_for_its_scales(model: Qwen) -> None:
    cache = KVCache(model.config, 5, 4, dtype=torch.int8, device=CPU)
    assert {tuple(t.shape) for t in (*cache.k, *cache.v)} == {(5, 4, 2, 12)}
    assert cache.num_bytes == bytes_per_token(model.config, torch.int8) * 20
    assert bytes_per_token(model.config, torch.bfloat16) == model.config.kv_bytes_per_token(2)


def test_blocks_in_rounds_down(model: Qwen) -> None:
    block = model.config.kv_bytes_per_token(4) * 16
    assert blocks_in(model.config, 3 * block - 1, 16, torch.float32) == 2


def test_the_default_stays_within_its_share_and_cap(
    model: Qwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_token = model.config.kv_bytes_per_token(4)
    assert default_kv_bytes(model.config, 100, torch.float32, CPU) == 100 * per_token
    assert default_kv_bytes(model.config, 10**12, torch.float32, CPU) <= kv_cache.CPU_CAP
    monkeypatch.setattr(kv_cache, "free_bytes", lambda device: 4000)
    assert default_kv_bytes(model.config, 10**6, torch.float32, CPU) == 1000


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < kv_cache.free_bytes(CPU) < 1 << 50


def test_a_cache_that_cannot_be_had_is_one_clear_error(model: Qwen) -> None:
    with pytest.raises(OutOfMemoryError, match="could not be allocated.*kv_bytes"):
        KVCache(model.config, 1 << 45, 16, dtype=torch.float32, device=CPU)
