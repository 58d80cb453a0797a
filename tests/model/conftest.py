"""Tiny models of `transformers` to compare with, and one thread: threads of torch that wait for
each other are slow where other programs run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from qwenkit.config import ModelConfig

TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def configs() -> dict[str, ModelConfig]:
    """Small models: "untied", "tied" (one weight for embedding and head) and "moe"."""
    untied = ModelConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        torch_dtype="bfloat16",
        initializer_range=0.1,
    )
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    moe = replace(untied, model_type="qwen2_moe", shared_expert_intermediate_size=48, **experts)
    return {"untied": untied, "tied": replace(untied, tie_word_embeddings=True), "moe": moe}


@pytest.fixture(scope="session")
def oracle_of() -> Callable[..., Any]:
    """`oracle_of(folder, **changes)`: a tiny model of `transformers` with random float32 weights,
    saved into the folder; `changes` of its configuration.
    """
    return _oracle_of


def _oracle_of(folder: Path, **changes: Any) -> Any:
    values = {**TINY, **changes}
    moe = "num_experts" in values
    config = transformers.Qwen2MoeConfig(**values) if moe else transformers.Qwen2Config(**values)
    torch.manual_seed(1)
    oracle = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in oracle.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.1)
        else:
            parameter.data.uniform_(0.5, 1.5)
    oracle.save_pretrained(folder)
    return oracle


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
