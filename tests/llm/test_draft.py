"""`speculate` and `draft_model` of an LLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwenkit.errors import ConfigError, OptionError
from qwenkit.llm import LLM

PROMPT = "one two three, one two three, one two"


def test_answers_are_the_same_with_guesses(llm: LLM, checkpoint: Path) -> None:
    asked = {"max_tokens": 40, "ignore_eos": True, "stop": "\0\0\0"}
    plain = llm.generate(PROMPT, **asked)
    warm = llm.generate(PROMPT, temperature=0.5, seed=3, **asked)
    for options in (
        {"speculate": "lookup"},
        {"draft_model": checkpoint},
        {"draft_model": llm.model},
    ):
        with LLM(checkpoint, **options) as guessing:  # type: ignore[arg-type]
            speculation = guessing.driver.engine.speculation
            assert speculation is not None
            speculation.fixed_rows, speculation.proposer.price = 1000.0, 1.0
            assert guessing.generate(PROMPT, **asked).choices == plain.choices
            again = guessing.generate(PROMPT, temperature=0.5, seed=3, **asked)
            assert again.choices == warm.choices
            stats = guessing.driver.engine.stats()
            assert stats.draft_tokens > 0 and again.usage.draft_tokens > 0
            if "draft_model" in options:
                assert stats.accepted_tokens == stats.draft_tokens


def test_a_draft_model_with_other_tokens_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    vocab = json.loads((other / "vocab.json").read_text())
    first, second = list(vocab)[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(ConfigError, match=r"other has other tokens: \d+ is"):
        LLM(checkpoint, draft_model=other)


def test_a_later_version_may_have_more_tokens(checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["265"] = {"content": "<|new|>", "special": True}
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    LLM(checkpoint, draft_model=other).close()


def test_draft_without_a_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="no draft_model"):
        LLM(checkpoint, speculate="draft")
