"""The model's own numbers about given tokens, without the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.errors import ContextLengthError, RequestError
from qwenkit.model.batch import Batch
from qwenkit.model.lora import Adapter
from qwenkit.model.qwen import Qwen


def logits_of(model: Qwen, ids: list[int], adapter: Adapter | None = None) -> Tensor:
    """`LLM.logits`: (N, V) float32. Errors: RequestError, ContextLengthError."""
    config = model.config
    if not ids or not all(type(i) is int and 0 <= i < config.vocab_size for i in ids):
        raise RequestError(
            f"token_ids must be at least one integer from 0 to {config.vocab_size - 1}.",
            param="token_ids",
        )
    if len(ids) > config.context_length:
        raise ContextLengthError(len(ids), 0, config.context_length, param="token_ids")
    batch = Batch.from_sequences([ids], model.device)
    if config.yarn and len(ids) > config.original_context_length:
        batch.scaled = torch.ones(len(ids), dtype=torch.bool, device=model.device)
    if adapter is not None:
        batch.adapters = [(slice(0, len(ids)), adapter)]
    with torch.no_grad():
        logits: Tensor = model(batch)
    return logits
