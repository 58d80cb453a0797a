"""The training loop: schedule, accumulation, clipping, logging, checkpoints.

A method (pretrain, sft, …) gives a `Loader` and a loss `(model, micro) -> summed loss`; everything
else is here. The step is written out in `train`. Layout of the output directory:

    options.json   the resolved options
    log.jsonl      one line for each logged step, validation and save
    tensorboard/   the same numbers as event files
    checkpoints/   step-…/: model, optimizer, rng, state, manifest
    model/         the finished model, laid out as a published checkpoint (written by the method)

Resuming is bit-identical on the same machine: weights, optimiser, random states and the loader's
place are saved, and whatever else decides the result (options, data, versions, threads) is
compared. SIGTERM and SIGINT save and end the run with `TrainInterrupted` (exit codes 143 and 130).
Not covered: more than one process.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from qwenkit import ops
from qwenkit.errors import OutOfMemoryError, TrainError, TrainInterrupted
from qwenkit.model.qwen import Qwen
from qwenkit.options.train import TrainOptions
from qwenkit.train import checkpoint
from qwenkit.train.data import Loader, MicroBatch
from qwenkit.train.events import EventWriter, JsonLog, Progress
from qwenkit.train.optim import (
    load_state_tensors,
    make_optimizers,
    schedule,
    set_learning_rate,
    state_tensors,
)

Loss = Callable[[Qwen, MicroBatch], Tensor]
_log = logging.getLogger("qwenkit.train")


@dataclass
class Run:
    """What changes besides weights and optimiser state; saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    supervised: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    last_saved: int = -1


@dataclass
class Trainer:
    """All that one run holds. `fingerprint` must be equal for a resume to be exact."""

    model: Qwen
    loader: Loader
    loss: Loss
    options: TrainOptions
    fingerprint: dict[str, Any]
    held_back: Loader | None = None
    run: Run = field(default_factory=Run)
    optimizers: list[Optimizer] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return Path(self.options.output_dir) / "checkpoints"


def train(trainer: Trainer) -> None:
    """Train to the end, resuming first when there is a checkpoint. The caller holds the
    `OutputLock`.

    Errors: TrainError, TrainInterrupted, OutOfMemoryError; the newest checkpoint is always left
    complete.
    """
    options, model = trainer.options, trainer.model
    trainer.optimizers = make_optimizers(model, options)
    resume(trainer)
    run = trainer.run
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = total_steps(trainer.loader, options)
    model.train()
    with _Signals() as signals, _Report(trainer, total) as report, _memory_guard(options):
        if run.step < total:
            with autocast(options, model.device):  # out of memory shows now, not in an hour
                trainer.loss(model, trainer.loader.hardest()).backward()  # type: ignore[no-untyped-call]
        while run.step < total:
            micros = next_micros(trainer.loader, options)
            supervised = sum(micro.supervised for micro in micros)
            set_learning_rate(trainer.optimizers, schedule(run.step, total, options))
            for parameter in parameters:
                parameter.grad = None

            loss = torch.zeros((), device=model.device)
            for micro in micros:
                with autocast(options, model.device):
                    part = trainer.loss(model, micro) / supervised
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm or math.inf)
            if math.isfinite(float(loss)) and math.isfinite(float(norm)):
                for optimizer in trainer.optimizers:
                    optimizer.step()
                run.skipped_in_a_row = 0
            else:
                count_bad_step(trainer)

            run.step += 1
            run.tokens += sum(micro.tokens for micro in micros)
            run.supervised += supervised
            report.step(float(loss), float(norm))
            if options.eval_steps and run.step % options.eval_steps == 0:
                report.validation(validate(trainer))
            if options.save_steps and run.step % options.save_steps == 0:
                save(trainer)
            if signals.received:
                save(trainer)
                raise TrainInterrupted(signals.received, run.step, str(trainer.root))
        save(trainer)
        if trainer.held_back is not None and (not options.eval_steps or total % options.eval_steps):
            report.validation(validate(trainer))


def autocast(options: TrainOptions, device: torch.device) -> torch.autocast:
    """Forward arithmetic in bfloat16 if asked for, or ("auto") if the device has it; weights,
    gradients and optimiser stay float32.
    """
    native = options.dtype == "auto" and ops.native_bfloat16(device)
    wanted = native or options.dtype == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def next_micros(loader: Loader, options: TrainOptions) -> list[MicroBatch]:
    """The micro batches of one step; the last step of the last epoch may have fewer."""
    micros = [loader.next()]
    while len(micros) < options.gradient_accumulation_steps:
        if options.max_steps is None and loader.epoch >= options.num_train_epochs:
            break
        micros.append(loader.next())
    return micros


def total_steps(loader: Loader, options: TrainOptions) -> int:
    """Optimiser steps of the whole run: max_steps, or what the epochs give."""
    if options.max_steps is not None:
        return options.max_steps
    micros = sum(len(loader.bins(epoch)) for epoch in range(options.num_train_epochs))
    return math.ceil(micros / options.gradient_accumulation_steps)


