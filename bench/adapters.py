"""What adapters cost: `python bench/adapters.py [--model tiny-instruct|0.5B] [--sequences 8] …`.

Milliseconds of a decode step of some sequences: none with an adapter, all with one, all with
different ones, and half of them with one. Adapters are random, of one rank, on all seven linear
layers. Printed are the medians, and their ratios to the first.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import load

from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.eval.speed import cores_for_kernels
from qwenkit.model.adapter import adaptable
from qwenkit.model.load import DTYPES
from qwenkit.model.lora import Adapter, LowRank
from qwenkit.model.qwen import Qwen


def random_adapter(model: Qwen, rank: int) -> Adapter:
    """On every layer that takes one."""
    layers: list[dict[str, LowRank]] = [{} for _ in model.model.layers]
    for name, linear in adaptable(model).items():
        parts = name.split(".")
        a = torch.randn(rank, int(linear.in_features)) * 0.01  # type: ignore[arg-type]
        b = torch.randn(int(linear.out_features), rank) * 0.01  # type: ignore[arg-type]
        layers[int(parts[2])][parts[-1]] = LowRank(a.to(model.dtype), b.to(model.dtype))
    return Adapter(layers)


def step_ms(engine: Engine, adapters: list[Adapter | None], steps: int) -> float:
    """The median step in which every sequence decodes, one with each of the adapters."""
    for i, adapter in enumerate(adapters):
        ids = [(i * 131 + j * 37) % 5000 for j in range(32)]
        engine.add(Request(str(i), ids, SamplingParams(max_tokens=steps), adapter=adapter))
    times = []
    with cores_for_kernels(engine):
        while engine.has_work:
            whole = len(engine.scheduler.running) == len(adapters)
            began = time.perf_counter()
            engine.step()
            if whole:
                times.append(time.perf_counter() - began)
    return statistics.median(times[len(times) // 4 :]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=("tiny-instruct", "0.5B"), default="tiny-instruct")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--quantize", choices=("int4", "int8"))
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    model, count = load(options.model, options.dtype, options.quantize), options.sequences
    engine = Engine(model, kv_bytes=256 << 20, prefix_cache=False)
    several = [random_adapter(model, options.rank) for _ in range(count)]
    one = several[0]
    cases: dict[str, list[Adapter | None]] = {
        "none": [None] * count,
        "one for all": [one] * count,
        "one for each": [*several],
        "one for half": [one if i % 2 else None for i in range(count)],
    }
    base = 0.0
    for name, adapters in cases.items():
        found = step_ms(engine, adapters, options.steps)
        base = base or found
        print(f"{name:14} {found:8.2f} ms a step of {count}, {found / base:.2f} times none")


if __name__ == "__main__":
    main()
