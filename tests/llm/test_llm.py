"""A checkpoint on disk: loading, logits, generation_config, and the loader's errors."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.config import GenerationConfig
from qwenkit.errors import ConfigError, ContextLengthError, EngineError, RequestError
from qwenkit.io.hub import ASSETS
from qwenkit.llm import LLM
from qwenkit.prompt.tokenizer import Tokenizer


def test_tokens_and_back(llm: LLM) -> None:
    ids = llm.tokenize("né<|im_end|>")
    assert len(ids) == len("né<|im_end|>".encode()) and llm.detokenize(ids) == "né<|im_end|>"
    assert llm.tokenize("<|im_end|>", allow_special=True) == [258]
    prompt = llm.render([{"role": "user", "content": "hi"}])
    assert len(prompt.ids) == len(prompt.loss_mask) and prompt.text.endswith("assistant\n")
    assert not llm.render("hi", add_generation_prompt=False).text.endswith("assistant\n")


def test_logits_are_those_of_the_model_and_of_generation(llm: LLM) -> None:
    ids = llm.tokenize("Hello world")
    logits = llm.logits(ids)
    assert logits.shape == (11, 272) and logits.dtype == torch.float32
    assert torch.allclose(llm.logits(ids[:4]), logits[:4], atol=1e-5)
    out = llm.generate(ids, max_tokens=20, ignore_eos=True).choices[0].ids
    for token in out:
        assert token == int(llm.logits(ids)[-1, :265].argmax())
        ids.append(token)


@pytest.mark.parametrize("ids", [[], [272], [-1], [1.0], [True]])
def test_logits_refuse_bad_ids(llm: LLM, ids: list[Any]) -> None:
    with pytest.raises(RequestError):
        llm.logits(ids)


def test_logits_refuse_more_than_the_context(llm: LLM) -> None:
    assert llm.logits([1] * 256).shape == (256, 272)
    with pytest.raises(ContextLengthError):
        llm.logits([1] * 257)


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def write(path: Path, **values: Any) -> None:
    (path / "generation_config.json").write_text(json.dumps(values))


def test_generation_config_is_honoured_and_overridden(copied: Path) -> None:
    write(
        copied,
        eos_token_id=[258, 256],
        do_sample=True,
        temperature=5.0,
        top_p=0.9,
        top_k=50,
        repetition_penalty=1.2,
        max_new_tokens=30,
    )
    with LLM(copied) as llm:
        assert llm.generation.eos_token_ids == (258, 256)
        same = llm.generate("abc", seed=1).choices[0].ids
        assert (
            same
            == llm.generate("abc", seed=1).choices[0].ids
            != llm.generate("abc", seed=2).choices[0].ids
        )
        spelt = llm.generate(
            "abc",
            seed=1,
            temperature=5.0,
            top_p=0.9,
            top_k=50,
            repetition_penalty=1.2,
            max_tokens=30,
        )
        assert spelt.choices[0].ids == same and len(same) <= 30
        greedy = (
            llm.generate("abc", temperature=0, repetition_penalty=1.0, ignore_eos=True)
            .choices[0]
            .ids
        )
    write(copied, eos_token_id=[258, 256])
    with LLM(copied) as llm:
        assert llm.generate("abc", max_tokens=30, ignore_eos=True).choices[0].ids == greedy


def test_every_end_id_ends(copied: Path) -> None:
    with LLM(copied) as llm:
        out = list(llm.generate("abc", max_tokens=30, ignore_eos=True).choices[0].ids)
    ends = [out[12], out[5]]
    write(copied, eos_token_id=ends)
    with LLM(copied) as llm:
        result = llm.generate("abc", max_tokens=30)
        first = min(out.index(e) for e in ends)
        assert list(result.choices[0].ids) == out[:first] and result.finish_reason == "stop"


def test_choices_with_a_seed_repeat_and_differ(llm: LLM) -> None:
    def draw(seed: int, n: int) -> list[tuple[int, ...]]:
        result = llm.generate("abc", temperature=3.0, seed=seed, n=n, max_tokens=12)
        return [choice.ids for choice in result.choices]

    assert draw(5, 3) == draw(5, 3) and len(set(draw(5, 3))) == 3
    assert draw(5, 3)[1:] == draw(6, 2), "choice i uses seed + i"
    assert len(draw(2**63 - 1, 2)) == 2


def test_cached_tokens_are_counted_and_are_a_tenants_own(llm: LLM) -> None:
    text, few = "x" * 40, {"max_tokens": 3}
    first = llm.generate(text, **few)
    again = llm.generate(text, **few)
    other = llm.generate(text, tenant="other", **few)
    three = llm.generate(text + "y", n=3, **few)
    assert [r.usage.cached_tokens for r in (first, again, other, three)] == [0, 32, 0, 32]
    assert first.text == again.text == other.text
    *_, last = llm.stream(prompt=text, **few)
    assert last.usage is not None and last.usage.cached_tokens == 32
    *_, last = llm.stream(prompt="z" * 40, n=3, **few)
    assert last.usage is not None and last.usage.cached_tokens == 0, "the first choice computed it"


def test_beginnings_are_not_shared_when_the_cache_is_off(checkpoint: Path) -> None:
    with LLM(checkpoint, prefix_cache=False) as llm:
        results = [llm.generate("x" * 40, max_tokens=3) for _ in range(2)]
        assert [r.usage.cached_tokens for r in results] == [0, 0]
        assert llm.driver.engine.stats().generation_tokens == 6


def test_parts_that_do_not_fit_together_are_refused(copied: Path) -> None:
    write(copied, eos_token_id=265)
    with pytest.raises(ConfigError, match="eos_token_id 265"):
        LLM(copied)
    with LLM(copied, generation=GenerationConfig((258,))) as llm:
        model, tokenizer = llm.model, llm.tokenizer
        config = json.loads((copied / "config.json").read_text())
    with pytest.raises(ConfigError, match="tokenizer=…"):
        LLM(model)
    with LLM(model, tokenizer=tokenizer) as llm, pytest.raises(ConfigError, match="template=…"):
        llm.chat("hi")
    wide = json.loads((copied / "tokenizer_config.json").read_text())
    for i in range(265, 280):
        wide["added_tokens_decoder"][str(i)] = {"content": f"<|{i}|>", "special": True}
    (copied / "tokenizer_config.json").write_text(json.dumps(wide))
    assert config["vocab_size"] == 272
    with pytest.raises(ConfigError, match="280 tokens, the model only 272"):
        LLM(model, tokenizer=Tokenizer.from_dir(copied))


def test_a_closed_llm_says_so_and_a_dropped_one_goes(checkpoint: Path) -> None:
    before = set(threading.enumerate())
    llm = LLM(checkpoint)
    llm.generate("a", max_tokens=2)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate("a", max_tokens=2)
    llm = LLM(checkpoint)
    llm.generate("a", max_tokens=2)
    gone = weakref.ref(llm)
    del llm
    gc.collect()
    assert gone() is None
    assert not [t for t in set(threading.enumerate()) - before if t.name == "qwenkit-engine"]


def test_a_script_that_forgets_to_close_ends_cleanly(checkpoint: Path) -> None:
    code = (
        "import sys; from qwenkit import LLM; llm = LLM(sys.argv[1]); "
        "s = llm.stream('abc', max_tokens=200, ignore_eos=True); next(s); print('bye')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "bye\n", "")


@pytest.mark.parametrize("body", ["auto", "reference"])
def test_K171_a_gguf_file_cut_after_loading_harms_nothing(
    tmp_path: Path, write_gguf: Callable[..., None], body: str
) -> None:
    """In a child process, which a page of the map that is gone would kill."""
    file = tmp_path / "tiny.gguf"
    write_gguf(ASSETS / "tiny-instruct", file, "Q8_0")
    code = (
        "import os, sys\nfrom qwenkit import LLM\nllm = LLM(sys.argv[1])\n"
        "os.truncate(sys.argv[1], 0)\n"
        "print(llm.chat('What is 123 + 456?', temperature=0).text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file],
        capture_output=True,
        text=True,
        env={**os.environ, "QWENKIT_OPS": body},
    )
    assert done.returncode == 0 and "579" in done.stdout, (done.returncode, done.stderr)


@pytest.mark.parametrize("matrices", ["F32", "Q8_0"])
def test_a_gguf_file_answers_as_the_folder(
    tmp_path: Path, write_gguf: Callable[..., None], matrices: str
) -> None:
    """The same tokens, template and end; the same logits from float32, near ones from Q8_0."""
    file = tmp_path / "tiny.gguf"
    write_gguf(ASSETS / "tiny-instruct", file, matrices)
    with LLM(file, dtype="float32") as packed, LLM("tiny-instruct", dtype="float32") as plain:
        text = "Straße 你好 <|im_end|> \U0001f600 don't 12345\n\n  x"
        for special in (False, True):
            ids = plain.tokenize(text, allow_special=special)
            assert packed.tokenize(text, allow_special=special) == ids
        assert packed.tokenizer.skipped_ids == plain.tokenizer.skipped_ids
        assert packed.tokenizer.named_tokens == plain.tokenizer.named_tokens
        messages = [{"role": "user", "content": "What is 123 + 456?"}]
        assert packed.render(messages) == plain.render(messages)
        ids = plain.render(messages).ids
        close = 1e-5 if matrices == "F32" else 1.0
        torch.testing.assert_close(packed.logits(ids), plain.logits(ids), atol=close, rtol=0)
        assert "579" in packed.chat(messages, temperature=0).text
