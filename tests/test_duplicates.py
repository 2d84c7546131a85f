"""Equal rows: exactly those that a set finds, in order, in flat memory."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leviathan import duplicates, spill


def find(hashes: list[int], blocks: int = 1) -> list[tuple[int, int]]:
    searched = duplicates.Duplicates()
    for block in np.array_split(np.array(hashes, np.uint64), blocks):
        searched.add(block)
    found = [tuple(pair) for pairs in searched.find() for pair in pairs.tolist()]
    searched.close()
    return found


def reference(hashes: list[int]) -> list[tuple[int, int]]:
    first: dict[int, int] = {}
    pairs = [(row, first.setdefault(h, row)) for row, h in enumerate(hashes) if h]
    return [(row, earlier) for row, earlier in pairs if row != earlier]


few = st.integers(0, 5).map(lambda n: n * 0x2AAA_AAAA_AAAA_AAAA)
hashes = st.lists(few | st.integers(0, 2**64 - 1), max_size=120)


@settings(max_examples=100, deadline=None)
@given(hashes, st.integers(1, 4))
def check_against_a_set(rows, blocks):
    assert find(rows, blocks) == reference(rows)


def test_finds_what_a_set_finds():
    check_against_a_set()


@pytest.mark.parametrize("per_part", [1, 3, 16])
def test_finds_the_same_in_many_small_parts(monkeypatch, per_part):
    monkeypatch.setattr(spill, "PER_PART", per_part)
    monkeypatch.setattr(spill, "PIECE_BYTES", 24)
    check_against_a_set()


@pytest.mark.parametrize("rows", [[], [7], [0, 0, 0], [7, 7, 7], [2**64 - 1] * 2])
def test_corners(rows):
    assert find(rows) == reference(rows)


def test_a_hash_of_0_equals_nothing():
    assert find([0, 5, 0, 5, 0]) == [(3, 1)]


def test_it_can_be_asked_twice():
    searched = duplicates.Duplicates()
    searched.add(np.array([4, 4], np.uint64))
    once, twice = ([pair.tolist() for pair in searched.find()] for _ in range(2))
    assert once == twice == [[(1, 0)]]
    searched.add(np.array([4], np.uint64))
    assert Counter(p for pairs in searched.find() for p in pairs.tolist()) == {(1, 0): 1, (2, 0): 1}


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Three million rows, half of them of five contents: a part can't be kept whole."""
    peaks = [int(subprocess.check_output([sys.executable, "-c", GROWTH, str(rows), tmp_path]))
             for rows in (300_000, 3_000_000)]  # fmt: skip
    assert peaks[1] - peaks[0] < 16 << 20


GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
from leviathan.duplicates import Duplicates
rows, directory = int(sys.argv[1]), Path(sys.argv[2])
searched, found, stream = Duplicates(directory), 0, np.random.default_rng(1)
for _ in range(0, rows, 10_000):
    hashes = stream.integers(10, 2**64, 10_000, dtype=np.uint64)
    hashes[::2] = stream.integers(1, 6, 5_000)
    searched.add(hashes)
found = sum(len(pairs) for pairs in searched.find())
assert found == rows // 2 - 5, found
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
