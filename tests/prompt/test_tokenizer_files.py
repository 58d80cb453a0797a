"""Tokenizer files that are missing, corrupt or of another kind: an error naming the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenkit.errors import TokenizerError
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_files import byte_alphabet, read_spec

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def copy(toy_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_dir, tmp_path / "model"))


@pytest.fixture
def parts(copy: Path) -> Path:
    """The same tokenizer as vocab.json and merges.txt."""
    model = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (copy / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (copy / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(model["merges"]) + "\n", encoding="utf-8"
    )
    (copy / "tokenizer.json").unlink()
    return copy


def edit(file: Path, change: Edit) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def test_alphabet_is_a_bijection() -> None:
    table = byte_alphabet()
    assert sorted(table) == list(range(256)) and len(set(table.values())) == 256
    assert table[ord("A")] == "A" and table[ord(" ")] == "Ġ" and table[0] == "Ā"


def test_no_truncation_or_padding_is_taken_over(copy: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["truncation"] = {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        }

    edit(copy / "tokenizer.json", change)
    assert len(Tokenizer.from_dir(copy).encode("one two three four five")) > 2


@pytest.mark.parametrize("name", ["tokenizer.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": {"type": "BPE", ', b"[" * 100_000]
)
def test_corrupt_tokenizer_json(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(TokenizerError, match="tokenizer.json"):
        Tokenizer.from_dir(copy)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_missing_part(parts: Path, name: str) -> None:
    assert Tokenizer.from_dir(parts).encode("hello")
    (parts / name).unlink()
    with pytest.raises(TokenizerError, match=name):
        Tokenizer.from_dir(parts)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no tokenizer.json"):
        Tokenizer.from_dir(tmp_path)
    with pytest.raises(TokenizerError, match="not a directory"):
        Tokenizer.from_dir(tmp_path / "absent")


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "tokenizer_config.json"])
def test_a_directory_instead_of_a_file(parts: Path, name: str) -> None:
    (parts / name).unlink()
    (parts / name).mkdir()
    with pytest.raises(TokenizerError, match=name):
        Tokenizer.from_dir(parts)


@pytest.mark.parametrize(
    "content", [b"#version: 0.2\na b c\n", b"ab\n", b"\xff\xff\n", b"z\xc4\xa0z z\n"]
)
def test_bad_merges(parts: Path, content: bytes) -> None:
    (parts / "merges.txt").write_bytes(content)
    with pytest.raises(TokenizerError, match="merges.txt|inconsistent"):
        Tokenizer.from_dir(parts)


def drop(key: str) -> Edit:
    return lambda value: value["model"]["vocab"].pop(key)


def drop_merged(value: dict[str, Any]) -> None:
    model = value["model"]
    del model["vocab"]["".join(model["merges"][0].split(" "))]


def put(*path: str, to: Any) -> Edit:
    def change(value: dict[str, Any]) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return change


def add_token(**fields: Any) -> Edit:
    return lambda value: value["added_tokens"].append({"id": 0, "content": "<x>", **fields})


BROKEN: dict[str, tuple[Edit, str]] = {
    "68-missing byte": (drop("Ġ"), "lacks the tokens of 1 bytes, the first 0x20"),
    "68-missing token": (drop_merged, "no token|inconsistent"),
    "69-empty token": (put("model", "vocab", "", to=9999), "no bytes spell"),
    "token that no bytes spell": (put("model", "vocab", "你", to=9999), "no bytes spell"),
    "hole": (put("model", "vocab", "ĠĠĠĠĠĠĠĠĠĠ", to=10**6), "has no token"),
    "id as text": (put("model", "vocab", "a", to="1"), "not a whole number"),
    "negative id": (put("model", "vocab", "a", to=-1), "two tokens|no token"),
    "id twice": (put("model", "vocab", "a", to=5), "two tokens|no token"),
    "merge of unknown tokens": (put("model", "merges", to=["Q qq"]), "inconsistent"),
    "merge of a wrong type": (put("model", "merges", to=[1]), "inconsistent"),
    "no merges": (put("model", "merges", to=None), "no merges"),
    "unigram": (put("model", "type", to="Unigram"), "BPE"),
    "byte_fallback": (put("model", "byte_fallback", to=True), "byte_fallback"),
    "unk": (put("model", "unk_token", to="a"), "unk_token"),
    "pre_tokenizer": (put("pre_tokenizer", to={"type": "Whitespace"}), "pre_tokenizer"),
    "no pre_tokenizer": (put("pre_tokenizer", to=None), "pre_tokenizer"),
    "prefix space": (
        put("pre_tokenizer", to={"type": "ByteLevel", "add_prefix_space": True}),
        "pre_tokenizer",
    ),
    "decoder": (put("decoder", to={"type": "WordPiece"}), "decoder"),
    "bad regex": (
        put(
            "pre_tokenizer",
            "pretokenizers",
            to=[{"type": "Split"}, {"type": "ByteLevel", "add_prefix_space": False}],
        ),
        "inconsistent",
    ),
    "added id twice": (add_token(), "two tokens|no token|a second meaning"),
    "added without content": (add_token(content=""), "without proper id"),
    "added with a bad id": (add_token(id="7"), "without proper id"),
    "added strips": (add_token(rstrip=True), "rstrip"),
    "added list": (put("added_tokens", to={}), "no token|added_tokens|second"),
}


@pytest.mark.parametrize("row", BROKEN)
def test_broken_tokenizer_json(copy: Path, row: str) -> None:
    change, message = BROKEN[row]
    edit(copy / "tokenizer.json", change)
    if row == "added list":
        (copy / "tokenizer_config.json").unlink()
        assert Tokenizer.from_dir(copy).special_ids == {}  # an empty table is a table
        return
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_dir(copy)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("eos_token", to="<nope>"), "eos_token"),
        (put("eos_token", to=3), "eos_token"),
        (put("added_tokens_decoder", to=[1]), "added_tokens_decoder"),
        (put("added_tokens_decoder", "x", to={"content": "<x>"}), "without proper id"),
        (put("added_tokens_decoder", "3", to={"content": "<|im_end|>"}), "second meaning"),
    ],
)
def test_broken_config(copy: Path, change: Edit, message: str) -> None:
    edit(copy / "tokenizer_config.json", change)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_dir(copy)
    assert "tokenizer_config.json" in str(caught.value)


def test_named_tokens_may_be_objects(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", put("eos_token", to={"content": "<|endoftext|>"}))
    tokenizer = Tokenizer.from_dir(copy)
    assert tokenizer.eos_token_id == tokenizer.special_ids["<|endoftext|>"]
    (copy / "tokenizer_config.json").unlink()
    assert Tokenizer.from_dir(copy).eos_token_id is None


def test_flipped_bytes_are_never_a_traceback(copy: Path) -> None:
    file, rng = copy / "tokenizer.json", random.Random(3)
    good = file.read_bytes()
    refused = 0
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            assert read_spec(copy).vocab and Tokenizer.from_dir(copy).vocab_size
        except TokenizerError as error:
            refused += 1
            assert "tokenizer" in str(error)
    assert refused > 20
