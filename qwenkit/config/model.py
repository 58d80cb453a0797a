"""The one model configuration, spelled as in config.json.

`ModelConfig` is frozen: derived quantities are properties, nothing mutates or subclasses it.
Unknown keys of a config.json are dropped; unsupported *values* are refused with the key, the value
and what is supported. Shapes of the family: Qwen2.5 technical report (arXiv 2412.15115), Qwen2-VL
(arXiv 2409.12191) and the published configuration files.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenkit.config.fields import typed
from qwenkit.config.quantization import Quantization
from qwenkit.errors import ConfigError
from qwenkit.utils import read_json

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_CONTEXT = 1 << 24
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower of Qwen2-VL; data only, the tower itself is not part of this release."""

    depth: int = 32
    embed_dim: int = 1280
    num_heads: int = 16
    mlp_ratio: int = 4
    in_chans: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    hidden_size: int = 3584

    @property
    def num_parameters(self) -> int:
        """Parameters of the tower: patch embedding, blocks, merger."""
        d, ffn = self.embed_dim, self.embed_dim * self.mlp_ratio
        patch = self.in_chans * self.temporal_patch_size * self.patch_size**2 * d
        block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (2 * d * ffn + ffn + d)
        merged = d * self.spatial_merge_size**2
        merger = 2 * d + merged * merged + merged + merged * self.hidden_size + self.hidden_size
        return patch + self.depth * block + merger


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen2 / Qwen2.5 / Qwen2-MoE / Qwen2-VL decoder, with config.json's own field names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    model_type: str = "qwen2"
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float = 1_000_000.0
    rope_scaling: dict[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    torch_dtype: str = "bfloat16"
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] = field(default_factory=list)
    vision: VisionConfig | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "config.json") -> ModelConfig:
        """Build from the keys of a config.json. Errors: ConfigError naming key, value and what is
        supported.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"{source} is not a JSON object.", "Fetch the model again.")
        known = _read_fields(values, source)
        try:
            config = cls(**known)
            _check_layer_types(config, values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error.message}", error.remedy) from error
        return config

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> ModelConfig:
        """Read `path`/config.json. Errors: FormatError (missing, not JSON), ConfigError."""
        file = Path(path) / "config.json"
        return cls.from_dict(read_json(file), source=str(file))

    def to_dict(self) -> dict[str, Any]:
        """The keys of a config.json that Transformers, vLLM and others read."""
        values = dataclasses.asdict(self)
        moe: tuple[str, ...] = (
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
        )
        moe += ("shared_expert_intermediate_size", "decoder_sparse_step", "mlp_only_layers")
        if not self.is_moe:
            values = {key: value for key, value in values.items() if key not in moe}
        vision = values.pop("vision")
        del values["quantization"]
        if vision is not None:
            values["vision_config"] = vision
        if self.sliding_window is None:
            values.pop("sliding_window")
        if self.rope_scaling is None:
            values.pop("rope_scaling")
        values["architectures"] = [_ARCHITECTURES[self.model_type]]
        values["attention_dropout"] = 0.0
        values["use_cache"] = True
        return dict(sorted(values.items()))

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def yarn(self) -> dict[str, Any] | None:
        """The YaRN entry of rope_scaling, if that is what it holds."""
        scaling = self.rope_scaling
        return scaling if scaling and _rope_kind(scaling) == "yarn" else None

    @property
    def original_context_length(self) -> int:
        """Tokens that the model holds without RoPE scaling."""
        if self.yarn:
            length = self.yarn.get("original_max_position_embeddings")
            return int(length if length is not None else self.max_position_embeddings)
        return self.max_position_embeddings

    @property
    def context_length(self) -> int:
        """Tokens that the model holds: with YaRN, the original length times the factor."""
        if self.yarn:
            scaled = int(self.original_context_length * float(self.yarn["factor"]))
            return max(self.max_position_embeddings, scaled)
        return self.max_position_embeddings

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        ids = self.eos_token_id
        return tuple(ids) if isinstance(ids, list) else (ids,)

    def is_sparse(self, layer: int) -> bool:
        """Whether layer `layer` has experts instead of a dense MLP."""
        sparse = self.is_moe and layer not in self.mlp_only_layers
        return sparse and (layer + 1) % self.decoder_sparse_step == 0

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer in tokens (its own included), None for full attention."""
        active = self.use_sliding_window and layer >= self.max_window_layers
        return self.sliding_window if active else None

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied head counted once, the vision tower included."""
        embedding = self.vocab_size * self.hidden_size
        heads = 1 if self.tie_word_embeddings else 2
        vision = self.vision.num_parameters if self.vision else 0
        return heads * embedding + self._body_parameters(self.num_experts) + vision

    @property
    def num_non_embedding_parameters(self) -> int:
        """Parameters of the decoder without embedding and head."""
        return self._body_parameters(self.num_experts)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token touches, embedding and head included."""
        idle = self._body_parameters(self.num_experts) - self._body_parameters(
            self.num_experts_per_tok
        )
        return self.num_parameters - idle

    def _body_parameters(self, experts: int) -> int:
        c, d = self.hidden_size, self.head_dim
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        attention = c * q + q + 2 * (c * kv + kv) + q * c
        total = c
        for layer in range(self.num_hidden_layers):
            total += attention + 2 * c
            if self.is_sparse(layer):
                total += experts * 3 * c * self.moe_intermediate_size + self.num_experts * c
                total += 3 * c * self.shared_expert_intermediate_size + c
            else:
                total += 3 * c * self.intermediate_size
        return total

    def kv_bytes_per_token(self, bytes_per_element: float = 2) -> int:
        """Bytes of key and value cache that one token takes in all layers."""
        width = self.num_key_value_heads * self.head_dim
        return int(2 * self.num_hidden_layers * width * bytes_per_element)


