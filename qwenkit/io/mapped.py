"""Files mapped into memory, safetensors files among them: tensors are views of the file's pages,
read when they are touched.

The map is private (copy on write): an in-place operation on a tensor changes this process's page,
never the file. A view is only as good as its file. `tensor` therefore compares the path with what
was opened and raises FormatError if the file was replaced, truncated, rewritten or removed since;
truncation while a view is being read cannot be caught this way, so whoever must survive it takes
`read`, which copies through the file descriptor and never faults.

Not covered: big-endian machines (the format is little-endian; they are refused).
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import KeysView
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwenkit.errors import FormatError
from qwenkit.io.header import (
    FETCH_AGAIN,
    SafetensorsHeader,
    TensorInfo,
    header_of,
    open_regular,
    shown,
)

if TYPE_CHECKING:
    from typing_extensions import Self

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
# Without it Linux counts the whole private map against the memory it may promise, and refuses files
# larger than that.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0


class MappedFile:
    """A regular file, mapped whole, that knows whether it was changed since. Also a context
    manager; tensors outlive `close`.

    Errors of the constructor: FormatError.
    """

    def __init__(self, path: str | os.PathLike[str], fd: int, status: os.stat_result) -> None:
        if sys.byteorder != "little":
            raise FormatError(
                f"{path} holds little-endian numbers; this machine is big-endian.",
                "Use another machine.",
            )
        self.path = os.fspath(path)
        try:
            self._map: mmap.mmap | None = mmap.mmap(
                fd,
                status.st_size,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        except OSError as error:
            raise FormatError(
                f"{path} cannot be mapped: {error.strerror}.", "Copy it to a local disk."
            ) from error
        self._identity = _identity(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the map; its pages stay until the last tensor made from it is gone."""
        self._map = None

    def view(self, begin: int, count: int) -> Tensor:
        """`count` ≥ 1 bytes of the map as uint8. Errors: FormatError for a closed file."""
        if self._map is None:
            raise FormatError(f"{self.path} is closed.", "Open it again.")
        return torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=begin)

    def release(self, begin: int, count: int) -> None:
        """Give the pages of these bytes back to the system; a later look at them reads the file
        again. What was changed in place is lost.
        """
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            start = begin - begin % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, begin + count - start)

    def verify(self) -> None:
        """Compare the file with what was opened. Errors: FormatError if it was replaced, changed or
        removed.
        """
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise FormatError(f"{self.path} was removed while in use.", FETCH_AGAIN) from error
        self._compare(status)

    def _compare(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            raise FormatError(
                f"{self.path} was replaced or changed while in use.",
                "Load the model again once the file is at rest.",
            )


class SafetensorsFile(MappedFile):
    """A validated, mapped safetensors file. Errors of the constructor: FormatError, see
    `read_header`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open_regular(path) as (fd, status):
            self.header: SafetensorsHeader = header_of(fd, status.st_size, os.fspath(path))
            super().__init__(path, fd, status)

    def keys(self) -> KeysView[str]:
        """Tensor names, in the order of the data."""
        return self.header.tensors.keys()

    def info(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of one tensor, from the header. Errors: FormatError for an unknown
        name.
        """
        entry = self._entry(name)
        return TORCH_DTYPES[entry.dtype], entry.shape

    def tensor(self, name: str) -> Tensor:
        """The tensor as a view of the map: no copy, unless its offset is not aligned for its dtype.

        Errors: FormatError for an unknown name, a closed file, or one that changed since it was
        opened.
        """
        entry = self._entry(name)
        self.verify()
        if not entry.nbytes and self._map is not None:
            return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        start = self.header.data_start + entry.begin
        data = self.view(start, entry.nbytes)
        if start % TORCH_DTYPES[entry.dtype].itemsize:
            data = data.clone()
        return self._typed(data, entry, entry.shape, name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor, or some of its first dimension, as a private copy, read through a file
        descriptor: a file truncated meanwhile is a FormatError.
        """
        entry = self._entry(name)
        shape, begin, nbytes = entry.shape, entry.begin, entry.nbytes
        if rows is not None:
            start, stop, step = rows.indices(shape[0])
            assert step == 1, rows
            row = nbytes // shape[0] if shape[0] else 0
            shape = (max(stop - start, 0), *shape[1:])
            begin, nbytes = begin + start * row, shape[0] * row
        data = torch.empty(nbytes, dtype=torch.uint8)
        with open_regular(self.path) as (fd, status):
            self._compare(status)
            _read_into(fd, data.numpy().data, self.header.data_start + begin, self.path)
            self._compare(os.fstat(fd))
        return self._typed(data, entry, shape, name)

    def _entry(self, name: str) -> TensorInfo:
        try:
            return self.header.tensors[name]
        except KeyError:
            raise FormatError(f"{self.path} has no tensor {shown(name)}.", FETCH_AGAIN) from None

    def _typed(self, data: Tensor, entry: TensorInfo, shape: tuple[int, ...], name: str) -> Tensor:
        if entry.dtype == "BOOL" and bool((data > 1).any()):
            raise FormatError(
                f"{self.path}: tensor {shown(name)} is BOOL but holds bytes above 1.", FETCH_AGAIN
            )
        return data.view(TORCH_DTYPES[entry.dtype]).view(shape)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_into(fd: int, buffer: memoryview, offset: int, where: str) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(fd, [buffer[done:]], offset + done)
        except OSError as error:
            raise FormatError(
                f"{where} cannot be read: {error.strerror}.", "Check the disk."
            ) from error
        if not count:
            raise FormatError(f"{where} ends {len(buffer) - done} bytes early.", FETCH_AGAIN)
        done += count
