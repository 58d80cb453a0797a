"""Text ↔ token ids, exactly as the published Qwen2.5 tokenizer, and safe for text that users type.

Contract: `encode` turns text into ids; added tokens (`<|im_start|>`, `<tool_call>`,
`<|fim_prefix|>` …) that occur in it stay plain text, unless the caller says
`allow_special=True`. `decode` is byte-exact with U+FFFD for bytes that are no UTF-8, and
decodes as a whole what `stream.TextStream` gives in pieces. Text is NFC-normalised (as
published), so `decode(encode(text))` is the NFC form of `text`. A lone surrogate, which no
UTF-8 can spell, becomes U+FFFD.

The library underneath holds the vocabulary without the added tokens; these are split off here,
longest first. So there is no switch inside the library that could be forgotten. Time is n log n in
the longest run without a boundary (the library's priority queue): 1 MB in one piece takes about a
second.

Not covered: training a tokenizer (`train/tokenizer.py`), chat templates (`chat.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers

from qwenkit.errors import TokenizerError
from qwenkit.prompt.tokenizer_files import (
    PULL_AGAIN,
    TokenizerSpec,
    as_json,
    byte_alphabet,
    read_spec,
)

LONG_TEXT = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")
_TO_LATIN1 = {ord(char): chr(byte) for byte, char in byte_alphabet().items()}


def replace_surrogates(text: str) -> str:
    """Lone surrogates → U+FFFD; all other text unchanged."""
    return _SURROGATE.sub("\ufffd", text)


class Tokenizer:
    """A byte-level BPE tokenizer with its added tokens. Immutable, so threads may share it."""

    def __init__(self, spec: TokenizerSpec) -> None:
        """Build from a checked spec. Errors: TokenizerError when merges and vocabulary disagree."""
        try:
            self._bpe = tokenizers.Tokenizer.from_str(as_json(spec))
        except Exception as error:  # the library raises bare Exception for every fault of a file
            raise TokenizerError(f"{spec.source} is inconsistent: {error}.", PULL_AGAIN) from error
        self.special_ids: dict[str, int] = dict(
            sorted(spec.added.items(), key=lambda item: item[1])
        )
        """All added tokens, text → id, in order of id."""
        self.skipped_ids = spec.skipped
        """Ids that `decode` drops: those flagged special (`<tool_call>`, FIM tokens are not)."""
        self.named_tokens = dict(spec.named)
        """`eos_token`, `pad_token`, … → text, as tokenizer_config.json names them."""
        self._ids = {**spec.vocab, **spec.added}
        self._texts = [""] * len(self._ids)
        for text, index in self._ids.items():
            self._texts[index] = text
        self._bytes: list[bytes | None] = [None] * len(self._texts)
        for text, index in spec.added.items():
            self._bytes[index] = replace_surrogates(text).encode("utf-8")
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load the tokenizer of a model directory (tokenizer.json, or vocab.json + merges.txt).

        Errors: TokenizerError naming the file that is missing, corrupt or of an unsupported kind.
        """
        return cls(read_spec(Path(path)))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. The embedding usually has more rows."""
        return len(self._texts)

    @property
    def eos_token_id(self) -> int | None:
        """The id that tokenizer_config.json calls eos; None when it names none."""
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """The id that tokenizer_config.json calls pad; None when it names none."""
        return self._named_id("pad_token")

    def _named_id(self, name: str) -> int | None:
        text = self.named_tokens.get(name)
        return None if text is None else self.special_ids[text]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Text → ids. Added tokens in it become their ids only with `allow_special`."""
        text = replace_surrogates(text)
        if not allow_special:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece, special in self.split_special(text):
            ids.extend([self.special_ids[piece]] if special else self._encode_plain(piece))
        return ids

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Plain text → (ids, index of the character at which each token starts)."""
        encoding = self._bpe.encode(replace_surrogates(text), add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _encode_plain(self, text: str) -> list[int]:
        if len(text) <= LONG_TEXT:
            return self._bpe.encode(text, add_special_tokens=False).ids if text else []
        # Many texts at once leave Python's lock to other threads meanwhile, a single one does not.
        return self._bpe.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def split_special(self, text: str) -> Iterator[tuple[str, bool]]:
        """Cut text at its added tokens: (piece, whether it is one), empty pieces left out."""
        end = 0
        for match in self._special.finditer(text):
            if match.start() > end:
                yield text[end : match.start()], False
            yield match.group(), True
            end = match.end()
        if end < len(text):
            yield text[end:], False

    def has_special(self, text: str) -> bool:
        """Whether an added token occurs in the text."""
        return self._special.search(text) is not None

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Ids → text; invalid UTF-8 becomes U+FFFD. Errors: TokenizerError for a bad id."""
        skipped = self.skipped_ids if skip_special else frozenset()
        pieces = [self.id_to_bytes(index) for index in ids if index not in skipped]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def id_to_bytes(self, index: int) -> bytes:
        """The bytes of a token, which may be a part of a character. Errors: TokenizerError."""
        if not 0 <= index < len(self._texts):
            raise TokenizerError(
                f"Token id {index} is out of range: this tokenizer has {len(self._texts)} tokens.",
                "Rows of the embedding beyond the last token must never be sampled.",
            )
        known = self._bytes[index]
        if known is None:
            known = self._texts[index].translate(_TO_LATIN1).encode("latin-1")
            self._bytes[index] = known
        return known

    def token_to_id(self, token: str) -> int:
        """Id of a token as vocabulary files spell it, or an added one. Errors: TokenizerError."""
        if token not in self._ids:
            raise TokenizerError(
                f"{token!r:.60} is not a token of this tokenizer.", "Check its spelling."
            )
        return self._ids[token]

    def id_to_token(self, index: int) -> str:
        """The inverse of `token_to_id`. Errors: TokenizerError."""
        self.id_to_bytes(index)
        return self._texts[index]
