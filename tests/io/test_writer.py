"""Writing: readable by the reference implementation, deterministic, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from qwenkit.errors import CheckpointError
from qwenkit.io import writer
from qwenkit.io.safetensors import Checkpoint, read_header, save_file, save_sharded

TENSORS = {
    "z.weight": torch.randn(5, 3),
    "a.weight": torch.randn(4, 4).to(torch.bfloat16),
    "数": torch.arange(7),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0, 3, dtype=torch.float16),
    "transposed": torch.randn(3, 6).T,
    "expanded": torch.ones(1, 4).expand(3, 4),
    "parameter": torch.nn.Parameter(torch.randn(2)),
}


def test_the_reference_implementation_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    theirs = safetensors.torch.load_file(path)
    assert theirs.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name], tensor)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_same_tensors_same_bytes_aligned(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save_file(TENSORS, one, {"b": "1", "a": "2"})
    save_file(dict(reversed(TENSORS.items())), two, {"a": "2", "b": "1"})
    assert one.read_bytes() == two.read_bytes()
    header = read_header(one)
    assert header.data_start % 64 == 0
    sizes = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2, "F16": 2, "BOOL": 1}
    assert all(info.begin % sizes[info.dtype] == 0 for info in header.tensors.values())


def test_a_copy_written_over_its_own_source(tmp_path: Path) -> None:
    """Saving views of the file that is being replaced must not destroy them."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        save_file(dict(checkpoint), tmp_path / "model.safetensors")
    assert torch.equal(Checkpoint.open(tmp_path)["z.weight"], TENSORS["z.weight"])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("__metadata__", torch.ones(1)),
        ("lone\ud800", torch.ones(1)),
        ("meta", torch.empty(3, device="meta")),
        ("sparse", torch.eye(3).to_sparse()),
        ("complex", torch.ones(2, dtype=torch.complex128)),
    ],
)
def test_what_cannot_be_stored(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    with pytest.raises(CheckpointError):
        save_file({name: tensor}, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_K173_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"old": torch.ones(2)}, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"File too large. It needs 390.6 KiB"):
            save_file({"new": torch.ones(100_000)}, path)
        with pytest.raises(CheckpointError):
            save_sharded({"a": torch.ones(1000), "b": torch.ones(100_000)}, tmp_path, 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_K173_no_space_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free that much"):
        save_file({"a": torch.ones(5)}, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_sharded(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((100,), float(i)) for i in range(10)}
    written = save_sharded(tensors, tmp_path, 1000)
    names = [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert [p.name for p in written] == [*names, "model.safetensors.index.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    index = json.loads(written[-1].read_text())
    assert index["metadata"] == {"total_size": 4000}
    assert index["weight_map"]["layer.0"] == names[0] and index["weight_map"]["layer.9"] == names[4]
    assert len(safetensors.torch.load_file(written[0])) == 2
    checkpoint = Checkpoint.open(tmp_path)
    assert list(checkpoint) == list(tensors) and checkpoint.nbytes == 4000
    assert all(torch.equal(checkpoint[name], tensors[name]) for name in tensors)


def test_a_tensor_above_the_bound_has_its_own_shard(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(1), "big": torch.ones(1000), "c": torch.ones(1)}
    assert len(save_sharded(tensors, tmp_path, 100)) == 4
    assert Checkpoint.open(tmp_path).keys() == tensors.keys()
    with pytest.raises(CheckpointError, match="max_shard_bytes"):
        save_sharded(tensors, tmp_path, 0)


def test_a_new_checkpoint_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    small, large = {"a": torch.ones(10)}, {"a": torch.zeros(10), "b": torch.zeros(10)}
    for tensors, limit, count in [(large, 40, 3), (small, 999, 1), (large, 40, 3), (large, 999, 1)]:
        assert len(save_sharded(tensors, tmp_path, limit)) == count
        checkpoint = Checkpoint.open(tmp_path)
        assert checkpoint.keys() == tensors.keys()
        assert all(torch.equal(checkpoint[name], tensors[name]) for name in tensors)
        assert len(list(tmp_path.iterdir())) == count + 1


@pytest.mark.parametrize("stop", range(14))
def test_a_crash_at_any_step_of_sharding_never_mixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    old = {"a": torch.ones(10), "b": torch.ones(10)}
    new = {"a": torch.zeros(10), "b": torch.zeros(10)}
    save_sharded(old, tmp_path, 40)
    steps = 0
    real_replace, real_unlink = os.replace, Path.unlink

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps > stop:
            raise SystemExit

    def replace(source: Any, target: Any) -> None:
        step()
        real_replace(source, target)

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.name == writer.INDEX_NAME:
            step()
        real_unlink(self, missing_ok)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    finished = False
    try:
        save_sharded(new, tmp_path, 40)
        finished = True
    except SystemExit:
        pass
    monkeypatch.undo()
    assert finished == (stop >= 6)
    if (tmp_path / writer.INDEX_NAME).exists():
        values = {float(tensor[0]) for tensor in Checkpoint.open(tmp_path).values()}
        assert values == ({0.0} if finished else {1.0})
