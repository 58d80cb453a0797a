"""Kills a training run at random moments and sweeps a kill over every disk operation of one save.

    python bench/kill_resume.py --kills 20 --sweep

Each trial starts a small pretraining run, kills it with SIGKILL at a random moment, starts it
again until it ends, and compares the final checkpoint (weights, optimiser, random state) and the
finished model with those of a run that was left alone, byte by byte. The sweep ends the process at
the first, second, … write, fsync, rename and directory operation of one checkpoint save, and
checks that a complete checkpoint is found afterwards. Everything happens in a temporary directory.
The exit code is 0 when all is equal.

Children are forked from this process once everything is imported, so a trial costs little more
than its training steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qwenkit.options import PretrainOptions
from qwenkit.train import checkpoint, pretrain, tokenizer
from qwenkit.train.tokenise import file_digest

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
KILLED = 9


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child process; returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        print(f"child: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def options(folder: Path, output: Path, args: argparse.Namespace) -> PretrainOptions:
    """A run of `args.steps` steps that saves often, so that kills hit saves too."""
    return PretrainOptions(
        config=CONFIG,
        tokenizer=str(folder / "tokenizer"),
        data=[str(folder / "data.jsonl")],
        output_dir=str(output),
        max_seq_len=96,
        tokens_per_batch=512,
        gradient_accumulation_steps=2,
        max_steps=args.steps,
        save_steps=3,
        warmup_steps=4,
        learning_rate=3e-3,
        optimizer=args.optimizer,
        dtype=args.dtype,
        threads=args.threads,
        device="cpu",
    )


def prepare(folder: Path) -> None:
    """A byte tokenizer and a hundred rows of text."""
    tokenizer.train_tokenizer(["abc"], 256, folder / "tokenizer", chat_template="{{ messages }}")
    rows = [{"text": f"row {n}: " + "abcdefgh"[n % 8] * (n % 60 + 5)} for n in range(100)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def result(output: Path) -> dict[str, str]:
    """Digests of the last checkpoint's tensors and of the finished model."""
    newest = checkpoint.newest_checkpoint(output / "checkpoints")
    assert newest is not None
    files = [*sorted(newest.glob("*.safetensors")), output / "model" / "model.safetensors"]
    return {f"{newest.name}/{path.name}": file_digest(path) for path in files}


def differences(left: dict[str, str], right: dict[str, str]) -> list[str]:
    """Names of the files that are not the same in both."""
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def trial(settings: PretrainOptions, delay: float) -> str:
    """Kill a run after `delay` seconds and let it finish; returns what the kill met."""
    child = forked(lambda: pretrain.run(settings))
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    code = ended(child)
    root = Path(settings.output_dir) / "checkpoints"
    saved = checkpoint.list_checkpoints(root)
    torn = list(root.glob(".tmp-*")) if root.is_dir() else []
    if ended(forked(lambda: pretrain.run(settings))) != 0:
        raise SystemExit("the resumed run failed")
    met = "after the end" if code == 0 else f"newest {saved[0].name if saved else 'none'}"
    return met + (", in a save" if torn else "")


def sweep(folder: Path) -> int:
    """Die at the Nth disk operation of a save, for every N; returns how many there are."""
    tensors = {"model": {"w": torch.arange(6.0)}, "rng": {"r": torch.zeros(3, dtype=torch.uint8)}}
    for count in range(1, 1000):
        root = folder / f"sweep-{count}"
        for step in (1, 2):
            checkpoint.save_checkpoint(root, step, tensors, {}, keep=2)

        def die_at(count: int = count, root: Path = root) -> None:
            arm(count)
            checkpoint.save_checkpoint(root, 3, tensors, {}, keep=2)

        code = ended(forked(die_at))
        checkpoint.clean(root)
        newest = checkpoint.newest_checkpoint(root)
        assert newest is not None and checkpoint.verify(newest) is None
        whole = [path for path in checkpoint.list_checkpoints(root) if not checkpoint.verify(path)]
        assert len(whole) >= 2, f"operation {count}: only {whole}"
        if code == 0:
            assert newest.name == "step-00000003"
            return count - 1
        assert code == KILLED, code
        shutil.rmtree(root)
    raise AssertionError("the save has no end")


def arm(count: int) -> None:
    """From now on, this process ends at its `count`-th disk operation, just before it happens."""
    left = [count]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(KILLED)
            return real(*args, **kwargs)

        return call

    real_fdopen = os.fdopen

    def fdopen(*args: Any, **kwargs: Any) -> Any:
        # Unbuffered and written through one descriptor, so that every write counts on its own.
        file = real_fdopen(args[0], args[1], 0, **kwargs)
        return _Writes(file, dying(file.write))

    os.fdopen = fdopen
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))


class _Writes:
    """A file whose `write` is another function."""

    def __init__(self, file: Any, write: Callable[..., Any]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writes:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._file.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        if args.sweep:
            print(f"sweep: killed before each of the {sweep(folder)} operations of a save")
        begun = time.monotonic()
        if ended(forked(lambda: pretrain.run(options(folder, folder / "alone", args)))) != 0:
            return 1
        length, wanted = time.monotonic() - begun, result(folder / "alone")
        moments = random.Random(args.seed)
        for number in range(args.kills):
            output = folder / f"trial-{number}"
            delay = moments.uniform(0.0, length)
            met = trial(options(folder, output, args), delay)
            found = result(output)
            same = found == wanted
            bad += not same
            told = "equal" if same else f"DIFFERENT in {differences(wanted, found)}"
            print(f"kill {number + 1} at {delay:.2f} s ({met}): {told}", flush=True)
            shutil.rmtree(output)
    print(f"{args.kills - bad} of {args.kills} killed runs ended bit-identical")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
