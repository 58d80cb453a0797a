"""Reads and checks a checkpoint's tokenizer files; `tokenizer.py` runs what this hands over.

Contract: `read_spec(dir)` → `TokenizerSpec`, out of `tokenizer.json`, or of `vocab.json` +
`merges.txt`, with `tokenizer_config.json` beside either. Only the family's kind is accepted:
byte-level BPE without unknown token, whose alphabet has all 256 bytes (else some text could not
be spelt) and whose ids leave no hole. Whatever is missing, corrupt, contradictory or of another
kind is a `TokenizerError` that names the file.

Not covered: SentencePiece models, `tiktoken` rank files, added tokens that swallow neighbouring
spaces.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.errors import FormatError, TokenizerError
from qwenkit.utils import read_json, read_text

MAX_FILE_BYTES = 256 << 20
PULL_AGAIN = "Fetch the model again with `qwenkit pull`."
ONLY_BYTE_BPE = (
    "Only byte-level BPE tokenizers, as the Qwen2 and Qwen2.5 models have, are supported."
)
SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerSpec:
    """A checked tokenizer: `pipeline` is a tokenizer.json without its added tokens."""

    pipeline: dict[str, Any]
    vocab: dict[str, int]
    added: dict[str, int]
    skipped: frozenset[int]
    """Ids that `skip_special` drops."""
    named: dict[str, str]
    """`bos_token`, `eos_token`, `pad_token`, `unk_token` → text, those that the config sets."""
    source: Path


def byte_alphabet() -> dict[int, str]:
    """Byte → the character that stands for it in vocabulary files (the table of GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(0x100 + index) for index, byte in enumerate(moved)})
    return table


def read_spec(directory: Path) -> TokenizerSpec:
    """Read the tokenizer of a model directory. Errors: TokenizerError naming the file at fault."""
    if not directory.is_dir():
        raise TokenizerError(f"{directory} is not a directory.", "Give the directory of a model.")
    single, vocab_file, merges_file = (
        directory / n for n in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    config_file = directory / "tokenizer_config.json"
    # A link to nothing is a fault, not an absence: half of a cache must not pass for a model.
    config = _read_mapping(config_file) if os.path.lexists(config_file) else {}
    if os.path.lexists(single):
        source, pipeline = single, _read_mapping(single)
        added = _added_of_json(pipeline, single)
    else:
        missing = [file.name for file in (vocab_file, merges_file) if not os.path.lexists(file)]
        if missing:
            names = "tokenizer.json" if len(missing) == 2 else missing[0]
            raise TokenizerError(f"{directory} has no {names}.", PULL_AGAIN)
        source, pipeline = (
            vocab_file,
            pipeline_json(_read_mapping(vocab_file), _read_merges(merges_file)),
        )
        added = {}
        if "added_tokens_decoder" not in config:
            raise TokenizerError(
                f"{config_file} with its added_tokens_decoder is missing: no special tokens.",
                PULL_AGAIN,
            )
    _merge_added(added, _added_of_config(config, config_file), config_file)
    vocab = _check_pipeline(pipeline, source)
    check_ids(vocab, added, source)
    named = _named_tokens(config, config_file, added)
    extra = config.get("additional_special_tokens") or []
    special = {*named.values(), *(text for text in extra if isinstance(text, str))}
    skipped = frozenset(
        i for text, (i, is_special) in added.items() if is_special or text in special
    )
    bare = {
        **pipeline,
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    return TokenizerSpec(
        bare, vocab, {text: i for text, (i, _) in added.items()}, skipped, named, source
    )


def pipeline_json(vocab: Mapping[str, int], merges: list[str]) -> dict[str, Any]:
    """The family's tokenizer.json without added tokens: NFC, the published regex, byte-level BPE.

    Args:
        vocab: token in the byte alphabet → id.
        merges: `"left right"` in order of priority.
    """
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": SPLIT_REGEX},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": dict(vocab),
            "merges": merges,
        },
    }


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file, max_bytes=MAX_FILE_BYTES)
    except FormatError as error:
        raise TokenizerError(error.message, PULL_AGAIN) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} does not hold a JSON object.", PULL_AGAIN)
    return value


def _read_merges(file: Path) -> list[str]:
    try:
        text = read_text(file, max_bytes=MAX_FILE_BYTES)
    except FormatError as error:
        raise TokenizerError(error.message, error.remedy) from error
    lines = text.split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[first:], first + 1):
        line = line.removesuffix("\r")
        if line and line.count(" ") != 1:
            raise TokenizerError(f"{file} line {number} is not a pair of tokens.", PULL_AGAIN)
        if line:
            merges.append(line)
    return merges


def _added_of_json(pipeline: dict[str, Any], file: Path) -> dict[str, tuple[int, bool]]:
    """Added tokens of a tokenizer.json: text → (id, special)."""
    entries = pipeline.get("added_tokens") or []
    if not isinstance(entries, list):
        raise TokenizerError(f"{file}: added_tokens is not a list.", PULL_AGAIN)
    added: dict[str, tuple[int, bool]] = {}
    for entry in entries:
        text, index, special = _added_entry(
            entry, entry.get("id") if isinstance(entry, dict) else None, file
        )
        _merge_added(added, {text: (index, special)}, file)
    return added


