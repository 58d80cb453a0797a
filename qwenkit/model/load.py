"""From a checkpoint directory to a model, and back.

The model is built on the meta device (no memory), its names and shapes are held against the files'
headers, and only then are tensors read, one at a time, into the wanted dtype and device. Strict: a
missing, extra or misshapen tensor is an error that names it with what was expected and what was
found. Tensors are private copies, so that a file replaced or truncated later cannot harm a running
model.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from qwenkit import ops
from qwenkit.config import ModelConfig
from qwenkit.errors import CheckpointError, ConfigError
from qwenkit.io.safetensors import Checkpoint, save_file, save_sharded
from qwenkit.model.layers import RMSNorm
from qwenkit.model.qwen import Qwen
from qwenkit.utils import write_json

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FLOATS = (*DTYPES.values(), torch.float64)
_SHOWN = 5
_SHARD_BYTES = 4_500_000_000
_log = logging.getLogger("qwenkit.model")


def load_model(
    path: str | os.PathLike[str],
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    *,
    check_finite: bool = False,
) -> Qwen:
    """Load a checkpoint directory as published (config.json, safetensors single or sharded).

    `dtype` "auto" takes the checkpoint's own, with two exceptions: float16 overflows in this family
    and runs as bfloat16, and bfloat16 runs as float32 on a CPU that has no instructions for it.
    `check_finite` reads every weight and refuses nan and inf, naming the tensor.
    Errors: ConfigError, FormatError, CheckpointError.
    """
    config = ModelConfig.from_dir(path)
    target = resolve_dtype(config, dtype, torch.device(device))
    model = empty_model(config)
    with Checkpoint.open(Path(path)) as checkpoint:
        aliases = _match(model, checkpoint, config, str(path))
        state: dict[str, Tensor] = {}
        for name in model.state_dict():
            tensor = checkpoint.read(name)
            if check_finite and not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{path}: {name} holds nan or inf.", "Fetch the model again.")
            state[name] = tensor.to(device=device, dtype=target)
        for name in aliases:
            if not torch.equal(checkpoint.tensor(name), checkpoint.tensor(_EMBEDDING)):
                raise CheckpointError(
                    f"{path}: {name} differs from {_EMBEDDING}, but config.json ties them.",
                    "Set tie_word_embeddings to false.",
                )
    model.load_state_dict(state, assign=True)
    return model.eval()


_EMBEDDING = "model.embed_tokens.weight"


def empty_model(config: ModelConfig) -> Qwen:
    """The model on the meta device: names and shapes, no memory."""
    if config.vision is not None:
        raise ConfigError(
            f"model_type {config.model_type!r} needs the vision tower, which this version lacks.",
            "Use a Qwen2.5 text model.",
        )
    with torch.device("meta"):
        return Qwen(config)


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
        ours = torch.bfloat16 if ops.native_bfloat16(device) else torch.float32
        if own is torch.float16:
            _log.warning("float16 overflows in this family; running in %s", ours)
        elif own is not ours:
            _log.info("this machine has no bfloat16 instructions; running in %s", ours)
        return ours
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    name = names.get(dtype, dtype)
    if name not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown.", f"Use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _match(model: Qwen, checkpoint: Checkpoint, config: ModelConfig, path: str) -> list[str]:
    """Hold names, shapes and dtypes against the model; return the aliases of tied tensors."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = set(checkpoint.keys())
    missing = sorted(expected.keys() - found)
    extra = sorted(n for n in found - expected.keys() if not n.endswith("rotary_emb.inv_freq"))
    aliases = ["lm_head.weight"] if config.tie_word_embeddings and "lm_head.weight" in extra else []
    extra = [name for name in extra if name not in aliases]
    problems = [f"missing {_few(missing)}"] if missing else []
    problems += [f"unexpected {_few(extra)}"] if extra else []
    wrong = []
    for name in sorted(expected.keys() & found):
        dtype, shape = checkpoint.info(name)
        if tuple(shape) != expected[name]:
            wrong.append(f"{name} is {list(shape)}, expected {list(expected[name])}")
        elif dtype not in _FLOATS:
            wrong.append(f"{name} is {str(dtype).removeprefix('torch.')}, expected a float type")
    problems += [_few(wrong)] if wrong else []
    if problems:
        raise CheckpointError(
            f"{path} does not fit its config.json: {'; '.join(problems)}.",
            "Fetch the model again, or mend config.json.",
        )
    return aliases


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


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
    complete.
    """
    path = Path(path)
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
