"""Write the tokenizer of the published Qwen2.5 models into a folder, without a download.

    python scripts/published_tokenizer.py DIR

The vocabulary comes from the rank file in the package `dashscope`, a development dependency; the
files are those of the published checkpoints byte for byte (their SHA-256 is checked). The tests
take it from here, and benchmarks that need a vocabulary of the true size.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from qwenkit.prompt.tokenizer_files import byte_alphabet, pipeline_json
from qwenkit.utils import write_json

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


def rank_file() -> Path | None:
    """The rank file, if the package that has it is installed."""
    spec = importlib.util.find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


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
    write_json(directory / "tokenizer.json", {**pipeline, "added_tokens": added}, indent=None)
    write_json(directory / "tokenizer_config.json", config)
    return directory


def write_published(directory: Path, ranks_file: Path) -> None:
    """All files of the tokenizer, and a generation_config.json with its end tokens."""
    vocab, merges = published_files(ranks_file)
    compact = json.dumps(vocab, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text = "".join(f"{merge}\n" for merge in merges).encode("utf-8")
    assert hashlib.sha256(compact).hexdigest() == VOCAB_SHA256
    assert hashlib.sha256(text).hexdigest() == MERGES_SHA256
    template = Path(__file__).parents[1] / "qwenkit" / "assets" / "chat_template.jinja"
    config = config_of(len(vocab)) | {"chat_template": template.read_text(encoding="utf-8")}
    write_model_dir(directory, pipeline_json(vocab, merges), config)
    (directory / "vocab.json").write_bytes(compact)
    (directory / "merges.txt").write_bytes(b"#version: 0.2\n" + text)
    ends = [len(vocab) + ADDED.index(token) for token in ("<|im_end|>", "<|endoftext|>")]
    write_json(
        directory / "generation_config.json",
        {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1]},
    )


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    ranks = rank_file()
    if ranks is None:
        raise SystemExit("The package dashscope is missing: pip install dashscope==2.0.2")
    write_published(Path(sys.argv[1]), ranks)
    print(sys.argv[1])


if __name__ == "__main__":
    main()
