"""The header of a safetensors file, read and judged before anything is allocated for its tensors.

A file is `N (8 bytes, little-endian) | header (N bytes of JSON) | data`. The header maps each
tensor's name to its dtype, shape and byte range within the data; `__metadata__` may map strings to
strings. `read_header` accepts a file only if the ranges tile the data exactly: no overlap, no hole,
nothing left over, and every range as long as shape and dtype say. Anything else is a FormatError
that names the file and the fault, so a truncated or hostile file is never half used.

Works without torch. Not covered: types of fewer than 8 bits (F4, F6), which are refused by name.
Source: the format's description in the safetensors project.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import reprlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwenkit.errors import FormatError

MAX_HEADER_BYTES = 100_000_000
MAX_STRUCTURE = 500_000
"""Brackets, braces, commas and colons in one JSON text: bounds the memory that parsing takes to
about 64 MiB."""
MAX_RANK = 16
_MAX_DIM = 2**63 - 1
_MAX_INT_DIGITS = 20
FETCH_AGAIN = "Fetch the file again, for instance with `qwenkit pull`."

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: dtype as the format spells it, shape, and bytes `[begin, end)` counted from the
    start of the data.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A validated header. `tensors` is in the order of the data; `data_start` is the offset of the
    data in the file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_size: int


def read_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """Read and validate the header of a safetensors file; the tensors themselves are not touched.

    Errors: FormatError when the file is missing, not a regular file, unreadable, truncated, hostile
    or malformed.
    """
    with open_regular(path) as (fd, status):
        return header_of(fd, status.st_size, str(path))


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading as `(fd, stat)`; pipes, devices and directories are refused
    without blocking.
    """
    try:
        before = os.stat(path)
        if stat.S_ISREG(before.st_mode):
            # O_NONBLOCK: if the name becomes a pipe between stat and open, open still returns at
            # once.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            raise FormatError(f"{path} is {_kind(before.st_mode)}, not a file.", FETCH_AGAIN)
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing.", FETCH_AGAIN) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(
            f"{path} cannot be opened: {reason}.", "Check its permissions."
        ) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path} is {_kind(status.st_mode)}, not a file.", FETCH_AGAIN)
        yield fd, status
    finally:
        os.close(fd)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_exactly(fd: int, count: int, offset: int, where: str) -> bytes:
    """`count` bytes at `offset`. Errors: FormatError when the file ends or fails before."""
    parts: list[bytes] = []
    while count:
        try:
            part = os.pread(fd, count, offset)
        except OSError as error:
            raise FormatError(
                f"{where} cannot be read: {error.strerror}.", "Check the disk."
            ) from error
        if not part:
            raise FormatError(f"{where} ends {count} bytes early.", FETCH_AGAIN)
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def header_of(fd: int, file_size: int, where: str) -> SafetensorsHeader:
    """Read and validate the header of an open file of `file_size` bytes."""
    if file_size < 8:
        raise FormatError(
            f"{where} has {file_size} bytes; a safetensors file starts with 8.", FETCH_AGAIN
        )
    length = int.from_bytes(read_exactly(fd, 8, 0, where), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise FormatError(
            f"{where} announces a header of {length} bytes; 1 to {MAX_HEADER_BYTES} are possible.",
            FETCH_AGAIN,
        )
    if 8 + length > file_size:
        raise FormatError(
            f"{where} is truncated: it has {file_size} bytes and announces a header of {length}.",
            FETCH_AGAIN,
        )
    raw = read_exactly(fd, length, 8, where)
    if raw[:1] != b"{":
        raise FormatError(
            f"{where} is not safetensors: its header does not start with {{.", FETCH_AGAIN
        )
    return parse_header(raw, file_size, where)


def parse_header(raw: bytes, file_size: int, where: str) -> SafetensorsHeader:
    """Validate the header's JSON `raw` of a file with `file_size` bytes. Errors: FormatError."""
    entries = strict_json(raw, where)
    data_start = 8 + len(raw)
    metadata = entries.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise FormatError(f"{where}: __metadata__ must map strings to strings.", FETCH_AGAIN)
    infos = [(name, _tensor_info(name, entry, where)) for name, entry in entries.items()]
    infos.sort(key=lambda item: (item[1].begin, item[1].end))
    _check_tiling(infos, file_size - data_start, where)
    return SafetensorsHeader(dict(infos), metadata, data_start, file_size)


def _tensor_info(name: str, entry: Any, where: str) -> TensorInfo:
    """One entry, with its byte count held against shape and dtype."""
    spot = f"{where}: tensor {shown(name)}"
    if not (isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}):
        raise FormatError(
            f"{spot} must have dtype, shape and data_offsets, nothing else.", FETCH_AGAIN
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and dtype in ITEM_BYTES):
        raise FormatError(
            f"{spot} has the unknown dtype {shown(dtype)}.", f"Known: {', '.join(ITEM_BYTES)}."
        )
    if not (isinstance(shape, list) and len(shape) <= MAX_RANK and all(map(_is_count, shape))):
        raise FormatError(f"{spot} has an impossible shape {shown(shape)}.", FETCH_AGAIN)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_count, offsets))):
        raise FormatError(f"{spot} has impossible data_offsets {shown(offsets)}.", FETCH_AGAIN)
    begin, end = offsets
    if begin > end:
        raise FormatError(f"{spot} begins at {begin}, after its end {end}.", FETCH_AGAIN)
    if math.prod(dim for dim in shape if dim) > _MAX_DIM:
        raise FormatError(
            f"{spot} has a shape whose product overflows: {shown(shape)}.", FETCH_AGAIN
        )
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if expected != end - begin:
        raise FormatError(
            f"{spot} is {dtype} {shown(shape)}: {expected} bytes, but it has {end - begin}.",
            FETCH_AGAIN,
        )
    return TensorInfo(dtype, tuple(shape), begin, end)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_DIM


