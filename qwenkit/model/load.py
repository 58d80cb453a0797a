"""From a checkpoint to a model, and back.

The model is built on the meta device (no memory), its names and shapes are held against the files'
headers, and only then are tensors read, one at a time, into the wanted dtype and device. Strict: a
missing, extra or misshapen tensor is an error that names it with what was expected and what was
found. Tensors of safetensors are private copies, so that a file replaced or truncated later cannot
harm a running model. Packed weights (GPTQ, AWQ, GGUF) stay packed: their modules become
`QuantLinear`. Those of GGUF stay in the mapped file, which must be left alone until
`transforms.prepare` has copied them.

`quantize` packs a float checkpoint on the way: every matrix of the decoder to the asked format, the
head to int8, one at a time, so that a model can be loaded that fits only when packed. A separate
embedding keeps the file's 16 bits; one that is also the head is int8 as a whole. Norms, biases and
the routers of experts stay floats.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.errors import CheckpointError, ConfigError
from qwenkit.io.gguf import Gguf, GgufModel, is_gguf, read_gguf
from qwenkit.io.safetensors import Checkpoint, save_file, save_sharded
from qwenkit.model.gguf import GgufWeights
from qwenkit.model.layers import RMSNorm
from qwenkit.model.linear import Linear, QuantEmbedding, QuantLinear, is_packed
from qwenkit.model.packing import EMBEDDING, Packing, kind_of, read_weight
from qwenkit.model.published import PublishedWeights
from qwenkit.model.qwen import Qwen
from qwenkit.model.weights import DenseWeights, Weights, few, unfit
from qwenkit.ops import KernelWeight, Packed, pages
from qwenkit.utils import memory_returned, write_json

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_SHARD_BYTES = 4_500_000_000
_log = logging.getLogger("qwenkit.model")


def load_model(
    path: str | os.PathLike[str] | GgufModel,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    *,
    quantize: str | None = None,
    check_finite: bool = False,
    prepack: bool = False,
) -> Qwen:
    """Load a checkpoint directory as published (config.json, safetensors single or sharded), or a
    GGUF file, given by its name or as `read_gguf` has read it.

    `dtype` "auto" takes the checkpoint's own, with two exceptions: float16 overflows in this family
    and runs as bfloat16, and bfloat16 runs as float32 on a CPU where neither PyTorch nor the C++
    part computes it fast.
    `quantize` (a key of `QUANTIZE`) packs the weights on the way.
    `check_finite` reads every weight and refuses nan and inf, naming the tensor.
    `prepack` puts each packed weight in the order of the kernels as soon as it is read, so that no
    more than a part of one is in memory twice; `transforms.prepare` does what is left.
    Errors: ConfigError, FormatError, CheckpointError, OptionError.
    """
    how = Packing(quantize, check_finite, prepack)
    with memory_returned():
        if isinstance(path, GgufModel) or is_gguf(path):
            opened = path if isinstance(path, GgufModel) else read_gguf(path)
            return _load_gguf(opened, dtype, device, how)
        return _load_folder(Path(path), dtype, device, how)


def _load_folder(
    path: Path, dtype: str | torch.dtype, device: str | torch.device, how: Packing
) -> Qwen:
    config = ModelConfig.from_dir(path)
    target = resolve_dtype(config, dtype, torch.device(device))
    model = empty_model(config)
    with Checkpoint.open(path) as checkpoint:
        scheme = config.quantization
        weights = PublishedWeights(checkpoint, scheme) if scheme else DenseWeights(checkpoint)
        for name in match(model, weights, config):
            if not torch.equal(checkpoint.tensor(name), checkpoint.tensor(EMBEDDING)):
                raise CheckpointError(
                    f"{path}: {name} differs from {EMBEDDING}, but config.json ties them.",
                    "Set tie_word_embeddings to false.",
                )
        fill(model, weights, target, device, how)
    return model.eval()


def _load_gguf(
    opened: GgufModel, dtype: str | torch.dtype, device: str | torch.device, how: Packing
) -> Qwen:
    config = opened.config()
    target = resolve_dtype(config, dtype, torch.device(device))
    model = empty_model(config)
    with Gguf(opened) as gguf:
        weights = GgufWeights(gguf, config.num_experts)
        match(model, weights, config)
        fill(model, weights, target, device, how)
    return model.eval()


def load_trainable(path: str | os.PathLike[str]) -> Qwen:
    """The model in float32, to be trained. Errors: as `load_model`; CheckpointError for a packed
    one, whose weights would stay as they are.
    """
    model = None if is_gguf(path) else load_model(path, torch.float32)
    if model is None or is_packed(model):
        raise CheckpointError(
            f"{path} has packed weights or is a GGUF file; neither is trained.",
            "Start from the unquantised checkpoint of the same model.",
        )
    return model


def fill(
    model: Qwen,
    weights: Weights,
    dtype: torch.dtype,
    device: str | torch.device,
    how: Packing = Packing(),  # noqa: B008  (frozen)
) -> None:
    """Read every tensor of a matched model, one at a time; packed ones replace their module. The
    largest come first: what is made on the way to one must not come on top of all the others.

    Errors: OptionError where the weights to quantise are packed already; those of reading.
    """
    state: dict[str, Tensor] = {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in sorted(shapes, key=lambda name: -shapes[name].numel()):
        kind = kind_of(model, weights, name, dtype, how.quantize)
        found = read_weight(weights, name, kind, torch.device(device), how)
        if not isinstance(found, Tensor):
            _place(model, name, found, dtype)
            continue
        if how.prepack and found.ndim == 2 and torch.device(device).type == "cpu":
            state[name] = pages.copy(found, dtype)
        else:
            state[name] = found.to(device=device, dtype=dtype)
    model.load_state_dict(state, assign=True)


def _place(model: Qwen, name: str, packed: Packed | KernelWeight, dtype: torch.dtype) -> None:
    """Put a packed weight where the parameter `name` was; a tied embedding is the head as well."""
    owner = name.removesuffix(".weight")
    module = model.get_submodule(owner)
    if isinstance(module, Linear):
        _set_module(model, owner, QuantLinear(packed, module.bias))
    else:
        _set_module(model, owner, QuantEmbedding(packed, dtype))
        if model.lm_head is None:
            _set_module(model, "lm_head", QuantLinear(packed))


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def empty_model(config: ModelConfig) -> Qwen:
    """The model on the meta device: names and shapes, no memory."""
    if config.vision is not None:
        raise ConfigError(
            f"model_type {config.model_type!r} needs the vision tower, which this version lacks.",
            "Use a Qwen2.5 text model.",
        )
    with torch.device("meta"), _Uninitialised():
        return Qwen(config)


class _Uninitialised(TorchFunctionMode):
    """Modules draw no initial values. On the meta device that would do nothing but import PyTorch's
    compiler: 1.5 s and 150 MB.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def resolve_dtype(
    config: ModelConfig, dtype: str | torch.dtype, device: torch.device
) -> torch.dtype:
    """The torch dtype for "auto", a name, or a dtype. Errors: ConfigError for anything else."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        own = DTYPES[config.torch_dtype]
        if own is torch.float32:
            return own
        ours = torch.bfloat16 if ops.answers_in_bfloat16(device) else torch.float32
        if own is torch.float16:
            _log.warning("float16 overflows in this family; running in %s", ours)
        elif own is not ours:
            _log.info("bfloat16 would be slow on this machine; running in %s", ours)
        return ours
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    name = names.get(dtype, dtype)
    if name not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown.", f"Use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def match(model: Qwen, weights: Weights, config: ModelConfig) -> list[str]:
    """Hold names, shapes and dtypes against the model; return the aliases of tied tensors.

    Errors: CheckpointError naming what is missing, unexpected or misshapen.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = weights.shapes()
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(name for name in found.keys() - expected.keys() if not weights.ignorable(name))
    aliases = ["lm_head.weight"] if config.tie_word_embeddings and "lm_head.weight" in extra else []
    extra = [name for name in extra if name not in aliases]
    problems = [f"missing {few(missing)}"] if missing else []
    problems += [f"unexpected {few(extra)}"] if extra else []
    wrong = []
    for name in sorted(expected.keys() & found.keys()):
        fault = weights.fault(name)
        if found[name] != expected[name]:
            wrong.append(f"{name} is {list(found[name])}, expected {list(expected[name])}")
        elif fault is not None:
            wrong.append(fault)
    problems += [few(wrong)] if wrong else []
    if problems:
        raise unfit(weights.path, "; ".join(problems))
    return aliases


