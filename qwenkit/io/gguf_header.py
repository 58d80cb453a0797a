"""The header of a GGUF file (versions 2 and 3), read and judged before anything is mapped.

A file is `"GGUF" | version u32 | tensors u64 | keys u64 | key-value pairs | tensor infos | padding
| data`, little-endian. Every count, length, type, alignment and offset is held against the bytes
that are left in the file before anything of its size is made, and a header may take 256 MiB at
most. As ggml itself demands, the tensors follow one another in the order of their infos, each at
the next multiple of the alignment: so none overlaps another and none leaves a hole. What is wrong
is a FormatError that names the file and the field.

Works without torch. Not covered: big-endian files, version 1, arrays of arrays, and types of
tensors outside `BLOCKS`, which are refused by name.
Source: docs/gguf.md in the ggml project.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from qwenkit.errors import FormatError
from qwenkit.io.header import FETCH_AGAIN, open_regular, read_exactly, shown

MAX_HEADER_BYTES = 256 << 20
MAX_STRINGS = 8_000_000
"""Strings of all arrays: bounds what Python's own bookkeeping takes."""
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 64
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
_MAX_ELEMENTS = 2**63 - 1
_WINDOW = 1 << 20
_MIN_PAIR_BYTES = 8 + 1 + 4 + 1
_MIN_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8

