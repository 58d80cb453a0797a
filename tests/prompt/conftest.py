"""Tokenizers for the tests: the published one, rebuilt from its ranks, and one trained here."""

from __future__ import annotations

import importlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_files import SPLIT_REGEX, byte_alphabet, pipeline_json

_script = runpy.run_path(
    str(Path(__file__).parents[2] / "scripts" / "published_tokenizer.py"), run_name="script"
)
config_of, write_model_dir = _script["config_of"], _script["write_model_dir"]


@pytest.fixture(scope="session")
def qwen_dir(request: pytest.FixtureRequest) -> Path:
    """The published tokenizer of Qwen2.5, built once per checkout and kept in pytest's cache."""
    ranks = _script["rank_file"]()
    if ranks is None:
        pytest.skip(
            "the development dependency dashscope, which has the rank file, is not installed"
        )
    directory = Path(request.config.cache.mkdir("qwen-tokenizer-2"))
    if not (directory / "complete").exists():
        _script["write_published"](directory, ranks)
        (directory / "complete").touch()
    return directory


@pytest.fixture(scope="session")
def qwen(qwen_dir: Path) -> Tokenizer:
    """The published tokenizer."""
    return Tokenizer.from_dir(qwen_dir)


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of about 600 tokens: enough where the vocabulary does not matter."""
    library = tokenizers.Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_REGEX), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(byte_alphabet().values()), show_progress=False
    )
    library.train_from_iterator(
        [Path(__file__).read_text(encoding="utf-8"), "你好，世界。天气很好。" * 3], trainer
    )
    model = json.loads(library.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    directory = tmp_path_factory.mktemp("toy")
    return write_model_dir(
        directory, pipeline_json(model["vocab"], merges), config_of(len(model["vocab"]))
    )


@pytest.fixture(scope="session")
def toy(toy_dir: Path) -> Tokenizer:
    """The small tokenizer."""
    return Tokenizer.from_dir(toy_dir)


@pytest.fixture(scope="session")
def oracle() -> Callable[[Path, str], Any]:
    """(tokenizer directory, template) → transformers' tokenizer."""

    # Imported here because it takes seconds, which the tests without an oracle need not wait.
    transformers = importlib.import_module("transformers")

    def make(directory: Path, template: str) -> Any:
        file = str(directory / "tokenizer.json")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=file)
        fast.chat_template = template
        return fast

    return make
