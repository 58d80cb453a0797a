"""Mapped files: views, dtypes, and files that change under one's feet (K171)."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qwenkit.errors import FormatError
from qwenkit.io.header import ITEM_BYTES
from qwenkit.io.mapped import TORCH_DTYPES, SafetensorsFile
from qwenkit.io.writer import save_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4096.0), "b": torch.arange(6).reshape(2, 3)}, file)
    return file


def some(dtype: torch.dtype) -> torch.Tensor:
    raw = torch.arange(48, dtype=torch.uint8) % (2 if dtype is torch.bool else 120)
    return raw.view(dtype).reshape(2, -1)


def test_the_tables_agree() -> None:
    assert {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()} == ITEM_BYTES


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_dtype_there_and_back(tmp_path: Path, name: str) -> None:
    file = tmp_path / "model.safetensors"
    tensor = some(TORCH_DTYPES[name])
    save_file({"x": tensor, "empty": tensor[:0], "scalar": tensor.reshape(-1)[0]}, file)
    opened = SafetensorsFile(file)
    assert opened.header.tensors["x"].dtype == name
    for key, expected in (("x", tensor), ("empty", tensor[:0]), ("scalar", tensor.reshape(-1)[0])):
        for found in (opened.tensor(key), opened.read(key)):
            assert found.dtype == expected.dtype and found.shape == expected.shape
            assert opened.info(key) == (expected.dtype, tuple(expected.shape))
            assert bytes(found.reshape(-1).view(torch.uint8)) == bytes(
                expected.reshape(-1).view(torch.uint8)
            )


def test_views_share_the_map_and_never_write_to_the_file(path: Path) -> None:
    before = path.read_bytes()
    with SafetensorsFile(path) as file:
        first, second, copy = file.tensor("a"), file.tensor("a"), file.read("a")
        assert first.data_ptr() == second.data_ptr() != copy.data_ptr()
        first += 1
        assert torch.equal(second, torch.arange(4096.0) + 1) and torch.equal(
            copy, torch.arange(4096.0)
        )
    assert path.read_bytes() == before
    assert torch.equal(SafetensorsFile(path).tensor("a"), torch.arange(4096.0))


def test_tensors_outlive_the_file(path: Path) -> None:
    with SafetensorsFile(path) as file:
        tensor = file.tensor("b")
    del file
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_closed_and_unknown(path: Path) -> None:
    file = SafetensorsFile(path)
    with pytest.raises(FormatError, match="no tensor 'c'"):
        file.tensor("c")
    file.close()
    with pytest.raises(FormatError, match="is closed"):
        file.tensor("a")


def test_an_unaligned_tensor_is_copied(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    header += b" " * ((1 - 8 - len(header)) % 4)
    data = torch.tensor([1.0, 2.0, 3.0])
    file.write_bytes(struct.pack("<Q", len(header)) + header + data.numpy().tobytes())
    opened = SafetensorsFile(file)
    assert opened.header.data_start % 4 == 1
    assert torch.equal(opened.tensor("x"), data) and torch.equal(opened.read("x"), data)


def test_bool_bytes_other_than_0_and_1_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.tensor([True, False])}, file)
    file.write_bytes(file.read_bytes()[:-1] + b"\2")
    opened = SafetensorsFile(file)
    for access in (opened.tensor, opened.read):
        with pytest.raises(FormatError, match="BOOL"):
            access("x")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


def rewritten(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


CHANGES: dict[str, Callable[[Path], None]] = {
    "replaced": replaced,
    "rewritten": rewritten,
    "truncated": lambda path: os.truncate(path, 500),
    "grown": lambda path: path.open("ab").close() or os.truncate(path, 100_000),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
def test_K171_a_file_that_changes_while_mapped_is_detected(path: Path, change: str) -> None:
    file = SafetensorsFile(path)
    assert file.tensor("a")[5] == 5
    CHANGES[change](path)
    for access in (file.tensor, file.read):
        with pytest.raises(FormatError, match=r"removed|replaced or changed|is missing"):
            access("a")
    with pytest.raises(FormatError):
        file.verify()


def test_K171_read_survives_truncation_between_check_and_access(tmp_path: Path) -> None:
    """In a child process, since a fault would kill it: `read` must raise, whatever the timing."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1_000_000)}, file)
    code = (
        "import os, sys\n"
        "from qwenkit.errors import FormatError\n"
        "from qwenkit.io import mapped\n"
        "file = mapped.SafetensorsFile(sys.argv[1])\n"
        "real = mapped._read_into\n"
        "def late(*args):\n"
        "    os.truncate(sys.argv[1], 5000)\n"
        "    real(*args)\n"
        "mapped._read_into = late\n"
        "try:\n"
        "    file.read('a')\n"
        "except FormatError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ends" in done.stdout and "bytes early" in done.stdout


def test_a_file_of_the_reference_implementation(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {
        f"层.{i}": torch.randn(i + 1, 3).to(d)
        for i, d in enumerate([torch.float16, torch.bfloat16])
    }
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    opened = SafetensorsFile(file)
    assert opened.header.metadata == {"format": "pt"}
    assert all(torch.equal(opened.tensor(name), tensors[name]) for name in tensors)
