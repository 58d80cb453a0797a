"""Decode, batches and prefill of a published shape with random weights, beside the read bandwidth.

    python bench/decode.py [--size 0.5B] [--formats int4 int8 bfloat16] [--rounds 5]

A figure is the median over the rounds; the formats take turns within a round, so that other work on
the machine hurts all of them alike. `of bandwidth` is the bytes of all weights that a token needs
times tokens/s, over what two threads read of a large array in the same round.
Not covered: sampling, the tokenizer, long contexts. Legend: N tokens, S sequences.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from qwenkit import ops
from qwenkit.config.family import FAMILY
from qwenkit.engine.kv_cache import KVCache
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.linear import Linear, QuantEmbedding, QuantLinear
from qwenkit.model.load import QUANTIZE, empty_model
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import fuse

BLOCK = 16
CONTEXT = 128
PREFILL = 512


def random_model(size: str, format: str) -> Qwen:
    """The instruct model of that size; packed formats as `--quantize` packs them."""
    config = next(e.config for e in FAMILY.values() if e.size == size and e.kind == "instruct")
    packed = format in QUANTIZE
    dtype = torch.float32 if packed else getattr(torch, format)
    model = empty_model(config)
    for name, module in list(model.named_modules()):
        head = name == "lm_head"
        if packed and isinstance(module, Linear):
            kind = "int8" if head else format
            weight = torch.empty(module.weight.shape).normal_(0, 0.02)
            ready = ops.prepack(ops.quantize(weight, kind, group_size=QUANTIZE[kind]))
            bias = None if module.bias is None else torch.nn.Parameter(torch.zeros(len(weight)))
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, QuantLinear(ready, bias))
        elif packed and isinstance(module, torch.nn.Embedding):
            weight = torch.empty(module.weight.shape).normal_(0, 0.02)
            ready = ops.prepack(ops.quantize(weight, "int8", group_size=QUANTIZE["int8"]))
            model.model.add_module("embed_tokens", QuantEmbedding(ready, dtype))
            if model.lm_head is None:
                setattr(model, "lm_head", QuantLinear(ready))  # noqa: B010
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                value = torch.empty(parameter.shape, dtype=dtype).normal_(0, 0.02)
                setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
    fuse(model)
    return model.eval()


def weight_bytes(model: Qwen) -> int:
    """Bytes of what a token reads: all matrices, the head once, not the embedding's other rows."""
    total = 0
    for module in model.modules():
        if isinstance(module, QuantLinear):
            total += module.packed.nbytes
        elif isinstance(module, Linear):
            total += module.weight.nbytes
    if model.lm_head is None:
        total += model.model.embed_tokens.weight.nbytes
    return total


def forward(model: Qwen, sequences: int, tokens: int, context: int) -> Callable[[], None]:
    """A forward of `tokens` new tokens in each sequence, which then has `context`."""
    blocks = -(-context // BLOCK)
    dtype = model.dtype
    cache = KVCache(model.config, sequences * blocks, BLOCK, dtype=dtype, device="cpu")
    for tensor in (*cache.k, *cache.v):
        tensor.zero_()
    tables = torch.arange(sequences * blocks, dtype=torch.int32).view(sequences, blocks)
    at = torch.arange(context - tokens, context).repeat(sequences)
    of = torch.arange(sequences).repeat_interleave(tokens)
    slots = tables[of, at // BLOCK].long() * BLOCK + at % BLOCK
    lens = torch.full((sequences,), context, dtype=torch.int32)
    kv = PagedKV(cache.k, cache.v, slots, tables, lens)
    ids = torch.randint(0, 1000, (sequences * tokens,))
    cu = torch.arange(0, sequences * tokens + 1, tokens, dtype=torch.int32)
    batch = Batch(ids, at.expand(3, -1), cu, kv)
    rows = cu[1:].long() - 1

    @torch.inference_mode()
    def run() -> None:
        model(batch, rows)

    return run


def seconds(run: Callable[[], object], least: float = 0.5) -> float:
    """The median of calls that together take `least` seconds."""
    taken: list[float] = []
    while not taken or sum(taken) < least:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def read_rate(array: torch.Tensor) -> float:
    """Bytes a second that a sum over the array reads."""
    return array.nbytes / seconds(lambda: array.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="0.5B")
    parser.add_argument("--formats", nargs="+", default=["int4", "int8", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    names = ("decode 1", "decode 4", "decode 16", f"prefill {PREFILL}")
    shapes = ((1, 1, CONTEXT), (4, 1, CONTEXT), (16, 1, CONTEXT), (1, PREFILL, PREFILL))
    models = {name: random_model(options.size, name) for name in options.formats}
    array = torch.ones(64 << 20)
    found: dict[tuple[str, str], list[float]] = {}
    rates = []
    for _ in range(options.rounds):
        rates.append(read_rate(array))
        for format, model in models.items():
            for name, shape in zip(names, shapes, strict=True):
                run = forward(model, *shape)
                run()
                found.setdefault((format, name), []).append(seconds(run))
    rate = statistics.median(rates)
    print(f"{options.size}, {torch.get_num_threads()} threads, {ops.backend()}; ", end="")
    print(f"reads {rate / 1e9:.1f} GB/s; tokens/s:")
    print(
        "| format | " + " | ".join(names) + " | of bandwidth |\n|---|" + "---|" * (len(names) + 1)
    )
    for format, model in models.items():
        times = [statistics.median(found[format, name]) for name in names]
        speeds = [s * t / taken for (s, t, _), taken in zip(shapes, times, strict=True)]
        share = weight_bytes(model) * speeds[0] / rate
        print(f"| {format} | " + " | ".join(f"{x:.1f}" for x in speeds) + f" | {share:.2f} |")


if __name__ == "__main__":
    main()
