from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwenkit.config import GenerationConfig, ModelConfig
from qwenkit.errors import DataError, OptionError
from qwenkit.model.batch import Batch
from qwenkit.model.load import load_model
from qwenkit.options import PretrainOptions
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train import pretrain
from qwenkit.train.pretrain import fresh_config

Make = Callable[..., PretrainOptions]


def test_the_finished_model_is_laid_out_as_published(pretrain_options: Make) -> None:
    path = pretrain.run(pretrain_options(max_steps=2))
    names = {file.name for file in path.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    end = Tokenizer.from_dir(path).special_ids["<|endoftext|>"]
    assert GenerationConfig.from_dir(path).eos_token_ids == (end,)
    assert ModelConfig.from_dir(path).eos_token_ids == (end,)
    assert json.loads((path / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    assert json.loads((path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_transformers_loads_it_and_agrees(pretrain_options: Make) -> None:
    path = pretrain.run(pretrain_options(max_steps=2))
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(path).encode("It is 42.", add_special_tokens=False)
    ours = load_model(path, torch.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(
            ours.forward(Batch.from_sequences([ids])), wanted, atol=1e-4, rtol=0
        )


def test_going_on_from_a_model(pretrain_options: Make, tmp_path: Path) -> None:
    first = pretrain.run(pretrain_options(max_steps=2))
    options = pretrain_options(
        model=str(first), config=None, tokenizer=None, output_dir=str(tmp_path / "more")
    )
    second = pretrain.run(options)
    assert ModelConfig.from_dir(second) == ModelConfig.from_dir(first)
    before, after = (load_model(path).model.norm.weight for path in (first, second))
    assert not torch.equal(before, after)


def test_vocabulary_size_comes_from_the_tokenizer(byte_tokenizer: Path) -> None:
    tokenizer = Tokenizer.from_dir(byte_tokenizer)
    shape = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    assert fresh_config(shape, tokenizer).vocab_size == 278
    assert fresh_config({**shape, "vocab_size": 320}, tokenizer).vocab_size == 320
    with pytest.raises(OptionError, match="vocab_size is 100, the tokenizer has 278"):
        fresh_config({**shape, "vocab_size": 100}, tokenizer)


@pytest.mark.parametrize("content", ["", "\n \n", '{"text": "x"'])
def test_bad_data_stops_before_step_0(pretrain_options: Make, tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        pretrain.run(pretrain_options(data=[str(file)]))
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_batch_smaller_than_a_sequence_is_refused(pretrain_options: Make) -> None:
    with pytest.raises(OptionError, match="tokens_per_batch is 16"):
        pretrain.run(pretrain_options(tokens_per_batch=16))