def count_bad_step(trainer: Trainer) -> None:
    """Note a step whose loss or gradient was not finite; it changed nothing. Errors: TrainError
    after too many.
    """
    run, limit = trainer.run, trainer.options.max_bad_steps
    run.skipped += 1
    run.skipped_in_a_row += 1
    _log.warning("step %d skipped: loss or gradient is not finite", run.step + 1)
    if run.skipped_in_a_row >= limit:
        raise TrainError(
            f"{limit} steps in a row, up to {run.step + 1}, had no finite loss or gradient.",
            f"Lower learning_rate; the newest good checkpoint is in {trainer.root}.",
        )


@torch.no_grad()
def validate(trainer: Trainer) -> float:
    """Mean loss of the held-back sequences, nan when there are none."""
    if trainer.held_back is None:
        return math.nan
    loader, model = trainer.held_back, trainer.model
    loader.load_state({"epoch": 0, "index": 0})
    total, count = 0.0, 0
    while loader.epoch == 0:
        micro = loader.next()
        with autocast(trainer.options, model.device):
            total += float(trainer.loss(model, micro))
        count += micro.supervised
    return total / count


def save(trainer: Trainer) -> None:
    """Write a checkpoint of this step, once."""
    run = trainer.run
    if run.last_saved == run.step:
        return
    run.last_saved = run.step
    groups = {
        "model": dict(trainer.model.state_dict()),
        "optimizer": state_tensors(trainer.model, trainer.optimizers),
        "rng": checkpoint.rng_tensors(),
    }
    state = {
        "run": dataclasses.asdict(run),
        "loader": trainer.loader.state(),
        "fingerprint": trainer.fingerprint,
    }
    checkpoint.save_checkpoint(
        trainer.root, run.step, groups, state, trainer.options.keep_checkpoints
    )


def resume(trainer: Trainer) -> None:
    """Go on from the newest complete checkpoint, as `options.resume` says. Errors: TrainError."""
    options = trainer.options
    checkpoint.clean(trainer.root)
    if options.resume == "never" and checkpoint.list_checkpoints(trainer.root):
        raise TrainError(
            f"{trainer.root} holds checkpoints and resume is never.",
            "Delete them or choose another output_dir.",
        )
    path = checkpoint.newest_checkpoint(trainer.root)
    if path is None:
        if options.resume == "must":
            raise TrainError(
                f"No checkpoint in {trainer.root}, but resume is must.", "Check output_dir."
            )
        return
    state = checkpoint.load_state(path)
    checkpoint.check_fingerprint(
        state["fingerprint"], trainer.fingerprint, allow_changes=options.allow_changes
    )
    trainer.model.load_state_dict(checkpoint.load_tensors(path, "model"))
    load_state_tensors(
        trainer.model, trainer.optimizers, checkpoint.load_tensors(path, "optimizer")
    )
    checkpoint.load_rng_tensors(checkpoint.load_tensors(path, "rng"))
    trainer.loader.load_state(state["loader"])
    trainer.run = Run(**state["run"])
    _log.info("resumed from %s", path)


class _Signals:
    """While active, SIGTERM and SIGINT only set `received`; a second one acts as usual."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()


class _memory_guard:
    """Turns torch's out-of-memory errors into one line with a remedy."""

    def __init__(self, options: TrainOptions) -> None:
        self._options = options

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        if on_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            size = self._options.tokens_per_batch
            raise OutOfMemoryError(
                f"A batch of {size} tokens does not fit into memory.",
                "Lower tokens_per_batch and raise gradient_accumulation_steps instead.",
            ) from error


class _Report:
    """Log lines, curves and the progress line of a run."""

    def __init__(self, trainer: Trainer, total: int) -> None:
        self._trainer, self._total = trainer, total

    def __enter__(self) -> _Report:
        options, step = self._trainer.options, self._trainer.run.step
        output = Path(options.output_dir)
        self._log = JsonLog(output / "log.jsonl", step)
        self._events = EventWriter(output / "tensorboard", step) if options.tensorboard else None
        self._progress = Progress(self._total)
        self._since, self._tokens, self._first = time.monotonic(), self._trainer.run.tokens, step
        self._start = self._since
        return self

    def step(self, loss: float, norm: float) -> None:
        """Every logging_steps, and for the first and last step."""
        run, options = self._trainer.run, self._trainer.options
        if run.step % options.logging_steps and run.step not in (1, self._total):
            return
        now = time.monotonic()
        speed = (run.tokens - self._tokens) / max(now - self._since, 1e-9)
        left = (now - self._start) / (run.step - self._first) * (self._total - run.step)
        self._since, self._tokens = now, run.tokens
        rate = self._trainer.optimizers[0].param_groups[0]["lr"]
        self._write(
            loss=loss, learning_rate=rate, grad_norm=norm, tokens_per_second=round(speed, 1)
        )
        self._progress.show(run.step, loss, speed, left)

    def validation(self, loss: float) -> None:
        self._write(validation_loss=loss)

    def _write(self, **values: float) -> None:
        run = self._trainer.run
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._log.write(
            step=run.step,
            tokens=run.tokens,
            skipped=run.skipped,
            time=round(time.time(), 3),
            **finite,
        )
        if self._events is not None:
            self._events.scalars(run.step, values)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()
        self._progress.close()
        if self._events is not None:
            self._events.close()
