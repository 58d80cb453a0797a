"""A request's logits are the same bits alone, among others, cut up, paused, and with a cached
beginning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit import ops
from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.errors import OptionError
from qwenkit.io.hub import ASSETS
from qwenkit.model.load import load_model
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare
from qwenkit.ops import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no C++ part")

Logits = dict[tuple[str, int], Tensor]
STEPS = 12


def record(engine: Engine, requests: list[Request]) -> Logits:
    """Run them all at once; the logits of every draw by request and place."""
    found: Logits = {}
    forward = engine.runner.forward

    def recording(plan: Any) -> Tensor:
        logits = forward(plan)
        for request, row in zip(plan.sampling, logits, strict=True):
            found[request.id, request.num_output] = row.clone()
        return logits

    engine.runner.forward = recording  # type: ignore[method-assign]
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()
    assert all(r.finish_reason == "length" for r in requests)
    return found


def requests(vocab: int, count: int = 16) -> list[Request]:
    """Prompts of 1 to 90 tokens, some with a common beginning."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(0, vocab, (40,), generator=generator).tolist()
    made = []
    for i in range(count):
        own = torch.randint(0, vocab, (1 + 7 * i % 53,), generator=generator).tolist()
        ids = own if i % 2 else start[: 3 * i] + own
        made.append(Request(str(i), ids, SamplingParams(max_tokens=STEPS)))
    return made


def ways(model: Qwen, **options: Any) -> dict[str, Callable[[], Logits]]:
    vocab = model.config.vocab_size
    base = {"num_blocks": 512, "prefix_cache": False, **options}

    def alone() -> Logits:
        engine, found = Engine(model, **base), Logits()
        for request in requests(vocab):
            found |= record(engine, [request])
        return found

    def at_once(**changes: Any) -> Logits:
        return record(Engine(model, **{**base, **changes}), requests(vocab))

    def again() -> Logits:
        engine = Engine(model, **{**base, "prefix_cache": True, "block_size": 4})
        record(engine, requests(vocab))
        found = record(engine, requests(vocab))
        assert engine.stats().cached_tokens > 500
        return found

    def pressed() -> Logits:
        engine = Engine(model, **{**base, "num_blocks": 56, "block_size": 2})
        found = record(engine, requests(vocab))
        assert engine.stats().preemptions > 0
        return found

    return {
        "alone": alone,
        "at once": at_once,
        "cut up": lambda: at_once(max_batch_tokens=9, max_sequences=5),
        "larger blocks": lambda: at_once(block_size=64),
        "cached": again,
        "paused": pressed,
    }


def differing(model: Qwen, **options: Any) -> list[str]:
    """Ways in which any bit of any logits is another than alone."""
    found = {name: run() for name, run in ways(model, **options).items()}
    alone = found.pop("alone")
    assert len(alone) == 16 * STEPS
    return [
        f"{name}: {key}"
        for name, logits in found.items()
        for key in alone
        if not alone[key].equal(logits[key])
    ]


KINDS: dict[str, dict[str, Any]] = {
    "tied": {},
    "window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "wide window": {
        "use_sliding_window": True,
        "sliding_window": 70,
        "max_window_layers": 0,
    },
    "experts": {
        "model_type": "qwen2_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_toy_models(kind: str, dtype: torch.dtype, make_model: Callable[..., Qwen]) -> None:
    assert differing(make_model(**KINDS[kind]).to(dtype), deterministic=True) == []


@pytest.mark.parametrize(
    ("dtype", "quantize", "kv_dtype"),
    [
        ("float32", None, "auto"),
        ("bfloat16", None, "auto"),
        ("bfloat16", "int8", "auto"),
        ("bfloat16", "int4", "int8"),
    ],
)
def test_tiny_instruct(dtype: str, quantize: str | None, kv_dtype: str) -> None:
    model = load_model(ASSETS / "tiny-instruct", dtype, "cpu", quantize=quantize)
    prepare(model)
    assert differing(model, deterministic=True, kv_dtype=kv_dtype) == []


@pytest.mark.skipif(
    ops.native_bfloat16(torch.device("cpu")), reason="here oneDNN multiplies many bfloat16 rows"
)
@pytest.mark.parametrize("quantize", [None, "int4"])
def test_bfloat16_needs_no_mode_on_a_cpu_without_instructions_for_it(quantize: str | None) -> None:
    model = load_model(ASSETS / "tiny-instruct", "bfloat16", "cpu", quantize=quantize)
    prepare(model)
    assert differing(model) == []


def test_what_cannot_be_kept_is_refused(make_model: Callable[..., Qwen]) -> None:
    with pytest.raises(OptionError, match=r"need the C\+\+ kernels.*float16"):
        Engine(make_model().half(), num_blocks=8, deterministic=True)
    Engine(make_model().half(), num_blocks=8)


def test_the_mode_ends_with_its_block(model: Qwen) -> None:
    half = torch.ones(1, 8, dtype=torch.float16)
    with pytest.raises(OptionError), ops.batch_invariant():
        ops.linear(half, half)
    for _ in itertools.repeat(None, 2):
        assert ops.linear(half, half).item() == 8
