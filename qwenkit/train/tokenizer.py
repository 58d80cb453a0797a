"""Train a byte-level BPE in the published layout: `tokenizer.json`, `vocab.json`, `merges.txt`,
`tokenizer_config.json`.

The result has the published pieces: NFC, the published split expression, byte-level alphabet, no
unknown token, and the 22 added tokens after the base vocabulary (family facts: Qwen2 tokenizer, ids
151643 … 151664 there). One thing differs, in training only: a run of Chinese characters is cut into
single characters before pairs are counted, so no merge joins two characters. A small model then
copies names and numbers character by character. Encoding uses the published split alone and still
never joins characters, since no such merge exists.

Not covered: other normalisers or split expressions, and extending an existing vocabulary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from qwenkit.errors import DataError, OptionError, TrainError
from qwenkit.options import TokenizerOptions, write_resolved
from qwenkit.train.rows import Row
from qwenkit.train.sources import Source, is_endless, read_rows
from qwenkit.utils import human_bytes, write_json, write_text

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The published split expression of Qwen2's tokenizer."""

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Added tokens that `skip_special_tokens` drops, in the published order."""

ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Added tokens that are not in the special list, in the published order; they follow SPECIAL."""

NUM_ADDED = len(SPECIAL) + len(ADDED)
CHAT_TEMPLATE = Path(__file__).parent.parent / "assets" / "chat_template.jinja"


BYTES_PER_TOKEN = 4
"""What `tokens=` of a source means here, before there are tokens to count."""
_log = logging.getLogger("qwenkit.train")


def run(options: TokenizerOptions) -> Path:
    """Train as the options say; returns the folder. Errors: QwenkitError."""
    sources = [Source.parse(text) for text in options.data]
    for source in sources:
        if is_endless(source) and source.tokens is None and source.rows is None:
            raise OptionError(
                f"data source {source.name} has no end.", "Add tokens=1M or rows=1000."
            )
    out = Path(options.output_dir)
    texts = (text for source in sources for text in source_texts(source))
    size = train_tokenizer(
        texts, options.vocab_size, out, model_max_length=options.model_max_length
    )
    write_resolved(options, out)
    _log.info("%d tokens in %s", size, out)
    return out


def source_texts(source: Source) -> Iterator[str]:
    """The texts of one source up to its `rows` and `tokens` (4 bytes each). Errors: DataError of
    the first bad row.
    """
    limit = None if source.tokens is None else source.tokens * BYTES_PER_TOKEN
    seen = 0
    for number, row in enumerate(read_rows(source)):
        if isinstance(row, DataError):
            raise row
        if (source.rows is not None and number >= source.rows) or (
            limit is not None and seen >= limit
        ):
            break
        for text in _row_texts(row):
            seen += len(text.encode("utf-8", "surrogatepass"))
            yield text
    _log.info("%s: %s", source.name, human_bytes(seen))


def _row_texts(row: Row) -> Iterator[str]:
    """What people and models write in a row, tool definitions and calls as JSON."""
    yield from (text for text in (row.text, row.prompt, row.completion) if text)
    for tool in row.tools or []:
        yield json.dumps(tool, ensure_ascii=False)
    for message in row.messages or []:
        if isinstance(message.get("content"), str):
            yield message["content"]
        for call in message.get("tool_calls") or []:
            yield json.dumps(call["function"], ensure_ascii=False)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    out_dir: Path,
    *,
    model_max_length: int = 32768,
    eos_token: str = "<|im_end|>",
    chat_template: str | None = None,
    progress: bool = False,
) -> int:
    """Learn merges from `texts` and write the four files. Returns the number of tokens, added ones
    included.

    `vocab_size` counts the base vocabulary, 256 bytes and merges; the 22 added tokens come on top.
    `chat_template` is the Jinja text that goes into tokenizer_config.json; by default the package's
    own.
    Errors: OptionError when vocab_size leaves no room, TrainError when the texts yield too few
    merges.
    """
    if vocab_size < 256:
        raise OptionError(f"vocab_size {vocab_size} has no room for the 256 bytes.", "Raise it.")
    learned = _learn(texts, vocab_size, progress)
    if learned.get_vocab_size() != vocab_size:
        raise TrainError(
            f"The texts yield {learned.get_vocab_size()} tokens, not the {vocab_size} asked for.",
            "Give more text or lower vocab_size.",
        )
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    # The learned model goes through its files, so that tokenizer.json and the pair of files cannot
    # disagree.
    state = json.loads(learned.to_str())["model"]
    vocabulary: dict[str, int] = state["vocab"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    final = _published_pipeline(
        models.BPE(vocab=ordered, merges=[_pair(merge) for merge in merges])
    )
    write_text(
        out_dir / "vocab.json", json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
    )
    write_text(
        out_dir / "merges.txt", "#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges)
    )
    write_text(out_dir / "tokenizer.json", final.to_str(pretty=False))
    template = CHAT_TEMPLATE.read_text(encoding="utf-8") if chat_template is None else chat_template
    write_json(
        out_dir / "tokenizer_config.json",
        _config(len(ordered), model_max_length, eos_token, template),
    )
    return int(final.get_vocab_size())


def _learn(texts: Iterable[str], size: int, progress: bool) -> tokenizers.Tokenizer:
    """The base vocabulary: the 256 bytes and merges, Chinese cut into single characters."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.Split(tokenizers.Regex(r"\p{Han}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=progress,
    )
    learner.train_from_iterator(texts, trainer)
    return learner


def _published_pipeline(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([_added(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([_added(text, special=False) for text in ADDED])
    return tokenizer


def _added(text: str, *, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(text, special=special, normalized=False)


def _pair(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ")
    return left, right


def _config(
    first_id: int, model_max_length: int, eos_token: str, chat_template: str
) -> dict[str, Any]:
    """tokenizer_config.json with the published keys; the added tokens start at `first_id`."""
    flags = [(text, True) for text in SPECIAL] + [(text, False) for text in ADDED]
    decoder = {
        str(first_id + index): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": special,
        }
        for index, (text, special) in enumerate(flags)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos_token,
        "errors": "replace",
        "model_max_length": model_max_length,
        "pad_token": SPECIAL[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
