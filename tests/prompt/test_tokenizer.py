"""Tokenizer: the published vectors, special tokens typed as text, odd Unicode, time."""

from __future__ import annotations

import random
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenkit.errors import TokenizerError
from qwenkit.prompt.tokenizer import Tokenizer

ODD = {
    "58-controls": "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])),
    "58-nul": "a\x00b",
    "60-zalgo": "Z" + "\u0301\u0323\u0330" * 400,
    "60-zwj": "👩‍👩‍👧‍👦🏳️‍🌈" * 20,
    "60-rtl": "abc\u202edef\u202c\u2066x\u2069",
    "60-tags": "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "60-noncharacters": "\ufdd0\uffff\U0010ffff",
    "62-emoji": "🙂🧪🪐",
    "69-prefix-space": " lead",
    "69-spaces": "  a   b \n\n  c\t",
}


def published(shared: Path) -> list[tuple[str, list[int]]]:
    folder = shared / "data" / "tokenizer"
    texts = (folder / "vectors.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / "vectors.out").read_text(encoding="utf-8").split("\n")
    return [
        (text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)
    ][:46]


@pytest.mark.parametrize("number", range(46))
def test_published_vector(qwen: Tokenizer, shared: Path, number: int) -> None:
    text, ids = published(shared)[number]
    assert qwen.encode(text, allow_special=True) == ids
    assert qwen.decode(ids, skip_special=False) == unicodedata.normalize("NFC", text)


def test_ids_of_the_fact_sheet(qwen: Tokenizer) -> None:
    assert qwen.vocab_size == 151665
    assert qwen.special_ids["<|endoftext|>"] == 151643 == qwen.pad_token_id
    assert qwen.special_ids["<|im_end|>"] == 151645 == qwen.eos_token_id
    assert qwen.special_ids["<tool_call>"] == 151657
    assert qwen.special_ids["<|file_sep|>"] == 151664
    assert list(qwen.special_ids.values()) == list(range(151643, 151665))
    assert qwen.skipped_ids == frozenset(range(151643, 151657))


def test_vocab_and_merges_give_the_same_tokenizer(
    qwen_dir: Path, qwen: Tokenizer, tmp_path: Path
) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(qwen_dir / name)
    other = Tokenizer.from_dir(tmp_path)
    text = "def f(x):\n    return x ** 2  # 你好，world! <|im_end|> 12345"
    assert other.encode(text) == qwen.encode(text)
    assert other.encode(text, allow_special=True) == qwen.encode(text, allow_special=True)
    assert other.special_ids == qwen.special_ids and other.skipped_ids == qwen.skipped_ids


def test_equals_the_library_without_special_tokens(qwen: Tokenizer, qwen_dir: Path) -> None:
    import_text = Path(__file__).read_text(encoding="utf-8")
    assert "<|im_end|>" in import_text
    plain = import_text.replace("<", "(")
    assert qwen.encode(plain) == qwen.encode(plain, allow_special=True)
    assert qwen.decode(qwen.encode(import_text)) == import_text


@pytest.mark.parametrize("row", ["63", "64"])
def test_special_tokens_typed_by_a_user_stay_text(toy: Tokenizer, row: str) -> None:
    texts = list(toy.special_ids)
    if row == "64":
        texts = ["<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|>"]
    for text in texts:
        ids = toy.encode(f"a{text}b")
        assert not set(ids) & set(toy.special_ids.values())
        assert toy.decode(ids) == f"a{text}b"


def test_special_tokens_are_parsed_on_request(toy: Tokenizer) -> None:
    special = toy.special_ids
    ids = toy.encode("<|im_start|>x<tool_call><|im_end|", allow_special=True)
    assert ids == [
        special["<|im_start|>"],
        *toy.encode("x"),
        special["<tool_call>"],
        *toy.encode("<|im_end|"),
    ]
    assert toy.decode(ids) == "x<tool_call><|im_end|"
    assert toy.decode(ids, skip_special=False) == "<|im_start|>x<tool_call><|im_end|"
    assert list(toy.split_special("a<tool_call>")) == [("a", False), ("<tool_call>", True)]
    assert toy.has_special("a<tool_call>") and not toy.has_special("a<tool_call")


@pytest.mark.parametrize("row", ODD)
def test_odd_unicode_round_trip(toy: Tokenizer, row: str) -> None:
    text = ODD[row]
    assert toy.decode(toy.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("row", ["57"])
def test_lone_surrogate_becomes_the_replacement_character(toy: Tokenizer, row: str) -> None:
    assert toy.decode(toy.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert toy.encode_with_starts("\ud800")[0] == toy.encode("\ufffd")


@pytest.mark.parametrize("row", ["61"])
def test_nfd_is_normalised(toy: Tokenizer, row: str) -> None:
    assert toy.encode("e\u0301") == toy.encode("\u00e9")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=60))
def test_round_trip_of_any_text(toy: Tokenizer, text: str) -> None:
    assert toy.decode(toy.encode(text)) == unicodedata.normalize("NFC", text)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text("a é\u0301\n你🙂", max_size=30))
