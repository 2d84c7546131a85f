"""Bins, against Axolotl's own packing; orders, for ever the same."""

import random

import numpy as np
import pytest
from axolotl.utils.samplers.multipack import allocate_sequentially, pack_parallel
from datasets import Dataset

from leviathan import packing

LENGTHS = [random.Random(7).randint(1, 90) for _ in range(500)]


@pytest.mark.parametrize("lengths", [LENGTHS, sorted(LENGTHS), [90] * 7, [1] * 300, [5], []])
@pytest.mark.parametrize("capacity", [90, 200, 1000])
@pytest.mark.parametrize(("bin_size", "group_size"), [(200, 100_000), (3, 64), (1, 1)])
def test_as_many_bins_as_axolotl(lengths, capacity, bin_size, group_size):
    array = np.array(lengths, dtype=np.int32)
    theirs = pack_parallel(array, capacity, group_size, bin_size, num_processes=1)
    rules = packing.Rules(capacity, 1, bin_size, group_size, sequential=False)
    assert packing.bins(lengths, rules) == len(theirs)


@pytest.mark.parametrize("lengths", [LENGTHS, sorted(LENGTHS), [90] * 7, [1] * 300])
@pytest.mark.parametrize("capacity", [90, 200])
def test_as_many_bins_as_axolotl_one_after_the_other(lengths, capacity):
    theirs, _, _ = allocate_sequentially(np.array(lengths, dtype=np.int32), 0, capacity, 1)
    rules = packing.Rules(capacity, 1, 200, 100_000, sequential=True)
    assert packing.bins(lengths, rules) == len(theirs)


def test_an_unfilled_batch_is_dropped():
    rules = packing.Rules(10, 3, 200, 100, sequential=False)
    assert [packing.batches([10] * n, rules) for n in (2, 3, 5, 6)] == [0, 1, 1, 2]


def test_the_order_follows_from_seed_and_epoch_for_good():
    """Pinned: a run must find its batches again with another numpy, torch or Python."""
    assert packing.order(8, 42, 0) == [5, 6, 4, 0, 3, 1, 7, 2]
    assert packing.order(8, 42, 1) == [5, 6, 2, 3, 1, 4, 7, 0]
    assert packing.order(8, 42 + 2**32, 0) == [7, 3, 1, 2, 0, 6, 5, 4]
    assert sorted(packing.order(1000, 7, 3)) == list(range(1000))


@pytest.mark.parametrize("seed", [0, 42])
def test_rows_are_shuffled_as_datasets_does_it(seed):
    theirs = Dataset.from_dict({"row": list(range(50))}).shuffle(seed=seed)
    assert packing.merged_order(50, seed) == theirs["row"]
