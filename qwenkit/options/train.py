"""The options of the verbs that train and measure: train tokenizer|pretrain|sft, eval.

The names are those of the Hugging Face trainers where they have one. Batches are packed, so a batch
is counted in tokens (`tokens_per_batch`) and not in examples.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from qwenkit.options.base import Options, opt
from qwenkit.options.verbs import ModelOptions

_DATA_HELP = (
    "source of text, may be repeated: a .jsonl, .json, .txt or .py file, a folder, `stdlib`, or "
    "`synth:SKILL[/LANG]`, each with optional key=value "
    "(tokens=2M, rows=5000, weight=1.5, fim=0.5, seed=1)"
)


class TrainOptions(Options):
    """What pretrain and sft share."""

    group: ClassVar[str] = "train"
    output_dir: str = opt(..., "folder for checkpoints, logs and the finished model", metavar="DIR")
    data: list[str] = opt(..., _DATA_HELP, min_length=1, metavar="SOURCE", group="data")
    data_tokens: int | None = opt(
        None, "tokens shared out over the sources that have a weight", ge=1, group="data"
    )
    data_cache: str | None = opt(
        None, "folder for tokenised data, reused while nothing changes", group="data", metavar="DIR"
    )
    max_seq_len: int = opt(
        1024,
        "longest sequence in tokens",
        ge=2,
        aliases=("max_length", "max_seq_length"),
        group="data",
    )
    on_bad_row: Literal["error", "skip"] = opt(
        "error", "what to do with an unusable row", group="data"
    )
    eval_fraction: float = opt(
        0.0, "share of rows held back for a validation loss", ge=0, lt=1, group="data"
    )
    tokens_per_batch: int = opt(8192, "tokens in one packed micro batch", ge=2)
    gradient_accumulation_steps: int = opt(1, "micro batches per optimiser step", ge=1)
    max_steps: int | None = opt(None, "optimiser steps; comes before num_train_epochs", ge=1)
    num_train_epochs: int = opt(1, "passes over the data", ge=1, aliases=("epochs",))
    optimizer: Literal["adamw", "muon"] = opt(
        "adamw", "muon takes the matrices, AdamW the rest", aliases=("optim",), group="optimiser"
    )
    learning_rate: float = opt(1e-3, "at the end of the warm-up", gt=0, group="optimiser")
    min_learning_rate: float = opt(0.0, "at the end of the schedule", ge=0, group="optimiser")
    lr_schedule: Literal["cosine", "linear", "constant"] = opt(
        "cosine", "after the warm-up", aliases=("lr_scheduler_type",), group="optimiser"
    )
    warmup_steps: int = opt(100, "steps of linear warm-up", ge=0, group="optimiser")
    weight_decay: float = opt(0.1, "of matrices; vectors have none", ge=0, group="optimiser")
    adam_beta1: float = opt(0.9, "decay of the first moment", ge=0, lt=1, group="optimiser")
    adam_beta2: float = opt(0.95, "decay of the second moment", ge=0, lt=1, group="optimiser")
    adam_epsilon: float = opt(
        1e-8, "added to the root of the second moment", gt=0, group="optimiser"
    )
    muon_learning_rate: float = opt(
        0.02, "of the matrices that muon takes", gt=0, group="optimiser"
    )
    max_grad_norm: float = opt(1.0, "clip the gradient's norm; 0 is off", ge=0, group="optimiser")
    max_bad_steps: int = opt(
        10, "steps with NaN or infinity in a row that end the run", ge=1, group="optimiser"
    )
    dtype: Literal["auto", "bf16", "fp32"] = opt(
        "auto",
        "of forward and backward (auto: bf16 where the machine has it); master weights are fp32",
        group="machine",
    )
    device: str = opt("auto", "auto, cpu, cuda or cuda:N", metavar="NAME", group="machine")
    threads: int | None = opt(
        None, "CPU threads; all cores if not given", ge=1, le=1024, group="machine"
    )
    seed: int = opt(0, "of weights and data order", ge=0, lt=2**63)
    logging_steps: int = opt(10, "steps between two log lines", ge=1, group="files")
    save_steps: int = opt(
        500, "steps between two checkpoints; 0 saves only at the end", ge=0, group="files"
    )
    keep_checkpoints: int = opt(
        2, "older ones are deleted", ge=1, aliases=("save_total_limit",), group="files"
    )
    resume: Literal["auto", "never", "must"] = opt(
        "auto",
        "go on from the newest checkpoint in output_dir",
        aliases=("resume_from_checkpoint",),
        group="files",
    )
    allow_changes: bool = opt(
        False, "resume although data, model or options have changed", group="files"
    )
    tensorboard: bool = opt(True, "write TensorBoard events beside the JSONL log", group="files")
    eval_steps: int = opt(
        0, "steps between two validations; 0 is once, at the end", ge=0, group="files"
    )

    @field_validator("resume", mode="before")
    @classmethod
    def _resume_switch(cls, value: Any) -> Any:
        switch = {"true": "must", "false": "never"}
        return switch.get(str(value).lower(), value)

    @field_validator("dtype", mode="before")
    @classmethod
    def _spell_dtype(cls, value: Any) -> Any:
        spelt = {"bfloat16": "bf16", "float32": "fp32"}
        return spelt.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rates(self) -> TrainOptions:
        if self.min_learning_rate > self.learning_rate:
            low, high = self.min_learning_rate, self.learning_rate
            raise ValueError(f"min_learning_rate {low:g} is above learning_rate {high:g}.")
        return self


class PretrainOptions(TrainOptions):
    """Train a model on plain text, a fresh one or a checkpoint."""

    verb: ClassVar[str] = "pretrain"
    model: str | None = opt(None, "start from this checkpoint", metavar="MODEL")
    config: dict[str, Any] | None = opt(
        None,
        "config.json fields of a fresh model; vocab_size comes from the tokenizer",
        metavar="JSON",
    )
    tokenizer: str | None = opt(
        None, "folder with tokenizer.json; the model's own if not given", metavar="DIR"
    )
    overlong: Literal["error", "drop", "split"] = opt(
        "split", "what to do with rows over max_seq_len", group="data"
    )

    @model_validator(mode="after")
    def _start(self) -> PretrainOptions:
        if (self.model is None) == (self.config is None):
            raise ValueError("Pretraining starts from a model or from a config: give one of them.")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("A fresh model (config) needs a tokenizer: give its folder.")
        return self


class SftOptions(TrainOptions):
    """Fine-tune a model on conversations."""

    verb: ClassVar[str] = "sft"
    model: str = opt(
        ..., "start from this checkpoint", aliases=("model_name_or_path",), metavar="MODEL"
    )
    overlong: Literal["error", "drop"] = opt(
        "error", "what to do with rows over max_seq_len", group="data"
    )
    learning_rate: float = opt(2e-5, "at the end of the warm-up", gt=0, group="optimiser")


class TokenizerOptions(Options):
    """Train a tokenizer of the family's kind (byte-level BPE)."""

    verb: ClassVar[str] = "tokenizer"
    group: ClassVar[str] = "train"
    output_dir: str = opt(..., "folder for the tokenizer's files", metavar="DIR")
    data: list[str] = opt(..., _DATA_HELP, min_length=1, metavar="SOURCE")
    vocab_size: int = opt(
        8192, "tokens of the base vocabulary; the 22 special ones come on top", ge=256, le=1 << 20
    )
    model_max_length: int = opt(2048, "context written into tokenizer_config.json", ge=1)
    seed: int = opt(0, "of the order and the choice of data", ge=0, lt=2**63)
    threads: int | None = opt(None, "CPU threads; all cores if not given", ge=1, le=1024)


class EvalOptions(ModelOptions):
    """Measure a model on held-out questions, write the report."""

    verb: ClassVar[str] = "eval"
    tasks: list[str] = opt(
        [], "skills, repeated or with commas; all if not given", aliases=("task",), metavar="SKILL"
    )
    langs: list[str] = opt(
        ["en", "zh"],
        "languages, repeated or with commas",
        aliases=("lang", "languages"),
        metavar="LANG",
    )
    count: int = opt(
        100, "questions per skill and language", ge=1, le=100_000, aliases=("limit", "num_examples")
    )
    seed: int = opt(0, "of the questions", ge=0, lt=2**63)
    batch: int = opt(32, "questions that run at once", ge=1, le=4096, aliases=("batch_size",))
    max_tokens: int = opt(
        384, "longest answer; one that is cut counts as wrong", ge=1, aliases=("max_new_tokens",)
    )
    output: str | None = opt(
        None, "folder for the report and every answer; eval-MODEL if not given", short="o",
        aliases=("output_dir",), metavar="DIR",
    )  # fmt: skip
    as_json: bool = opt(False, "print the report as JSON", alias="json")

    @field_validator("tasks", "langs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return value
        return [word.strip() for item in value for word in item.split(",") if word.strip()]