_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def _read_fields(values: dict[str, Any], source: str) -> dict[str, Any]:
    model_type = values.get("model_type")
    if model_type not in _ARCHITECTURES:
        supported = ", ".join(_ARCHITECTURES)
        raise ConfigError(
            f"{source}: model_type is {model_type!r}; supported are {supported}.",
            "Use a Qwen2, Qwen2.5, Qwen2-MoE or Qwen2-VL checkpoint.",
        )
    if values.get("dual_chunk_attention_config") is not None:
        raise ConfigError(
            f"{source}: dual_chunk_attention_config is not supported.",
            "Remove the key to use the model up to its plain context.",
        )
    text = values.get("text_config")
    values = (
        {**values, **text, "model_type": model_type} if isinstance(text, dict) else dict(values)
    )
    rope = values.pop("rope_parameters", None)  # Transformers 5 moves theta and scaling in here
    if isinstance(rope, dict):
        values.setdefault("rope_theta", rope.get("rope_theta", 1_000_000.0))
        if _rope_kind(rope) != "default" and values.get("rope_scaling") is None:
            values["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if values.get("dtype") is not None:
        values.setdefault("torch_dtype", values["dtype"])
    missing = [key for key in _REQUIRED if values.get(key) is None]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}.", "Fetch the model again.")
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    known: dict[str, Any] = {}
    for spec in dataclasses.fields(ModelConfig):
        if spec.name not in ("vision", "quantization") and values.get(spec.name) is not None:
            known[spec.name] = typed(spec.name, values[spec.name], str(spec.type), source)
    if values.get("quantization_config") is not None:
        packing = values["quantization_config"]
        known["quantization"] = Quantization.from_dict(packing, source=source)
    if model_type == "qwen2_vl":
        known["vision"] = _read_vision(values.get("vision_config"), source)
    head_dim = values.get("head_dim")
    heads = known["num_attention_heads"]
    if head_dim is not None and heads > 0 and head_dim != known["hidden_size"] // heads:
        raise ConfigError(
            f"{source}: head_dim is {head_dim!r}; supported is hidden_size / num_attention_heads."
        )
    return known


def _read_vision(values: Any, source: str) -> VisionConfig:
    if values is None:
        return VisionConfig()
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: vision_config is {values!r}; expected an object.")
    known = {}
    for spec in dataclasses.fields(VisionConfig):
        if values.get(spec.name) is not None:
            known[spec.name] = typed(f"vision_config.{spec.name}", values[spec.name], "int", source)
    return VisionConfig(**known)


def _rope_kind(scaling: dict[str, Any]) -> str:
    """`type` and `rope_type` are both in use; the mrope of Qwen2-VL is plain RoPE on three axes."""
    kind = scaling.get("type", scaling.get("rope_type", "default"))
    if "mrope_section" in scaling and kind in ("mrope", "default"):
        return "mrope"
    return str(kind)


