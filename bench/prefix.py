"""What a cached beginning saves: `python bench/prefix.py [--model tiny-instruct|0.5B] …`.

A system prompt of 1,000 tokens with a short question, asked twice with different questions. Printed
is the time to the first token, with an empty cache and with the system prompt in it, and the ratio
of the medians. "0.5B" is a random model of the shape of Qwen2.5-0.5B.
"""

from __future__ import annotations

import argparse
import statistics
import time

from common import load

from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.eval.speed import cores_for_kernels
from qwenkit.model.load import DTYPES


def first_token(engine: Engine, prompt: list[int]) -> float:
    """Seconds from a request to its first token."""
    began = time.perf_counter()
    engine.add(Request("a", prompt, SamplingParams(max_tokens=1)))
    with cores_for_kernels(engine):
        while engine.has_work:
            engine.step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=("tiny-instruct", "0.5B"), default="tiny-instruct")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--quantize", choices=("int4", "int8"))
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    engine = Engine(load(options.model, options.dtype, options.quantize), kv_bytes=256 << 20)
    cold, warm = [], []
    for i in range(options.rounds + 1):
        system = [(i * 131 + j * 37) % 5000 for j in range(options.prompt)]
        cold.append(first_token(engine, system + [1, 2, 3, 4, 5, 6, 7, 8]))
        warm.append(first_token(engine, system + [9, 8, 7, 6, 5, 4, 3, 2]))
    first, second = statistics.median(cold[1:]) * 1e3, statistics.median(warm[1:]) * 1e3
    print(f"{options.prompt} tokens: first {first:.1f} ms, again {second:.1f} ms, ", end="")
    print(f"{first / second:.1f} times faster")


if __name__ == "__main__":
    main()
