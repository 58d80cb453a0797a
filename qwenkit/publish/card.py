"""Model cards: README.md (English) and README.zh.md (Chinese) of a model folder, from its files.

Every number comes from a file: sizes from the tensors and config.json, skills from the report of
`qwenkit eval`, training from the trainer's log. Nothing is typed by hand, and a report that was
measured on other weights is refused. The front matter follows the Hugging Face model card
specification (`model-index` holds the results).

    write_card(Path("out/model"), name="tiny-instruct", report=Path("eval/report.json"),
               train_logs={"sft": Path("out/log.jsonl")})

Not covered: cards of models that others trained, pictures, pushing to a hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qwenkit.errors import FormatError
from qwenkit.io.safetensors import Checkpoint
from qwenkit.publish.card_text import SKILLS, TEXT
from qwenkit.utils import human_bytes, human_count, read_json, sha256_file, write_text

LANGUAGES = ("en", "zh")
FILES = {"en": "README.md", "zh": "README.zh.md"}
_ROW_KEYS = ("skill", "lang", "n", "exact", "share", "low", "high")


@dataclass(frozen=True)
class TrainRun:
    """One training run, as its log tells it. `seconds` is None where the log holds no speeds."""

    stage: str
    steps: int
    tokens: int
    seconds: float | None
    loss: float | None


@dataclass(frozen=True)
class _Facts:
    """What a card says about one model."""

    name: str
    base: str | None
    licence: str
    model_dir: Path
    config: dict[str, Any]
    parameters: int
    weight_bytes: int
    report: dict[str, Any] | None
    runs: tuple[TrainRun, ...]
    recipe: str | None


def write_card(
    model_dir: Path,
    *,
    name: str,
    report: Path | dict[str, Any] | None = None,
    train_logs: Mapping[str, Path] | None = None,
    base_model: str | None = None,
    licence: str = "apache-2.0",
    recipe: str | None = "recipes/tiny.yaml",
) -> list[Path]:
    """Write both cards into `model_dir` and return their paths.

    Args:
        name: how the model is called. base_model: what it was fine-tuned from; None for a base.
        report: the report of `qwenkit eval` (a file or its JSON); None says "not measured".
        train_logs: stage ("pretrain", "sft") → the trainer's log.jsonl, in the order of training.
        recipe: the file that makes the model again, named in the card; None leaves the line out.
    Errors: FormatError for a broken report, log or folder, and for a report on other weights.
    """
    with Checkpoint.open(model_dir) as checkpoint:
        shapes = [checkpoint.info(tensor)[1] for tensor in checkpoint]
        weight_bytes = checkpoint.nbytes
    facts = _Facts(
        name=name,
        base=base_model,
        licence=licence,
        model_dir=model_dir,
        config=read_json(model_dir / "config.json"),
        parameters=sum(_product(shape) for shape in shapes),
        weight_bytes=weight_bytes,
        report=_read_report(report, model_dir),
        runs=tuple(read_log(stage, path) for stage, path in (train_logs or {}).items()),
        recipe=recipe,
    )
    paths = []
    for lang in LANGUAGES:
        paths.append(model_dir / FILES[lang])
        write_text(paths[-1], render(facts, lang))
    return paths


def render(facts: _Facts, lang: str) -> str:
    """One card as Markdown with YAML front matter."""
    text = TEXT[lang]
    kind = "base" if facts.base is None else "instruct"
    sections = [
        f"# {facts.name}",
        text["switch"],
        text[f"about_{kind}"].format(name=facts.name, parameters=human_count(facts.parameters)),
        text["limits_title"],
        text["limits"],
        text["measured_title"],
        _measured(facts, lang),
        text["use_title"],
        text[f"use_{kind}"].format(name=facts.name),
        text["made_title"],
        _made(facts, lang),
        text["licence_title"],
        text["licence"].format(licence=facts.licence),
    ]
    return f"---\n{_front_matter(facts)}---\n\n" + "\n\n".join(sections) + "\n"


def read_log(stage: str, path: Path) -> TrainRun:
    """A run out of its log.jsonl: the last line's steps and tokens, and the time spent training.

    Time is the tokens between two lines over the speed that the later one gives, so that a pause
    before a resume does not count. Errors: FormatError naming the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    steps, tokens, counted, seconds, loss = 0, 0, 0, 0.0, None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            steps, tokens, loss = int(row["step"]), int(row["tokens"]), row.get("loss", loss)
            if row.get("tokens_per_second"):
                seconds += max(tokens - counted, 0) / float(row["tokens_per_second"])
                counted = tokens
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{path}:{number}: this is no line of a training log ({error!r}).",
                "Name the log.jsonl that `qwenkit train` wrote.",
            ) from error
    if not lines:
        raise FormatError(f"{path} is empty.", "Name the log.jsonl that `qwenkit train` wrote.")
    return TrainRun(stage, steps, tokens, seconds or None, loss)


