"""The pages of the cache, as numbers: which blocks are free and which are handed out. Plain Python.

Not covered: sharing a block between sequences (a block has one owner at a time).
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each. The block freed last is handed out first
    (warm in cache).
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks {num_blocks} and block_size {block_size} must be at least 1"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._used = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens of one sequence."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks, or None (and nothing taken) when fewer are free."""
        if count > len(self._free):
            return None
        split = len(self._free) - count
        blocks = self._free[split:][::-1]
        del self._free[split:]
        for block in blocks:
            self._used[block] = 1
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Take blocks back. Freeing a free block is a bug (AssertionError), never a silent double
        entry.
        """
        for block in blocks:
            assert self._used[block], f"block {block} was freed twice"
            self._used[block] = 0
            self._free.append(block)
