"""The model against `transformers` with random float32 weights, and against itself in every way of
batching.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.load import load_model
from qwenkit.model.qwen import Qwen

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
CASES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "sliding-window": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "yarn": {"rope_parameters": YARN},
    "moe": MOE,
    "moe-renormalised": {**MOE, "norm_topk_prob": True},
    "moe-every-second-layer": {**MOE, "decoder_sparse_step": 2},
}
Pair = Callable[..., tuple[Any, Qwen]]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture
def pair(tmp_path: Path, oracle_of: Callable[..., Any]) -> Pair:
    """`pair(case, device)`: the same random weights in both implementations, by way of a checkpoint
    on disk.
    """

    def make(case: str, device: str = "cpu") -> tuple[Any, Qwen]:
        return oracle_of(tmp_path, **CASES[case]), load_model(tmp_path, "float32", device)

    return make


def _ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 128, (length,), generator=generator).tolist()


def _batch(sequences: list[list[int]], case: str, device: str) -> Batch:
    batch = Batch.from_sequences(sequences, device)
    if case == "yarn":
        batch.scaled = torch.ones(len(batch.input_ids), dtype=torch.bool, device=device)
    return batch


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_transformers(pair: Pair, case: str, device: str) -> None:
    oracle, model = pair(case, device)
    ids = _ids(100)  # beyond YaRN's original 32, beyond the window of 8
    want = oracle(torch.tensor([ids])).logits[0]
    alone = model(_batch([ids], case, device)).cpu()
    packed = model(_batch([_ids(7, 1), ids, _ids(3, 2)], case, device)).cpu()[7:107]
    torch.testing.assert_close(alone, want, atol=1e-4, rtol=0)
    torch.testing.assert_close(packed, want, atol=1e-4, rtol=0)


def _cache(model: Qwen, blocks: int, size: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    config = model.config
    shape = (blocks, size, config.num_key_value_heads, config.head_dim)
    made = [torch.full(shape, float("nan")) for _ in range(2 * config.num_hidden_layers)]
    return made[: config.num_hidden_layers], made[config.num_hidden_layers :]


def _paged_logits(model: Qwen, ids: list[int], chunks: list[int], case: str) -> torch.Tensor:
    """The logits of `ids` fed chunk by chunk through a paged cache with scattered blocks."""
    size, blocks = 4, 40
    k, v = _cache(model, blocks, size)
    table = torch.randperm(blocks, generator=torch.Generator().manual_seed(3))
    out, done = [], 0
    for chunk in chunks:
        at = torch.arange(done, done + chunk)
        batch = _batch([ids[done : done + chunk]], case, "cpu")
        batch.positions = at.expand(3, -1)
        done += chunk
        slots = table[at // size] * size + at % size
        context = torch.tensor([done], dtype=torch.int32)
        batch.kv = PagedKV(k, v, slots, table[None].to(torch.int32), context)
        out.append(model(batch))
    return torch.cat(out)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_paged_and_chunked_equal_whole(pair: Pair, case: str) -> None:
    _, model = pair(case)
    ids = _ids(60)
    want = model(_batch([ids], case, "cpu"))
    for chunks in ([60], [1] * 60, [7] * 8 + [4], [33, 1, 26]):
        got = _paged_logits(model, ids, chunks, case)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_select_before_the_head(pair: Pair) -> None:
    _, model = pair("tied")
    batch = Batch.from_sequences([_ids(9), _ids(5, 1)])
    rows = torch.tensor([8, 13])
    torch.testing.assert_close(model(batch, rows), model(batch)[rows])


@torch.no_grad()
def test_yarn_is_chosen_for_each_token(pair: Pair) -> None:
    _, model = pair("yarn")
    short, long = _ids(20), _ids(60, 1)
    batch = Batch.from_sequences([short, long])
    batch.scaled = torch.tensor([False] * 20 + [True] * 60)
    mixed = model(batch)
    plain = model(Batch.from_sequences([short]))
    scaled = model(_batch([long], "yarn", "cpu"))
    torch.testing.assert_close(mixed, torch.cat((plain, scaled)), atol=1e-5, rtol=0)
    assert not torch.allclose(model(Batch.from_sequences([long])), scaled, atol=1e-2)


def test_gradients_equal_transformers(pair: Pair) -> None:
    oracle, model = pair("tied")
    ids = _ids(40)
    oracle(torch.tensor([ids])).logits.square().mean().backward()
    model(Batch.from_sequences([ids])).square().mean().backward()
    want = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name].grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_real_shape_half_billion(tmp_path: Path) -> None:
    """Qwen2.5-0.5B's own shape, all 494 M random weights, against transformers."""
    config = transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    oracle = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    oracle.save_pretrained(tmp_path)
    model = load_model(tmp_path, "float32")
    assert sum(p.numel() for p in model.parameters()) == 494_032_768
    ids = torch.randint(0, 151665, (24,)).tolist()
    want = oracle(torch.tensor([ids])).logits[0]
    got = model(Batch.from_sequences([ids]))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
