"""GGUF metadata → `ModelConfig` and `GenerationConfig`. Works without torch.

The keys of an architecture are spelled `qwen2.…` and `qwen2moe.…`, as llama.cpp's converter writes
them. The rows of the vocabulary and whether the head is the embedding are seen from the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenkit.config import GenerationConfig, ModelConfig
from qwenkit.errors import ConfigError
from qwenkit.io.gguf_header import GgufTensor
from qwenkit.io.header import shown

ARCHITECTURES = {"qwen2": "qwen2", "qwen2moe": "qwen2_moe"}
"""general.architecture → model_type."""
_REMEDY = "Use a GGUF file of a Qwen2 or Qwen2.5 text model."
_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_OPTIONAL = ("num_key_value_heads", "rope_theta")
_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
_MOE_KEYS = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}


def config_of(
    metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor], where: str
) -> ModelConfig:
    """The configuration that the keys and tensors of a GGUF file mean.

    Errors: ConfigError naming the key, its value and what is supported.
    """
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ConfigError(
            f"{where}: general.architecture is {shown(arch)}; supported are "
            f"{', '.join(ARCHITECTURES)}.",
            _REMEDY,
        )
    values: dict[str, Any] = {"model_type": ARCHITECTURES[arch]}
    for name, key in _KEYS.items():
        values[name] = metadata.get(f"{arch}.{key}")
        if values[name] is None and name not in _OPTIONAL:
            raise ConfigError(f"{where} lacks {arch}.{key}.", _REMEDY)
    if values["rope_theta"] is None:
        values["rope_theta"] = 10_000.0  # what ggml takes where the key is absent
    values["rms_norm_eps"] = _shortest(values["rms_norm_eps"])
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError(f"{where} has no matrix token_embd.weight.", _REMEDY)
    values["vocab_size"] = embedding.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in tensors
    values["torch_dtype"] = _dtype(tensors)
    for name in ("bos_token_id", "eos_token_id"):
        values[name] = metadata.get(f"tokenizer.ggml.{name}")
    values["rope_scaling"] = _scaling(metadata, arch, where)
    width = metadata.get(f"{arch}.attention.key_length")
    if width is not None:
        values["head_dim"] = width
    if arch == "qwen2moe":
        values |= _experts(metadata, arch, values)
    given = {name: value for name, value in values.items() if value is not None}
    config = ModelConfig.from_dict(given, source=where)
    _check_counts(config, tensors, arch, where)
    return config


def generation_of(
    metadata: Mapping[str, Any], end_ids: tuple[int, ...], where: str
) -> GenerationConfig:
    """The sampling that the file asks for, greedy where it names no temperature; end tokens.

    Errors: ConfigError naming a value out of range.
    """
    values = {name: _shortest(metadata.get(key)) for name, key in _SAMPLING_KEYS.items()}
    values["do_sample"] = bool(values["temperature"])
    return GenerationConfig.from_dict(values, end_ids, source=where)


def _check_counts(
    config: ModelConfig, tensors: Mapping[str, GgufTensor], arch: str, where: str
) -> None:
    """As many layers and experts as the file has tensors for: else a number makes a giant model."""
    layers = sum(name.endswith(".attn_norm.weight") for name in tensors)
    if config.num_hidden_layers != layers:
        raise ConfigError(
            f"{where}: {arch}.block_count is {config.num_hidden_layers}, but {layers} layers are "
            "there.",
            _REMEDY,
        )
    experts = {i.shape[0] for name, i in tensors.items() if name.endswith("_exps.weight")}
    if config.is_moe and experts != {config.num_experts}:
        raise ConfigError(
            f"{where}: {arch}.expert_count is {config.num_experts}, but the tensors have "
            f"{shown(sorted(experts))}.",
            _REMEDY,
        )


def _experts(metadata: Mapping[str, Any], arch: str, values: dict[str, Any]) -> dict[str, Any]:
    """Older files lack the widths of the experts, which ggml then takes from the dense one."""
    found = {name: metadata.get(f"{arch}.{key}") for name, key in _MOE_KEYS.items()}
    used, dense = found["num_experts_per_tok"], values["intermediate_size"]
    if found["moe_intermediate_size"] is None and type(used) is int and used > 0:
        found["moe_intermediate_size"] = dense // used if isinstance(dense, int) else None
    if found["shared_expert_intermediate_size"] is None:
        found["shared_expert_intermediate_size"] = dense
    return found


def _shortest(value: Any) -> Any:
    """A float32 as the shortest decimal that means it: 9.99999997e-07 was written as 1e-06."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _dtype(tensors: Mapping[str, GgufTensor]) -> str:
    """The type of all matrices where they are of one float type, else bfloat16."""
    matrices = {info.type for info in tensors.values() if len(info.shape) > 1}
    if matrices == {"f32"}:
        return "float32"
    return "float16" if matrices == {"f16"} else "bfloat16"


def _scaling(metadata: Mapping[str, Any], arch: str, where: str) -> dict[str, Any] | None:
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise ConfigError(
            f"{where}: {arch}.rope.scaling.type is {shown(kind)}; supported are none and yarn.",
            _REMEDY,
        )
    scaling = {"type": "yarn", "factor": metadata.get(f"{arch}.rope.scaling.factor")}
    original = metadata.get(f"{arch}.rope.scaling.original_context_length")
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    return scaling