BLOCKS: dict[str, tuple[int, int]] = {
    "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18),
    "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q2_k": (256, 84), "q3_k": (256, 110),
    "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
}  # fmt: skip
"""Type of a tensor → (numbers, bytes) of a block."""
_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k",
    11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 30: "bf16",
}  # fmt: skip
_UNSUPPORTED = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
# Type of a value → its struct format; 8 is a string, 9 an array.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. `shape` as torch has it, the row's length last; `begin` counts from the start of
    the file.
    """

    type: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A validated header. Arrays of numbers in `metadata` are memoryviews, of strings lists."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    file_size: int


def read_gguf_header(path: str | os.PathLike[str]) -> GgufHeader:
    """Read and validate the header of a GGUF file. Errors: FormatError naming file and field."""
    with open_regular(path) as (fd, status):
        return gguf_header_of(fd, status.st_size, str(path))


def gguf_header_of(fd: int, file_size: int, where: str) -> GgufHeader:
    """Read and validate the header of an open file of `file_size` bytes. Errors: FormatError."""
    cursor = _Cursor(fd, file_size, where)
    if cursor.take(4, "magic") != b"GGUF":
        cursor.refuse("magic", "the file does not start with GGUF")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        cursor.refuse("version", f"it is {version}; 2 and 3 are read")
    tensor_count = cursor.number("Q", "tensor count")
    pair_count = cursor.number("Q", "key count")
    cursor.room(tensor_count, _MIN_INFO_BYTES, "tensor count")
    cursor.room(pair_count, _MIN_PAIR_BYTES, "key count")
    metadata: dict[str, Any] = {}
    for index in range(pair_count):
        key = cursor.string(f"key {index}", MAX_KEY_BYTES)
        if not key or key in metadata:
            cursor.refuse(f"key {index}", f"{shown(key)} is empty or occurs twice")
        metadata[key] = _value(cursor, cursor.number("I", key), key)
    alignment = _alignment(cursor, metadata)
    infos: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for index in range(tensor_count):
        name, info = _info(cursor, index)
        if name in infos:
            cursor.refuse(f"tensor {shown(name)}", "it occurs twice")
        infos[name] = info
    start = -(-cursor.position // alignment) * alignment
    return GgufHeader(version, metadata, _placed(cursor, infos, start, alignment), file_size)


def _value(cursor: _Cursor, kind: int, field: str) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind], field)
    if kind == _STRING:
        return cursor.string(field, MAX_HEADER_BYTES)
    if kind != _ARRAY:
        cursor.refuse(shown(field), f"type {kind} is unknown")
    kind = cursor.number("I", field)
    count = cursor.number("Q", field)
    if kind == _STRING:
        return cursor.strings(count, field)
    if kind not in _SCALARS:
        cursor.refuse(shown(field), f"arrays of type {kind} are not read")
    layout = _SCALARS[kind]
    size = struct.calcsize("<" + layout)
    cursor.room(count, size, field)
    data = cursor.take(count * size, field)
    if layout == "?" and data.translate(None, b"\0\1"):
        cursor.refuse(shown(field), "a bool is neither 0 nor 1")
    return memoryview(data).cast(layout)  # type: ignore[call-overload]


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    good = type(value) is int and 0 < value <= MAX_ALIGNMENT and value & (value - 1) == 0
    if not good:
        cursor.refuse("general.alignment", f"{shown(value)} is no power of two up to 2^20")
    return int(value)


def _info(cursor: _Cursor, index: int) -> tuple[str, tuple[str, tuple[int, ...], int, int]]:
    """One tensor info: name → (type, shape, bytes, offset)."""
    name = cursor.string(f"name of tensor {index}", MAX_NAME_BYTES)
    field = f"tensor {shown(name)}"
    if not name:
        cursor.refuse(f"name of tensor {index}", "it is empty")
    rank = cursor.number("I", field)
    if not 1 <= rank <= MAX_DIMS:
        cursor.refuse(field, f"it has {rank} dimensions; 1 to {MAX_DIMS} are possible")
    dims = [cursor.number("Q", field) for _ in range(rank)]
    if 0 in dims or math.prod(dims) > _MAX_ELEMENTS:
        cursor.refuse(field, f"its dimensions {dims} are zero or overflow")
    number = cursor.number("I", field)
    if number not in _TYPES:
        name_of = _UNSUPPORTED.get(number, f"number {number}")
        cursor.refuse(
            field, f"its type is {name_of}", f"Types that are read: {', '.join(BLOCKS).upper()}."
        )
    kind = _TYPES[number]
    block, size = BLOCKS[kind]
    if dims[0] % block:
        cursor.refuse(field, f"its rows of {dims[0]} are no multiple of {kind}'s {block}")
    nbytes = math.prod(dims) // block * size
    return name, (kind, tuple(reversed(dims)), nbytes, cursor.number("Q", field))


def _placed(
    cursor: _Cursor,
    infos: dict[str, tuple[str, tuple[int, ...], int, int]],
    start: int,
    alignment: int,
) -> dict[str, GgufTensor]:
    """The tensors at their places in the file, which must follow one another."""
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for name, (kind, shape, nbytes, offset) in infos.items():
        if offset != expected:
            fault = "overlaps the tensor before it" if offset < expected else "leaves a hole"
            cursor.refuse(
                f"tensor {shown(name)}", f"its offset {offset} {fault}; expected is {expected}"
            )
        if start + offset + nbytes > cursor.file_size:
            cursor.refuse(
                f"tensor {shown(name)}",
                f"it ends at byte {start + offset + nbytes}, the file at {cursor.file_size}",
            )
        tensors[name] = GgufTensor(kind, shape, start + offset, nbytes)
        expected += -(-nbytes // alignment) * alignment
    return tensors


class _Cursor:
    """Reads forward through the header, a window at a time, never past the file's end."""

    def __init__(self, fd: int, file_size: int, where: str) -> None:
        self.file_size, self._fd, self._where = file_size, fd, where
        self._window, self._start, self._at = b"", 0, 0
        self._strings = 0

    @property
    def position(self) -> int:
        return self._start + self._at

    def refuse(self, field: str, fault: str, remedy: str = FETCH_AGAIN) -> NoReturn:
        raise FormatError(f"{self._where}: {field}: {fault}.", remedy)

    def room(self, count: int, size: int, field: str) -> None:
        """Refuse `count` things of at least `size` bytes each where they cannot be."""
        left = self.file_size - self.position
        if count * size > left:
            self.refuse(shown(field), f"{count} entries do not fit into the {left} bytes left")
        if self.position + count * size > MAX_HEADER_BYTES:
            self.refuse(shown(field), f"the header is larger than {MAX_HEADER_BYTES} bytes")

    def take(self, count: int, field: str) -> bytes:
        """The next `count` bytes."""
        if len(self._window) - self._at < count:
            self._fill(count, field)
        self._at += count
        return self._window[self._at - count : self._at]

    def _fill(self, count: int, field: str) -> None:
        position = self.position
        if position + count > self.file_size:
            self.refuse(shown(field), f"the file ends at byte {self.file_size}, within it")
        if position + count > MAX_HEADER_BYTES:
            self.refuse(shown(field), f"the header is larger than {MAX_HEADER_BYTES} bytes")
        size = min(max(count, _WINDOW), self.file_size - position)
        self._window = read_exactly(self._fd, size, position, self._where)
        self._start, self._at = position, 0

    def number(self, layout: str, field: str) -> Any:
        data = self.take(struct.calcsize("<" + layout), field)
        if layout == "?" and data not in (b"\0", b"\1"):
            self.refuse(shown(field), "a bool is neither 0 nor 1")
        return struct.unpack("<" + layout, data)[0]

    def string(self, field: str, most: int) -> str:
        length = int.from_bytes(self.take(8, field), "little")
        if length > most:
            self.refuse(shown(field), f"a text of {length} bytes; at most {most} are possible")
        try:
            return self.take(length, field).decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(shown(field), f"it is not UTF-8 ({error.reason})")

    def strings(self, count: int, field: str) -> list[str]:
        """`count` strings, each at least its length's 8 bytes."""
        self.room(count, 8, field)
        self._strings += count
        if self._strings > MAX_STRINGS:
            self.refuse(shown(field), f"the header has more than {MAX_STRINGS} strings")
        found: list[str] = []
        length_at = struct.Struct("<Q").unpack_from
        while len(found) < count:  # a vocabulary has 300,000: the inner loop stays in the window
            window, at, last = self._window, self._at, len(self._window) - 8
            while at <= last and len(found) < count:
                end = at + 8 + length_at(window, at)[0]
                if end > len(window):
                    break
                try:
                    found.append(window[at + 8 : end].decode("utf-8"))
                except UnicodeDecodeError as error:
                    self.refuse(shown(field), f"it is not UTF-8 ({error.reason})")
                at = end
            self._at = at
            if len(found) < count:
                found.append(self.string(field, MAX_HEADER_BYTES))
        return found
