"""Toy models for the engine: two layers, random weights wide enough that greedy choices are not
near ties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch

from qwenkit.config import ModelConfig
from qwenkit.engine import Engine, Request, RequestOutput, SamplingParams
from qwenkit.model.load import init_model
from qwenkit.model.qwen import Qwen

BASE = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.3,
    tie_word_embeddings=True,
    torch_dtype="float32",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Toy matrices are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Qwen]:
    """make_model(**config changes) → a random float32 model, biases included."""

    def make(**changes: object) -> Qwen:
        model = init_model(dataclasses.replace(BASE, **changes), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Qwen]) -> Qwen:
    return make_model()


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., list[list[int]]]:
    """make_prompts(count, longest=40) → random prompts of 1 to `longest` tokens."""

    def make(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
        return [torch.randint(0, 128, (n,), generator=generator).tolist() for n in lengths]

    return make


def _drain(engine: Engine) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    return outputs


@pytest.fixture(scope="session")
def drain() -> Callable[[Engine], dict[str, list[RequestOutput]]]:
    """drain(engine): step until nothing is left; each request's outputs in order."""
    return _drain


@pytest.fixture(scope="session")
def complete() -> Callable[..., list[list[int]]]:
    """complete(engine, prompts, params or one for each): all at once; the new ids of each."""

    def run(
        engine: Engine, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[list[int]]:
        for i, ids in enumerate(prompts):
            each = params[i] if isinstance(params, list) else params
            engine.add(Request(str(i), ids, each))
        outputs = _drain(engine)
        return [[t for o in outputs[str(i)] for t in o.new_ids] for i in range(len(prompts))]

    return run
