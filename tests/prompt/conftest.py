"""Tokenizers for the tests: the published one, rebuilt from its ranks, and one trained here."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_files import SPLIT_REGEX, byte_alphabet, pipeline_json

RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
VOCAB_SHA256 = "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910"
MERGES_SHA256 = "599bab54075088774b1733fde865d5bd747cbcc7a547c5bc12610e874e26f5e3"
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()
ADDED = (
    SPECIAL
    + (
        "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
        "<|repo_name|> <|file_sep|>"
    ).split()
)


def merge_of(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that byte-pair merging leaves of a token when only lower ranks may merge."""
    splits = [
        i
        for i in range(1, len(token))
        if ranks.get(token[:i], rank) < rank > ranks.get(token[i:], rank)
    ]
    if len(splits) == 1:
        return token[: splits[0]], token[splits[0] :]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(parts[i] + parts[i + 1], rank) for i in range(len(parts) - 1)]
        at = found.index(min(found))
        assert found[at] < rank
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def published_files(ranks_file: Path) -> tuple[dict[str, int], list[str]]:
    """vocab.json and merges.txt (without header) as published, from the rank file."""
    raw = ranks_file.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == RANKS_SHA256
    pairs = (line.split() for line in raw.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    table = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(table[byte] for byte in token)

    merges = [
        " ".join(map(spell, merge_of(token, rank, ranks)))
        for token, rank in ranks.items()
        if len(token) > 1
    ]
    return {spell(token): rank for token, rank in ranks.items()}, merges


def config_of(first_id: int) -> dict[str, Any]:
    """A tokenizer_config.json with the family's added tokens from `first_id` on."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "added_tokens_decoder": {
            str(first_id + i): {"content": text, "special": text in SPECIAL, **flags}
            for i, text in enumerate(ADDED)
        },
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
        "tokenizer_class": "Qwen2Tokenizer",
    }


def write_model_dir(directory: Path, pipeline: dict[str, Any], config: dict[str, Any]) -> Path:
    """tokenizer.json (with added tokens) and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    decoder = config["added_tokens_decoder"]
    added = [{"id": int(index), **entry} for index, entry in decoder.items()]
    whole = json.dumps({**pipeline, "added_tokens": added}, ensure_ascii=False)
    (directory / "tokenizer.json").write_text(whole, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def qwen_dir(request: pytest.FixtureRequest) -> Path:
    """The published tokenizer of Qwen2.5, built once per checkout and kept in pytest's cache."""
    spec = importlib.util.find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(
            "the development dependency dashscope, which has the rank file, is not installed"
        )
    directory = Path(request.config.cache.mkdir("qwen-tokenizer-1"))
    if not (directory / "complete").exists():
        ranks = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
        vocab, merges = published_files(ranks)
        compact = json.dumps(vocab, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        text = "".join(f"{merge}\n" for merge in merges).encode("utf-8")
        assert hashlib.sha256(compact).hexdigest() == VOCAB_SHA256
        assert hashlib.sha256(text).hexdigest() == MERGES_SHA256
        write_model_dir(directory, pipeline_json(vocab, merges), config_of(len(vocab)))
        (directory / "vocab.json").write_bytes(compact)
        (directory / "merges.txt").write_bytes(b"#version: 0.2\n" + text)
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
