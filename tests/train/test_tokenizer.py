from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qwenkit.errors import OptionError, TrainError
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train.tokenizer import ADDED, SPECIAL, train_tokenizer

ENGLISH, CHINESE = "the cat sat on the mat, the hat 12345\n", "我们今天去北京，北京今天很好。\n"
TEXTS = [ENGLISH, CHINESE] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bpe")
    assert train_tokenizer(TEXTS, 280, out, chat_template="{{ messages }}") == 302
    return out


def test_transformers_and_qwenkit_read_it_alike(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_dir(folder)
    for text in [ENGLISH, CHINESE, "cafe\u0301", "def f(x):\n\treturn 'x'\n\n", "12 34", "𝄞 🙂"]:
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert theirs.eos_token == "<|im_end|>" and theirs.pad_token == "<|endoftext|>"


def test_vocab_and_merges_alone_give_the_same_ids(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for text in TEXTS[:2]:
        assert Tokenizer.from_dir(tmp_path).encode(text) == Tokenizer.from_dir(folder).encode(text)


def test_added_tokens_follow_the_base_in_the_published_order(folder: Path) -> None:
    ids = Tokenizer.from_dir(folder).special_ids
    assert list(ids) == [*SPECIAL, *ADDED]
    assert list(ids.values()) == list(range(280, 302))
    flags = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert [flags[str(i)]["special"] for i in range(280, 302)] == [True] * 14 + [False] * 8
    skipped = Tokenizer.from_dir(folder).skipped_ids
    assert skipped == frozenset(range(280, 294))


def test_no_merge_joins_chinese_characters(folder: Path) -> None:
    tokenizer = Tokenizer.from_dir(folder)
    for index in range(280):
        text = tokenizer.id_to_bytes(index).decode("utf-8", errors="ignore")
        assert sum("\u4e00" <= char <= "\u9fff" for char in text) <= 1
    assert len(tokenizer.encode("北京")) >= 2
    learned = {tokenizer.id_to_bytes(index) for index in range(280)}
    assert {char.encode() for char in "今天北京"} & learned


def test_the_same_texts_give_the_same_files(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(TEXTS), 280, tmp_path, chat_template="{{ messages }}")
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_too_little_text_and_too_small_a_vocabulary_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="yield"):
        train_tokenizer(["ab"], 5000, tmp_path, chat_template="x")
    with pytest.raises(OptionError, match="256"):
        train_tokenizer(["ab"], 100, tmp_path, chat_template="x")
    assert not (tmp_path / "tokenizer.json").exists()
