"""Packed weights are not trained: a packed checkpoint is refused, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwenkit.config import ModelConfig
from qwenkit.errors import CheckpointError
from qwenkit.model.load import init_model, load_trainable, save_model


@pytest.mark.parametrize("matrices", ["F32", "Q8_0"])
def test_a_gguf_file_is_no_start(
    tmp_path: Path, write_gguf: Callable[..., None], matrices: str
) -> None:
    config = ModelConfig(96, 32, 64, 1, 2, 1)
    save_model(init_model(config), tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", matrices)
    with pytest.raises(CheckpointError, match="neither is trained"):
        load_trainable(tmp_path / "model.gguf")
    assert load_trainable(tmp_path).config.hidden_size == 32
