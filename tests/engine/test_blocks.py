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


def key(number: int) -> bytes:
    return bytes([number])


def test_what_nobody_holds_is_found_until_its_room_is_needed() -> None:
    pool = BlockPool(3, 4)
    first = pool.allocate(2) or []
    for block, name in zip(first, (1, 2), strict=True):
        pool.publish(block, key(name))
    pool.free(first)
    assert pool.num_free == 3 and pool.match([key(1), key(2), key(3)]) == first
    assert pool.match([key(3), key(1)]) == []
    again = pool.allocate(3, pool.match([key(1)])) or []
    assert again[0] == first[0] and first[1] in again, "the empty one first, then the content"
    assert pool.match([key(1), key(2)]) == first[:1], "overwritten, so not found any more"


def test_the_block_that_was_let_go_longest_ago_is_overwritten_first() -> None:
    pool = BlockPool(4, 4)
    held = [(pool.allocate(2) or []), (pool.allocate(2) or [])]
    for i, blocks in enumerate(held):
        for j, block in enumerate(blocks):
            pool.publish(block, key(10 * i + j))
    pool.free(held[1])
    pool.free(held[0])
    order = []
    for _ in range(4):
        before = {k for k in (0, 1, 10, 11) if pool.has(key(k))}
        pool.allocate(1)
        order += [k for k in before if not pool.has(key(k))]
    assert order == [11, 10, 1, 0], "first let go first, and a text's end before its start"


def test_a_shared_block_is_free_when_its_last_holder_has_gone() -> None:
    pool = BlockPool(4, 4)
    mine = pool.allocate(1) or []
    pool.publish(mine[0], key(1))
    theirs = pool.allocate(2, pool.match([key(1)])) or []
    assert theirs[0] == mine[0] and pool.num_free == 2
    pool.free(mine)
    assert pool.num_free == 2
    pool.free(theirs)
    assert pool.num_free == 4
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(mine)


def test_shared_blocks_do_not_count_as_room() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(2) or []
    pool.publish(blocks[0], key(1))
    pool.free(blocks)
    shared = pool.match([key(1)])
    assert pool.allocate(3, shared) is None and pool.num_free == 2
    assert pool.allocate(2, shared) == [blocks[0], blocks[1]]


def test_forgotten_blocks_are_not_found_and_not_lost() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(2) or []
    pool.publish(blocks[0], key(1))
    pool.publish(blocks[1], key(2))
    pool.free(blocks[:1])
    pool.forget_all()
    assert not pool.has(key(1)) and not pool.has(key(2)) and pool.num_free == 1
    pool.publish(blocks[1], key(3))
    assert pool.match([key(3)]) == blocks[1:]


def test_the_first_block_with_a_key_stays_the_one_that_is_found() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(2) or []
    for block in blocks:
        pool.publish(block, key(1))
    pool.free(blocks)
    assert pool.match([key(1)]) == blocks[:1] and pool.num_free == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=50))
def test_the_pool_never_lies_about_content(texts: list[tuple[int, int]]) -> None:
    """Sequences of shared beginnings: whatever is found has the content that its key says."""
    pool, content = BlockPool(8, 4), dict[int, bytes]()
    held: list[list[int]] = []
    for length, text in texts:
        keys = [bytes([text, i]) for i in range(length)]
        shared = pool.match(keys)
        assert [content[block] for block in shared] == keys[: len(shared)]
        blocks = pool.allocate(length, shared)
        if blocks is None:
            pool.free(held.pop(0))
            continue
        for block, name in list(zip(blocks, keys, strict=True))[len(shared) :]:
            content[block] = name
            pool.publish(block, name)
        held.append(blocks)
        assert len({b for blocks in held for b in blocks}) + pool.num_free == 8
    for blocks in held:
        pool.free(blocks)
    assert pool.num_free == 8
