"""What is done to a loaded model before it answers leaves what it computes as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qwenkit.config import ModelConfig
from qwenkit.model.batch import Batch, PagedKV
from qwenkit.model.linear import QuantEmbedding, QuantLinear
from qwenkit.model.load import init_model, load_model, save_model
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import fuse, prepare, unmap
from qwenkit.ops import KernelWeight, Packed, cpu

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the C++ part is not built")


@torch.no_grad()
def logits(model: Qwen) -> Tensor:
    """Of some sequences without a cache, and of one with it: there the fused layers work."""
    sequences = [list(range(40)), [7], [90, 3, 3]]
    config, dtype = model.config, model.dtype
    shape = (10, 4, config.num_key_value_heads, config.head_dim)
    k, v = ([torch.zeros(shape, dtype=dtype) for _ in model.model.layers] for _ in range(2))
    cached = Batch.from_sequences(sequences[:1])
    table, length = torch.arange(10, dtype=torch.int32)[None], torch.tensor([40], dtype=torch.int32)
    cached.kv = PagedKV(k, v, torch.arange(40), table, length)
    return torch.cat([model(Batch.from_sequences(sequences)), model(cached)]).float()


def packs(model: Qwen) -> list[QuantLinear | QuantEmbedding]:
    return [m for m in model.modules() if isinstance(m, (QuantLinear, QuantEmbedding))]


@pytest.mark.parametrize("kind", ["untied", "moe"])
@pytest.mark.parametrize("quantize", [None, "int4", "int8"])
def test_a_prepared_model_computes_the_same(
    tmp_path: Path, configs: dict[str, ModelConfig], kind: str, quantize: str | None
) -> None:
    """But for the kernels' rounding of activations to 8 bits, where weights are packed."""
    save_model(init_model(configs[kind], seed=3), tmp_path, torch.bfloat16)
    model = load_model(tmp_path, "float32", quantize=quantize)
    want = logits(model)
    prepare(model)
    bound = 1e-4 if quantize is None else 0.1 * float(want.abs().max())
    torch.testing.assert_close(logits(model), want, atol=bound, rtol=0)
    once = logits(model)
    prepare(model)
    assert torch.equal(logits(model), once), "a second time changes nothing"


@needs_kernels
def test_which_layers_become_one_kernel(tmp_path: Path, configs: dict[str, ModelConfig]) -> None:
    plain, moe = init_model(configs["untied"], seed=3), init_model(configs["moe"], seed=3)
    half = init_model(configs["untied"], seed=3).to(torch.float16)  # no kernel computes in it
    save_model(plain, tmp_path, torch.bfloat16)
    packed = load_model(tmp_path, "float32", quantize="int4")
    fuse(packed)
    assert not packed.fused, "not yet in the order of the kernels"
    for model, fused in ((plain, True), (packed, True), (moe, False), (half, False)):
        assert not model.fused
        prepare(model)
        assert all((block.fused is not None) == fused for block in model.model.layers)
        assert bool(model.fused) == fused


@needs_kernels
def test_a_tied_weight_stays_one(tmp_path: Path, configs: dict[str, ModelConfig]) -> None:
    save_model(init_model(configs["tied"], seed=3), tmp_path, torch.bfloat16)
    model = load_model(tmp_path, "float32", quantize="int8")
    prepare(model)
    assert model.lm_head is not None and isinstance(model.lm_head.packed, KernelWeight)
    assert model.lm_head.packed is model.model.embed_tokens.packed


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_nothing_lies_in_the_file_any_more(
    tmp_path: Path, write_gguf: Callable[..., None], tied: bool, configs: dict[str, ModelConfig]
) -> None:
    """A weight that no kernel took is copied out of the mapped file, which may then be cut."""
    config = configs["tied" if tied else "untied"]
    save_model(init_model(config, seed=3), tmp_path / "model", torch.bfloat16)
    file = tmp_path / "tiny.gguf"
    write_gguf(tmp_path / "model", file, "Q8_0")
    model = load_model(file, "float32")
    held = [module.packed for module in packs(model)]
    assert all(isinstance(packed, Packed) for packed in held)
    before = [packed.dense() if isinstance(packed, KernelWeight) else packed for packed in held]
    assert len({id(packed) for packed in before}) == len(held) - tied
    want = logits(model)
    unmap(model)
    owned = [module.packed for module in packs(model)]
    assert len({id(packed) for packed in owned}) == len(held) - tied
    unmap(model)
    assert [module.packed for module in packs(model)] == owned, "what is its own is left alone"
    os.truncate(file, 0)  # a touch of its pages would end the process
    assert torch.equal(logits(model), want)
    prepare(model)
    assert logits(model).isfinite().all()
