"""The paged key-value cache: one pair of tensors a layer, cut into blocks that `BlockPool` hands
out by number.

Legend: B blocks of T slots, K key-value heads, D head dim.
"""

from __future__ import annotations

import os

import torch

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.errors import OutOfMemoryError
from qwenkit.utils import human_bytes

CPU_SHARE, CUDA_SHARE = 0.25, 0.8
CPU_CAP = 4 << 30
"""On the CPU the default cache stays under 4 GiB; pages are only taken from the system when they
are written.
"""


class KVCache:
    """`k[layer]` and `v[layer]`: (B, T, K, D) each, in int8 with room for scales (`qwenkit.ops`).
    The memory is not cleared: whoever reads must mask.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        width = ops.cache_width(config.head_dim, dtype)
        shape = (num_blocks, block_size, config.num_key_value_heads, width)
        self.num_blocks, self.block_size = num_blocks, block_size
        try:
            self.k = [
                torch.empty(shape, dtype=dtype, device=device)
                for _ in range(config.num_hidden_layers)
            ]
            self.v = [
                torch.empty(shape, dtype=dtype, device=device)
                for _ in range(config.num_hidden_layers)
            ]
        except RuntimeError as error:  # torch's allocators raise nothing narrower on the CPU
            size = bytes_per_token(config, dtype) * block_size * num_blocks
            raise OutOfMemoryError(
                f"The key-value cache of {human_bytes(size)} could not be allocated on {device}.",
                "Give a smaller kv_bytes, max_sequences or max_model_len.",
            ) from error

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.k, *self.v))


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """What one cached token takes in all layers."""
    rows = config.kv_bytes_per_token(1) // config.head_dim
    return rows * ops.cache_width(config.head_dim, dtype) * dtype.itemsize


def blocks_in(config: ModelConfig, kv_bytes: int, block_size: int, dtype: torch.dtype) -> int:
    """Blocks of `block_size` tokens that fit into `kv_bytes`. OutOfMemoryError when not even one
    does.
    """
    per_block = bytes_per_token(config, dtype) * block_size
    if kv_bytes < per_block:
        raise OutOfMemoryError(
            f"kv_bytes is {human_bytes(kv_bytes)}, but one block of {block_size} tokens takes "
            f"{human_bytes(per_block)}.",
            "Give a larger kv_bytes.",
        )
    return int(kv_bytes // per_block)


def default_kv_bytes(
    config: ModelConfig, num_tokens: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes for `num_tokens` cached tokens, within a share of the memory that is free now."""
    wanted = bytes_per_token(config, dtype) * num_tokens
    share = CUDA_SHARE if device.type == "cuda" else CPU_SHARE
    limit = int(free_bytes(device) * share)
    return min(wanted, limit if device.type == "cuda" else min(limit, CPU_CAP))


def free_bytes(device: torch.device) -> int:
    """Bytes that a new allocation could take on `device` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass  # not Linux: half of the machine's memory is the best that can be said
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
