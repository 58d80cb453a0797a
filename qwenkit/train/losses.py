"""Losses: tensors in, one scalar out. Sums, not means: the loop divides by the whole step's supervised tokens.

Legend: M supervised positions, V vocab rows.
"""

from __future__ import annotations

from torch import Tensor

from qwenkit import ops
from qwenkit.model.qwen import Qwen
from qwenkit.train.data import MicroBatch


def next_token_loss(model: Qwen, micro: MicroBatch) -> Tensor:
    """Summed negative log-probability of the supervised tokens, float32 scalar; only their rows reach the head."""
    logits = model.forward(micro.batch, rows=micro.rows)  # (M, V)
    return -ops.token_logprobs(logits, micro.targets).sum()
