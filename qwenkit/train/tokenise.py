"""Rows to token ids and loss masks, kept in flat arrays: no torch here, so worker processes start
fast.

`tokenise(sources, …)` reads every source once, up front, and returns one `TokenStore`. What the
model must predict is marked by the mask: for "sft" the assistant's turns (from the chat template's
own rendering) and completions, for "pretrain" everything. A row over `max_seq_len` tokens follows
the policy (error, drop, or split: pretrain only) and is counted; nothing is shortened silently.

Fill-in-the-middle is prefix-suffix-middle (Bavarian 2022, arXiv 2207.14255) with the published
tokens: `<|fim_prefix|>` pre `<|fim_suffix|>` suf `<|fim_middle|>` mid `<|endoftext|>`, all of it
learnt.
Not covered: repository-level samples.
"""

from __future__ import annotations

import hashlib
import logging
import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwenkit.errors import DataError, OptionError, TokenizerError
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train.rows import Row
from qwenkit.train.sources import Source, is_endless, read_rows

Kind = Literal["pretrain", "sft"]
END = "<|endoftext|>"
FIM_SPECIALS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
FIM_ROOM = 8
"""Tokens kept free for the special ones and for words that a cut tears apart."""
_log = logging.getLogger("qwenkit.train")


@dataclass(frozen=True)
class TokenStore:
    """All sequences end to end: sequence i is `ids[offsets[i] : offsets[i + 1]]`."""

    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    """1 where the token is to be predicted."""
    offsets: NDArray[np.int64]
    counts: dict[str, int] = field(default_factory=dict)
    """What happened on the way: rows, dropped, split, skipped, duplicates."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def digest(self) -> str:
        """SHA-256 of the content; the identity of the data in a checkpoint."""
        sha = hashlib.sha256(len(self).to_bytes(8, "little"))
        for part in (self.ids, self.mask, self.offsets):
            sha.update(np.ascontiguousarray(part).data)
        return sha.hexdigest()

    def select(self, rows: NDArray[np.int64]) -> TokenStore:
        """A store of the given sequences, in the given order."""
        pieces = [slice(self.offsets[i], self.offsets[i + 1]) for i in rows]
        ids = np.concatenate([self.ids[piece] for piece in pieces] or [self.ids[:0]])
        mask = np.concatenate([self.mask[piece] for piece in pieces] or [self.mask[:0]])
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(self.lengths[rows])))
        return TokenStore(ids, mask, offsets, self.counts)

    @classmethod
    def concatenate(cls, stores: list[TokenStore]) -> TokenStore:
        """One store after the other."""
        counts: Counter[str] = Counter()
        for store in stores:
            counts.update(store.counts)
        lengths = np.concatenate([store.lengths for store in stores])
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        ids = np.concatenate([store.ids for store in stores])
        return cls(ids, np.concatenate([store.mask for store in stores]), offsets, dict(counts))


@dataclass(frozen=True)
class Encoder:
    """Turns rows into sequences of (ids, mask), each at most `max_seq_len` tokens long."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None: chats are refused (a base tokenizer without a template)."""
    kind: Kind
    max_seq_len: int
    overlong: Literal["error", "drop", "split"]

    def encode(
        self, row: Row, fim: float, rng: random.Random, counts: Counter[str]
    ) -> list[Sequence]:
        """The sequences of one row; [] when it is dropped (and counted). Errors: DataError with the
        row's place.
        """
        if row.text is not None:
            sequences = self._encode_text(row.text, fim, rng)
        elif row.completion is not None:
            sequences = [self._encode_completion(row)]
        else:
            sequences = [self._encode_chat(row)]
        kept: list[Sequence] = []
        for ids, mask in sequences:
            if not any(mask[1:]):
                raise DataError(
                    f"{row.place}: nothing to learn in this row.", "It needs an assistant's answer."
                )
            kept += (
                [(ids, mask)]
                if len(ids) <= self.max_seq_len
                else self._shorten(row, ids, mask, counts)
            )
        return kept

    def _encode_text(self, text: str, fim: float, rng: random.Random) -> list[Sequence]:
        if fim == 0.0:
            return [_learn_all([*self.tokenizer.encode(text), self._special(END)])]
        return [_learn_all(self._fim_or_plain(part, fim, rng)) for part in self._cut_lines(text)]

    def _fim_or_plain(self, text: str, fim: float, rng: random.Random) -> list[int]:
        """One piece of text, with probability `fim` rearranged; as it is where that would be too
        long."""
        encode, end = self.tokenizer.encode, self._special(END)
        chosen = rng.random() < fim
        first, second = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        if chosen:
            prefix, suffix, middle = (self._special(token) for token in FIM_SPECIALS)
            head, tail = encode(text[:first]), encode(text[second:])
            ids = [prefix, *head, suffix, *tail, middle, *encode(text[first:second]), end]
            if len(ids) <= self.max_seq_len:
                return ids
        return [*encode(text), end]

    def _cut_lines(self, text: str) -> Iterator[str]:
        """Pieces of whole lines that fit into max_seq_len, with a little room for rearranging."""
        limit, piece, size = self.max_seq_len - FIM_ROOM, "", 0
        for line in text.splitlines(keepends=True):
            length = len(self.tokenizer.encode(line))
            if piece and size + length > limit:
                yield piece
                piece, size = "", 0
            piece += line
            size += length
        if piece:
            yield piece

    def _encode_completion(self, row: Row) -> Sequence:
        prompt = self.tokenizer.encode(row.prompt, allow_special=row.special)
        answer = self.tokenizer.encode(row.completion or "", allow_special=row.special)
        ids = [*prompt, *answer, self._special(END)]
        if self.kind == "pretrain":
            return _learn_all(ids)
        return ids, [0] * len(prompt) + [1] * (len(ids) - len(prompt))

    def _encode_chat(self, row: Row) -> Sequence:
        if self.template is None:
            raise DataError(
                f"{row.place}: a chat, but the tokenizer has no chat template.",
                "Add chat_template.jinja.",
            )
        assert row.messages is not None
        prompt = self.template.render(row.messages, row.tools)
        if self.kind == "pretrain":
            return _learn_all([*prompt.ids, self._special(END)])
        return list(prompt.ids), [int(flag) for flag in prompt.loss_mask]

    def _shorten(
        self, row: Row, ids: list[int], mask: list[int], counts: Counter[str]
    ) -> list[Sequence]:
        limit = self.max_seq_len
        if self.overlong == "error":
            raise DataError(
                f"{row.place}: {len(ids)} tokens, max_seq_len is {limit}.",
                "Raise it, or set overlong: drop.",
            )
        if self.overlong == "drop":
            counts["dropped"] += 1
            return []
        counts["split"] += 1
        pieces = [(ids[at : at + limit], mask[at : at + limit]) for at in range(0, len(ids), limit)]
        # A lone last token has nothing before it to be predicted from.
        return [piece for piece in pieces if any(piece[1][1:])]

    def _special(self, token: str) -> int:
        found = self.tokenizer.special_ids.get(token)
        if found is None:
            raise TokenizerError(
                f"The tokenizer lacks {token}.", "Use a tokenizer of the Qwen2 family."
            )
        return found


