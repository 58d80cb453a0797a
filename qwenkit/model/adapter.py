"""Reads LoRA adapters in PEFT's format: a folder with adapter_config.json and
adapter_model.safetensors.

    adapter = read_adapter("path/to/folder", model)

Contract: all of it is checked against the model before anything is used. Every tensor must belong
to a linear layer that takes an adapter, have the shape that this layer and the configuration's rank
give, be finite, and be there in pairs; every layer that `target_modules` names must have its pair.
What would change the result and is not supported (DoRA, biases, further modules, …) is refused by
name, unknown settings that are set as well. Pickle files are refused.

Follows PEFT's `LoraConfig`: scale alpha / r, or alpha / √r with `use_rslora` (Kalajdzievski 2023,
arXiv 2312.03732); `rank_pattern` and `alpha_pattern` by the ends of layers' names. The scale is
multiplied into B before B is rounded to the model's dtype.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.config.fields import typed
from qwenkit.errors import CheckpointError, ConfigError, FormatError
from qwenkit.io.safetensors import SafetensorsFile
from qwenkit.model.layers import MLP
from qwenkit.model.lora import Adapter, LowRank
from qwenkit.model.qwen import Block, Qwen
from qwenkit.utils import read_json

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
SAVE_AGAIN = "Save the adapter again with PEFT's save_pretrained, or fetch it again."
MERGE = "Merge the adapter into its model with PEFT, and load that."
OTHER_MODEL = "Use the adapter with the model that it was trained on."
MAX_CONFIG_BYTES, MAX_RANK = 1 << 20, 1024
REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "biases of the low-rank parts",
    "modules_to_save": "whole modules beside the low-rank parts",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "targets that are no modules",
    "layer_replication": "repeated layers",
    "alora_invocation_tokens": "activated LoRA",
    "fan_in_fan_out": "transposed weights",
    "arrow_config": "arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
"""Settings that change what an adapter computes, and are not here."""
READ = frozenset(
    "peft_type r lora_alpha use_rslora target_modules exclude_modules rank_pattern alpha_pattern "
    "layers_to_transform bias init_lora_weights".split()
)
FOR_TRAINING = frozenset(
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "lora_dropout layers_pattern megatron_config megatron_core loftq_config eva_config "
    "corda_config lora_ga_config runtime_config qalora_group_size ensure_weight_tying".split()
)
"""Settings that say nothing about a finished adapter."""
HARMLESS_INITS = ("gaussian", "eva", "orthogonal")
"""Ways to begin that leave the model's own weights as they are."""
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight", re.DOTALL)


