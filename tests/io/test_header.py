"""The safetensors header: what is refused, what is accepted (K143 to K148, K174)."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from qwenkit.errors import FormatError
from qwenkit.io import header as header_module
from qwenkit.io.header import MAX_HEADER_BYTES, MAX_STRUCTURE, read_header, strict_json
from qwenkit.io.safetensors import SafetensorsFile, save_file

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def blob(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from a header (bytes, or an object for JSON) and its data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD: dict[str, bytes] = {
    "K143-empty": b"",
    "K143-seven-bytes": b"\2\0\0\0\0\0\0",
    "K143-header-length-0": blob(b"", b"{}", 0),
    "K143-header-length-max": blob(b"{}", b"", 2**64 - 1),
    "K143-header-length-over-file": blob(b"{}", b"", 3),
    "K143-header-length-over-limit": blob(b"{}", b" " * 64, MAX_HEADER_BYTES + 1),
    "K144-not-json": blob(b"{hello"),
    "K144-not-an-object": blob(b"[1]"),
    "K144-leading-space": blob(b" {}"),
    "K144-byte-order-mark": blob(b"\xef\xbb\xbf{}"),
    "K144-invalid-utf8": blob(b'{"\xff": 1}'),
    "K144-utf16": blob('{"a": 1}'.encode("utf-16")),
    "K144-lone-surrogate": blob(
        b'{"\\ud800": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
    ),
    "K144-nested-arrays": blob(b'{"a":' + b"[" * 100_000),
    "K144-nested-objects": blob(b'{"a":' * 100_000),
    "K144-huge-structure": blob(b'{"a":[' + b"[]," * MAX_STRUCTURE + b"[]]}"),
    "K144-second-value": blob(b"{}{}"),
    "K144-nan": blob(b'{"a": NaN}'),
    "K144-metadata-list": blob({"__metadata__": []}),
    "K144-metadata-number": blob({"__metadata__": {"a": 1}}),
    "K144-metadata-null": blob({"__metadata__": None}),
    "K144-entry-null": blob({"a": None}),
    "K144-entry-list": blob({"a": [1]}),
    "K144-entry-lacks-dtype": blob({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "K144-entry-with-more": blob({"a": {**GOOD, "more": 1}}, bytes(8)),
    "K145-duplicate-tensor": blob(
        b'{"a":%b,"a":%b}' % ((json.dumps(GOOD).encode(),) * 2), bytes(8)
    ),
    "K145-duplicate-after-escape": blob(
        b'{"a":%b,"\\u0061":%b}' % ((json.dumps(GOOD).encode(),) * 2), bytes(8)
    ),
    "K145-duplicate-key-in-entry": blob(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
    ),
    "K145-duplicate-metadata": blob(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "K146-overlap": blob({"a": GOOD, "b": entry("F32", [2], 4, 12)}, bytes(12)),
    "K146-same-range-twice": blob({"a": GOOD, "b": GOOD}, bytes(8)),
    "K146-hole": blob({"a": GOOD, "b": entry("F32", [2], 12, 20)}, bytes(20)),
    "K146-hole-at-start": blob({"a": entry("F32", [2], 4, 12)}, bytes(12)),
    "K146-offset-over-end": blob({"a": entry("F32", [2], 8, 16)}, bytes(8)),
    "K146-begin-after-end": blob({"a": entry("F32", [2], 8, 0)}, bytes(8)),
    "K146-negative-offset": blob({"a": entry("F32", [2], -8, 0)}, bytes(8)),
    "K146-trailing-bytes": blob({"a": GOOD}, bytes(9)),
    "K146-trailing-bytes-no-tensor": blob({}, b"\0"),
    "K146-truncated-data": blob({"a": GOOD}, bytes(7)),
    "K146-one-offset": blob({"a": {**GOOD, "data_offsets": [8]}}, bytes(8)),
    "K146-three-offsets": blob({"a": {**GOOD, "data_offsets": [0, 4, 8]}}, bytes(8)),
    "K146-float-offset": blob({"a": entry("F32", [2], 0, 8.0)}, bytes(8)),
    "K146-bool-offset": blob({"a": entry("U8", [1], False, True)}, bytes(1)),
    "K146-string-offset": blob({"a": entry("F32", [2], "0", "8")}, bytes(8)),
    "K146-empty-tensor-in-the-middle": blob({"a": GOOD, "b": entry("F32", [0], 4, 4)}, bytes(8)),
    "K147-shape-too-large": blob({"a": entry("F32", [3], 0, 8)}, bytes(8)),
    "K147-shape-too-small": blob({"a": entry("F32", [1], 0, 8)}, bytes(8)),
    "K147-dtype-too-wide": blob({"a": entry("F64", [2], 0, 8)}, bytes(8)),
    "K147-product-overflows-to-fit": blob({"a": entry("F32", [2**62 + 1, 2], 0, 8)}, bytes(8)),
    "K147-product-overflows-64": blob({"a": entry("U8", [2**32, 2**32, 2], 0, 0)}),
    "K147-huge-beside-zero": blob({"a": entry("U8", [2**62, 4, 0], 0, 0)}),
    "K147-dimension-over-int64": blob({"a": entry("U8", [2**63, 0], 0, 0)}),
    "K147-negative-dimensions": blob({"a": entry("F32", [-1, -2], 0, 8)}, bytes(8)),
    "K147-float-dimension": blob({"a": entry("F32", [2.0], 0, 8)}, bytes(8)),
    "K147-integer-of-5000-digits": blob(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"),
    "K147-rank-17": blob({"a": entry("F32", [1] * 16 + [2], 0, 8)}, bytes(8)),
    "K147-shape-null": blob({"a": entry("F32", None, 0, 8)}, bytes(8)),
    "K147-unknown-dtype": blob({"a": entry("F33", [2], 0, 8)}, bytes(8)),
    "K147-lower-case-dtype": blob({"a": entry("f32", [2], 0, 8)}, bytes(8)),
    "K147-sub-byte-dtype": blob({"a": entry("F4", [16], 0, 8)}, bytes(8)),
    "K147-list-as-dtype": blob({"a": entry(["F32"], [2], 0, 8)}, bytes(8)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD[case])
    with pytest.raises(FormatError) as caught:
        read_header(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 400
    with pytest.raises(FormatError):
        SafetensorsFile(path)


@pytest.mark.parametrize("case", [c for c in BAD if c.startswith("K143")])
def test_K143_a_false_length_allocates_nothing(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD[case])
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1 << 20


SMALL = MAX_STRUCTURE // 20


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":[' + b"[]," * (SMALL // 3 - 9) + b"[]]}",
        b"{" + b",".join(b'"%d":0' % i for i in range(SMALL // 2 - 9)) + b"}",
        b'{"a":"' + b"x" * 3_000_000 + b'"}',
    ],
    ids=["lists", "pairs", "string"],
)
def test_memory_stays_near_the_size_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    """At a twentieth of the real bound on structure: at most a twentieth of 64 MiB on top."""
    monkeypatch.setattr(header_module, "MAX_STRUCTURE", SMALL)
    path = tmp_path / "model.safetensors"
    path.write_bytes(blob(raw))
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * len(raw) + (64 << 20) // 20


def test_good_headers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(blob({}))
    assert read_header(path).tensors == {}
    entries = {
        "b": entry("BF16", [2, 2], 8, 16),
        "__metadata__": {"format": "pt", "注": "x"},
        "a": GOOD,
        "e": entry("F32", [3, 0], 8, 8),
        "s": entry("I64", [], 16, 24),
    }
    raw = json.dumps(entries, ensure_ascii=False).encode() + b"   "
    path.write_bytes(blob(raw, bytes(24)))
    header = read_header(path)
    assert list(header.tensors) == ["a", "e", "b", "s"] and header.metadata == {
        "format": "pt",
        "注": "x",
    }
    info = header.tensors["b"]
    assert (info.dtype, info.shape, info.begin, info.end, info.nbytes) == ("BF16", (2, 2), 8, 16, 8)
    assert header.data_start == 8 + len(raw) and header.file_size == path.stat().st_size


def test_K148_truncated_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(7), "b": torch.ones(3, dtype=torch.bfloat16)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            SafetensorsFile(path)
    for extra in range(1, 70):
        path.write_bytes(whole + bytes(extra))
        with pytest.raises(FormatError):
            SafetensorsFile(path)


def test_K174_what_is_no_file_is_refused_without_hanging(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FormatError, match="is missing"):
        read_header(path)
    path.mkdir()
    with pytest.raises(FormatError, match="is a directory"):
        read_header(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(FormatError, match="is a pipe"):
        read_header(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        with pytest.raises(FormatError, match="is a socket"):
            read_header(path)
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(FormatError, match="is a device"):
            read_header(device)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(FormatError, match="cannot be opened"):
        read_header(path)
    with pytest.raises(FormatError, match="cannot be opened"):
        read_header("model\0.safetensors")


def test_K174_a_name_that_becomes_a_pipe_is_refused_without_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pipe = tmp_path / "model.safetensors", tmp_path / "pipe"
    path.write_bytes(blob({}))
    os.mkfifo(pipe)
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *args, **kwargs: real(pipe, *args, **kwargs))
    with pytest.raises(FormatError, match="is a pipe"):
        read_header(path)


def test_K174_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(blob({}))

    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FormatError, match=r"Permission denied. Check its permissions"):
        read_header(path)


def test_strict_json_for_an_index() -> None:
    assert strict_json(b'{"a": 1.5e3}', "x", floats=True) == {"a": 1500.0}
    for raw in (b'{"a": Infinity}', b'{"a": 1, "a": 2}', b"[]", b"3", b'"x"', b"null", b""):
        with pytest.raises(FormatError):
            strict_json(raw, "x", floats=True)


def judged(content: bytes, path: Path) -> bool:
    """Whether it is accepted; if so, the reference implementation must accept and agree."""
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        mine = {name: file.tensor(name) for name in file.keys()}
    except FormatError:
        return False
    try:
        theirs = safetensors.torch.load_file(path)
    except SafetensorError as error:
        pytest.fail(f"accepted here, refused by the reference: {error}; {content!r}")
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        other = theirs[name]
        assert tensor.dtype == other.dtype and tensor.shape == other.shape
        assert bytes(tensor.reshape(-1).view(torch.uint8)) == bytes(
            other.reshape(-1).view(torch.uint8)
        )
    return True


def test_fuzz_bytes(tmp_path: Path) -> None:
    """Random edits of a valid file: refused, or as the reference implementation reads it."""
    path = tmp_path / "model.safetensors"
    header = {"a": GOOD, "b": entry("I16", [2, 3], 8, 20), "__metadata__": {"k": "v"}}
    whole = blob(header, bytes(range(20)))
    rng = random.Random(7)
    accepted = 0
    for _ in range(800):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            i = rng.randrange(len(content))
            edit = rng.randrange(4)
            if edit == 0:
                content[i] = rng.randrange(256)
            elif edit == 1:
                del content[i : i + rng.randint(1, 4)]
            elif edit == 2:
                content[i:i] = content[i : i + rng.randint(1, 8)]
            else:
                content[i] = rng.choice(b'0123456789,:[]{}"-')
        accepted += judged(bytes(content), path)
    assert 0 < accepted < 800


NUMBERS = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64]))
DTYPES = st.sampled_from(
    ["F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "X", ""]
)
LOOSE = st.fixed_dictionaries(
    {
        "dtype": DTYPES,
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    }
)


@st.composite
def nearly_valid(draw: st.DrawFn) -> bytes:
    """A file whose tensors tile the data, then at most two wounds."""
    entries: dict[str, Any] = {}
    position = 0
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "I64": 8, "F8_E4M3": 1}
    for name in draw(st.lists(st.text(max_size=3), unique=True, max_size=4)):
        dtype = draw(st.sampled_from(sorted(sizes)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = int(torch.Size(shape).numel()) * sizes[dtype]
        entries[name] = entry(dtype, shape, position, position + size)
        position += size
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(["entry", "offset", "shape", "dtype", "metadata", "data"]))
        name = draw(st.sampled_from(sorted(entries))) if entries else "new"
        whole = entries.get(name)
        if kind == "entry" or not isinstance(whole, dict) or "shape" not in whole:
            entries[name] = draw(LOOSE)
        elif kind == "metadata":
            entries["__metadata__"] = draw(
                st.one_of(
                    st.none(),
                    st.integers(),
                    st.dictionaries(st.text(max_size=2), st.text(max_size=2)),
                )
            )
        elif kind == "data":
            position = max(0, position + draw(st.integers(-2, 2)))
        else:
            key = {"offset": "data_offsets", "shape": "shape", "dtype": "dtype"}[kind]
            entries[name] = {**entries[name], key: draw(LOOSE)[key]}
    content = blob(entries, bytes(position))
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@settings(max_examples=150, deadline=None)
@given(content=nearly_valid())
def test_fuzz_structure(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    judged(content, tmp_path_factory.getbasetemp() / "fuzzed.safetensors")
