"""Fixtures for the whole suite."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

if not torch.cuda.is_available():  # the Triton kernels then run in its interpreter, on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published files and data sets; tests that need it are skipped where it is
    absent.
    """
    default = Path(__file__).resolve().parents[1].parent / "shared"
    path = Path(os.environ.get("QWENKIT_SHARED", default))
    if not (path / "data").is_dir():
        pytest.skip(f"no shared data at {path} (set QWENKIT_SHARED)")
    return path


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., None]:
    """`write_gguf(folder, file, matrices="Q8_0", skip=…)`: a model's folder as a GGUF file, as the
    converter of llama.cpp lays it out, made with the `gguf` package.
    """
    return _write_gguf


SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def write_adapter() -> Callable[..., Path]:
    """`write_adapter(folder, model.config, rank=4, seed=0, size=0.3, targets=…, **settings)`: a
    random adapter in PEFT's format for a dense model; `settings` go into adapter_config.json.
    """
    return _write_adapter


def _write_adapter(
    folder: Path,
    config: Any,
    *,
    rank: int = 4,
    seed: int = 0,
    size: float = 0.3,
    targets: Sequence[str] = SEVEN,
    **settings: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    head, c, f = config.head_dim, config.hidden_size, config.intermediate_size
    q, k = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes = {"q": (q, c), "k": (k, c), "v": (k, c), "o": (c, q)}
    shapes |= {"gate": (f, c), "up": (f, c), "down": (c, f)}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for target in targets:
            rows, columns = shapes[target.removesuffix("_proj")]
            outer = "self_attn" if target[0] in "qkvo" else "mlp"
            at = f"base_model.model.model.layers.{layer}.{outer}.{target}"
            for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                made = torch.randn(shape, generator=generator) * size
                tensors[f"{at}.lora_{side}.weight"] = made
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps({**values, **settings}))
    return folder


def _write_gguf(
    folder: Path,
    file: Path,
    matrices: str = "F32",
    *,
    skip: Sequence[str] = (),
    extra: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> None:
    """`skip`: keys that are left out. `options` go to the writer."""
    config = json.loads((folder / "config.json").read_text())
    moe = config["model_type"] == "qwen2_moe"
    arch = gguf.MODEL_ARCH.QWEN2MOE if moe else gguf.MODEL_ARCH.QWEN2
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch], **options)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if moe:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if (folder / "vocab.json").exists():
        _add_tokenizer(writer, folder, config["vocab_size"])
    for key in skip:
        for pairs in writer.kv_data:
            pairs.pop(key, None)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in {**_tensors(folder, config), **(extra or {})}.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        kind = gguf.GGMLQuantizationType[matrices if tensor.ndim > 1 else "F32"]
        writer.add_tensor(known, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor as float32; the experts of a layer as one, the shared gate as a vector."""
    found = {
        name: tensor.float().numpy()
        for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()
    }
    for layer in range(config["num_hidden_layers"] if "num_experts" in config else 0):
        for part in ("gate_proj", "up_proj", "down_proj"):
            at = f"model.layers.{layer}.mlp.experts"
            every = range(config["num_experts"])
            one = np.stack([found.pop(f"{at}.{e}.{part}.weight") for e in every])
            found[f"{at}.{part}.weight"] = one
        gate = f"model.layers.{layer}.mlp.shared_expert_gate.weight"
        found[gate] = found[gate].reshape(-1)
    return found


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {int(i): entry for i, entry in config["added_tokens_decoder"].items()}
    vocab = {i: text for text, i in json.loads((folder / "vocab.json").read_text()).items()}
    tokens, types = [], []
    for index in range(rows):
        if index in added:
            tokens.append(added[index]["content"])
            special = added[index].get("special")
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(vocab.get(index, f"[PAD{index}]"))
            types.append(gguf.TokenType.NORMAL if index in vocab else gguf.TokenType.UNUSED)
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    ids = {entry["content"]: i for i, entry in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([line for line in merges if not line.startswith("#version")])
    writer.add_eos_token_id(ids[config.get("eos_token", "<|endoftext|>")])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])
