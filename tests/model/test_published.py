"""GPTQ and AWQ checkpoints, written here by the published layouts, number by number."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.config import ModelConfig
from qwenkit.config.quantization import Quantization
from qwenkit.errors import CheckpointError, ConfigError
from qwenkit.io.safetensors import Checkpoint, save_file
from qwenkit.model.batch import Batch
from qwenkit.model.linear import Linear, QuantLinear
from qwenkit.model.load import empty_model, init_model, load_model, save_model
from qwenkit.model.published import AWQ_ORDER, repack
from qwenkit.model.qwen import Qwen

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    torch_dtype="float16",
)
Module = dict[str, Tensor]
Q = "model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Kind:
    """One way to publish a packed checkpoint."""

    method: str = "gptq"
    bits: int = 4
    group: int = 32
    sym: bool = False
    desc_act: bool = False
    v2: bool = False

    def config(self) -> dict[str, Any]:
        if self.method == "awq":
            return {
                "quant_method": "awq", "bits": 4, "group_size": self.group, "zero_point": True,
                "version": "gemm", "modules_to_not_convert": None,
            }  # fmt: skip
        return {
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.sym,
            "desc_act": self.desc_act, "damp_percent": 0.01, "static_groups": False,
            "true_sequential": True, **({"checkpoint_format": "gptq_v2"} if self.v2 else {}),
        }  # fmt: skip


KINDS = {
    "gptq-int4": Kind(),
    "gptq-int4-sym": Kind(sym=True),
    "gptq-int8": Kind(bits=8),
    "gptq-int8-sym": Kind(bits=8, sym=True),
    "gptq-v2": Kind(v2=True),
    "gptq-act": Kind(desc_act=True),
    "gptq-int8-act": Kind(bits=8, desc_act=True),
    "gptq-rows": Kind(group=-1),
    "awq": Kind("awq"),
}


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """(R·32/bits, C) codes → (R, C) int32 along the first dimension, the first code lowest."""
    wide = 32 // bits
    words = torch.zeros(len(codes) // wide, codes.shape[1], dtype=torch.int64)
    for k in range(wide):
        words |= codes[k::wide].long() << bits * k
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def pack_awq(codes: Tensor) -> Tensor:
    """(R, C) → (R, C/8): AutoAWQ's loop, nibble i of a word holds output AWQ_ORDER[i] of eight."""
    words = torch.zeros(len(codes), codes.shape[1] // 8, dtype=torch.int64)
    for column in range(words.shape[1]):
        for i, which in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            words[:, column] |= codes[:, column * 8 + which].long() << 4 * i
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def random_module(out: int, width: int, kind: Kind, seed: int) -> tuple[Module, Tensor]:
    """The tensors of one module, and the weight (out, in) that they mean."""
    g = torch.Generator().manual_seed(seed)
    group = width if kind.group < 0 else kind.group
    groups, top = -(-width // group), 1 << kind.bits
    codes = torch.randint(0, top, (width, out), generator=g)  # as in the file: inputs first
    zeros = torch.randint(1, top, (groups, out), generator=g)
    zeros = torch.full_like(zeros, top // 2) if kind.sym else zeros
    scales = (torch.rand(groups, out, generator=g) * 0.02 + 0.001).half()
    g_idx = (torch.arange(width) // group).int()
    if kind.desc_act:
        g_idx = g_idx[torch.randperm(width, generator=g)]
    where = g_idx.long()
    weight = (codes.float() - zeros.float()[where]) * scales.float()[where]
    if kind.method == "awq":
        parts = {"qweight": pack_awq(codes), "qzeros": pack_awq(zeros), "scales": scales}
    else:
        stored = zeros if kind.v2 else zeros - 1
        parts = {
            "qweight": pack_words(codes, kind.bits),
            "qzeros": pack_words(stored.T, kind.bits).T.contiguous(),
            "scales": scales,
            "g_idx": g_idx,
        }
    return parts, weight.T


def write(path: Path, kind: Kind, config: ModelConfig = CONFIG) -> Qwen:
    """A packed checkpoint in `path`; returns the model that it means, in float32."""
    model = init_model(config, seed=1)
    save_model(model, path, torch.float16)
    tensors: dict[str, Tensor] = {}
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    for seed, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, Linear) and name != "lm_head":
            parts, weight = random_module(module.out_features, module.in_features, kind, seed)
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
            del state[f"{name}.weight"]
            module.weight.data = weight
            if kind.method == "gptq" and module.bias is None:
                tensors[f"{name}.bias"] = torch.zeros(module.out_features, dtype=torch.float16)
    save_file({**tensors, **state}, path / "model.safetensors")
    values = json.loads((path / "config.json").read_text())
    values["quantization_config"] = kind.config()
    (path / "config.json").write_text(json.dumps(values))
    for name, tensor in model.named_parameters():
        if name in state:
            tensor.data = state[name].float()
    return model


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_weights_are_those_of_the_definition(kind: Kind, tmp_path: Path) -> None:
    meant = write(tmp_path, kind)
    model = load_model(tmp_path, "float32")
    count = 0
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            expected = meant.get_submodule(name)
            assert isinstance(expected, Linear)
            assert torch.equal(module.dense(), expected.weight)
            assert module.packed.format == f"int{kind.bits}"
            assert ("zeros" in module.packed.tensors) == (not kind.sym)
            assert ("order" in module.packed.tensors) == kind.desc_act
            assert (module.bias is None) == (expected.bias is None)
            count += 1
    assert count == 14
    batch = Batch.from_sequences([list(range(30))])
    with torch.no_grad():
        torch.testing.assert_close(model(batch), meant(batch), atol=1e-4, rtol=1e-4)


def test_the_order_of_awq() -> None:
    assert AWQ_ORDER == (0, 2, 4, 6, 1, 3, 5, 7)
    word = torch.tensor([[0x75316420]], dtype=torch.int32)  # nibble i holds its own output's number
    parts = {
        "qweight": word.repeat(32, 1),
        "qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    from_file = repack(parts, Quantization("awq", 4, 32), (8, 32))
    codes = from_file.tensors["codes"][:, 0] & 15
    assert codes.tolist() == list(range(8))


def test_the_padded_72b_has_the_shapes_of_its_files() -> None:
    """intermediate_size is 29696 = 232 · 128 in the packed files, 29568 in the others."""
    config = ModelConfig(
        vocab_size=64, hidden_size=128, intermediate_size=29696, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, torch_dtype="float16",
    )  # fmt: skip
    kind = Kind(group=128, sym=True)
    parts, weight = random_module(128, config.intermediate_size, kind, 0)
    assert parts["qweight"].shape == (3712, 128)
    packed = repack(parts, Quantization.from_dict(kind.config()), (128, config.intermediate_size))
    model = empty_model(config)
    assert model.model.layers[0].mlp.down_proj.weight.shape == packed.shape == weight.shape


def edit(path: Path, **changes: Tensor | None) -> None:
    with Checkpoint.open(path) as checkpoint:
        tensors = {name: checkpoint.read(name) for name in checkpoint}
    tensors |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    kept = {name: t for name, t in tensors.items() if changes.get(name, t) is not None}
    save_file(kept, path / "model.safetensors")


def test_tensors_that_disagree_are_named(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Tensor | None], str]] = [
        ({f"{Q}.scales": None}, "q_proj has no scales"),
        ({f"{Q}.g_idx": None}, "q_proj has no g_idx"),
        ({f"{Q}.qzeros": torch.zeros(2, 7, dtype=torch.int32)}, r"qzeros is \[2, 7\], not \[2, 8"),
        ({f"{Q}.qzeros": torch.zeros(2, 8)}, "qzeros is torch.float32"),
        ({f"{Q}.scales": torch.zeros(3, 64).half()}, r"scales is \[3, 64\]"),
        ({f"{Q}.qweight": torch.zeros(4, 64, dtype=torch.int32)}, "q_proj"),
        ({f"{Q}.qweight": torch.zeros(64, dtype=torch.int32)}, "expected two dimensions"),
        ({f"{Q}.g_idx": torch.full((64,), 9).int()}, "q_proj.g_idx does not have 32 inputs"),
        ({f"{Q}.g_idx": torch.arange(64).int() - 1}, "g_idx"),
        ({f"{Q}.qweight": None}, "missing"),
        ({"model.layers.0.mlp.up_proj.bias": torch.ones(96).half()}, "unexpected"),
        ({"other.qweight": torch.zeros(1, 1, dtype=torch.int32)}, "other has no"),
    ]
    _each_is_named(tmp_path, Kind(), cases)


def test_K168_tensors_of_awq_that_disagree_are_named(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Tensor | None], str]] = [
        ({f"{Q}.qzeros": None}, "q_proj has no qzeros"),
        (
            {f"{Q}.qzeros": torch.zeros(2, 64, dtype=torch.int32)},
            r"qzeros is \[2, 64\], not \[2, 8",
        ),
        ({f"{Q}.qzeros": torch.zeros(1, 8, dtype=torch.int32)}, r"qzeros is \[1, 8\], not \[2, 8"),
        # the order of AutoAWQ's other kernels, (out/8, in), and that of GPTQ, (in/8, out)
        ({f"{Q}.qweight": torch.zeros(8, 64, dtype=torch.int32)}, "q_proj"),
        ({f"{Q}.qweight": torch.zeros(64, 8, dtype=torch.int64)}, "qweight is torch.int64"),
        ({f"{Q}.scales": torch.ones(64, 2).half()}, r"scales is \[64, 2\], not \[2, 64\]"),
    ]
    _each_is_named(tmp_path, KINDS["awq"], cases)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gptq-int4", {"bits": 8}),
        ("gptq-int4", {"group_size": 64}),
        ("gptq-int4", {"group_size": -1}),
        ("gptq-int4", KINDS["awq"].config()),
        ("awq", Kind().config()),
        ("awq", {"group_size": 16}),
    ],
)
def test_K169_a_configuration_that_disagrees_with_its_tensors(
    tmp_path: Path, kind: str, change: dict[str, Any]
) -> None:
    write(tmp_path, KINDS[kind])
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="quantization_config says|q_proj"):
        load_model(tmp_path)


