"""Memory of large pages: tensors that share maps and nothing else."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qwenkit.ops import pages

MIB = 1 << 20


@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (2, 0), (7, 1, 2), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_a_tensor_like_any_other(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = pages.empty(shape, dtype)
    assert made.shape == shape and made.dtype == dtype and made.is_contiguous()
    assert made.data_ptr() % 64 == 0
    made.fill_(3)
    assert torch.equal(made, torch.full(shape, 3, dtype=dtype))


def test_neighbours_are_apart() -> None:
    sizes = (1, 63, 64, 65, 5 * MIB, 40 * MIB, 31 * MIB, 2)
    made = [pages.empty((size,), torch.uint8).fill_(i + 1) for i, size in enumerate(sizes)]
    for i, each in enumerate(made):
        assert bool((each == i + 1).all())


def test_a_copy_has_its_own_memory() -> None:
    first = torch.randn(300, 7)
    second = pages.copy(first, first.dtype)
    assert torch.equal(first, second)
    second.zero_()
    assert bool(first.any())
    assert torch.equal(pages.copy(first, torch.bfloat16), first.bfloat16())


def test_threads_get_memory_of_their_own() -> None:
    made: list[Tensor] = []

    def work(value: int) -> None:
        made.extend(pages.empty((1000,), torch.int64).fill_(value) for _ in range(200))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(each.unique()) == 1 for each in made)
    assert sorted(int(each[0]) for each in made) == sorted([0, 1, 2, 3] * 200)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no large pages on this system")
class TestMaps:
    def test_a_map_goes_with_its_last_tensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        maps: list[weakref.ref[mmap.mmap]] = []
        make = mmap.mmap

        def remembered(*args: int, **more: int) -> mmap.mmap:
            made = make(*args, **more)
            maps.append(weakref.ref(made))
            return made

        monkeypatch.setattr(pages, "_maps", pages._Maps())
        monkeypatch.setattr(mmap, "mmap", remembered)
        first, second = pages.empty((10,), torch.uint8), pages.empty((10,), torch.uint8)
        assert len(maps) == 1
        del first
        gc.collect()
        assert maps[0]() is not None
        second.fill_(1)
        del second
        gc.collect()
        assert maps[0]() is None
        pages.empty((10,), torch.uint8)
        assert len(maps) == 2

    def test_a_system_without_them_gives_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "_maps", pages._Maps())
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)  # EINVAL, as a kernel without them says
        made = pages.empty((3 * MIB,), torch.uint8).fill_(7)
        assert bool((made == 7).all())

    def test_the_system_is_asked_for_large_pages(self) -> None:
        whole = pages.empty((8 * MIB,), torch.uint8).fill_(1)
        wanted, found = whole.data_ptr() + 4 * MIB, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                begin, end = (int(word, 16) for word in words[0].split("-"))
                found = begin <= wanted < end
            elif found and words[0] == "VmFlags:":
                assert "hg" in words[1:]
                return
        raise AssertionError("the map is not listed")
