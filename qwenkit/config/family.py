"""The published family as one table: shapes, context, licence and release of every model.

The numbers come from the models' configuration files and cards, the Qwen2.5 report (arXiv
2412.15115), the Coder and Math reports (2409.12186, 2409.12122) and the Qwen2-VL report
(2409.12191). Parameter counts are computed from the shapes, never typed in.
`max_position_embeddings` is the value in the file; the context of 128K on the cards of the larger
Instruct models needs YaRN with factor 4 (`FamilyEntry.yarn_context`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from qwenkit.config.model import ModelConfig, VisionConfig

SIZES = ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
# size: hidden, ffn, layers, heads, kv heads, rows, tied, window layers (instruct), base context
_SHAPES: dict[str, tuple[int, int, int, int, int, int, bool, int, int]] = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True, 21, 32768),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True, 21, 131072),
    "3B": (2048, 11008, 36, 16, 2, 151936, True, 70, 32768),
    "7B": (3584, 18944, 28, 28, 4, 152064, False, 28, 131072),
    "14B": (5120, 13824, 48, 40, 8, 152064, False, 70, 131072),
    "32B": (5120, 27648, 64, 40, 8, 152064, False, 70, 131072),
    "72B": (8192, 29568, 80, 64, 8, 152064, False, 70, 131072),
}
_YARN_SIZES = ("7B", "14B", "32B", "72B")
_RESEARCH = "Qwen Research"
_QWEN = "Qwen"
_APACHE = "Apache-2.0"


@dataclass(frozen=True)
class FamilyEntry:
    """One published model. `name` is the repository under the organisation `Qwen`."""

    name: str
    size: str
    kind: str
    """base, instruct, coder, coder-instruct, math, math-instruct, vl-instruct or moe."""
    config: ModelConfig
    licence: str
    released: str

    @property
    def repo(self) -> str:
        return f"Qwen/{self.name}"

    @property
    def num_parameters(self) -> int:
        return self.config.num_parameters

    @property
    def yarn_context(self) -> int | None:
        """Context with YaRN factor 4, for the models whose cards offer it."""
        offers = self.kind in ("instruct", "coder-instruct") and self.size in _YARN_SIZES
        return 131072 if offers else None


def _dense(size: str, *, instruct: bool, context: int | None = None) -> ModelConfig:
    hidden, ffn, layers, heads, kv, rows, tied, window_layers, base_context = _SHAPES[size]
    wide_eps = not instruct and size in ("14B", "32B", "72B")
    return ModelConfig(
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=context or (32768 if instruct else base_context),
        rms_norm_eps=1e-5 if wide_eps else 1e-6,
        tie_word_embeddings=tied,
        max_window_layers=window_layers if instruct else layers,
        bos_token_id=151643,
        eos_token_id=151645 if instruct else 151643,
    )


def _licence(size: str, series: str) -> str:
    if size == "3B" and series in ("", "Coder"):
        return _RESEARCH
    return _QWEN if size == "72B" else _APACHE


def _text_entries() -> list[FamilyEntry]:
    entries = []
    for size in SIZES:
        for instruct in (False, True):
            kind, suffix = ("instruct", "-Instruct") if instruct else ("base", "")
            config = _dense(size, instruct=instruct)
            name = f"Qwen2.5-{size}{suffix}"
            entries.append(FamilyEntry(name, size, kind, config, _licence(size, ""), "2024-09-19"))
    for size in SIZES[:-1]:
        date = "2024-09-19" if size in ("1.5B", "7B") else "2024-11-12"
        for instruct in (False, True):
            kind, suffix = ("coder-instruct", "-Instruct") if instruct else ("coder", "")
            config = _dense(size, instruct=instruct, context=32768)
            name = f"Qwen2.5-Coder-{size}{suffix}"
            entries.append(FamilyEntry(name, size, kind, config, _licence(size, "Coder"), date))
    for size in ("1.5B", "7B", "72B"):
        for instruct in (False, True):
            kind, suffix = ("math-instruct", "-Instruct") if instruct else ("math", "")
            config = _dense(size, instruct=instruct, context=4096)
            config = dataclasses.replace(config, rope_theta=10000.0)
            name = f"Qwen2.5-Math-{size}{suffix}"
            entries.append(
                FamilyEntry(name, size, kind, config, _licence(size, "Math"), "2024-09-19")
            )
    return entries


def _vision_entry(size: str, text: str, merged: int, licence: str, released: str) -> FamilyEntry:
    config = dataclasses.replace(
        _dense(text, instruct=True),
        model_type="qwen2_vl",
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        max_window_layers=_SHAPES[text][2],
        vision=VisionConfig(hidden_size=merged),
    )
    name = f"Qwen2-VL-{size}-Instruct"
    return FamilyEntry(name, size, "vl-instruct", config, licence, released)


def _moe_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=151936,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        model_type="qwen2_moe",
        max_position_embeddings=131072,
        max_window_layers=28,
        bos_token_id=151643,
        eos_token_id=151643,
        num_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=2560,
        shared_expert_intermediate_size=20480,
    )


def _table() -> dict[str, FamilyEntry]:
    moe = FamilyEntry("Qwen2-57B-A14B", "57B-A14B", "moe", _moe_config(), _APACHE, "2024-06-07")
    vision = [
        _vision_entry("2B", "1.5B", 1536, _APACHE, "2024-08-30"),
        _vision_entry("7B", "7B", 3584, _APACHE, "2024-08-30"),
        _vision_entry("72B", "72B", 8192, _QWEN, "2024-09-19"),
    ]
    return {entry.name: entry for entry in (*_text_entries(), *vision, moe)}


FAMILY: dict[str, FamilyEntry] = _table()


def find_family(name: str) -> FamilyEntry | None:
    """Look a model up by repository name, with or without `Qwen/`, in any case."""
    wanted = name.removeprefix("Qwen/").removeprefix("qwen/").lower()
    return next((entry for key, entry in FAMILY.items() if key.lower() == wanted), None)