def _each_is_named(
    tmp_path: Path, kind: Kind, cases: list[tuple[dict[str, Tensor | None], str]]
) -> None:
    write(tmp_path, kind)
    good = (tmp_path / "model.safetensors").read_bytes()
    for change, named in cases:
        (tmp_path / "model.safetensors").write_bytes(good)
        edit(tmp_path, **change)
        with pytest.raises(CheckpointError, match=named):
            load_model(tmp_path, "float32")


def test_a_plain_checkpoint_that_calls_itself_packed(tmp_path: Path) -> None:
    save_model(init_model(CONFIG), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = Kind().config()
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="no qweight at all"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quant_method": "fp8"}, "quant_method is 'fp8'; supported is gptq or awq"),
        ({"quant_method": None}, "quant_method is None"),
        ({"bits": 3}, "bits is 3; supported is 4 or 8"),
        ({"bits": True}, "bits is True"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "128"}, "group_size"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"is_marlin_format": True}, "is_marlin_format is True"),
        ({"dynamic": {"layer": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "awq", "version": "gemv", "zero_point": True}, "version is 'gemv'"),
        ({"quant_method": "awq", "version": "GEMM", "zero_point": False}, "zero_point is False"),
        ({"quant_method": "awq", "bits": 8, "zero_point": True}, "bits is 8; supported is 4"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Quantization.from_dict({**Kind().config(), **change})


def test_the_configuration_is_read_with_the_model() -> None:
    values = {**CONFIG.to_dict(), "quantization_config": KINDS["awq"].config()}
    config = ModelConfig.from_dict(values)
    assert config.quantization == Quantization("awq", 4, 32)
    assert replace(config, quantization=None) == CONFIG
    assert "quantization" not in config.to_dict()
    gptq = [Quantization.from_dict(KINDS[name].config()) for name in ("gptq-int4", "gptq-v2")]
    assert [how.zero_offset for how in gptq] == [1, 0]
    older = {"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "zero_point": True}
    assert Quantization.from_dict({**older, "version": "GEMM"}).group_size == 128