@dataclass(frozen=True)
class AdapterConfig:
    """What of adapter_config.json says how the tensors are used."""

    rank: int
    alpha: float
    root: bool
    targets: tuple[str, ...] | None
    """Ends of layers' names; None: a pattern, or all of them."""
    excludes: bool
    layers: frozenset[int] | None
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        return int(_by_end(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank, alpha = self.rank_of(module), _by_end(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.root else rank)

    def targeted(self, module: str) -> bool:
        """Whether the configuration promises a pair of tensors for it."""
        layer = int(module.split(".")[2])
        named = any(_ends_in(module, end) for end in self.targets or ())
        return named and (self.layers is None or layer in self.layers)


def read_adapter(path: str | os.PathLike[str], model: Qwen) -> Adapter:
    """Read a folder, for a model in its dtype and on its device.

    Errors: FormatError (files missing or malformed), ConfigError (not supported), CheckpointError
    (it does not fit the model).
    """
    folder = Path(path)
    config, linears = read_config(folder), adaptable(model)
    with _open(folder) as file:
        pairs = _pairs(file.keys(), folder)
        _check_targets(config, pairs, linears, folder)
        layers: list[dict[str, LowRank]] = [{} for _ in model.model.layers]
        for module, names in pairs.items():
            read = {
                side: _read(file, names, linears[module], module, side, config, folder).to(
                    model.device, model.dtype
                )
                for side in "AB"
            }
            for side, tensor in read.items():
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(
                        f"{folder}: lora_{side} of {module} has values that are not finite in "
                        f"{model.dtype}.",
                        SAVE_AGAIN,
                    )
            parts = module.split(".")
            layers[int(parts[2])][parts[-1]] = LowRank(read["A"], read["B"])
    return Adapter(layers)


def adaptable(model: Qwen) -> dict[str, nn.Module]:
    """The linear layers that take an adapter, by their full names."""
    found: dict[str, nn.Module] = {}
    for number, block in enumerate(model.model.layers):
        assert isinstance(block, Block)
        inside: dict[str, nn.Module] = {"self_attn": block.self_attn}
        if isinstance(block.mlp, MLP):
            inside["mlp"] = block.mlp
        for outer, module in inside.items():
            for name, linear in module.named_children():
                found[f"model.layers.{number}.{outer}.{name}"] = linear
    return found


def read_config(path: str | os.PathLike[str]) -> AdapterConfig:
    """What can be known of an adapter without its weights and without its model. Errors: those of
    `read_adapter` for the configuration.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FormatError(f"{folder} is no folder.", f"Give the one that has {CONFIG_NAME}.")
    where = folder / CONFIG_NAME
    if not where.exists():
        raise FormatError(f"{folder} has no {CONFIG_NAME}.", SAVE_AGAIN)
    values = read_json(where, max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise FormatError(f"{where} is not a JSON object.", SAVE_AGAIN)
    _refuse(values, where)
    rank: int = typed("r", values.get("r"), "int", str(where))
    alpha: float = typed("lora_alpha", values.get("lora_alpha"), "float", str(where))
    ranks, alphas = (_pattern(values, f"{key}_pattern", where) for key in ("rank", "alpha"))
    for each in (rank, *ranks.values()):
        if not 1 <= each <= MAX_RANK or each != int(each):
            raise ConfigError(
                f"{where}: the rank is {each!r:.20}; it must be an integer from 1 to {MAX_RANK}.",
                SAVE_AGAIN,
            )
    for each in (alpha, *alphas.values()):
        if not math.isfinite(each):
            raise ConfigError(f"{where}: lora_alpha is {each}; it must be finite.", SAVE_AGAIN)
    layers = values.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers is not None and not _is_list(layers, int):
        raise ConfigError(f"{where}: layers_to_transform is no list of numbers.", SAVE_AGAIN)
    return AdapterConfig(
        rank,
        alpha,
        bool(values.get("use_rslora")),
        _targets(values.get("target_modules"), where),
        bool(values.get("exclude_modules")),
        None if layers is None else frozenset(layers),
        ranks,
        alphas,
    )


def _refuse(values: Mapping[str, Any], where: Path) -> None:
    """Errors: ConfigError for whatever asks for more than plain LoRA."""
    kind, bias = values.get("peft_type"), values.get("bias", "none")
    if kind != "LORA":
        raise ConfigError(f"{where}: peft_type is {kind!r:.60}; only LORA is supported.", MERGE)
    if bias != "none":
        raise ConfigError(f"{where}: bias is {bias!r:.60}; only none is supported.", MERGE)
    start = values.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in HARMLESS_INITS:
        raise ConfigError(
            f"{where}: init_lora_weights is {start!r:.60}, which changes the model's own weights.",
            "Save the adapter with PEFT's path_initial_model_for_weight_conversion.",
        )
    for key, value in values.items():
        if not value or key in READ or key in FOR_TRAINING:
            continue
        what = f"{REFUSED[key]}, which is" if key in REFUSED else "something that is"
        raise ConfigError(f"{where}: {key!r:.60} asks for {what} not supported.", MERGE)


def _targets(value: Any, where: Path) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None  # a regular expression, or "all-linear": the tensors say what it found
    if not _is_list(value, str):
        raise ConfigError(f"{where}: target_modules is no list of names.", SAVE_AGAIN)
    return tuple(value)


def _pattern(values: Mapping[str, Any], key: str, where: Path) -> dict[str, float]:
    found = values.get(key) or {}
    typed(key, found, "dict", str(where))
    for name, value in found.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or _PLAIN.fullmatch(name) is None:
            raise ConfigError(
                f"{where}: {key} has {name!r:.80}: {value!r:.40}.",
                "It can have names of modules with numbers, no regular expressions.",
            )
        typed(key, value, "float", str(where))
    return dict(found)


def _open(folder: Path) -> SafetensorsFile:
    if not (folder / WEIGHTS_NAME).exists():
        if (folder / "adapter_model.bin").exists():
            raise FormatError(
                f"{folder} has only adapter_model.bin, a pickle file, which can run code.",
                "Save the adapter again with PEFT's save_pretrained, as safetensors.",
            )
        raise FormatError(f"{folder} has no {WEIGHTS_NAME}.", SAVE_AGAIN)
    return SafetensorsFile(folder / WEIGHTS_NAME)


def _pairs(names: Iterable[str], folder: Path) -> dict[str, dict[str, str]]:
    """Layer's name → {"A": tensor's name, "B": …}."""
    pairs: dict[str, dict[str, str]] = {}
    for name in names:
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise CheckpointError(
                f"{folder} has the tensor {name!r:.120}; only lora_A and lora_B of linear layers "
                "are supported.",
                MERGE,
            )
        if pairs.setdefault(found[1], {}).setdefault(found[2], name) != name:
            raise CheckpointError(f"{folder} has two lora_{found[2]} of {found[1]}.", SAVE_AGAIN)
    single = [module for module, pair in pairs.items() if len(pair) < 2]
    if single or not pairs:
        what = f"only one of lora_A and lora_B of {single[0]:.120}" if single else "no tensors"
        raise CheckpointError(f"{folder} has {what}.", SAVE_AGAIN)
    return pairs


def _check_targets(
    config: AdapterConfig, pairs: Iterable[str], linears: Iterable[str], folder: Path
) -> None:
    """What the configuration names, what the file has, and what the model has must be the same."""
    ends = sorted({name.rpartition(".")[2] for name in linears})
    can = f"Adapters of this model can have {', '.join(ends)}. {OTHER_MODEL}"
    for module in pairs:
        if module not in linears:
            raise CheckpointError(f"{folder} adapts {module!r:.120}, which cannot be.", can)
    for end in config.targets or ():
        if not any(_ends_in(name, end) for name in linears):
            raise CheckpointError(f"{folder}: target_modules has {end!r:.120}.", can)
    for name in linears:
        if config.targeted(name) and name not in pairs and not config.excludes:
            text = f"{folder} names {name} among its targets, but has no tensors for it."
            raise CheckpointError(text, SAVE_AGAIN)
    for name in pairs:
        if config.targets is not None and not config.targeted(name):
            text = f"{folder} has tensors for {name}, which is not among its targets."
            raise CheckpointError(text, SAVE_AGAIN)


def _read(
    file: SafetensorsFile,
    names: Mapping[str, str],
    linear: Any,
    module: str,
    side: str,
    config: AdapterConfig,
    folder: Path,
) -> Tensor:
    """lora_A, or lora_B with the scale in it, in float32."""
    rank = config.rank_of(module)
    expected = (rank, linear.in_features) if side == "A" else (linear.out_features, rank)
    dtype, shape = file.info(names[side])
    if shape != expected or not dtype.is_floating_point:
        raise CheckpointError(
            f"{folder}: lora_{side} of {module} is {list(shape)} of {dtype}; expected are floats "
            f"of shape {list(expected)}.",
            OTHER_MODEL,
        )
    read = file.read(names[side]).float()
    return read if side == "A" else read * config.scale_of(module)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(each) is kind for each in value)


def _ends_in(module: str, end: str) -> bool:
    return module == end or module.endswith(f".{end}")


def _by_end(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first entry that the module's name ends in."""
    return next((value for end, value in pattern.items() if _ends_in(module, end)), default)
