"""Checkpoint: single and sharded, held against its index, and the reference implementation as
oracle (K149, K154).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qwenkit.errors import FormatError
from qwenkit.io.safetensors import Checkpoint, save_file, save_sharded

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards written by the reference implementation, with an index."""
    safetensors.torch.save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / ONE)
    safetensors.torch.save_file({"c": torch.full((2, 2), 7).to(torch.bfloat16)}, tmp_path / TWO)
    write_index(tmp_path, {"a": ONE, "b": ONE, "c": TWO})
    return tmp_path


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    value = {"metadata": {"total_size": 1.5e3}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(value))


def test_sharded(sharded: Path) -> None:
    with Checkpoint.open(sharded) as checkpoint:
        assert sorted(checkpoint) == ["a", "b", "c"] and len(checkpoint) == 3
        assert checkpoint.nbytes == 8 + 12 + 8 and "c" in checkpoint and "d" not in checkpoint
        assert checkpoint.info("c") == (torch.bfloat16, (2, 2))
        assert torch.equal(checkpoint.tensor("c"), torch.full((2, 2), 7.0).to(torch.bfloat16))
        assert torch.equal(checkpoint.read("b"), torch.zeros(3))
        assert dict(checkpoint).keys() == {"a", "b", "c"}
        kept = checkpoint["a"]
        with pytest.raises(FormatError, match="no tensor 'd'"):
            checkpoint.tensor("d")
        with pytest.raises(KeyError):
            checkpoint["d"]
        assert checkpoint.get("d") is None
    assert kept.tolist() == [1, 1]


def test_a_single_file_goes_before_an_index(sharded: Path) -> None:
    save_file({"only": torch.ones(1)}, sharded / "model.safetensors")
    assert Checkpoint.open(sharded).keys() == {"only"}


def test_K154_a_shard_lacks_a_tensor(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "b": ONE, "c": TWO, "d": TWO})
    with pytest.raises(FormatError, match=f"puts 'd' where they are not .*{TWO}"):
        Checkpoint.open(sharded)


def test_K154_a_tensor_stands_in_another_shard(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "b": TWO, "c": TWO})
    with pytest.raises(FormatError, match="puts 'b' where"):
        Checkpoint.open(sharded)


def test_K154_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"a": torch.ones(2), "c": torch.ones(2)}, sharded / TWO)
    with pytest.raises(FormatError, match=f"'a' stand in both {ONE} and {TWO}"):
        Checkpoint.open(sharded)


def test_K154_a_tensor_that_the_index_does_not_mention(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "c": TWO})
    with pytest.raises(FormatError, match="does not mention 'b'"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("name", [ONE, TWO])
def test_K148_a_truncated_shard_spoils_the_whole(sharded: Path, name: str) -> None:
    content = (sharded / name).read_bytes()
    for length in range(0, len(content), 7):
        (sharded / name).write_bytes(content[:length])
        with pytest.raises(FormatError, match=name):
            Checkpoint.open(sharded)


def test_K171_a_shard_replaced_while_open(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    safetensors.torch.save_file({"c": torch.zeros(2, 2)}, sharded / "new")
    (sharded / "new").replace(sharded / TWO)
    assert checkpoint.tensor("a").tolist() == [1, 1]
    with pytest.raises(FormatError, match="replaced or changed"):
        checkpoint.tensor("c")
    with pytest.raises(FormatError, match="Load the model again"):
        checkpoint.verify()


def test_many_names_are_summed_up(tmp_path: Path) -> None:
    save_sharded({f"t{i}": torch.ones(1) for i in range(20)}, tmp_path, 40)
    write_index(tmp_path, {"t0": ONE, **{f"x{i}": ONE for i in range(20)}})
    with pytest.raises(FormatError, match="'x4' and 15 more"):
        Checkpoint.open(tmp_path)


def test_the_package_never_imports_the_reference_implementation() -> None:
    code = "import sys, qwenkit.io.safetensors; print('safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