def _check_tiling(infos: list[tuple[str, TensorInfo]], data_bytes: int, where: str) -> None:
    """The ranges, in order, must cover `[0, data_bytes)` exactly once."""
    position = 0
    for name, info in infos:
        if info.begin != position:
            fault = (
                "overlaps the tensor before it"
                if info.begin < position
                else "leaves a hole before it"
            )
            raise FormatError(
                f"{where}: tensor {shown(name)} {fault}: {info.begin} instead of {position}.",
                FETCH_AGAIN,
            )
        position = info.end
    if position != data_bytes:
        fault = "is truncated" if position > data_bytes else "has trailing bytes"
        raise FormatError(
            f"{where} {fault}: {data_bytes} bytes of data, its header describes {position}.",
            FETCH_AGAIN,
        )


def strict_json(raw: bytes, where: str, *, floats: bool = False) -> dict[str, Any]:
    """Parse one JSON object: UTF-8, no duplicate keys, no nan, bounded depth, integers and
    structure.

    Errors: FormatError naming `where`.
    """
    if sum(map(raw.count, (b"[", b"{", b",", b":"))) > MAX_STRUCTURE:
        raise FormatError(
            f"{where}: its JSON has more than {MAX_STRUCTURE} parts.",
            "No published model is so large.",
        )
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=float if floats else _no_float,
            parse_constant=_no_float,
        )
    except RecursionError as error:
        raise FormatError(f"{where}: its JSON is nested too deeply.", FETCH_AGAIN) from error
    except ValueError as error:
        raise FormatError(f"{where}: its JSON is invalid ({error}).", FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise FormatError(f"{where}: its JSON must be an object.", FETCH_AGAIN)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} occurs twice")
    for key in result:
        key.encode("utf-8")  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return result


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_INT_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _no_float(text: str) -> Any:
    raise ValueError(f"{shown(text)} where only integers may stand")


_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlist, _SHORT.maxlevel = 76, MAX_RANK, 2


def shown(value: Any) -> str:
    """`value` for an error message: quoted, escaped to ASCII and of bounded length, whatever it
    is.
    """
    text = _SHORT.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 200 else f"{text[:197]}..."
