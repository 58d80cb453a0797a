from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.errors import OutOfMemoryError, TrainError, TrainInterrupted
from qwenkit.io.safetensors import SafetensorsFile
from qwenkit.model.qwen import Qwen
from qwenkit.options import PretrainOptions
from qwenkit.train import prepare, pretrain
from qwenkit.train.checkpoint import list_checkpoints, load_tensors
from qwenkit.train.data import MicroBatch
from qwenkit.train.losses import next_token_loss

Make = Callable[..., PretrainOptions]


def weights(path: Path) -> dict[str, Tensor]:
    with SafetensorsFile(path / "model.safetensors") as file:
        return {name: file.tensor(name).clone() for name in file.keys()}


def last_state(output: str | Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint."""
    path = list_checkpoints(Path(output) / "checkpoints")[0]
    groups = ("model", "optimizer", "rng")
    return {f"{g}/{n}": t for g in groups for n, t in load_tensors(path, g).items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def stop_at(step: int, act: Callable[[], None]) -> Callable[[Qwen, MicroBatch], Tensor]:
    """The ordinary loss, which acts once when it is called for the given step (from 1)."""
    calls = [-1]  # the first call is the probe of the hardest batch

    def loss(model: Qwen, micro: MicroBatch) -> Tensor:
        calls[0] += 1
        if calls[0] == step:
            act()
        return next_token_loss(model, micro)

    return loss


def log_of(options: PretrainOptions) -> list[dict[str, Any]]:
    text = (Path(options.output_dir) / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_loss_falls_and_the_log_tells(pretrain_options: Make) -> None:
    options = pretrain_options(max_steps=25, logging_steps=5)
    pretrain.run(options)
    log = log_of(options)
    assert [entry["step"] for entry in log] == [1, 5, 10, 15, 20, 25]
    assert log[-1]["loss"] < 0.75 * log[0]["loss"] and log[-1]["tokens"] > 25 * 400
    keys = {"step", "tokens", "skipped", "time", "loss", "learning_rate", "grad_norm"}
    assert set(log[0]) == keys | {"tokens_per_second"}
    assert (Path(options.output_dir) / "options.yaml").is_file()
    assert len(list((Path(options.output_dir) / "tensorboard").iterdir())) == 1
    assert len(list_checkpoints(Path(options.output_dir) / "checkpoints")) == 2


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "dtype": "bf16"}])
def test_interrupted_anywhere_it_ends_with_the_same_bits(
    pretrain_options: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    changes = {"gradient_accumulation_steps": 2, "save_steps": 0, **changes}
    alone = pretrain_options(output_dir=str(tmp_path / "alone"), **changes)
    pretrain.run(alone)
    for signum, micro in ((signal.SIGTERM, 1), (signal.SIGINT, 7), (signal.SIGTERM, 16)):
        options = pretrain_options(output_dir=str(tmp_path / f"cut-{micro}"), **changes)
        with monkeypatch.context() as patch:
            patch.setattr(
                pretrain, "loss", stop_at(micro, lambda s=signum: os.kill(os.getpid(), s))
            )
            with pytest.raises(TrainInterrupted) as caught:
                pretrain.run(options)
        assert caught.value.exit_code == 128 + signum
        assert caught.value.message.startswith(f"Stopped by signal {int(signum)} after step ")
        path = pretrain.run(options)
        assert_equal(last_state(options.output_dir), last_state(alone.output_dir))
        assert_equal(weights(path), weights(Path(alone.output_dir) / "model"))
        assert [entry["step"] for entry in log_of(options)] == list(range(1, 9))


def test_resuming_a_finished_run_changes_nothing(pretrain_options: Make) -> None:
    options = pretrain_options(max_steps=3)
    before = weights(pretrain.run(options))
    assert_equal(weights(pretrain.run(options)), before)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    pretrain_options: Make, caplog: pytest.LogCaptureFixture
) -> None:
    options = pretrain_options()
    before = weights(pretrain.run(options))
    newest = list_checkpoints(Path(options.output_dir) / "checkpoints")[0]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    assert_equal(weights(pretrain.run(options)), before)
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "seed was 0, is 5"),
        ({"learning_rate": 1e-4}, "learning_rate was 0.003, is 0.0001"),
        ({"max_seq_len": 64}, "max_seq_len was 128, is 64"),
    ],
)
def test_resuming_another_run_is_refused(
    pretrain_options: Make, change: dict[str, Any], named: str
) -> None:
    pretrain.run(pretrain_options(max_steps=2))
    with pytest.raises(TrainError, match=re.escape(named)):
        pretrain.run(pretrain_options(max_steps=2, **change))
    assert pretrain.run(pretrain_options(max_steps=2, allow_changes=True, **change)).is_dir()


def test_changed_data_is_noticed(pretrain_options: Make, chats: Path) -> None:
    pretrain.run(pretrain_options(max_steps=2))
    chats.write_text(chats.read_text().replace("What", "Whit", 1))
    with pytest.raises(TrainError, match="data digest was"):
        pretrain.run(pretrain_options(max_steps=2))


def test_resume_must_and_never(pretrain_options: Make) -> None:
    with pytest.raises(TrainError, match="resume is must"):
        pretrain.run(pretrain_options(resume="must"))
    pretrain.run(pretrain_options(max_steps=2))
    with pytest.raises(TrainError, match="resume is never"):
        pretrain.run(pretrain_options(max_steps=2, resume="never"))


def test_bad_steps_are_skipped_and_counted(
    pretrain_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def loss(model: Qwen, micro: MicroBatch) -> Tensor:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        factor = float("nan") if len(seen) == 4 else 1.0
        return next_token_loss(model, micro) * factor

    monkeypatch.setattr(pretrain, "loss", loss)
    options = pretrain_options(max_steps=6)
    pretrain.run(options)
    log = log_of(options)
    assert [entry["skipped"] for entry in log] == [0, 0, 1, 1, 1, 1]
    assert log[2]["loss"] is None  # JSON has no nan
    assert_equal(seen[3], seen[4])  # the bad third step changed nothing
    assert not torch.equal(seen[4]["model.norm.weight"], seen[5]["model.norm.weight"])


def test_too_many_bad_steps_end_the_run_with_the_good_checkpoint_kept(
    pretrain_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]

    def loss(model: Qwen, micro: MicroBatch) -> Tensor:
        calls[0] += 1
        factor = float("inf") if calls[0] > 4 else 1.0
        return next_token_loss(model, micro) * factor

    monkeypatch.setattr(pretrain, "loss", loss)
    options = pretrain_options(save_steps=3, max_steps=50, max_bad_steps=4)
    with pytest.raises(TrainError, match="4 steps in a row, up to 7"):
        pretrain.run(options)
    names = [path.name for path in list_checkpoints(Path(options.output_dir) / "checkpoints")]
    assert "step-00000003" in names
    assert not (Path(options.output_dir) / "model").exists()


def test_accumulation_equals_one_large_batch(pretrain_options: Make, tmp_path: Path) -> None:
    steps: dict[str, float] = {}
    for name, tokens, accumulate in (("large", 100_000, 1), ("small", 600, 50)):
        options = pretrain_options(
            output_dir=str(tmp_path / name),
            tokens_per_batch=tokens,
            gradient_accumulation_steps=accumulate,
            max_steps=None,
            num_train_epochs=1,
        )
        pretrain.run(options)
        (entry,) = log_of(options)
        steps[name] = entry["grad_norm"]
    assert steps["large"] == pytest.approx(steps["small"], rel=1e-5)


def test_epochs_cover_all_data(pretrain_options: Make, byte_tokenizer: Path) -> None:
    options = pretrain_options(max_steps=None, num_train_epochs=2, gradient_accumulation_steps=3)
    pretrain.run(options)
    store = prepare.prepare_data(options, byte_tokenizer, "pretrain")
    assert log_of(options)[-1]["tokens"] == 2 * len(store.ids)


def test_validation_is_logged_and_held_back(
    pretrain_options: Make, caplog: pytest.LogCaptureFixture
) -> None:
    options = pretrain_options(eval_fraction=0.2, eval_steps=4, max_steps=8)
    pretrain.run(options)
    found = [e for e in log_of(options) if "validation_loss" in e]
    assert [entry["step"] for entry in found] == [4, 8]
    assert found[1]["validation_loss"] < found[0]["validation_loss"]


def test_out_of_memory_names_the_remedy(
    pretrain_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(model: Qwen, micro: MicroBatch) -> Tensor:
        return torch.empty(1 << 50)

    monkeypatch.setattr(pretrain, "loss", loss)
    with pytest.raises(OutOfMemoryError, match="512 tokens does not fit.*tokens_per_batch"):
        pretrain.run(pretrain_options())


def test_a_second_trainer_is_refused(
    pretrain_options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = pretrain_options()
    problems: list[str] = []

    def second() -> None:
        try:
            pretrain.run(options)
        except TrainError as error:
            problems.append(error.message)

    monkeypatch.setattr(pretrain, "loss", stop_at(1, second))
    pretrain.run(options)
    assert len(problems) == 1 and "in use by another training run" in problems[0]
