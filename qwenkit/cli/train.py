"""`qwenkit train tokenizer|pretrain|sft` and `qwenkit eval`: options go to their application."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qwenkit.cli.output import hint
from qwenkit.options import EvalOptions, PretrainOptions, SftOptions, TokenizerOptions


def tokenizer(options: TokenizerOptions) -> int:
    """Train a tokenizer; prints its folder."""
    from qwenkit.train.tokenizer import run

    return _done(run(options), options, "qwenkit train pretrain CONFIG.yaml")


def pretrain(options: PretrainOptions) -> int:
    """Train on plain text; prints the finished model's folder."""
    from qwenkit.train.pretrain import run

    path = run(options)
    return _done(path, options, f'qwenkit run {path} --raw -p "…"')


def sft(options: SftOptions) -> int:
    """Fine-tune on conversations; prints the finished model's folder."""
    from qwenkit.train.sft import run

    path = run(options)
    return _done(path, options, f'qwenkit run {path} -p "…", qwenkit eval {path}')


def _done(path: Any, options: Any, following: str) -> int:
    print(Path(path if path is not None else options.output_dir))
    sys.stdout.flush()
    hint(following)
    return 0


def evaluate(options: EvalOptions) -> int:
    """Measure a model; the application prints the report and writes it."""
    from qwenkit.eval.run import run

    run(options)
    hint(f"qwenkit show {options.model}")
    return 0
