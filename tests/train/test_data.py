from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.errors import DataError, OptionError
from qwenkit.train.data import Loader, collate, pack
from qwenkit.train.tokenise import TokenStore

CPU = torch.device("cpu")


def store_of(lengths: list[int]) -> TokenStore:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ids = np.arange(offsets[-1], dtype=np.int32)
    return TokenStore(ids, np.ones(len(ids), np.uint8), offsets)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(0, 3))
def test_packing_keeps_every_sequence_whole_and_once(lengths: list[int], seed: int) -> None:
    sizes = np.array(lengths)
    order = np.random.default_rng(seed).permutation(len(lengths))
    bins = pack(sizes, 20, order)
    assert sorted(number for numbers in bins for number in numbers) == list(range(len(lengths)))
    assert max(int(sizes[numbers].sum()) for numbers in bins) <= 20
    assert bins == pack(sizes, 20, order)


def test_packing_wastes_little() -> None:
    sizes = np.random.default_rng(0).integers(10, 200, 2000)
    bins = pack(sizes, 2048, np.arange(2000))
    assert len(bins) * 2048 < 1.03 * sizes.sum()


def test_packing_refuses_a_sequence_over_the_limit() -> None:
    with pytest.raises(DataError, match="30 tokens"):
        pack(np.array([30]), 20, np.array([0]))


def test_collate_predicts_within_sequences_only() -> None:
    store = store_of([3, 2, 4])
    store.mask[:] = [1, 1, 0, 1, 1, 0, 1, 0, 1]
    micro = collate(store, [2, 0], CPU)
    assert micro.batch.input_ids.tolist() == [5, 6, 7, 8, 0, 1, 2]
    assert micro.batch.cu_seqlens.tolist() == [0, 4, 7]
    assert micro.batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2]] * 3
    assert micro.rows.tolist() == [0, 2, 4] and micro.targets.tolist() == [6, 8, 1]
    assert (micro.tokens, micro.supervised) == (7, 3)


def test_resuming_anywhere_gives_the_same_batches() -> None:
    store = store_of([5, 7, 3, 9, 4, 6, 8])
    through = Loader(store, 16, seed=3, device=CPU)
    states, batches = [], []
    for _ in range(12):  # over several epochs
        states.append(through.state())
        batches.append(through.next().batch.input_ids.tolist())
    assert states[0] == {"epoch": 0, "index": 0} and states[-1]["epoch"] >= 1
    for start in range(12):
        again = Loader(store, 16, seed=3, device=CPU)
        again.load_state(states[start])
        assert [again.next().batch.input_ids.tolist() for _ in range(12 - start)] == batches[start:]


def test_epochs_and_seeds_shuffle_differently() -> None:
    loader = Loader(store_of([4] * 40), 16, seed=0, device=CPU)
    first, second = loader.bins(0), loader.bins(1)
    assert first != second and sorted(sum(first, [])) == sorted(sum(second, []))
    assert Loader(store_of([4] * 40), 16, seed=1, device=CPU).bins(0) != first


def test_hardest_batch_has_the_longest_sequences_among_the_fullest() -> None:
    loader = Loader(store_of([16, 8, 8, 4, 4, 4, 4]), 16, seed=0, device=CPU)
    assert loader.hardest().batch.cu_seqlens.tolist() == [0, 16]


def test_loader_refuses_what_cannot_be_packed() -> None:
    with pytest.raises(DataError, match="empty"):
        Loader(store_of([]), 16, 0, CPU)
    with pytest.raises(OptionError, match="tokens_per_batch is 16, the longest sequence 17"):
        Loader(store_of([17]), 16, 0, CPU)