def init_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen:
    """A fresh model on the CPU: weights normal with initializer_range, biases 0, norms 1; drawn in
    name order.
    """
    model = empty_model(config).to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in sorted(model.named_modules()):
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, RMSNorm):
                    parameter.fill_(1.0)
                elif name == "bias":
                    parameter.zero_()
                else:
                    drawn = torch.empty(parameter.shape)
                    nn.init.normal_(drawn, 0.0, config.initializer_range, generator=generator)
                    parameter.copy_(drawn)
    return model


def save_model(
    model: Qwen,
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write config.json and model.safetensors (sharded above 4.5 GB) as published checkpoints are
    laid out.

    Each file appears whole or not at all; config.json comes last, so a directory that has one is
    complete. Errors: CheckpointError for a model with packed weights.
    """
    path = Path(path)
    if is_packed(model):
        raise CheckpointError(
            "A model with packed weights cannot be saved.", "Load it without quantising."
        )
    target = dtype or model.dtype
    state = {
        name: tensor.detach().to("cpu", target).contiguous()
        for name, tensor in model.state_dict().items()
    }
    path.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if size > _SHARD_BYTES:
        save_sharded(state, path, _SHARD_BYTES)
    else:
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    values = model.config.to_dict()
    values["torch_dtype"] = str(target).removeprefix("torch.")
    write_json(path / "config.json", values)
