"""From token stores to micro batches: packing whole sequences, and a loader whose place can be
saved.

Each epoch shuffles the sequences by (seed, epoch) and lays them first-fit into bins of at most
`tokens_per_batch` tokens; a sequence is never cut here. The loader's state is (epoch, index), so
resuming goes on with the very next micro batch. Nothing depends on the clock, the global random
state or hash order.
Legend: N tokens, M supervised positions, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.errors import DataError, OptionError
from qwenkit.model.batch import Batch
from qwenkit.train.tokenise import TokenStore

OPEN_BINS = 24


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward: the packed batch and what it must predict."""

    batch: Batch
    rows: Tensor
    """(M) int64: positions n whose next token is supervised."""
    targets: Tensor
    """(M) int64: those next tokens."""

    @property
    def tokens(self) -> int:
        return len(self.batch.input_ids)

    @property
    def supervised(self) -> int:
        return len(self.targets)


def pack(lengths: NDArray[np.int64], limit: int, order: NDArray[np.int64]) -> list[list[int]]:
    """Bins of sequence numbers, each at most `limit` tokens, first-fit over `order` with a few bins
    open.

    Bins are returned in the order in which they were opened. Errors: DataError for a sequence over
    the limit.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    first_open = 0
    for number in order.tolist():
        length = int(lengths[number])
        if length > limit:
            raise DataError(
                f"A sequence has {length} tokens, tokens_per_batch is {limit}.",
                "Raise tokens_per_batch.",
            )
        for at in range(first_open, len(bins)):
            if room[at] >= length:
                bins[at].append(number)
                room[at] -= length
                break
        else:
            bins.append([number])
            room.append(limit - length)
            first_open = max(first_open, len(bins) - OPEN_BINS)
    return bins


def collate(store: TokenStore, numbers: list[int], device: torch.device) -> MicroBatch:
    """The micro batch of the given sequences."""
    pieces = [slice(int(store.offsets[i]), int(store.offsets[i + 1])) for i in numbers]
    lengths = np.array([piece.stop - piece.start for piece in pieces], np.int64)
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    ids = np.concatenate([store.ids[piece] for piece in pieces]).astype(np.int64)
    mask = np.concatenate([store.mask[piece] for piece in pieces])
    mask[starts[:-1]] = 0  # the first token of a sequence has no context
    targets = np.flatnonzero(mask)
    positions = np.arange(len(ids), dtype=np.int64) - np.repeat(starts[:-1], lengths)
    batch = Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions).expand(3, -1),
        torch.from_numpy(starts.astype(np.int32)),
    )
    rows, wanted = torch.from_numpy(targets - 1), torch.from_numpy(ids[targets])
    return MicroBatch(batch.to(device), rows.to(device), wanted.to(device))


class Loader:
    """Endless micro batches of a store, epoch after epoch, from any saved place.

    Errors: DataError when the store is empty, OptionError for a batch smaller than the longest
    sequence.
    """

    def __init__(
        self, store: TokenStore, tokens_per_batch: int, seed: int, device: torch.device
    ) -> None:
        if len(store) == 0:
            raise DataError("The training data is empty.", "Check the data sources.")
        longest = int(store.lengths.max())
        if longest > tokens_per_batch:
            raise OptionError(
                f"tokens_per_batch is {tokens_per_batch}, the longest sequence {longest} tokens.",
                "Raise tokens_per_batch or lower max_seq_len.",
            )
        self.store, self.limit, self.seed, self.device = store, tokens_per_batch, seed, device
        self.epoch, self.index = 0, 0
        self._packed: tuple[int, list[list[int]]] = (-1, [])

    def state(self) -> dict[str, int]:
        """The place of the next micro batch."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from a saved place."""
        self.epoch, self.index = int(state["epoch"]), int(state["index"])

    def bins(self, epoch: int) -> list[list[int]]:
        """The packing of one epoch; the last one asked for is kept."""
        if self._packed[0] != epoch:
            order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(
                len(self.store)
            )
            self._packed = (epoch, pack(self.store.lengths, self.limit, order))
        return self._packed[1]

    def next(self) -> MicroBatch:
        """The next micro batch; moves the place on."""
        bins = self.bins(self.epoch)
        micro = collate(self.store, bins[self.index], self.device)
        self.index += 1
        if self.index == len(bins):
            self.epoch, self.index = self.epoch + 1, 0
        return micro

    def hardest(self) -> MicroBatch:
        """Epoch 0's micro batch that needs most memory: most tokens, then longest sequences."""
        lengths = self.store.lengths
        cost = [(int(lengths[b].sum()), int((lengths[b] ** 2).sum())) for b in self.bins(0)]
        return collate(self.store, self.bins(0)[cost.index(max(cost))], self.device)
