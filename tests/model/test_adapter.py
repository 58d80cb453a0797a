"""Adapters that PEFT has written compute what they compute in PEFT; what is not supported, or does
not fit, is refused with a remedy.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch

from qwenkit.engine import Engine, Request, SamplingParams
from qwenkit.errors import CheckpointError, ConfigError, FormatError, QwenkitError
from qwenkit.model.adapter import adaptable, read_adapter
from qwenkit.model.batch import Batch
from qwenkit.model.load import load_model
from qwenkit.model.lora import Adapter
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT

MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, dict[str, Any]] = {
    "rank 4": {"r": 4, "lora_alpha": 4},
    "rank 8, alpha 20": {"r": 8, "lora_alpha": 20},
    "rslora": {"r": 8, "lora_alpha": 12, "use_rslora": True},
    "two targets": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "a regular expression": {"r": 4, "lora_alpha": 8, "target_modules": r".*\.1\..*_proj"},
    "some layers": {"r": 4, "lora_alpha": 8, "layers_to_transform": [0, 2]},
    "excluded": {"r": 4, "lora_alpha": 8, "exclude_modules": ["k_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"k_proj": 2, "layers.1.mlp.up_proj": 6},
        "alpha_pattern": {"o_proj": 32},
        "use_rslora": True,
    },
}


def adapt(oracle: Any, folder: Path, **settings: Any) -> Any:
    """A PEFT model with random A and B, saved into the folder."""
    config = peft.LoraConfig(**{"target_modules": SEVEN, **settings})
    adapted = peft.get_peft_model(oracle, config).eval()
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    adapted.save_pretrained(folder)
    return adapted


def logits(model: Qwen, ids: list[int], adapter: Adapter | None) -> torch.Tensor:
    batch = Batch.from_sequences([ids])
    batch.adapters = [] if adapter is None else [(slice(None), adapter)]
    found: torch.Tensor = model(batch)
    return found


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_and_greedy_tokens_are_those_of_peft(
    tmp_path: Path, oracle_of: Callable[..., Any], case: str
) -> None:
    oracle = oracle_of(tmp_path / "model")
    ids = torch.randint(0, 128, (30,), generator=torch.Generator().manual_seed(3)).tolist()
    plain = oracle(torch.tensor([ids])).logits[0]
    adapted = adapt(oracle, tmp_path / "adapter", **CASES[case])
    model = load_model(tmp_path / "model", "float32")
    adapter = read_adapter(tmp_path / "adapter", model)
    want = adapted(torch.tensor([ids])).logits[0]
    got = logits(model, ids, adapter)
    assert (want - plain).abs().max() > 1
    torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(logits(model, ids, None), plain, atol=2e-4, rtol=2e-4)
    longer = list[int](ids)
    for _ in range(20):
        longer.append(int(adapted(torch.tensor([longer])).logits[0, -1].argmax()))
    prepare(model)
    engine = Engine(model, num_blocks=16)
    params = SamplingParams(max_tokens=20)
    engine.add(Request("a", ids, params, adapter=adapter))
    engine.add(Request("b", ids, params))
    found: dict[str, list[int]] = {"a": [], "b": []}
    while engine.has_work:
        for output in engine.step():
            found[output.id] += output.new_ids
    assert ids + found["a"] == longer != ids + found["b"]


@torch.no_grad()
def test_attention_of_a_mixture_of_experts(tmp_path: Path, oracle_of: Callable[..., Any]) -> None:
    oracle = oracle_of(tmp_path / "model", **MOE)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapted = adapt(oracle, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=targets)
    model = load_model(tmp_path / "model", "float32")
    ids = list(range(40))
    want = adapted(torch.tensor([ids])).logits[0]
    got = logits(model, ids, read_adapter(tmp_path / "adapter", model))
    torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)
    assert {name.rpartition(".")[2] for name in adaptable(model)} == set(targets)


# What is refused


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, oracle_of: Callable[..., Any]) -> Qwen:
    folder = tmp_path_factory.mktemp("base")
    oracle_of(folder)
    return load_model(folder, "float32")


@pytest.fixture
def folder(tmp_path: Path, base: Qwen, write_adapter: Callable[..., Path]) -> Path:
    return write_adapter(tmp_path / "adapter", base.config)


AT = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def change_config(folder: Path, **changes: Any) -> None:
    where = folder / "adapter_config.json"
    values = {**json.loads(where.read_text()), **changes}
    where.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def change_tensors(folder: Path, **changes: Any) -> None:
    """Of the first q_proj: `A=…`, `B=…`; others by their names."""
    where = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(where)
    for name, tensor in changes.items():
        name = f"{AT}{name}.weight" if len(name) == 1 else name
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    safetensors.torch.save_file(tensors, where)


def test_the_folder_as_it_is_can_be_read(folder: Path, base: Qwen) -> None:
    adapter, again = read_adapter(folder, base), read_adapter(folder, base)
    assert adapter.id != again.id
    assert [len(layer) for layer in adapter.layers] == [7, 7, 7]
    assert adapter.nbytes == 3 * 4 * 4 * (64 * 4 + 64 * 2 + 32 * 2 + 160 * 3)
    change_config(folder, some_new_setting=None, use_something=False, lora_dropout=0.1)
    read_adapter(folder, base)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 0}, "the rank is 0"),
        ({"r": -1}, "the rank is -1"),
        ({"r": 10**9}, "the rank is 1000000000"),
        ({"r": 10**400}, "the rank"),
        ({"r": "4"}, "r is '4'"),
        ({"r": True}, "r is True"),
        ({"r": ...}, "r is None"),
        ({"lora_alpha": ...}, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": ...}, "peft_type is None"),
        ({"peft_type": ["LORA"]}, "peft_type is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "biases of the low-rank parts"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
        ({"layer_replication": [[0, 2]]}, "repeated layers"),
        ({"fan_in_fan_out": True}, "transposed weights"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the model's own weights"),
        ({"init_lora_weights": {}}, "init_lora_weights"),
        ({"some_new_setting": 1}, "'some_new_setting' asks for something"),
        ({"target_modules": ["q_proj", "c_attn"]}, "target_modules has 'c_attn'"),
        ({"target_modules": ["q_proj"]}, "not among its targets"),
        ({"target_modules": {"q_proj": 1}}, "no list of names"),
        ({"target_modules": [1]}, "no list of names"),
        ({"layers_to_transform": [0]}, "not among its targets"),
        ({"layers_to_transform": "0"}, "layers_to_transform is no list"),
        ({"layers_to_transform": [True]}, "layers_to_transform is no list"),
        ({"rank_pattern": {"q_proj": 8}}, "expected are floats of shape [8, 64]"),
        ({"rank_pattern": {"q_proj": 0}}, "the rank is 0"),
        ({"rank_pattern": {"q_proj": 1.5}}, "the rank is 1.5"),
        ({"rank_pattern": {"(a+)+$": 8}}, "rank_pattern has '(a+)+$'"),
        ({"rank_pattern": [1]}, "rank_pattern is [1]"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "lora_alpha is nan"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern has"),
        ({"r": 8}, "expected are floats of shape [8, "),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_configuration_must_not_say(
    folder: Path, base: Qwen, changes: dict[str, Any], words: str
) -> None:
    change_config(folder, **changes)
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        read_adapter(folder, base)
    assert words in caught.value.message
    assert caught.value.remedy and str(folder) in caught.value.message
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"A": torch.zeros(4, 65)}, "lora_A of model.layers.0.self_attn.q_proj is [4, 65]"),
        ({"A": torch.zeros(64, 4)}, "[64, 4]"),
        ({"B": torch.zeros(64, 5)}, "expected are floats of shape [64, 4]"),
        ({"B": torch.zeros(64, 4, 1)}, "[64, 4, 1]"),
        ({"B": torch.zeros(0, 4)}, "[0, 4]"),
        ({"A": torch.zeros(4, 64, dtype=torch.int8)}, "torch.int8"),
        ({"A": torch.full((4, 64), torch.nan)}, "not finite"),
        ({"B": torch.full((64, 4), torch.inf)}, "not finite"),
        ({"A": None}, "only one of lora_A and lora_B"),
        ({"A": None, "B": None}, "no tensors for it"),
        ({AT + "magnitude_vector": torch.zeros(64)}, "magnitude_vector"),
        ({"base_model.model.lm_head.weight": torch.zeros(128, 64)}, "lm_head.weight"),
        (
            {
                f"base_model.model.lm_head.lora_{s}.weight": torch.zeros(n, m)
                for s, n, m in (("A", 4, 64), ("B", 128, 4))
            },
            "adapts 'lm_head', which cannot be",
        ),
        (
            {
                f"base_model.model.model.layers.3.mlp.up_proj.lora_{s}.weight": torch.zeros(n, m)
                for s, n, m in (("A", 4, 64), ("B", 96, 4))
            },
            "adapts 'model.layers.3.mlp.up_proj'",
        ),
        ({AT.removeprefix("base_model.model.") + "A.weight": torch.zeros(4, 64)}, "two lora_A"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_the_tensors_must_not_be(
    folder: Path, base: Qwen, changes: dict[str, Any], words: str
) -> None:
    change_tensors(folder, **changes)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(folder, base)
    assert words in caught.value.message and caught.value.remedy


def break_files(folder: Path, how: str) -> None:
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    match how:
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "a pickle":
            weights.unlink()
            (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
        case "a pickle under the name":
            weights.write_bytes(pickle.dumps({"a": 1}))
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "empty":
            weights.write_bytes(b"")
        case "no JSON":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
        case "deep":
            config.write_text("[" * 100_000)
        case "large":
            config.write_text('{"a": "' + "x" * (1 << 20) + '"}')
        case "no folder":
            config.unlink()
            weights.unlink()
            folder.rmdir()
        case "a file":
            config.unlink()
            weights.unlink()
            folder.rmdir()
            folder.write_text("")
        case "weights are a folder":
            weights.unlink()
            weights.mkdir()


@pytest.mark.parametrize(
    "how",
    "no config,no weights,a pickle,a pickle under the name,cut,empty,no JSON,a list,deep,large,"
    "no folder,a file,weights are a folder".split(","),
)
def test_what_the_files_must_not_be(folder: Path, base: Qwen, how: str) -> None:
    break_files(folder, how)
    with pytest.raises(FormatError) as caught:
        read_adapter(folder, base)
    assert caught.value.remedy and str(folder) in caught.value.message


def test_values_that_the_models_type_cannot_hold(folder: Path, base: Qwen) -> None:
    change_tensors(folder, B=torch.full((64, 4), 1e30))
    read_adapter(folder, base)
    half = Qwen(base.config).to(torch.float16)
    with pytest.raises(CheckpointError, match="not finite in torch.float16"):
        read_adapter(folder, half)


def test_an_adapter_of_another_size(
    tmp_path: Path, base: Qwen, write_adapter: Callable[..., Path]
) -> None:
    for changes in ({"hidden_size": 32}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}):
        other = dataclasses.replace(base.config, **changes)
        path = write_adapter(tmp_path / str(changes), other)
        with pytest.raises(QwenkitError) as caught:
            read_adapter(path, base)
        assert isinstance(caught.value, CheckpointError), caught.value
