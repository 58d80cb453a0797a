"""The block pool never hands a block to two owners and never loses one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.engine.blocks import BlockPool


def test_allocate_is_all_or_nothing() -> None:
    pool = BlockPool(4, 16)
    first = pool.allocate(3)
    assert first is not None and len(set(first)) == 3
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    pool.free(first)
    assert sorted(pool.allocate(4) or []) == [0, 1, 2, 3]


def test_blocks_for() -> None:
    pool = BlockPool(4, 16)
    assert [pool.blocks_for(n) for n in (0, 1, 16, 17, 64)] == [0, 1, 1, 2, 4]
    assert pool.num_tokens == 64


def test_a_double_free_is_caught() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.allocate(1) or []
    pool.free(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(blocks)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(0, 16)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40))
def test_no_block_has_two_owners(sizes: list[int]) -> None:
    pool = BlockPool(12, 4)
    held: list[list[int]] = []
    for size in sizes:
        blocks = pool.allocate(size)
        if blocks is None:
            pool.free(held.pop(0))
        else:
            held.append(blocks)
        owned = [b for blocks in held for b in blocks]
        assert len(owned) == len(set(owned))
        assert len(owned) + pool.num_free == 12
