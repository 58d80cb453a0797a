"""What the engine itself costs a step, beside the model: `python bench/engine.py [--threads N]`.

A random model of about the tiny family's size decodes 1 and 16 sequences with several kinds of
sampling. Printed are medians over the steps: the model's forward, everything else of
`Engine.step`, and tokens a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.config import ModelConfig
from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.eval.speed import cores_for_kernels
from qwenkit.model.load import DTYPES, init_model
from qwenkit.model.transforms import prepare

CONFIG = ModelConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
)
RULES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.1},
    "instruct": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1},
    "full": {"temperature": 1.0},
}
PROMPT_TOKENS, NEW_TOKENS = 50, 100


def measure(engine: Engine, sequences: int, rules: dict[str, Any]) -> tuple[float, float, float]:
    """(forward, the rest) in ms a step, and tokens a second over all."""
    forwards: list[float] = []
    steps: list[float] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        forwards.append(-time.perf_counter())

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        forwards[-1] += time.perf_counter()

    hooks = [
        engine.model.register_forward_pre_hook(before),
        engine.model.register_forward_hook(after),
    ]
    for i in range(sequences):
        prompt = [(i * 37 + j * 11) % 8000 for j in range(PROMPT_TOKENS)]
        params = SamplingParams(max_tokens=NEW_TOKENS, seed=i, **rules)
        engine.add(Request(str(i), prompt, params))
    with cores_for_kernels(engine):
        while engine.has_work:
            start = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - start)
    for hook in hooks:
        hook.remove()
    rest = [step - forward for step, forward in zip(steps, forwards, strict=True)]
    rate = sequences * NEW_TOKENS / sum(steps)
    return statistics.median(forwards) * 1e3, statistics.median(rest) * 1e3, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = init_model(CONFIG, dtype=DTYPES[options.dtype])
    prepare(model)
    engine = Engine(model)
    measure(engine, 1, {})  # the first run pays for what torch sets up
    print(f"{options.dtype}, {options.threads} threads")
    print("sequences  sampling  forward ms  rest ms  tokens/s")
    for sequences in (1, 16):
        for name, rules in RULES.items():
            forward, rest, rate = measure(engine, sequences, rules)
            print(f"{sequences:9}  {name:8}  {forward:10.2f}  {rest:7.3f}  {rate:8.0f}")


if __name__ == "__main__":
    main()
