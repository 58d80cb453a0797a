"""The tokenizer of a GGUF file's metadata: what is taken over, and what is refused by key."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from qwenkit.errors import TokenizerError
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_files import byte_alphabet
from qwenkit.prompt.tokenizer_gguf import end_ids_of_gguf, spec_of_gguf, template_of_gguf

BYTES = list(byte_alphabet().values())
TOKENS = [*BYTES, "ab", "<|endoftext|>", "<|im_end|>", "<tool_call>", "[PAD260]", "[PAD261]"]
KINDS = [1] * 257 + [3, 3, 4, 5, 5]


def numbers(values: list[int]) -> memoryview:
    return memoryview(struct.pack(f"<{len(values)}i", *values)).cast("i")


def metadata(**changes: Any) -> dict[str, Any]:
    values = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": TOKENS,
        "token_type": numbers(KINDS),
        "merges": ["a b"],
        "eos_token_id": 258,
        "padding_token_id": 257,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def test_tokens_kinds_and_names() -> None:
    tokenizer = Tokenizer(spec_of_gguf(metadata(), Path("m.gguf")))
    assert tokenizer.vocab_size == 260, "unused tokens at the end are rows, not tokens"
    assert tokenizer.encode("ab<|im_end|>", allow_special=True) == [256, 258]
    assert len(tokenizer.encode("<|im_end|>")) == 10
    assert tokenizer.decode([256, 258, 259]) == "ab<tool_call>"
    assert tokenizer.eos_token_id == 258 and tokenizer.pad_token_id == 257
    assert spec_of_gguf(metadata(pre=None), Path("m")).added == tokenizer.special_ids


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "llama"}, "model is 'llama'"),
        ({"pre": "llama-bpe"}, "pre is 'llama-bpe'"),
        ({"add_bos_token": True}, "add_bos_token"),
        ({"tokens": None}, "tokens"),
        ({"merges": None}, "merges is no list"),
        ({"token_type": numbers(KINDS[:-1])}, "token_type is no list of 262"),
        ({"token_type": KINDS}, "token_type"),
        ({"tokens": ["a", *TOKENS[1:]]}, "tokens has a token twice"),
        ({"tokens": [*BYTES, "é€", *TOKENS[257:]]}, "which no bytes spell"),
        ({"merges": ["a b c"]}, "merges has 'a b c'"),
        ({"eos_token_id": 300}, "eos_token_id is 300"),
        ({"eos_token_id": 3}, "eos_token_id is 3"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"token_type": numbers([5] * 262)}, "lacks the tokens of 256 bytes"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(TokenizerError, match=named):
        spec_of_gguf(metadata(**changes), Path("m.gguf"))


def test_merges_that_make_no_token() -> None:
    with pytest.raises(TokenizerError, match="inconsistent"):
        Tokenizer(spec_of_gguf(metadata(merges=["a z"]), Path("m.gguf")))


def test_ends_and_templates() -> None:
    assert end_ids_of_gguf(metadata(eot_token_id=257)) == (258, 257)
    assert end_ids_of_gguf(metadata(eos_token_id="x")) == ()
    assert template_of_gguf({}) is None
    key = "tokenizer.chat_template"
    assert template_of_gguf({key: "a"}) == ("a", None)
    assert template_of_gguf({key: "a", f"{key}.tool_use": "b"}) == ("a", "b")
