"""The embedded models: laid out like published checkpoints, readable by others, and as good as
their cards say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

import qwenkit.assets
from qwenkit.eval.run import evaluate
from qwenkit.io.safetensors import Checkpoint
from qwenkit.llm import LLM
from qwenkit.model.batch import Batch
from qwenkit.model.load import load_model
from qwenkit.prompt.chat import ChatTemplate
from qwenkit.prompt.tokenizer import Tokenizer
from qwenkit.tasks.synth import TASKS
from qwenkit.utils import sha256_file

ASSETS = Path(next(iter(qwenkit.assets.__path__)))
NAMES = ("tiny", "tiny-instruct")
MESSAGES = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("tiny-instruct") as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
def test_size_and_layout(name: str) -> None:
    folder = ASSETS / name
    files = {path.name for path in folder.iterdir()}
    assert files >= {
        "README.md",
        "README.zh.md",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000_000
    model = load_model(folder, check_finite=True)
    assert 3e6 <= sum(p.numel() for p in model.parameters()) <= 8e6
    with Checkpoint.open(folder) as checkpoint:
        assert {checkpoint.info(tensor)[0] for tensor in checkpoint} == {torch.bfloat16}


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_the_same_model(name: str) -> None:
    folder = ASSETS / name
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.from_dir(folder)
    for text in ("Hello, 世界! 123", "def f(x):\n    return x\n", "e\u0301 🦙"):
        assert tokenizer.encode(text) == theirs.encode(text)
    want = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    template = ChatTemplate.from_dir(folder, tokenizer)
    prompt = template.render(MESSAGES, add_generation_prompt=True)
    assert prompt.text == want
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = oracle(torch.tensor([prompt.ids])).logits[0]
        got = load_model(folder, "float32")(Batch.from_sequences([prompt.ids]))
    torch.testing.assert_close(got, logits, atol=1e-4, rtol=0)


def test_base_writes_python_in_both_directions() -> None:
    with LLM("tiny") as base:
        prompt = 'def is_even(n):\n    """Return True if n is even."""\n'
        done = base.generate(prompt, temperature=0)
        assert done.text.strip() == "return n % 2 == 0"


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_instruct_is_as_good_as_its_card_says(llm: LLM, lang: str) -> None:
    """A fresh sample of the held-out split, with another seed than the card's own evaluation."""
    report, _ = evaluate(llm, list(TASKS), [lang], count=12, seed=7, batch=108)
    exact = sum(row.exact for row in report.rows)
    total = sum(row.n for row in report.rows)
    assert total == 12 * len(TASKS)
    assert exact / total >= 0.9


def test_card_holds_the_reports_numbers() -> None:
    folder = ASSETS / "tiny-instruct"
    report = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    assert report["weights"]["model.safetensors"] == sha256_file(folder / "model.safetensors")
    for name in ("README.md", "README.zh.md"):
        card = (folder / name).read_text(encoding="utf-8")
        shares = [f"{100 * row['share']:.1f}" for row in report["results"]]
        found = re.findall(r"\d+\.\d", card)
        assert all(share in found for share in shares)


def test_says_that_it_is_small(llm: LLM) -> None:
    english = llm.chat("Who are you?", temperature=0).text
    chinese = llm.chat("你是谁?", temperature=0).text
    assert "small" in english and "demonstration" in english
    assert "小" in chinese and "演示" in chinese


def test_tool_round_trip(llm: LLM) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    function = {"name": "get_weather", "description": "Get the weather", "parameters": parameters}
    answer = llm.chat(
        "What is the weather in Paris?", tools=[{"type": "function", "function": function}],
        temperature=0,
    )  # fmt: skip
    assert answer.tool_calls is not None
    assert [call.name for call in answer.tool_calls] == ["get_weather"]
