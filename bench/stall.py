"""How long a client waits for its next token while another's prompt is computed:
`python bench/stall.py [--model tiny-instruct|0.5B] [--dtype bfloat16] [--quantize int4]`.

One client decodes alone, then again while a prompt of 2,000 tokens arrives. Printed are its gaps
between tokens (median, 99th percentile, longest) alone and during the prompt, their ratio, and how
long the prompt takes beside it and by itself. "0.5B" is a random model of the shape of
Qwen2.5-0.5B.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import time

from common import load

from qwenkit.engine import Driver, Engine, Request, RequestOutput, SamplingParams
from qwenkit.model.load import DTYPES


class Client:
    """Notes when each token of one request arrives."""

    def __init__(self, driver: Driver, name: str, prompt: list[int], tokens: int) -> None:
        self.times: list[float] = []
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.began = time.perf_counter()
        request = Request(name, prompt, SamplingParams(max_tokens=tokens))
        driver.submit([request], self.take)

    def take(self, output: RequestOutput) -> None:
        self.times.append(time.perf_counter())
        if output.finished:
            self.ended.put(str(output.finish_reason))

    def gaps(self, start: float = 0.0, end: float = float("inf")) -> list[float]:
        inside = [t for t in self.times if start <= t <= end]
        return [(b - a) * 1e3 for a, b in zip(inside, inside[1:], strict=False)]


def show(name: str, gaps: list[float]) -> float:
    middle = statistics.median(gaps)
    high = sorted(gaps)[int(0.99 * (len(gaps) - 1))]
    print(f"{name:24} median {middle:7.2f}  p99 {high:7.2f}  longest {max(gaps):7.2f} ms", end="")
    print(f"  ({len(gaps)} gaps)")
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("tiny-instruct", "0.5B"), default="tiny-instruct")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--quantize", choices=("int4", "int8"))
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=100, help="of the client alone")
    options = parser.parse_args()
    model = load(options.model, options.dtype, options.quantize)
    most = min(4096, model.config.context_length)
    length = min(options.prompt, most - options.tokens)
    driver = Driver(Engine(model, kv_bytes=256 << 20, prefix_cache=False, max_model_len=most))
    prompt = [(i * 37) % 5000 for i in range(length)]
    warm = Client(driver, "warm", prompt[:200], 10)
    warm.ended.get()
    long = Client(driver, "by itself", prompt, 1)
    long.ended.get()
    itself = long.times[0] - long.began
    alone = Client(driver, "alone", prompt[:20], options.tokens)
    alone.ended.get()
    beside = Client(driver, "beside", prompt[:20], most - 40)
    while len(beside.times) < 20:
        time.sleep(0.001)
    long = Client(driver, "long", prompt, 1)
    long.ended.get()
    driver.abort(["beside"])
    beside.ended.get()
    quiet = show("alone", alone.gaps()[5:])
    during = beside.gaps(long.began, long.times[0])
    middle = show(f"beside {length} tokens", during)
    worst = sorted(during)[int(0.99 * (len(during) - 1))]
    print(f"ratio: median {middle / quiet:.2f}, p99 {worst / quiet:.2f}, ", end="")
    print(f"longest {max(during) / quiet:.2f} times the median gap alone")
    print(f"the prompt took {long.times[0] - long.began:.2f} s, by itself {itself:.2f} s")
    driver.close()


if __name__ == "__main__":
    main()
