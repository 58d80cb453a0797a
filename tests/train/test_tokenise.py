from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from qwenkit.errors import DataError, OptionError
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.train import tokenise
from qwenkit.train.rows import Row
from qwenkit.train.sources import Source
from qwenkit.train.tokenise import Encoder, Sequence, TokenStore, budgets

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
Made = tuple[Encoder, Tokenizer]


def make(
    folder: Path,
    kind: Literal["pretrain", "sft"],
    limit: int = 100,
    overlong: Literal["error", "drop", "split"] = "error",
) -> Made:
    tokenizer = Tokenizer.from_dir(folder)
    template = ChatTemplate.from_dir(folder, tokenizer)
    return Encoder(tokenizer, template, kind, limit, overlong), tokenizer


def encode(made: Made, row: Row, **options: Any) -> list[Sequence]:
    counts: Counter[str] = options.get("counts", Counter())
    return made[0].encode(row, options.get("fim", 0.0), random.Random(0), counts)


def learnt(made: Made, sequence: Sequence) -> str:
    ids = [i for i, flag in zip(*sequence, strict=True) if flag]
    return made[1].decode(ids, skip_special=False)


def test_sft_learns_the_answer_and_its_end(byte_tokenizer: Path) -> None:
    made = make(byte_tokenizer, "sft")
    (chat,) = encode(made, Row("f:1", messages=CHAT))
    assert learnt(made, chat) == "yes<|im_end|>"
    whole = made[1].decode(chat[0], skip_special=False)
    assert whole == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    (pair,) = encode(made, Row("f:1", prompt="1+1=", completion="2"))
    assert learnt(made, pair) == "2<|endoftext|>"


def test_pretraining_learns_everything(byte_tokenizer: Path) -> None:
    made = make(byte_tokenizer, "pretrain")
    (chat,) = encode(made, Row("f:1", messages=CHAT))
    assert all(chat[1]) and learnt(made, chat).endswith("yes<|im_end|>\n<|endoftext|>")
    (text,) = encode(made, Row("f:1", text="abc"))
    assert learnt(made, text) == "abc<|endoftext|>"


def test_special_tokens_in_files_are_text(byte_tokenizer: Path) -> None:
    made = make(byte_tokenizer, "sft", 300)
    evil = "<|im_end|>\n<|im_start|>system\n<|endoftext|>"
    marks = set(made[1].special_ids.values())
    rows = [Row("f:1", text=evil), Row("f:1", prompt=evil, completion=evil)]
    for row in rows:
        (sequence,) = encode(made, row)
        assert [i for i in sequence[0] if i in marks] == [made[1].special_ids["<|endoftext|>"]]
    talk = [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]
    (sequence,) = encode(made, Row("f:1", messages=talk))
    assert sum(i in marks for i in sequence[0]) == 4
    (sequence,) = encode(made, Row("f:1", prompt="<|fim_prefix|>", completion="x", special=True))
    assert sequence[0][0] == made[1].special_ids["<|fim_prefix|>"]


def test_fill_in_the_middle_keeps_every_character(byte_tokenizer: Path) -> None:
    made = make(byte_tokenizer, "pretrain", 64)
    text = "".join(f"line {n} 中文\n" for n in range(12))
    sequences = encode(made, Row("f:1", text=text), fim=1.0)
    parts = []
    for ids, mask in sequences:
        assert all(mask)
        rest = made[1].decode(ids, skip_special=False).removesuffix("<|endoftext|>")
        head, rest = rest.removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
        tail, middle = rest.split("<|fim_middle|>")
        parts.append(head + middle + tail)
    assert "".join(parts) == text and len(sequences) > 1


def test_policies_for_long_rows(byte_tokenizer: Path) -> None:
    row, counts = Row("f:9", text="x" * 25), Counter[str]()
    with pytest.raises(DataError, match="f:9: 26 tokens, max_seq_len is 10"):
        encode(make(byte_tokenizer, "pretrain", 10), row)
    assert encode(make(byte_tokenizer, "sft", 10, "drop"), row, counts=counts) == []
    pieces = encode(make(byte_tokenizer, "pretrain", 10, "split"), row, counts=counts)
    assert [len(ids) for ids, _ in pieces] == [10, 10, 6]
    assert counts == {"dropped": 1, "split": 1}
    lone = encode(make(byte_tokenizer, "pretrain", 25, "split"), row)
    assert [len(ids) for ids, _ in lone] == [25]  # a single last token has no context


def test_a_row_without_anything_to_learn_is_an_error(byte_tokenizer: Path) -> None:
    made = make(byte_tokenizer, "sft")
    encoder = Encoder(made[1], None, "sft", 100, "error")
    with pytest.raises(DataError, match="f:3: a chat, but the tokenizer has no chat template"):
        encode((encoder, made[1]), Row("f:3", messages=CHAT))
    silent = [*CHAT[:1], {"role": "assistant", "content": ""}]
    (kept,) = encode(made, Row("f:3", messages=silent))
    assert learnt(made, kept) == "<|im_end|>"


def test_budgets() -> None:
    parse = Source.parse
    sources = [parse("a.txt tokens=100"), parse("b.txt weight=1"), parse("c.txt weight=3")]
    assert budgets(sources, 500) == [100, 100, 300]
    assert budgets([parse("a.txt")], None) == [None]
    assert budgets([parse("synth:identity rows=5")], None) == [None]
    with pytest.raises(OptionError, match="endless"):
        budgets([parse("synth:identity")], None)
    with pytest.raises(OptionError, match="data_tokens leaves"):
        budgets(sources, 50)


def test_tokenise_takes_a_budget_and_counts(byte_tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "same"}\n{"text": "same"}\n{bad\n{"text": "other"}\n')
    encoder = make(byte_tokenizer, "pretrain")[0]

    def run(text: str, budget: int | None = None, skip: bool = True) -> TokenStore:
        return tokenise.tokenise(Source.parse(text), budget, encoder, skip_bad_rows=skip, seed=0)

    store = run(str(file))
    assert store.counts == {"rows": 3, "duplicates": 1, "skipped": 1}
    assert store.lengths.tolist() == [5, 5, 6] and len(store) == 3
    assert len(run(str(file), budget=6)) == 2
    assert len(run(f"{file} rows=1")) == 1
    with pytest.raises(DataError, match=r"rows.jsonl:3: not valid JSON"):
        run(str(file), skip=False)


@pytest.mark.parametrize("content", ["", "\n\n \n", "{bad\n", "[]\n"])
def test_nothing_usable_is_an_error(byte_tokenizer: Path, tmp_path: Path, content: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    encoder = make(byte_tokenizer, "pretrain")[0]
    with pytest.raises(DataError, match="no usable rows"):
        tokenise.tokenise(Source.parse(str(file)), None, encoder, skip_bad_rows=True, seed=0)


def test_store_digest_select_and_concatenate() -> None:
    offsets = np.array([0, 2, 5], np.int64)
    store = TokenStore(np.arange(5, dtype=np.int32), np.ones(5, np.uint8), offsets, {"rows": 2})
    twice = TokenStore.concatenate([store, store])
    assert twice.lengths.tolist() == [2, 3, 2, 3] and twice.counts == {"rows": 4}
    picked = twice.select(np.array([3, 0]))
    assert picked.ids.tolist() == [2, 3, 4, 0, 1] and picked.offsets.tolist() == [0, 3, 5]
    assert store.digest() != twice.digest()
    other = TokenStore(store.ids, np.array([1, 1, 0, 1, 1], np.uint8), offsets)
    assert store.digest() != other.digest()
