"""Supervised fine-tuning on chats and completions. `qwenkit train sft CONFIG.yaml`.

The loss mask comes from the chat template's own rendering: it covers what the assistant says and
the `<|im_end|>` after it. Rows with `text` are learnt in full, prompt/completion rows in the
completion. Not covered: LoRA.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from qwenkit.config import GenerationConfig
from qwenkit.errors import OptionError
from qwenkit.io.hub import resolve
from qwenkit.model.load import load_trainable
from qwenkit.model.qwen import Qwen
from qwenkit.options import SftOptions
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train.data import MicroBatch
from qwenkit.train.losses import next_token_loss
from qwenkit.train.prepare import run_training, setup_device
from qwenkit.utils import read_json


def loss(model: Qwen, micro: MicroBatch) -> Tensor:
    """Summed loss over the supervised tokens of one micro batch."""
    return next_token_loss(model, micro)


def run(options: SftOptions) -> Path:
    """Fine-tune as the options say; returns the finished model's folder. Errors: QwenkitError."""
    if options.model is None:
        raise OptionError("No model to start from.", "Give model: a name or a folder.")
    device = setup_device(options)
    path = resolve(options.model)
    model = load_trainable(path)
    generation = instruct_generation(path, Tokenizer.from_dir(path))
    # As published: an instruct model's config.json names <|im_end|>, generation_config.json both
    # end tokens.
    model.config = dataclasses.replace(model.config, eos_token_id=generation["eos_token_id"][0])
    return run_training(model.to(device), path, options, "sft", loss, generation)


def instruct_generation(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json after fine-tuning: that of an instruct model is kept, a base model
    gets both end tokens and greedy decoding.
    """
    end, turn = tokenizer.special_ids["<|endoftext|>"], tokenizer.special_ids["<|im_end|>"]
    if (
        turn in GenerationConfig.from_dir(path).eos_token_ids
        and (path / "generation_config.json").is_file()
    ):
        kept: dict[str, Any] = read_json(path / "generation_config.json")
        return {**kept, "eos_token_id": [turn, end]}
    return {
        "bos_token_id": end,
        "do_sample": False,
        "eos_token_id": [turn, end],
        "pad_token_id": end,
    }
