"""Fill-in-the-middle prompts and their stop ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from qwenkit.errors import RequestError
from qwenkit.prompt.fim import fim_ids, fim_stop_ids
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.prompt.tokenizer_files import read_spec


def test_stop_ids_of_the_coder_examples(qwen: Tokenizer) -> None:
    assert fim_stop_ids(qwen) == (151659, 151661, 151662, 151663, 151664, 151643, 151645)


def test_file_prompt(toy: Tokenizer) -> None:
    ids = fim_ids(toy, "def f(", "):\n    pass <|fim_middle|>")
    text = "<|fim_prefix|>def f(<|fim_suffix|>):\n    pass <|fim_middle|><|fim_middle|>"
    assert toy.decode(ids) == text
    assert ids.count(toy.special_ids["<|fim_middle|>"]) == 1
    assert (
        ids[0] == toy.special_ids["<|fim_prefix|>"] and ids[-1] == toy.special_ids["<|fim_middle|>"]
    )


def test_repository_prompt(toy: Tokenizer) -> None:
    ids = fim_ids(toy, "x = ", "\n", path="b.py", repo="demo", files=[("a.py", "y = 1")])
    assert ids == toy.encode(
        "<|repo_name|>demo\n<|file_sep|>a.py\ny = 1\n<|file_sep|>b.py\n"
        "<|fim_prefix|>x = <|fim_suffix|>\n<|fim_middle|>",
        allow_special=True,
    )


@pytest.mark.parametrize("given", [{"repo": "demo"}, {"path": "a.py"}, {"files": [("a", "b")]}])
def test_repo_and_path_belong_together(toy: Tokenizer, given: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="both repo and path"):
        fim_ids(toy, "a", "b", **given)  # type: ignore[arg-type]


def test_a_tokenizer_without_the_tokens(toy_dir: Path) -> None:
    spec = read_spec(toy_dir)
    kept = {text: i for text, i in spec.added.items() if i < spec.added["<|fim_prefix|>"]}
    bare = Tokenizer(dataclasses.replace(spec, added=kept))
    with pytest.raises(RequestError, match="fim_prefix"):
        fim_ids(bare, "a", "b")
    assert fim_stop_ids(bare) == (kept["<|endoftext|>"], kept["<|im_end|>"])
