"""How fast a loaded model is, through the engine that also answers, and what limits it.

    engine = load_engine("path/to/model", quantize="int4", sequences=16)
    speed = decode(engine, sequences=16, context=128)
    speed.tokens_per_second

Prompts are random and every one is new, draws are greedy, and a step is all of `Engine.step`:
schedule, forward, sampler. Figures are medians. `read_rate` is what the machine reads of a large
array with the same threads: a decoding step cannot be faster than its weights can be read, but for
what stays in a cache. Not covered: text, HTTP, several processes at once.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit import ops
from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.model.linear import Linear, QuantEmbedding, QuantLinear
from qwenkit.model.load import load_model
from qwenkit.model.moe import SparseMLP
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare
from qwenkit.ops import pages

NEW_TOKENS = 64
"""Tokens that a sequence decodes before it makes room for a new one."""
_SKIPPED = 2
"""Steps at the beginning of a decoding that do not count."""


@dataclass(frozen=True)
class Speed:
    """`seconds`: the median of one step, or of a whole prompt. `tokens`: how many it brought."""

    seconds: float
    tokens: int
    measured: int
    """How many steps or prompts the median is of."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def load_engine(
    path: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "cpu",
    quantize: str | None = None,
    sequences: int = 1,
    longest: int = 512,
) -> Engine:
    """The model behind an engine whose cache has room for `sequences` of `longest` tokens and as
    many new ones as are measured. Errors: those of `load_model` and `Engine`.
    """
    model = load_model(path, dtype, device, quantize=quantize, prepack=True)
    prepare(model)
    blocks = -(-(longest + NEW_TOKENS) // 16) * sequences
    most = max(512, sequences)
    engine = Engine(
        model,
        num_blocks=blocks,
        max_batch_tokens=most,
        max_sequences=sequences,
        max_model_len=min(longest + NEW_TOKENS, model.config.context_length),
    )
    engine.scheduler.prefill_limit = lambda *_: most  # nobody waits: prompts come first
    return engine


def decode(engine: Engine, *, sequences: int, context: int, seconds: float = 2.0) -> Speed:
    """Steps in which each of `sequences` draws one token, after `context` tokens of prompt."""
    taken: list[float] = []
    while sum(taken) < seconds:
        _add(engine, sequences, context, NEW_TOKENS)
        steps = []
        with cores_for_kernels(engine):
            while engine.has_work:
                start = time.perf_counter()
                outputs = engine.step()
                spent = time.perf_counter() - start
                if len(outputs) == sequences:  # else some still read their prompts
                    steps.append(spent)
        assert len(steps) > _SKIPPED, "the sequences never ran all at once"
        taken += steps[_SKIPPED:]
    return Speed(statistics.median(taken), sequences, len(taken))


def prefill(engine: Engine, *, tokens: int, seconds: float = 2.0) -> Speed:
    """From a prompt of `tokens` to its first drawn token; the first prompt does not count."""
    taken: list[float] = []
    while not taken or sum(taken[1:]) < seconds:
        _add(engine, 1, tokens, 1)
        with cores_for_kernels(engine):
            start = time.perf_counter()
            while engine.has_work:
                engine.step()
            taken.append(time.perf_counter() - start)
    return Speed(statistics.median(taken[1:]), tokens, len(taken) - 1)


@contextmanager
def cores_for_kernels(engine: Engine) -> Iterator[None]:
    """Keep PyTorch to one thread, as the thread that drives the engine of an `LLM` does."""
    before = torch.get_num_threads()
    if engine.model.fused:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def record(engine: Engine, what: str, speed: Speed, rate: float | None = None) -> dict[str, Any]:
    """What is worth writing down of a measurement, as plain values.

    `rate` is that of `read_rate`, measured here if not given. `gflops` counts two operations for
    each weight of the decoder and each token.
    """
    config, device = engine.model.config, engine.model.device
    found = footprint(engine)
    rate = rate or read_rate(device)
    body = config.num_active_parameters - config.num_parameters
    body += config.num_non_embedding_parameters
    return {
        "what": what,
        "tokens_per_second": speed.tokens_per_second,
        "seconds": speed.seconds,
        "tokens": speed.tokens,
        "measured": speed.measured,
        "read_rate": rate,
        "bandwidth_share": found["weight_bytes"] / speed.seconds / rate,
        "gflops": 2e-9 * body * speed.tokens_per_second,
        **found,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "kernels": ops.cpu.instruction_set() if ops.backend() == "cpu" else ops.backend(),
    }


def footprint(engine: Engine) -> dict[str, Any]:
    """Bytes: of all weights, of those that a token needs, of the cache, and of the process so far
    (`Memory`; on a GPU the peak is what PyTorch has allocated there).
    """
    model, used = engine.model, memory()
    found = {
        "model_bytes": model_bytes(model),
        "weight_bytes": weight_bytes(model),
        "cache_bytes": engine.cache.num_bytes,
        "peak_bytes": used and used.peak,
        "private_bytes": used and used.private,
    }
    if model.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(model.device)
    return found


def _add(engine: Engine, sequences: int, prompt: int, new: int) -> None:
    for i in range(sequences):
        ids: list[int] = torch.randint(engine.vocab_size, (prompt,)).tolist()
        engine.add(Request(str(i), ids, SamplingParams(max_tokens=new)))


def weight_bytes(model: Qwen) -> int:
    """Bytes of weights that one token needs: all matrices, the head once, of the experts as many as
    are asked, of a separate embedding nothing.
    """
    total = 0.0
    config = model.config
    share = config.num_experts_per_tok / config.num_experts if config.num_experts else 1.0
    experts = {
        id(inner)
        for module in model.modules()
        if isinstance(module, SparseMLP)
        for inner in module.experts.modules()
    }
    for module in model.modules():
        if isinstance(module, (Linear, QuantLinear)):
            total += _nbytes(module) * (share if id(module) in experts else 1.0)
    if model.lm_head is None:
        total += _nbytes(model.model.embed_tokens)
    return round(total)


def model_bytes(model: Qwen) -> int:
    """Bytes of all weights, those that two modules share counted once."""
    tensors = {id(p): p.nbytes for p in model.parameters()}
    for module in model.modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)):
            tensors[id(module.packed)] = module.packed.nbytes
    return sum(tensors.values())


def _nbytes(module: nn.Module) -> int:
    if isinstance(module, QuantLinear):
        return module.packed.nbytes
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.nbytes


def read_rate(device: torch.device | str = "cpu", seconds: float = 0.5) -> float:
    """Bytes a second that all threads together read of 1 GiB, added up in wide registers: the best
    of many sums. On the CPU from large pages, where weights are too.
    """
    on_cpu = torch.device(device).type == "cpu"
    array = (
        pages.empty((1 << 28,), torch.float32) if on_cpu else torch.empty(1 << 28, device=device)
    )
    array.fill_(1)
    return array.nbytes / min(_times(lambda: array.sum().item(), seconds))


def _times(run: Callable[[], object], least: float) -> list[float]:
    taken: list[float] = []
    while sum(taken) < least or len(taken) < 3:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken


@dataclass(frozen=True)
class Memory:
    """Resident bytes of this process, as Linux counts them.

    `peak` (VmHWM) has been the most so far, mapped files and shared libraries included; `now`
    (VmRSS) is the same at this moment, and `private` (RssAnon) what of it no file stands behind.
    """

    peak: int
    now: int
    private: int


def memory() -> Memory | None:
    """None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines)
    peak, now, private = (
        int(found[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssAnon")
    )
    return Memory(peak, now, private)