def _read_report(report: Path | dict[str, Any] | None, model_dir: Path) -> dict[str, Any] | None:
    """The report, checked: it has rows, and was measured on the very weights in `model_dir`."""
    if report is None:
        return None
    value = report if isinstance(report, dict) else read_json(report)
    rows = value.get("results") if isinstance(value, dict) else None
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) and all(key in row for key in _ROW_KEYS) for row in rows)
    ):
        raise FormatError(
            "The report of the evaluation has no results.", "Write it with `qwenkit eval MODEL`."
        )
    assert isinstance(value, dict)
    here = {path.name: sha256_file(path) for path in sorted(model_dir.glob("*.safetensors"))}
    if value.get("weights") != here:
        raise FormatError(
            f"The report was not measured on the weights in {model_dir}: their SHA-256 differ.",
            f"Run `qwenkit eval {model_dir}` again and use its report.",
        )
    return value


def _front_matter(facts: _Facts) -> str:
    head: dict[str, Any] = {
        "license": facts.licence,
        "language": list(LANGUAGES),
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "tags": ["qwen2", "qwenkit", "tiny", "demonstration", "synthetic"],
    }
    if facts.base is not None:
        head["base_model"] = facts.base
    if facts.report is not None:
        results = [_index_entry(row) for row in facts.report["results"]]
        head["model-index"] = [{"name": facts.name, "results": results}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _index_entry(row: dict[str, Any]) -> dict[str, Any]:
    """One result in the form that the hub reads."""
    title = f"{SKILLS.get(row['skill'], {}).get('en', row['skill'])} ({row['lang']})"
    return {
        "task": {"type": "text-generation", "name": title},
        "dataset": {
            "type": "qwenkit-synth",
            "name": f"qwenkit {row['skill']}, held-out",
            "config": row["lang"],
            "split": "held-out",
        },
        "metrics": [
            {"type": "exact_match", "name": "exact (%)", "value": round(100 * row["share"], 2)}
        ],
    }


def _measured(facts: _Facts, lang: str) -> str:
    """The table of results, and how they were measured; or that they were not."""
    text, report = TEXT[lang], facts.report
    if report is None:
        return text["not_measured"]
    cells = {(row["skill"], row["lang"]): row for row in report["results"]}
    langs = [each for each in LANGUAGES if any(key[1] == each for key in cells)]
    heads = [text["skill"], *(text[f"column_{each}"] for each in langs)]
    lines = [f"| {' | '.join(heads)} |", f"|---{'|---:' * len(langs)}|"]
    for skill in dict.fromkeys(row["skill"] for row in report["results"]):
        title = SKILLS.get(skill, {}).get(lang, skill)
        found = [cells.get((skill, each)) for each in langs]
        lines.append(f"| {title} | {' | '.join(_cell(row) for row in found)} |")
    versions = report.get("versions", {})
    how = text["measured"].format(
        date=str(report.get("created", ""))[:10],
        seed=report.get("seed", "?"),
        qwenkit=versions.get("qwenkit", "?"),
        torch=versions.get("torch", "?"),
        device=report.get("device", "?"),
        dtype=report.get("dtype", "?"),
    )
    return "\n".join(lines) + "\n\n" + how


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    interval = f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"
    return f"{100 * row['share']:.1f} % ({row['exact']}/{row['n']}; {interval})"


def _made(facts: _Facts, lang: str) -> str:
    """Shape, files, and the training runs of the logs."""
    text, config = TEXT[lang], facts.config
    parts = [
        text["shape"].format(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            vocab=config["vocab_size"],
            context=config["max_position_embeddings"],
            parameters=f"{facts.parameters:,}",
            size=human_bytes(facts.weight_bytes),
        )
    ]
    if facts.base is not None:
        parts.append(text["from_base"].format(base=facts.base))
    parts.append(text["data"])
    for run in facts.runs:
        line = text["run"].format(
            stage=text.get(f"stage_{run.stage}", run.stage),
            steps=f"{run.steps:,}",
            tokens=human_count(run.tokens),
        )
        if run.seconds is not None:
            line += text["run_time"].format(minutes=f"{run.seconds / 60:.0f}")
        parts.append(line + text["stop"])
    if facts.recipe is not None:
        parts.append(text["again"].format(recipe=facts.recipe))
    return "\n\n".join(parts)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
