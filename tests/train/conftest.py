"""A byte tokenizer, a two-layer model and small data: what every training test starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenkit.options import PretrainOptions, SftOptions
from qwenkit.train import tokenizer

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder without merges: 256 bytes and the 22 added tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train_tokenizer(["abc"], 256, folder, chat_template=TEMPLATE)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Forty short chats as JSON lines."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} + {n}?"},
                {"role": "assistant", "content": f"It is {2 * n}."},
            ]
        }
        for n in range(40)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def pretrain_options(
    tmp_path: Path, chats: Path, byte_tokenizer: Path
) -> Callable[..., PretrainOptions]:
    """Options of a run of a second or two; keyword arguments override."""

    def make(**changes: Any) -> PretrainOptions:
        values: dict[str, Any] = {
            "config": CONFIG,
            "tokenizer": str(byte_tokenizer),
            "data": [str(chats)],
            "output_dir": str(tmp_path / "out"),
            "max_seq_len": 128,
            "tokens_per_batch": 512,
            "max_steps": 8,
            "save_steps": 2,
            "warmup_steps": 2,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "dtype": "fp32",
            "threads": 1,
            "device": "cpu",
        }
        return PretrainOptions(**{**values, **changes})

    return make


@pytest.fixture
def sft_options(tmp_path: Path, chats: Path) -> Callable[..., SftOptions]:
    """Options of a fine-tuning run; `model` is to be given."""

    def make(**changes: Any) -> SftOptions:
        values: dict[str, Any] = {
            "data": [str(chats)],
            "output_dir": str(tmp_path / "sft"),
            "max_seq_len": 128,
            "tokens_per_batch": 512,
            "num_train_epochs": 2,
            "save_steps": 0,
            "warmup_steps": 1,
            "learning_rate": 1e-3,
            "dtype": "fp32",
            "threads": 1,
            "device": "cpu",
            "tensorboard": False,
        }
        return SftOptions(**{**values, **changes})

    return make
