"""The pages of the cache, as numbers: who holds which block, and what a block that nobody holds
still has in it. Plain Python.

A full block may have a key, a hash of everything that its content depends on
(`qwenkit.engine.prefix`). Sequences with the same keys share the block: it is counted how many
hold it. A block that nobody holds any more keeps its content until its room is needed; the one
that was let go longest ago is overwritten first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens each. Of those without content, the block freed
    last is handed out first (warm in cache).
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks {num_blocks} and block_size {block_size} must be at least 1"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # no holder, but a key; oldest first
        self._holders = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._kept)

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens of one sequence."""
        return -(-num_tokens // self.block_size)

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning of `keys` that the pool still has. Takes nothing."""
        blocks = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def has(self, key: bytes) -> bool:
        """Whether a block with this key is here."""
        return key in self._by_key

    def allocate(self, count: int, shared: Sequence[int] = ()) -> list[int] | None:
        """`count` blocks, the first of them `shared` (what `match` found) with one more holder.
        None, and nothing taken, when fewer are free.
        """
        fresh = count - len(shared)
        revived = sum(self._holders[block] == 0 for block in shared)
        if fresh > self.num_free - revived:
            return None
        for block in shared:
            if self._holders[block] == 0:
                del self._kept[block]
            self._holders[block] += 1
        blocks = list(shared)
        for _ in range(fresh):
            block = self._empty.pop() if self._empty else self._overwrite()
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """One holder less for each. Freeing a free block is a bug (AssertionError), never a silent
        double entry.
        """
        for block in reversed(blocks):  # the end of a text is of less use to others than its start
            assert self._holders[block] > 0, f"block {block} was freed twice"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._keys[block] is None:
                    self._empty.append(block)
                else:
                    self._kept[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """Say what a full block holds. The first block with a key is the one that others find."""
        assert self._holders[block] > 0, f"block {block} is nobody's"
        if key not in self._by_key and self._keys[block] is None:
            self._by_key[key] = block
            self._keys[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Nobody finds these blocks any more; who holds them keeps them."""
        for block in blocks:
            key, self._keys[block] = self._keys[block], None
            if key is not None:
                del self._by_key[key]
            if block in self._kept:
                del self._kept[block]
                self._empty.append(block)

    def forget_all(self) -> None:
        """Nothing is shared with what comes later."""
        self.forget(list(self._by_key.values()))

    def _overwrite(self) -> int:
        block, _ = self._kept.popitem(last=False)
        self.forget((block,))
        return block
