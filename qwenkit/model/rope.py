"""Rotary position embedding (Su 2021, arXiv 2104.09864) on three axes, with YaRN (Peng 2023, arXiv
2309.00071).

Text has three equal position rows, so the multimodal form of Qwen2-VL (arXiv 2409.12191, section
2.1) is the only one. YaRN is chosen for each token by `scaled`: a request that fits into the
original context is left as it was trained, one that does not gets the scaled frequencies. Legend: N
tokens, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qwenkit.config import ModelConfig


def plain_frequencies(config: ModelConfig) -> Tensor:
    """(D/2) float32: θ^(−2i/D)."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    return 1.0 / config.rope_theta**exponent


def yarn_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """(D/2) float32 and the factor for cos and sin, for a config whose rope_scaling is yarn."""
    scaling = config.yarn
    assert scaling is not None
    d, factor, length = config.head_dim, float(scaling["factor"]), config.original_context_length

    def dimension(rotations: float) -> float:
        """The frequency index that turns `rotations` times over the original length."""
        return d * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension(scaling.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension(scaling.get("beta_slow") or 1)), d - 1)
    span = high - low if high > low else 0.001
    ramp = ((torch.arange(d // 2).float() - low) / span).clamp(0, 1)
    plain = plain_frequencies(config)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    attention = scaling.get("attention_factor")
    return frequencies, 0.1 * math.log(factor) + 1.0 if attention is None else float(attention)


def frequency_axes(config: ModelConfig) -> Tensor:
    """(D/2) int64: which position row (time, height, width) drives each frequency."""
    section = (config.rope_scaling or {}).get("mrope_section") or [config.head_dim // 2]
    return torch.repeat_interleave(torch.arange(len(section)), torch.tensor(section))


class Rope:
    """cos and sin of a batch. Holds no parameters; tables are made on first use on each device."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.tables: dict[torch.device, tuple[Tensor, Tensor, Tensor | None]] = {}
        self.factor = 1.0

    def __call__(self, positions: Tensor, scaled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """positions (3, N), scaled (N) bool or None → cos, sin, each (N, D/2) float32."""
        plain, axes, yarn = self._tables(positions.device)
        if positions.stride(0) == 0:  # text: one row, thrice
            at = positions[0, :, None].float()
        else:
            at = positions.float()[axes].T.contiguous()  # (N, D/2)
        if scaled is None or yarn is None:
            angles = at * plain
            return angles.cos(), angles.sin()
        angles = at * torch.where(scaled[:, None], yarn, plain)
        scale = torch.where(scaled, self.factor, 1.0)[:, None]
        return angles.cos() * scale, angles.sin() * scale

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        if device not in self.tables:
            yarn = None
            if self.config.yarn:
                yarn, self.factor = yarn_frequencies(self.config)
                yarn = yarn.to(device)
            plain = plain_frequencies(self.config).to(device)
            self.tables[device] = (plain, frequency_axes(self.config).to(device), yarn)
        return self.tables[device]
