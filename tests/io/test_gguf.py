"""GGUF headers: what is read, what is refused by field, every truncation, and a short fuzz run."""

from __future__ import annotations

import os
import runpy
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qwenkit.config import GenerationConfig
from qwenkit.errors import ConfigError, FormatError
from qwenkit.io.gguf import Gguf, is_gguf, read_gguf
from qwenkit.io.gguf_config import generation_of
from qwenkit.io.gguf_header import BLOCKS, read_gguf_header
from qwenkit.ops.gguf_blocks import TYPES

MANY = 1 << 40
FUZZ = Path(__file__).resolve().parents[2] / "bench" / "fuzz_files.py"


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    return head + struct.pack("<IQ", kind, offset)


def blob(
    pairs: list[bytes],
    infos: list[bytes],
    data: int = 0,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    tensors, keys = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(pairs + infos)
    return head + bytes(-len(head) % alignment) + bytes(data)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


VALID = {
    "empty": blob([], []),
    "version 2": blob([], [info("a", (8,))], 32, version=2),
    "every scalar": blob(
        [pair(f"k{kind}", kind, bytes(size)) for kind, size in enumerate((1, 1, 2, 2, 4, 4, 4, 1))]
        + [pair("s", 8, text("é")), *(pair(f"k{k}", k, bytes(8)) for k in (10, 11, 12))],
        [],
    ),
    "arrays": blob(
        [pair("a", 9, array(5, 2, bytes(8))), pair("b", 9, array(8, 2, text("x") + text("")))], []
    ),
    "alignment": blob(
        [pair("general.alignment", 4, u32(64))], [info("a", (4,)), info("b", (4,), 0, 64)], 80,
        alignment=64,
    ),
    "four dimensions": blob([], [info("a", (32, 2, 3, 4), 8)], 34 * 24),
    "no padding at the end": blob([], [info("a", (3,))], 12),
}  # fmt: skip
INVALID: dict[str, tuple[bytes, str]] = {
    "magic": (b"GGML" + bytes(40), "magic"),
    "version 1": (blob([], [], version=1), "version: it is 1"),
    "big-endian": (blob([], [], version=3 << 24), "version"),
    "tensor count": (blob([], [], counts=(MANY, 0)), "tensor count"),
    "tensor count all ones": (blob([], [], counts=(2**64 - 1, 0)), "tensor count"),
    "key count": (blob([], [], counts=(0, MANY)), "key count"),
    "key length": (blob([struct.pack("<Q", 2**63) + bytes(99)], []), "key 0"),
    "empty key": (blob([pair("", 4, u32(1))], []), "key 0.*empty"),
    "key twice": (blob([pair("a", 4, u32(1))] * 2, []), "key 1.*twice"),
    "key not UTF-8": (blob([pair(b"\xff", 4, u32(1))], []), "key 0.*UTF-8"),
    "value type": (blob([pair("a", 13, bytes(16))], []), "'a'.*type 13"),
    "bool": (blob([pair("a", 7, b"\2")], [], 32), "'a'.*bool"),
    "bools": (blob([pair("a", 9, array(7, 2, b"\0\2"))], [], 32), "'a'.*bool"),
    "string length": (blob([pair("a", 8, struct.pack("<Q", 2**63))], [], 64), "'a'.*bytes"),
    "string not UTF-8": (blob([pair("a", 8, text(b"\xc3"))], []), "'a'.*UTF-8"),
    "strings not UTF-8": (blob([pair("a", 9, array(8, 1, text(b"\xc3")))], []), "'a'.*UTF-8"),
    "array count": (blob([pair("a", 9, array(4, MANY))], []), "'a'.*do not fit"),
    "array overflow": (blob([pair("a", 9, array(10, 2**61))], [], 64), "'a'.*do not fit"),
    "strings count": (blob([pair("a", 9, array(8, 2**32))], []), "'a'.*do not fit"),
    "array of arrays": (blob([pair("a", 9, array(9, 1, array(4, 0)))], []), "'a'.*arrays of"),
    "alignment 0": (blob([pair("general.alignment", 4, u32(0))], []), "general.alignment"),
    "alignment 3": (blob([pair("general.alignment", 4, u32(3))], []), "general.alignment"),
    "alignment 2^31": (blob([pair("general.alignment", 4, u32(1 << 31))], []), "general.align"),
    "alignment text": (blob([pair("general.alignment", 8, text("32"))], []), "general.align"),
    "tensor name": (blob([], [info("n" * 65, (8,))], 32), "name of tensor 0.*65 bytes"),
    "empty name": (blob([], [info("", (8,))], 32), "name of tensor 0"),
    "name twice": (blob([], [info("a", (8,)), info("a", (8,), 0, 32)], 64), "'a'.*twice"),
    "no dimensions": (blob([], [info("a", ())], 32), "'a'.*0 dimensions"),
    "five dimensions": (blob([], [info("a", (1,) * 5)], 32), "'a'.*5 dimensions"),
    "dimension 0": (blob([], [info("a", (8, 0))], 32), "'a'.*zero or overflow"),
    "product overflow": (blob([], [info("a", (2**32, 2**32))], 32), "'a'.*overflow"),
    "dimension 2^31 + 1": (blob([], [info("a", (2**31 + 1,))], 32), "'a'.*ends at byte"),
    "dimension 2^32 + 8": (blob([], [info("a", (2**32 + 8,))], 32), "'a'.*ends at byte"),
    "tensor type": (blob([], [info("a", (8,), 77)], 32), "'a'.*number 77"),
    "type by name": (blob([], [info("a", (256,), 23)], 999), "'a'.*IQ4_XS"),
    "row of no whole blocks": (blob([], [info("a", (33,), 8)], 99), "'a'.*multiple"),
    "offset beyond the file": (blob([], [info("a", (8,), 0, MANY)], 32), "'a'.*offset"),
    "overlap": (blob([], [info("a", (8,)), info("b", (8,))], 64), "'b'.*overlaps"),
    "hole": (blob([], [info("a", (8,)), info("b", (8,), 0, 64)], 96), "'b'.*hole"),
    "data cut": (blob([], [info("a", (8,))], 31), "'a'.*ends at byte"),
}


@pytest.mark.parametrize("data", VALID.values(), ids=VALID)
def test_what_is_valid_is_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    header = read_gguf_header(tmp_path / "a.gguf")
    assert header.file_size == len(data) and len(header.tensors) == data[8]


@pytest.mark.parametrize(("data", "named"), INVALID.values(), ids=INVALID)
def test_what_is_invalid_is_named(data: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(FormatError, match=named):
        read_gguf_header(tmp_path / "a.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_sizes_are_those_of_the_formats() -> None:
    assert {name: (t.block, t.block_bytes) for name, t in TYPES.items()} == BLOCKS


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small file by the `gguf` package."""
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "qwen2")
    writer.add_token_list(["a", "b"])
    writer.add_token_types([1, 1])
    writer.add_tensor("x", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("y", np.arange(64, dtype=np.float16).reshape(1, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "small.gguf"


def test_tensors_are_views_of_the_file(small: Path) -> None:
    with Gguf.open(small) as opened:
        x, y = opened.blocks("x"), opened.blocks("y")
        assert torch.equal(x.clone().view(torch.float32), torch.arange(6.0).view(2, 3))
        assert torch.equal(y.view(torch.float16), torch.arange(64.0).half().view(1, 64))
        assert opened.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
        with pytest.raises(FormatError, match="no tensor 'z'"):
            opened.blocks("z")
        small.write_bytes(small.read_bytes() + b"\0")
        with pytest.raises(FormatError, match="changed"):
            opened.blocks("x")
    assert int(x.sum()) >= 0
    with pytest.raises(ConfigError, match="lacks qwen2.embedding_length"):
        read_gguf(small).config()


def test_truncated_at_every_length(small: Path) -> None:
    data = small.read_bytes()
    end = max(t.begin + t.nbytes for t in read_gguf_header(small).tensors.values())
    for length in range(end):
        small.write_bytes(data[:length])
        with pytest.raises(FormatError):
            read_gguf_header(small)


def test_a_file_that_is_replaced_between_header_and_map(small: Path) -> None:
    model = read_gguf(small)
    small.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(FormatError, match="changed"):
        Gguf(model)


CHANGES: dict[str, Callable[[Path], None]] = {
    "replaced": lambda path: shutil.copy(path, f"{path}.new") and os.replace(f"{path}.new", path),
    "rewritten": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1") and None,
    "truncated": lambda path: os.truncate(path, 10),
    "grown": lambda path: os.truncate(path, 1 << 30),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
def test_K171_a_file_that_changes_while_mapped_is_detected(small: Path, change: str) -> None:
    with Gguf.open(small) as opened:
        assert opened.blocks("y").shape == (1, 128)
        CHANGES[change](small)
        os.utime(small, ns=(0, 0)) if small.exists() else None  # clocks may be coarse
        with pytest.raises(FormatError, match="was removed|was replaced or changed"):
            opened.blocks("y")


def test_K174_what_is_no_file_is_refused_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    for name, fault in (("pipe", "a pipe"), ("device", "a device"), ("loop", "cannot be opened")):
        with pytest.raises(FormatError, match=fault):
            read_gguf(tmp_path / f"{name}.gguf")
    for file in split(tmp_path):
        os.replace(file, tmp_path / "aside")
        os.mkfifo(file)
        with pytest.raises(FormatError, match="00..2.gguf is a pipe"):
            read_gguf(file)
        os.replace(tmp_path / "aside", file)


def test_missing_directories_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="missing"):
        read_gguf(tmp_path / "a.gguf")
    with pytest.raises(FormatError, match="missing"):
        read_gguf(tmp_path / "absent" / "a-00001-of-00002.gguf")
    (tmp_path / "b.gguf").mkdir()
    with pytest.raises(FormatError, match="directory"):
        read_gguf(tmp_path / "b.gguf")
    assert is_gguf("A.GGUF") and not is_gguf(tmp_path)


def split(folder: Path, **changes: Any) -> list[Path]:
    """Two parts, with what `changes` says in the second."""
    files = []
    for index in range(2):
        values = {"no": index, "count": 2, "tensors": 2, "name": f"t{index}"}
        values |= changes if index else {}
        file = folder / f"m-0000{index + 1}-of-00002.gguf"
        keys = [
            pair("split.no", 2, struct.pack("<H", values["no"])),
            pair("split.count", 2, struct.pack("<H", values["count"])),
            pair("split.tensors.count", 5, struct.pack("<i", values["tensors"])),
        ]
        file.write_bytes(blob(keys, [info(values["name"], (8,))], 32))
        files.append(file)
    return files


def test_split_files(tmp_path: Path) -> None:
    for file in split(tmp_path):
        with Gguf.open(file) as opened:
            assert set(opened.tensors) == {"t0", "t1"} and opened.blocks("t1").shape == (32,)
    for changes, named in (
        ({"no": 0}, "split.no is 0, expected 1"),
        ({"count": 3}, "split.count is 3"),
        ({"tensors": 5}, "split.tensors.count is 5"),
        ({"name": "t0"}, "tensor 't0' is in m-00001"),
    ):
        with pytest.raises(FormatError, match=named):
            read_gguf(split(tmp_path, **changes)[0])
    first, second = split(tmp_path)
    second.unlink()
    with pytest.raises(FormatError, match="1 of them are absent.*00002"):
        read_gguf(first)
    first.rename(tmp_path / "whole.gguf")
    with pytest.raises(FormatError, match="split.count is 2"):
        read_gguf(tmp_path / "whole.gguf")


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_mutated_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    fuzz = runpy.run_path(str(FUZZ))
    found = fuzz["sweep"](kind, fuzz["seeds_of"](kind), 2_000, seed=7, folder=tmp_path)
    assert found.read + found.refused == 2_000 and found.refused > 500 and found.read > 10


def test_configurations_that_do_not_fit_their_tensors(
    tmp_path: Path, write_gguf: Callable[..., None]
) -> None:
    tensor = info("token_embd.weight", (32, 4))
    numbers = {
        "embedding_length": 32, "feed_forward_length": 32, "block_count": 900,
        "attention.head_count": 2, "context_length": 64,
    }  # fmt: skip
    keys = [pair(f"qwen2.{key}", 4, u32(value)) for key, value in numbers.items()]
    keys.append(pair("qwen2.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-6)))
    keys.append(pair("general.architecture", 8, text("qwen2")))
    file = tmp_path / "a.gguf"
    file.write_bytes(blob(keys, [tensor], 512))
    with pytest.raises(ConfigError, match="block_count is 900, but 0 layers"):
        read_gguf(file).config()
    file.write_bytes(blob([pair("general.architecture", 8, text("llama"))], [tensor], 512))
    with pytest.raises(ConfigError, match="general.architecture is 'llama'"):
        read_gguf(file).config()
    scaled = pair("qwen2.rope.scaling.type", 8, text("longrope"))
    file.write_bytes(blob([*keys, scaled], [tensor], 512))
    with pytest.raises(ConfigError, match=r"rope\.scaling\.type is 'longrope'"):
        read_gguf(file).config()
    file.write_bytes(blob(keys, [info("other", (32, 4))], 512))
    with pytest.raises(ConfigError, match="token_embd"):
        read_gguf(file).config()


def test_sampling_of_the_file() -> None:
    """As llama.cpp's converter writes it from generation_config.json: float32 numbers."""
    keys = {"temp": 0.7, "top_p": 0.8, "top_k": 20, "penalty_repeat": 1.05}
    metadata = {
        f"general.sampling.{key}": float(np.float32(value)) if isinstance(value, float) else value
        for key, value in keys.items()
    }
    read = generation_of(metadata, (7,), "x.gguf")
    assert read == GenerationConfig((7,), True, 0.7, 0.8, 20, 1.05)
    assert generation_of({}, (7, 8), "x.gguf") == GenerationConfig((7, 8))
    for key, value in (("temp", float("nan")), ("top_p", 3.0), ("top_k", "x"), ("temp", "hot")):
        with pytest.raises(ConfigError, match=r"x\.gguf: "):
            generation_of({f"general.sampling.{key}": value}, (), "x.gguf")
