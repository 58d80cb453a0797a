"""Checkpoints with random weights: the shapes of a published model without its download.

    save_random(FAMILY["Qwen2.5-7B"].config, "out/7b")

For measuring speed and memory. What such a model writes means nothing.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.config import ModelConfig
from qwenkit.io.safetensors import save_sharded
from qwenkit.model.load import empty_model
from qwenkit.utils import write_json

_SHARD_BYTES = 1 << 30


def save_random(
    config: ModelConfig,
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write config.json and the weights: matrices normal with `initializer_range`, biases 0, norms
    1. Each tensor depends on the seed and its own name alone.

    One shard of 1 GiB, or the largest tensor, is in memory at a time. config.json comes last.
    Errors: ConfigError for a model with a vision tower, CheckpointError when the disk is full.
    """
    path = Path(path)
    shapes = empty_model(config).to(dtype).state_dict()

    def make(name: str) -> Tensor:
        shape = shapes[name].shape
        if len(shape) == 1:
            return (torch.zeros if name.endswith(".bias") else torch.ones)(shape, dtype=dtype)
        generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
        made = torch.empty(shape, dtype=dtype)
        for rows in torch.split(made, max((1 << 24) // shape[1], 1)):
            rows.copy_(torch.randn(rows.shape, generator=generator).mul_(config.initializer_range))
        return made

    path.mkdir(parents=True, exist_ok=True)
    save_sharded(shapes, path, _SHARD_BYTES, make=make)
    values = {**config.to_dict(), "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(path / "config.json", values)