def _check(config: ModelConfig) -> None:
    """Refuse values that the model cannot have, before anything is allocated."""

    def refuse(key: str, supported: str) -> None:
        value = getattr(config, key)
        raise ConfigError(f"{key} is {value!r}; supported is {supported}.", "Mend config.json.")

    widths = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
    for key in (*widths, "num_key_value_heads"):
        if not 0 < getattr(config, key) <= MAX_WIDTH:
            refuse(key, f"1 to {MAX_WIDTH}")
    if not 0 < config.num_hidden_layers <= MAX_LAYERS:
        refuse("num_hidden_layers", f"1 to {MAX_LAYERS}")
    if not 0 < config.max_position_embeddings <= MAX_CONTEXT:
        refuse("max_position_embeddings", f"1 to {MAX_CONTEXT}")
    if config.hidden_size % config.num_attention_heads or config.head_dim % 2:
        refuse("num_attention_heads", "a divisor of hidden_size that leaves an even head_dim")
    if config.num_attention_heads % config.num_key_value_heads:
        refuse(
            "num_key_value_heads", f"a divisor of num_attention_heads {config.num_attention_heads}"
        )
    if config.hidden_act != "silu":
        refuse("hidden_act", "'silu'")
    if config.torch_dtype not in DTYPES:
        refuse("torch_dtype", ", ".join(DTYPES))
    if not 0 < config.rms_norm_eps < 1:
        refuse("rms_norm_eps", "a number between 0 and 1")
    if not 1 < config.rope_theta < math.inf:
        refuse("rope_theta", "a number above 1")
    if config.use_sliding_window and not (config.sliding_window or 0) > 0:
        refuse("sliding_window", "a positive number of tokens when use_sliding_window is true")
    _check_rope(config)
    if config.is_moe:
        _check_moe(config)


def _check_layer_types(config: ModelConfig, values: dict[str, Any]) -> None:
    """Transformers 5 also lists each layer's attention: it must be what the other keys say."""
    text = values.get("text_config")
    found = (text if isinstance(text, dict) else values).get("layer_types")
    windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
    meant = ["full_attention" if window is None else "sliding_attention" for window in windows]
    if found is not None and found != meant:
        raise ConfigError(
            f"layer_types is {found!r:.100}; supported is what use_sliding_window and "
            f"max_window_layers mean: {meant!r:.100}.",
            "Mend config.json.",
        )


def _check_rope(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    if not scaling:
        return
    kind = _rope_kind(scaling)
    if kind not in ("yarn", "mrope", "default"):
        raise ConfigError(f"rope_scaling type {kind!r} is unsupported.", "Use yarn or mrope.")
    if kind == "mrope":
        section = scaling.get("mrope_section")
        three = section if isinstance(section, list) and len(section) == 3 else []
        whole = bool(three) and all(type(part) is int and part > 0 for part in three)
        if not whole or sum(three) * 2 != config.head_dim:
            raise ConfigError(f"rope_scaling.mrope_section {section!r} is not half of head_dim.")
    if kind == "yarn":
        factor = scaling.get("factor")
        if (
            isinstance(factor, bool)
            or not isinstance(factor, (int, float))
            or not 1 <= factor <= 1024
        ):
            raise ConfigError(
                f"rope_scaling.factor is {factor!r}; supported is a number from 1 to 1024."
            )
        original = scaling.get("original_max_position_embeddings", 1)
        if isinstance(original, bool) or not isinstance(original, int) or original < 1:
            raise ConfigError(
                f"rope_scaling.original_max_position_embeddings is {original!r}; "
                "it is a positive integer."
            )


def _check_moe(config: ModelConfig) -> None:
    good = 0 < config.num_experts_per_tok <= config.num_experts <= MAX_WIDTH
    good = good and config.moe_intermediate_size > 0 and config.shared_expert_intermediate_size > 0
    if not good or config.decoder_sparse_step < 1:
        raise ConfigError(
            f"The experts do not fit together: num_experts {config.num_experts}, "
            f"num_experts_per_tok {config.num_experts_per_tok}, "
            f"moe_intermediate_size {config.moe_intermediate_size}, "
            f"shared_expert_intermediate_size {config.shared_expert_intermediate_size}.",
            "All must be positive, and not more experts per token than there are.",
        )
