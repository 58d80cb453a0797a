from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qwenkit.errors import FormatError, QwenkitError
from qwenkit.io.safetensors import save_file
from qwenkit.publish.card import read_log, write_card
from qwenkit.publish.card_text import SKILLS, TEXT
from qwenkit.tasks.synth import TASKS

CONFIG = {
    "num_hidden_layers": 6,
    "hidden_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {"a": torch.zeros(1000, 1234, dtype=torch.bfloat16), "b": torch.zeros(7)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def row(skill: str, lang: str, exact: int) -> dict[str, Any]:
    share = {"share": exact / 200, "low": exact / 200 - 0.02, "high": exact / 200 + 0.01}
    return {"skill": skill, "lang": lang, "n": 200, "exact": exact, "seconds": 3.5, **share}


def report(model: Path, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    value = {
        "model": "tiny-instruct",
        "seed": 7,
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"qwenkit": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        "dtype": "bfloat16",
        "weights": {"model.safetensors": digest},
        "results": [
            row("arithmetic", "en", 197),
            row("arithmetic", "zh", 193),
            row("new", "en", 5),
        ],
    }
    return value | changes


def front(card: Path) -> dict[str, Any]:
    text = card.read_text(encoding="utf-8")
    assert text.startswith("---\n")
    value: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return value


def test_both_cards_hold_the_measured_numbers_and_no_others(model: Path) -> None:
    paths = write_card(model, name="tiny-instruct", report=report(model), base_model="tiny")
    assert paths == [model / "README.md", model / "README.zh.md"]
    for path, title in zip(paths, ("Arithmetic with steps", "分步计算"), strict=True):
        text = path.read_text(encoding="utf-8")
        line = next(line for line in text.splitlines() if title in line and line.startswith("|"))
        assert "98.5 % (197/200; 96.5–99.5)" in line and "96.5 % (193/200; 94.5–97.5)" in line
        assert "| new | 2.5 % (5/200; 0.5–3.5) | – |" in text
        assert "2026-01-02" in text and "0.1.0" in text and "2.13.0" in text and "7" in text
        assert "1,234,007" in text and "1.2M" in text and "2.4 MiB" in text
        assert "{" not in text.replace('{"role"', "").replace('"}]', "")
    assert "small demonstration model" in paths[0].read_text(encoding="utf-8")
    assert "小型演示模型" in paths[1].read_text(encoding="utf-8")


def test_the_front_matter_is_what_the_hub_reads(model: Path) -> None:
    paths = write_card(model, name="tiny-instruct", report=report(model), base_model="tiny")
    for path in paths:
        head = front(path)
        assert head["license"] == "apache-2.0" and head["language"] == ["en", "zh"]
        assert head["pipeline_tag"] == "text-generation" and head["library_name"] == "transformers"
        assert head["base_model"] == "tiny" and "qwen2" in head["tags"]
        (index,) = head["model-index"]
        assert index["name"] == "tiny-instruct" and len(index["results"]) == 3
        first = index["results"][0]
        assert first["task"]["type"] == "text-generation"
        assert first["dataset"]["config"] == "en" and first["dataset"]["split"] == "held-out"
        assert first["metrics"] == [{"type": "exact_match", "name": "exact (%)", "value": 98.5}]


def test_huggingface_hub_accepts_the_card(model: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    write_card(model, name="tiny-instruct", report=report(model), base_model="tiny")
    card = hub.ModelCard.load(model / "README.md")
    assert card.data.model_name == "tiny-instruct"
    assert [each.metric_value for each in card.data.eval_results] == [98.5, 96.5, 2.5]


def test_a_base_model_without_a_report(model: Path) -> None:
    en, zh = write_card(model, name="tiny")
    assert "was not measured" in en.read_text() and "没有测量过" in zh.read_text()
    assert "model-index" not in front(en) and "base_model" not in front(en)
    assert "llm.generate" in en.read_text() and "qwenkit chat" not in en.read_text()


@pytest.mark.parametrize("kind", ["base", "instruct"])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_python_in_the_cards_compiles(kind: str, lang: str) -> None:
    text = TEXT[lang][f"use_{kind}"].format(name="tiny")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert blocks
    for block in blocks:
        compile(block, "card", "exec")


def test_the_training_log_gives_tokens_and_time(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows: list[dict[str, Any]] = [
        {"step": 1, "tokens": 1000, "tokens_per_second": 100.0, "loss": 9.0, "time": 0},
        {"step": 50, "tokens": 61_000, "tokens_per_second": 1000.0, "loss": 3.0, "time": 70},
        {"step": 50, "tokens": 61_000, "validation_loss": 3.1, "time": 71},
        {"step": 90, "tokens": 121_000, "tokens_per_second": 1000.0, "loss": 2.0, "time": 99_999},
    ]
    log.write_text("".join(json.dumps(each) + "\n" for each in rows))
    run = read_log("sft", log)
    assert (run.steps, run.tokens, run.loss) == (90, 121_000, 2.0)
    assert run.seconds == pytest.approx(10 + 60 + 60)
    en, zh = write_card(model, name="m", train_logs={"sft": log, "other": log})
    assert "Fine-tuning: 90 steps, 121.0K tokens, 2 minutes of training." in en.read_text()
    assert "other: 90 steps" in en.read_text()
    assert "微调：90 步，121.0K 个 token，训练 2 分钟。" in zh.read_text()


def test_a_log_without_speeds_gives_no_time(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 3, "tokens": 30}\n')
    assert read_log("sft", log).seconds is None


@pytest.mark.parametrize(
    "text", ["", "x\n", "[]\n", '{"step": 1}\n', '{"step": 1, "tokens": null}\n']
)
def test_a_broken_log_is_refused(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(text)
    with pytest.raises(FormatError, match=r"log\.jsonl"):
        read_log("sft", log)
    with pytest.raises(FormatError, match="cannot be read"):
        read_log("sft", tmp_path / "absent")


def test_a_report_on_other_weights_is_refused(model: Path) -> None:
    stale = report(model, weights={"model.safetensors": "0" * 64})
    with pytest.raises(FormatError, match="not measured on the weights"):
        write_card(model, name="m", report=stale)
    assert not (model / "README.md").exists()


@pytest.mark.parametrize("results", [None, [], {}, [1], [{"skill": "a"}]])
def test_a_report_without_results_is_refused(model: Path, tmp_path: Path, results: Any) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report(model, results=results)))
    with pytest.raises(FormatError, match="no results"):
        write_card(model, name="m", report=path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QwenkitError):
        write_card(tmp_path, name="m")


def test_every_skill_has_a_title_and_both_languages_the_same_texts() -> None:
    assert set(SKILLS) == set(TASKS)
    assert all(set(titles) == {"en", "zh"} for titles in SKILLS.values())
    assert set(TEXT["en"]) == set(TEXT["zh"])
