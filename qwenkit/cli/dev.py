"""`qwenkit dev …`: what the developers of qwenkit itself need."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from qwenkit.cli.output import hint, status
from qwenkit.config import FAMILY, ModelConfig, find_family
from qwenkit.errors import OptionError
from qwenkit.io.hub import resolve
from qwenkit.options import RandomCheckpointOptions, suggest
from qwenkit.utils import human_bytes

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip


def random_checkpoint(options: RandomCheckpointOptions) -> int:
    """Write the checkpoint; prints its folder. Errors: OptionError, CheckpointError, HubError."""
    import torch

    from qwenkit.model.random import save_random
    from qwenkit.prompt.tokenizer import Tokenizer

    config = published_shape(options.size)
    given = Path(options.tokenizer)  # a folder need not have a model in it
    source = given if given.is_dir() else resolve(options.tokenizer, offline=True)
    tokenizer = Tokenizer.from_dir(source)
    if tokenizer.vocab_size > config.vocab_size:
        raise OptionError(
            f"{options.tokenizer} has {tokenizer.vocab_size} tokens, {options.size} only "
            f"{config.vocab_size} rows.",
            "Choose another --tokenizer.",
        )
    config = dataclasses.replace(
        config, bos_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    path, dtype = Path(options.output_dir), getattr(torch, options.dtype)
    if path.is_dir() and any(path.iterdir()):
        raise OptionError(f"{path} is not empty.", "Give a new folder.")
    with status(f"writing {human_bytes(config.num_parameters * dtype.itemsize)}"):
        path.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, path / name)
        save_random(config, path, seed=options.seed, dtype=dtype)
    print(path)
    hint(f"qwenkit bench decode {path} --quantize int4")
    return 0


def published_shape(name: str) -> ModelConfig:
    """The configuration of a size or of a published name. Errors: OptionError."""
    entry = find_family(name) or find_family(f"Qwen2.5-{name}-Instruct")
    if entry is None:
        near = suggest(name, [*(e.size for e in FAMILY.values()), *FAMILY])
        advice = f"Did you mean {near}?" if near else "`qwenkit family` has the names."
        raise OptionError(f"{name!r} is no published size.", advice)
    return entry.config