Sequence = tuple[list[int], list[int]]
"""Token ids and loss mask of one sequence."""


def _learn_all(ids: list[int]) -> Sequence:
    return ids, [1] * len(ids)


def budgets(sources: list[Source], data_tokens: int | None) -> list[int | None]:
    """Tokens to take from each source, None for all of it.

    `tokens=` is taken as it is; sources with `weight=` share what is left of data_tokens.
    Errors: OptionError for a generator without a bound, or weights without data_tokens.
    """
    fixed = sum(source.tokens or 0 for source in sources)
    weights = sum(source.weight or 0.0 for source in sources if source.tokens is None)
    left = (data_tokens or 0) - fixed
    if weights and left <= 0:
        raise OptionError(
            f"Sources have weights, but data_tokens leaves {left} tokens.", "Raise data_tokens."
        )
    found: list[int | None] = []
    for source in sources:
        share = (
            int(left * source.weight / weights)
            if source.weight and source.tokens is None
            else source.tokens
        )
        if share is None and source.rows is None and is_endless(source):
            raise OptionError(
                f"data source {source.name} is endless.", "Add tokens=, rows= or weight=."
            )
        found.append(share)
    return found


def tokenise(
    source: Source, budget: int | None, encoder: Encoder, *, skip_bad_rows: bool, seed: int
) -> TokenStore:
    """All sequences of one source, up to its budget in tokens and rows.

    Errors: DataError for a bad row (unless skipped and counted), and when nothing is left.
    """
    ids, mask, offsets = array("i"), array("B"), array("q", [0])
    counts: Counter[str] = Counter(rows=0)
    rng = random.Random(f"fim/{seed}/{source.seed}/{source.name}")
    seen: set[bytes] = set()
    for row in read_rows(source):
        if isinstance(row, DataError):
            _bad_row(row, skip_bad_rows, counts)
            continue
        try:
            sequences = encoder.encode(row, source.fim, rng, counts)
        except DataError as error:
            _bad_row(error, skip_bad_rows, counts)
            continue
        counts["rows"] += 1
        for sequence, flags in sequences:
            ids.extend(sequence)
            mask.extend(flags)
            offsets.append(len(ids))
            _count_duplicate(ids[offsets[-2] :], seen, counts)
        if (budget is not None and len(ids) >= budget) or counts["rows"] == source.rows:
            break
    if len(offsets) == 1:
        raise DataError(
            f"{source.name}: no usable rows ({_describe(counts)}).",
            "Check the file and the limits.",
        )
    return TokenStore(
        np.array(ids, np.int32), np.array(mask, np.uint8), np.array(offsets, np.int64), dict(counts)
    )


def _count_duplicate(ids: array[int], seen: set[bytes], counts: Counter[str]) -> None:
    key = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
    counts["duplicates"] += key in seen
    seen.add(key)


def _bad_row(error: DataError, skip: bool, counts: Counter[str]) -> None:
    if not skip:
        raise error
    counts["skipped"] += 1
    if counts["skipped"] <= 3:
        _log.warning("skipped: %s", error.message)


def _describe(counts: Counter[str]) -> str:
    return (
        ", ".join(f"{value} {key}" for key, value in sorted(counts.items()) if value) or "none read"
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