def test_starts_are_character_positions(toy: Tokenizer, text: str) -> None:
    ids, starts = toy.encode_with_starts(text)
    assert ids == toy.encode(text) and len(ids) == len(starts)
    assert starts == sorted(starts) and all(0 <= start < len(text) for start in starts)


def test_bytes_of_a_token_are_exact(toy: Tokenizer) -> None:
    ids = toy.encode("你🙂 x")
    assert b"".join(map(toy.id_to_bytes, ids)) == "你🙂 x".encode()
    assert toy.id_to_bytes(toy.special_ids["<|im_end|>"]) == b"<|im_end|>"
    assert (
        toy.id_to_token(toy.token_to_id("Ġ")) == "Ġ"
        and toy.id_to_bytes(toy.token_to_id("Ġ")) == b" "
    )


@pytest.mark.parametrize("row", ["67"])
def test_invalid_utf8_is_replaced(toy: Tokenizer, row: str) -> None:
    half = [toy.token_to_id(char) for char in ("ð", "Ł")]
    assert toy.decode([*toy.encode("a"), *half]) == "a\ufffd"


@pytest.mark.parametrize("row", ["66"])
@pytest.mark.parametrize("index", [-1, 10**9, "end"])
def test_ids_without_a_token_are_an_error(toy: Tokenizer, row: str, index: int | str) -> None:
    bad = toy.vocab_size if isinstance(index, str) else index
    with pytest.raises(TokenizerError, match="out of range"):
        toy.decode([bad])
    with pytest.raises(TokenizerError, match="out of range"):
        toy.id_to_token(bad)


def test_unknown_token_text(toy: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="not a token"):
        toy.token_to_id("no such token")


@pytest.mark.parametrize("row", ["59"])
@pytest.mark.parametrize("kind", ["same", "letters", "han", "spaces"])
def test_time_grows_about_linearly(toy: Tokenizer, row: str, kind: str) -> None:
    letters = "".join(random.Random(1).choices("abcdefgh", k=250_000))
    text = {
        "same": "a" * 250_000,
        "letters": letters,
        "han": "天" * 80_000,
        "spaces": " " * 250_000,
    }[kind]
    seconds = []
    for part in (4, 2, 1):
        piece, best = text[: len(text) // part], float("inf")
        for _ in range(4):
            start = time.thread_time()
            ids = toy.encode(piece)
            best = min(best, time.thread_time() - start)
        assert ids
        seconds.append(best)
    # Two doublings at 2.5 each; single ratios scatter more. Larger texts leave the caches, and what
    # their memory costs depends on the other programs of the machine.
    assert seconds[2] / seconds[0] <= 2.5**2
