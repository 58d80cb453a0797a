"""The draft model of an `LLM`: found, held against the tokenizer, loaded."""

from __future__ import annotations

import os

import torch

from qwenkit.errors import ConfigError
from qwenkit.io.hub import Progress
from qwenkit.io.hub import resolve as resolve_ref
from qwenkit.llm.files import read_files
from qwenkit.model.load import load_model
from qwenkit.model.qwen import Qwen
from qwenkit.model.transforms import prepare
from qwenkit.prompt.tokenizer import Tokenizer


def load_draft(
    draft_model: str | os.PathLike[str] | Qwen | None,
    tokenizer: Tokenizer,
    *,
    dtype: str | torch.dtype,
    quantize: str | None,
    device: torch.device,
    source: str,
    offline: bool | None,
    progress: Progress | None,
) -> Qwen | None:
    """The model, ready to guess for a model with `tokenizer`; one in memory is taken as it is.

    Errors: ConfigError when its tokens are others; those of loading.
    """
    if draft_model is None or isinstance(draft_model, Qwen):
        return draft_model
    path = resolve_ref(draft_model, source=source, offline=offline, progress=progress)
    files = read_files(path)
    _check_tokens(tokenizer, files.tokenizer, os.fspath(draft_model))
    model = load_model(files.weights, dtype, device, quantize=quantize, prepack=True)
    prepare(model)
    return model


def _check_tokens(own: Tokenizer, other: Tokenizer, name: str) -> None:
    """One may have tokens beyond the other's, as later versions of a family do."""
    for index in range(min(own.vocab_size, other.vocab_size)):
        mine, theirs = own.id_to_bytes(index), other.id_to_bytes(index)
        if mine != theirs:
            raise ConfigError(
                f"The draft model {name} has other tokens: {index} is {theirs!r}, not {mine!r}.",
                "Take a smaller model of the same family.",
            )
