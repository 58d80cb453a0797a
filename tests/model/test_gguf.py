"""A GGUF file, made with the `gguf` package, is the model that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.errors import CheckpointError, OptionError
from qwenkit.io.gguf import read_gguf
from qwenkit.model.batch import Batch
from qwenkit.model.linear import Linear, QuantEmbedding, QuantLinear
from qwenkit.model.load import init_model, load_model, save_model
from qwenkit.model.names import from_gguf
from qwenkit.model.qwen import Qwen

Write = Callable[..., None]
CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    torch_dtype="float32",
    initializer_range=0.1,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
)
MOE = replace(
    CONFIG,
    model_type="qwen2_moe",
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=64,
)
KINDS = {
    "untied": CONFIG,
    "tied": replace(CONFIG, tie_word_embeddings=True),
    "moe": MOE,
}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = init_model(KINDS[request.param], seed=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    save_model(model, tmp_path / "folder")
    return tmp_path / "folder"


def logits(model: Qwen) -> torch.Tensor:
    with torch.no_grad():
        return model(Batch.from_sequences([list(range(20)), [95, 1]]))


def dense_twin(model: Qwen) -> Qwen:
    twin = init_model(model.config)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)):
            state[f"{name}.weight"] = ops.dequantize(module.packed)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    twin.load_state_dict(state)
    return twin.eval()


def test_float_files_have_the_same_logits(folder: Path, tmp_path: Path, write_gguf: Write) -> None:
    write_gguf(folder, tmp_path / "model.gguf", "F32")
    model, original = load_model(tmp_path / "model.gguf"), load_model(folder)
    assert replace(model.config, eos_token_id=None, initializer_range=0.1) == original.config
    assert torch.equal(logits(model), logits(original))


@pytest.mark.parametrize("matrices", ["Q8_0", "Q4_0", "Q5_1", "F16"])
def test_packed_files_are_their_dequantised_selves(
    folder: Path, tmp_path: Path, write_gguf: Write, matrices: str
) -> None:
    write_gguf(folder, tmp_path / "model.gguf", matrices)
    model = load_model(tmp_path / "model.gguf", "float32")
    packed = [m for m in model.modules() if isinstance(m, (QuantLinear, QuantEmbedding))]
    gates = sum(name.endswith("expert_gate") for name, _ in model.named_modules())
    if matrices == "F16":
        assert not packed
    else:
        assert all(module.packed.format == matrices.lower() for module in packed)
        assert sum(isinstance(m, Linear) for m in model.modules()) == gates
        assert isinstance(model.lm_head, QuantLinear)
        assert isinstance(model.model.embed_tokens, QuantEmbedding)
    twin = dense_twin(model)
    torch.testing.assert_close(logits(model), logits(twin), atol=1e-5, rtol=0)
    assert torch.equal(logits(model).argmax(-1), logits(twin).argmax(-1))


def test_packed_weights_are_the_bytes_of_the_file(tmp_path: Path, write_gguf: Write) -> None:
    save_model(init_model(CONFIG, seed=4), tmp_path)
    file = tmp_path / "model.gguf"
    write_gguf(tmp_path, file, "Q8_0")
    packed = load_model(file, "float32").model.layers[1].mlp.down_proj.packed
    info = read_gguf(file).tensors["blk.1.ffn_down.weight"]
    assert packed.shape == info.shape and packed.nbytes == info.nbytes
    data = file.read_bytes()[info.begin : info.begin + info.nbytes]
    assert packed.tensors["blocks"].numpy().tobytes() == data


def test_every_name_of_the_family_is_known() -> None:
    for arch in (gguf.MODEL_ARCH.QWEN2, gguf.MODEL_ARCH.QWEN2MOE):
        for tensor in gguf.MODEL_TENSORS[arch]:
            name = gguf.TENSOR_NAMES[tensor].format(bid=7) + ".weight"
            assert (from_gguf(name) is None) == name.startswith("rope_freqs"), name
    assert from_gguf("blk.07.attn_q.weight") is None and from_gguf("blk.1.attn_q") is None


def test_what_does_not_fit_is_named(tmp_path: Path, write_gguf: Write) -> None:
    save_model(init_model(CONFIG, seed=4), tmp_path)
    file = tmp_path / "model.gguf"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"more.weight": np.zeros((2, 32))}, "unexpected more.weight"),
        ({"rope_freqs.weight": np.full(8, 2.0)}, "unexpected rope_freqs.weight"),
        ({"model.norm.weight": np.zeros(32)}, r"model.norm.weight is \[32\], expected \[64\]"),
        ({"model.norm.weight": np.zeros((1, 64))}, r"model.norm.weight is \[1, 64\]"),
    ]
    for extra, named in cases:
        floats = {name: array.astype(np.float32) for name, array in extra.items()}
        write_gguf(tmp_path, file, "Q8_0", extra=floats)
        with pytest.raises(CheckpointError, match=named):
            load_model(file)
    write_gguf(tmp_path, file, "Q8_0", extra={"rope_freqs.weight": np.ones(8, np.float32)})
    load_model(file)


def test_a_packed_file_is_not_quantised_again(tmp_path: Path, write_gguf: Write) -> None:
    save_model(init_model(CONFIG, seed=4), tmp_path)
    file = tmp_path / "model.gguf"
    write_gguf(tmp_path, file, "Q8_0")
    with pytest.raises(OptionError, match="packed already"):
        load_model(file, quantize="int4")
    write_gguf(tmp_path, file, "F16")
    module = load_model(file, quantize="int4").model.layers[0].mlp.up_proj
    assert module.packed.format == "int4"


def test_a_large_file_opens_without_reading_it(tmp_path: Path) -> None:
    """The map counts no memory before its pages are touched."""
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "qwen2")
    writer.add_tensor("x", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with (tmp_path / "big.gguf").open("ab") as file:
        file.truncate(1 << 40)
    assert read_gguf(tmp_path / "big.gguf").tensors["x"].shape == (4, 32)
