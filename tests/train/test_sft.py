from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenkit.config import GenerationConfig, ModelConfig
from qwenkit.errors import DataError
from qwenkit.options import PretrainOptions, SftOptions
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train import pretrain, sft
from qwenkit.train.sft import instruct_generation


@pytest.fixture
def base(pretrain_options: Callable[..., PretrainOptions]) -> Path:
    return pretrain.run(pretrain_options(max_steps=1))


def test_fine_tuning_a_base_model(base: Path, sft_options: Callable[..., SftOptions]) -> None:
    options = sft_options(model=str(base))
    path = sft.run(options)
    ids = Tokenizer.from_dir(path).special_ids
    turn, end = ids["<|im_end|>"], ids["<|endoftext|>"]
    assert ModelConfig.from_dir(path).eos_token_ids == (turn,)
    assert GenerationConfig.from_dir(path).eos_token_ids == (turn, end)
    assert Tokenizer.from_dir(path).eos_token_id == turn
    assert GenerationConfig.from_dir(path).do_sample is False
    lines = (Path(options.output_dir) / "log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert log[-1]["loss"] < log[0]["loss"]


def test_an_instruct_model_keeps_its_generation_settings(base: Path) -> None:
    tokenizer = Tokenizer.from_dir(base)
    turn, end = tokenizer.special_ids["<|im_end|>"], tokenizer.special_ids["<|endoftext|>"]
    given = {"eos_token_id": [turn, end], "do_sample": True, "temperature": 0.7, "top_k": 20}
    (base / "generation_config.json").write_text(json.dumps(given))
    assert instruct_generation(base, tokenizer) == given


def test_a_long_row_is_an_error_or_dropped_aloud(
    base: Path,
    chats: Path,
    sft_options: Callable[..., SftOptions],
    caplog: pytest.LogCaptureFixture,
) -> None:
    user, answer = {"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}
    with open(chats, "a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": [user, answer]}) + "\n")
    with pytest.raises(DataError, match=r"chats.jsonl:41: \d+ tokens, max_seq_len is 128"):
        sft.run(sft_options(model=str(base)))
    assert sft.run(sft_options(model=str(base), overlong="drop")).is_dir()
    assert "1 rows dropped" in caplog.text
