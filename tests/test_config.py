"""ModelConfig, GenerationConfig and the family table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qwenkit.config import FAMILY, GenerationConfig, ModelConfig, find_family
from qwenkit.errors import ConfigError, FormatError

GOOD: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Parameter counts of the published shapes, all and without embeddings.
COUNTS = {
    "0.5B": (494_032_768, 357_898_112),
    "1.5B": (1_543_714_304, 1_310_340_608),
    "3B": (3_085_938_688, 2_774_773_760),
    "7B": (7_615_616_512, 6_525_621_760),
    "14B": (14_770_033_664, 13_212_898_304),
    "32B": (32_763_876_352, 31_206_740_992),
    "72B": (72_706_203_648, 70_214_787_072),
}
KV_BYTES = (12_288, 28_672, 36_864, 57_344, 196_608, 262_144, 327_680)


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size: str) -> None:
    config = FAMILY[f"Qwen2.5-{size}-Instruct"].config
    assert (config.num_parameters, config.num_non_embedding_parameters) == COUNTS[size]


def test_cache_bytes() -> None:
    configs = (FAMILY[f"Qwen2.5-{size}"].config for size in COUNTS)
    assert tuple(config.kv_bytes_per_token(2) for config in configs) == KV_BYTES


def test_mixture_of_experts_counts() -> None:
    config = FAMILY["Qwen2-57B-A14B"].config
    assert config.num_parameters == 57_408_658_944
    assert config.num_non_embedding_parameters == 56_319_581_696
    assert round(config.num_active_parameters / 1e9, 2) == 14.25


def test_vision_counts() -> None:
    counts = {"2B": 665_271_296, "7B": 675_759_104, "72B": 699_356_672}
    for size, count in counts.items():
        vision = FAMILY[f"Qwen2-VL-{size}-Instruct"].config.vision
        assert vision is not None and vision.num_parameters == count


def test_family_has_every_series() -> None:
    kinds = [entry.kind for entry in FAMILY.values()]
    assert [kinds.count(kind) for kind in ("base", "instruct", "coder", "math")] == [7, 7, 6, 3]
    assert find_family("qwen/qwen2.5-7b-instruct") is FAMILY["Qwen2.5-7B-Instruct"]
    assert find_family("Qwen2.5-8B") is None


@pytest.mark.parametrize("name", FAMILY)
def test_round_trip_through_config_json(name: str) -> None:
    config = FAMILY[name].config
    values = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig.from_dict(values) == config


def test_published_file(shared: Path) -> None:
    values = json.loads((shared / "data/tokenizer/config.qwen2.5-0.5b-instruct.json").read_text())
    assert ModelConfig.from_dict(values).num_parameters == COUNTS["0.5B"][0]


def test_transformers_5_spelling() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    values = {**GOOD, "dtype": "float32", "rope_parameters": {**rope, "rope_theta": 5e5}}
    config = ModelConfig.from_dict(values)
    assert (config.rope_theta, config.torch_dtype) == (5e5, "float32")
    assert (config.original_context_length, config.context_length) == (32768, 131072)


def test_unknown_keys_are_dropped_and_windows_follow_the_switch() -> None:
    window = {"sliding_window": 16, "max_window_layers": 1}
    off = ModelConfig.from_dict({**GOOD, **window, "use_mrope": False, "new_key": 1})
    on = ModelConfig.from_dict({**GOOD, **window, "use_sliding_window": True})
    assert [off.window(i) for i in range(2)] == [None, None]
    assert [on.window(i) for i in range(2)] == [None, 16]
    kinds = {"layer_types": ["full_attention", "sliding_attention"]}
    assert ModelConfig.from_dict({**GOOD, **window, **kinds, "use_sliding_window": True}) == on


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"model_type": "llama"}, "llama"),
    "no type": ({"model_type": None}, "model_type"),
    "missing": ({"hidden_size": None}, "hidden_size"),
    "string": ({"hidden_size": "64"}, "hidden_size"),
    "boolean": ({"hidden_size": True}, "hidden_size"),
    "float": ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
    "negative": ({"intermediate_size": -1}, "intermediate_size"),
    "huge": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "wide": ({"vocab_size": 2**31}, "vocab_size"),
    "zero heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "indivisible": ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads"),
    "groups": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "head_dim": ({"head_dim": 32}, "head_dim"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "dtype": ({"torch_dtype": "int8"}, "torch_dtype"),
    "theta": ({"rope_theta": 0}, "rope_theta"),
    "theta nan": ({"rope_theta": float("nan")}, "rope_theta"),
    "eps": ({"rms_norm_eps": 0}, "rms_norm_eps"),
    "rope": ({"rope_scaling": {"type": "longrope"}}, "longrope"),
    "rope list": ({"rope_scaling": [4.0]}, "rope_scaling"),
    "factor": ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor"),
    "no factor": ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
    "sections": ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "mrope_section"),
    "window": ({"use_sliding_window": True, "sliding_window": None}, "sliding_window"),
    "layers": ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
    "layers in a window": ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    "dual chunk": ({"dual_chunk_attention_config": {"chunk_size": 1}}, "dual_chunk"),
    "experts": ({"num_experts": 4, "num_experts_per_tok": 8}, "num_experts_per_tok"),
    "vision": ({"model_type": "qwen2_vl", "vision_config": 3}, "vision_config"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_name_the_key(case: str) -> None:
    change, named = BAD[case]
    with pytest.raises(ConfigError, match=named) as caught:
        ModelConfig.from_dict({**GOOD, **change}, source="a/config.json")
    assert str(caught.value).startswith("a/config.json") and "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BAD)
def test_bad_values_name_the_file(tmp_path: Path, case: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GOOD, **BAD[case][0]}))
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dir(tmp_path)
    assert str(caught.value).count(str(tmp_path / "config.json")) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a":' * 5000, "\xff"])
def test_broken_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises((ConfigError, FormatError), match="config.json"):
        ModelConfig.from_dir(tmp_path)


def test_missing_file_directory_and_pipe(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(FormatError, match="missing"):
        ModelConfig.from_dir(tmp_path)
    os.mkfifo(file)
    with pytest.raises(FormatError, match="config.json is not a regular file"):
        ModelConfig.from_dir(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(FormatError, match="config.json is a directory"):
        ModelConfig.from_dir(tmp_path)
    file.rmdir()
    file.symlink_to("/dev/zero")
    with pytest.raises(FormatError, match="config.json is not a regular file"):
        ModelConfig.from_dir(tmp_path)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(FormatError, match="config.json cannot be read: Too many"):
        ModelConfig.from_dir(tmp_path)
    file.unlink()
    with file.open("wb") as large:
        large.truncate(1 << 40)
    with pytest.raises(FormatError, match="config.json has more than 67108864 bytes"):
        ModelConfig.from_dir(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    monkeypatch.setattr("os.open", refused)
    with pytest.raises(FormatError, match="cannot be read: Permission denied"):
        ModelConfig.from_dir(tmp_path)


def _generation(tmp_path: Path, **values: Any) -> GenerationConfig:
    (tmp_path / "config.json").write_text(json.dumps({**GOOD, "eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    return GenerationConfig.from_dir(tmp_path)


def test_generation_config(tmp_path: Path) -> None:
    read = _generation(
        tmp_path, eos_token_id=[5, 7], do_sample=True, temperature=0.7, top_k=20, top_p=0.8
    )
    assert read == GenerationConfig((5, 7), True, 0.7, 0.8, 20)
    (tmp_path / "generation_config.json").unlink()
    assert GenerationConfig.from_dir(tmp_path) == GenerationConfig((7,))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", "20"),
        ("repetition_penalty", 0),
        ("eos_token_id", "7"),
        ("eos_token_id", [7, -1]),
        ("do_sample", "yes"),
    ],
)
def test_bad_generation_values(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        _generation(tmp_path, **{key: value})
