"""Memory of large pages, for weights that are read from end to end for every token.

With pages of 4 KiB a processor spends a good part of such a read on finding out where they are,
twice as much inside a virtual machine. Linux gives pages of 2 MiB to memory that is aligned and
asks for them (madvise(2), MADV_HUGEPAGE); elsewhere `empty` is `torch.empty`.

Weights are often smaller than such a page, so they share maps: a map lives as long as one of its
tensors, and only what is written to takes memory.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref

import torch
from torch import Tensor

_PAGE = 2 << 20
_MAP = 32 << 20
_ALIGNED = 64
"""Bytes: a cache line."""


class _Maps:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._map: weakref.ref[mmap.mmap] | None = None
        self._at = self._end = 0

    def take(self, nbytes: int) -> Tensor:
        """`nbytes` (at least 1) as uint8, of the newest map or of a new one."""
        nbytes_taken = -(-nbytes // _ALIGNED) * _ALIGNED
        with self._lock:
            held = self._map and self._map()
            if held is None or self._at + nbytes_taken > self._end:
                held = self._new(nbytes_taken)
            begin, self._at = self._at, self._at + nbytes_taken
            return torch.frombuffer(held, dtype=torch.uint8, count=nbytes, offset=begin)

    def _new(self, least: int) -> mmap.mmap:
        size = max(_MAP, -(-least // _PAGE) * _PAGE)
        held = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = torch.frombuffer(held, dtype=torch.uint8).data_ptr()  # begin at a multiple
        self._at = -address % _PAGE
        self._end = self._at + size
        with contextlib.suppress(OSError):  # a kernel without them
            held.madvise(mmap.MADV_HUGEPAGE, self._at, size)
        self._map = weakref.ref(held)
        return held


_maps = _Maps()


def copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in such memory, as `dtype`."""
    return empty(tuple(tensor.shape), dtype).copy_(tensor)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU of large pages, where the system has them. Its numbers are 0 or
    undefined.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if not nbytes or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    return _maps.take(nbytes).view(dtype).view(shape)