def _added_of_config(config: dict[str, Any], file: Path) -> dict[str, tuple[int, bool]]:
    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise TokenizerError(f"{file}: added_tokens_decoder is not an object.", PULL_AGAIN)
    added: dict[str, tuple[int, bool]] = {}
    for key, entry in entries.items():
        text, index, special = _added_entry(
            entry, int(key) if key.isascii() and key.isdigit() else None, file
        )
        _merge_added(added, {text: (index, special)}, file)
    return added


def _added_entry(entry: Any, index: Any, file: Path) -> tuple[str, int, bool]:
    text = entry.get("content") if isinstance(entry, dict) else None
    if (
        not isinstance(text, str)
        or not text
        or not isinstance(index, int)
        or isinstance(index, bool)
        or index < 0
    ):
        raise TokenizerError(
            f"{file} has an added token without proper id and content: {entry!r:.80}.", PULL_AGAIN
        )
    for flag in ("lstrip", "rstrip", "single_word"):
        if entry.get(flag):
            raise TokenizerError(
                f"{file}: added token {text!r} sets {flag}, which is unsupported.", ONLY_BYTE_BPE
            )
    return text, index, bool(entry.get("special"))


def _merge_added(
    into: dict[str, tuple[int, bool]], new: dict[str, tuple[int, bool]], file: Path
) -> None:
    """Unite two tables of added tokens; a contradiction is an error."""
    ids = {index: text for text, (index, _) in into.items()}
    for text, (index, special) in new.items():
        if ids.get(index, text) != text or into.get(text, (index, False))[0] != index:
            raise TokenizerError(
                f"{file} gives added token {text!r} (id {index}) a second meaning.", PULL_AGAIN
            )
        ids[index] = text
        into[text] = (index, special or into.get(text, (index, False))[1])


def _check_pipeline(pipeline: dict[str, Any], file: Path) -> dict[str, int]:
    """Refuse everything that is not byte-level BPE; return the vocabulary."""
    model, decoder = pipeline.get("model"), pipeline.get("decoder")
    if (
        not isinstance(model, dict)
        or model.get("type", "BPE") != "BPE"
        or not isinstance(model.get("vocab"), dict)
    ):
        raise TokenizerError(f"{file} does not describe a BPE model.", ONLY_BYTE_BPE)
    for key in (
        "unk_token",
        "byte_fallback",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "dropout",
    ):
        if model.get(key):
            raise TokenizerError(
                f"{file}: model.{key} = {model[key]!r:.40} is unsupported.", ONLY_BYTE_BPE
            )
    steps = pipeline.get("pre_tokenizer")
    if isinstance(steps, dict) and steps.get("type") == "Sequence":
        steps = (steps.get("pretokenizers") or [None])[-1]
    if (
        not isinstance(steps, dict)
        or steps.get("type") != "ByteLevel"
        or steps.get("add_prefix_space", True)
    ):
        raise TokenizerError(
            f"{file}: the pre_tokenizer does not end in plain ByteLevel.", ONLY_BYTE_BPE
        )
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise TokenizerError(f"{file}: the decoder is not ByteLevel.", ONLY_BYTE_BPE)
    vocab: dict[str, int] = model["vocab"]
    if not isinstance(model.get("merges"), list):
        raise TokenizerError(f"{file} has no merges.", PULL_AGAIN)
    return vocab


def check_ids(vocab: dict[str, int], added: dict[str, tuple[int, bool]], file: Path) -> None:
    """Ids must be whole, unique and without holes; every byte must have a token."""
    if not all(type(index) is int for index in vocab.values()):
        raise TokenizerError(f"{file} has a token whose id is not a whole number.", PULL_AGAIN)
    missing = [byte for byte, char in byte_alphabet().items() if char not in vocab]
    if missing:
        raise TokenizerError(
            f"{file} lacks the tokens of {len(missing)} bytes, the first 0x{missing[0]:02x}.",
            PULL_AGAIN,
        )
    letters = set(byte_alphabet().values())
    plain = {text: index for text, index in vocab.items() if text not in added}
    if "" in plain or not set("".join(plain)) <= letters:
        odd = next(text for text in plain if not text or not set(text) <= letters)
        raise TokenizerError(
            f"{file} has the token {odd!r:.40}, which no bytes spell.", ONLY_BYTE_BPE
        )
    for text, (index, _) in added.items():
        if vocab.get(text, index) != index:
            raise TokenizerError(
                f"{file} gives token {text!r} the ids {vocab[text]} and {index}.", PULL_AGAIN
            )
    ids = sorted([*plain.values(), *(index for index, _ in added.values())])
    for expected, index in enumerate(ids):
        if index != expected:
            what = (
                f"id {expected} has no token"
                if index > expected
                else f"id {index} belongs to two tokens"
            )
            raise TokenizerError(f"{file}: {what}.", PULL_AGAIN)


def _named_tokens(
    config: dict[str, Any], file: Path, added: dict[str, tuple[int, bool]]
) -> dict[str, str]:
    named = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            continue
        if not isinstance(text, str) or text not in added:
            raise TokenizerError(
                f"{file}: {key} {text!r:.40} is not among the added tokens.", PULL_AGAIN
            )
        named[key] = text
    return named


def as_json(spec: TokenizerSpec) -> str:
    """The text that the `tokenizers` library loads."""
    return json.dumps(spec.pipeline, ensure_ascii=False)
