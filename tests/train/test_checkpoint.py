from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.errors import TrainError
from qwenkit.train import checkpoint
from qwenkit.train.checkpoint import (
    OutputLock,
    check_fingerprint,
    list_checkpoints,
    load_rng_tensors,
    load_state,
    load_tensors,
    newest_checkpoint,
    rng_tensors,
    save_checkpoint,
    verify,
)


def save(root: Path, step: int, keep: int = 9) -> Path:
    groups = {"model": {"w": torch.full((4,), float(step))}, "optimizer": {}}
    return save_checkpoint(root, step, groups, {"note": f"step {step}"}, keep)


def test_round_trip_and_rotation(tmp_path: Path) -> None:
    for step in (5, 10, 100_000_000):
        path = save(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-100000000", "step-00000010"]
    assert newest_checkpoint(tmp_path) == path and verify(path) is None
    assert load_state(path)["note"] == "step 100000000"
    assert load_tensors(path, "model")["w"].tolist() == [1e8] * 4
    assert load_tensors(path, "optimizer") == {}
    assert not any(re.search(r"\.(pt|bin|pkl|pickle)$", file.name) for file in path.iterdir())
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_any_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    content = (new / name).read_bytes()
    for at in random.Random(0).sample(range(len(content)), 12):
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        (new / name).write_bytes(flipped)
        assert newest_checkpoint(tmp_path) == old, f"byte {at} of {name}"
    (new / name).write_bytes(content)
    assert newest_checkpoint(tmp_path) == new


def test_damage_is_said_aloud_and_all_damaged_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    (new / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path) == old
    assert "step-00000002 is damaged" in caplog.text
    (old / "manifest.json").unlink()
    with pytest.raises(TrainError, match="Every checkpoint"):
        newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path / "none") is None


def test_saving_over_a_damaged_step_replaces_it(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").write_text("{}")
    save(tmp_path, 1)
    assert verify(path) is None


def test_leftovers_of_a_killed_save_are_cleaned(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-step-00000002").mkdir()
    (tmp_path / ".tmp-step-00000002" / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    checkpoint.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def failing(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    return call


def test_a_disk_full_at_any_operation_keeps_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0
    for count in range(1, 200):
        root = tmp_path / str(count)
        save(root, 1)
        with monkeypatch.context() as patch:
            left = [count]
            for name in ("fsync", "replace", "rename", "mkdir", "fdopen"):
                patch.setattr(os, name, failing(getattr(os, name), left))
            try:
                save(root, 2)
                if left[0] > 0:
                    break
            except TrainError as error:
                failed += 1
                assert "No space left" in str(error) and "Free space" in str(error)
        names = {path.name for path in root.iterdir()}
        assert names <= {"step-00000001", "step-00000002"} and "step-00000001" in names
        assert all(verify(path) is None for path in list_checkpoints(root))
    assert failed > 10


def test_lock_keeps_a_second_trainer_out(tmp_path: Path) -> None:
    with OutputLock(tmp_path):
        with pytest.raises(TrainError, match="in use by another"), OutputLock(tmp_path):
            pass
    with OutputLock(tmp_path):
        pass


def test_fingerprint(caplog: pytest.LogCaptureFixture) -> None:
    check_fingerprint({"a": [1, 2], "b": 1}, {"a": (1, 2), "b": 1}, allow_changes=False)
    with pytest.raises(TrainError, match=r"seed was 1, is 2; torch was None, is '3'"):
        check_fingerprint({"seed": 1}, {"seed": 2, "torch": "3"}, allow_changes=False)
    check_fingerprint({"seed": 1}, {"seed": 2}, allow_changes=True)
    assert "seed was 1, is 2" in caplog.text


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "state.json").write_text('{"format": 99}')
    with pytest.raises(TrainError, match="another checkpoint format"):
        load_state(path)


def test_random_states_round_trip() -> None:
    state = rng_tensors()
    wanted = torch.rand(3).tolist(), random.random()
    load_rng_tensors(state)
    assert (torch.rand(3).tolist(), random.random()) == wanted
