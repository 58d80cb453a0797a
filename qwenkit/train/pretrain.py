"""Pretraining: next-token loss on every token of packed documents. `qwenkit train pretrain
CONFIG.yaml`.

Starts from nothing (`config`: fields of config.json, `tokenizer`: a folder) or goes on from
`model`. Chats among the data are rendered by the chat template and learnt in full. Not covered:
document-boundary schedules, long-context stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from qwenkit.config import ModelConfig
from qwenkit.errors import OptionError
from qwenkit.io.hub import resolve
from qwenkit.model.load import init_model, load_trainable
from qwenkit.model.qwen import Qwen
from qwenkit.options import PretrainOptions
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train.data import MicroBatch
from qwenkit.train.losses import next_token_loss
from qwenkit.train.prepare import run_training, setup_device


def loss(model: Qwen, micro: MicroBatch) -> Tensor:
    """Summed loss of one micro batch; all tokens but the first of each sequence."""
    return next_token_loss(model, micro)


def run(options: PretrainOptions) -> Path:
    """Train as the options say; returns the finished model's folder. Errors: QwenkitError."""
    device = setup_device(options)
    model, tokenizer_dir = _start(options)
    end = Tokenizer.from_dir(tokenizer_dir).special_ids["<|endoftext|>"]
    generation = {
        "bos_token_id": end,
        "do_sample": False,
        "eos_token_id": end,
        "max_new_tokens": 2048,
    }
    return run_training(model.to(device), tokenizer_dir, options, "pretrain", loss, generation)


def _start(options: PretrainOptions) -> tuple[Qwen, Path]:
    """The model in float32 and the folder of its tokenizer. Errors: OptionError when the start is
    not clear.
    """
    if options.model is not None:
        if options.config:
            raise OptionError(
                "model and config are both given.",
                "Give config for a fresh model, or model to go on.",
            )
        path = resolve(options.model)
        return load_trainable(path), Path(options.tokenizer or path)
    if not options.config or options.tokenizer is None:
        raise OptionError(
            "A fresh model needs config and tokenizer.", "Give both, or model to go on from one."
        )
    tokenizer = Tokenizer.from_dir(options.tokenizer)
    return init_model(fresh_config(options.config, tokenizer), options.seed), Path(
        options.tokenizer
    )


def fresh_config(values: dict[str, Any], tokenizer: Tokenizer) -> ModelConfig:
    """The configuration of a new model; the vocabulary size and end tokens come from the tokenizer.

    Errors: OptionError when vocab_size is below the tokenizer's.
    """
    end = tokenizer.special_ids["<|endoftext|>"]
    rows = values.get("vocab_size", tokenizer.vocab_size)
    if rows < tokenizer.vocab_size:
        raise OptionError(
            f"config.vocab_size is {rows}, the tokenizer has {tokenizer.vocab_size} tokens.",
            "Leave vocab_size out.",
        )
    defaults = {"model_type": "qwen2", "bos_token_id": end, "eos_token_id": end}
    return ModelConfig.from_dict({**defaults, **values, "vocab_size": rows}, source="config")
