"""Which rows are chosen: Knuth's algorithm S, word for word, however the rows come in chunks."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leviathan import selection

relaxed = settings(max_examples=80, deadline=None)


def algorithm_s(wanted: int, of_rows: int, seed) -> list[int]:
    chance, found = random.Random(seed).random, []
    for row in range(of_rows):
        if chance() * (of_rows - row) < wanted - len(found):
            found.append(row)
    return found


def chosen(masks) -> list[int]:
    return np.flatnonzero(np.concatenate([np.zeros(0, bool), *masks])).tolist()


@relaxed
@given(
    rows=st.integers(0, 400), share=st.floats(0, 1), seed=st.integers(0, 2**70),
    sizes=st.lists(st.integers(0, 50), max_size=10),
)  # fmt: skip
def test_rows_are_those_of_algorithm_s_whatever_the_chunks(rows, share, seed, sizes):
    wanted, left = round(rows * share), rows
    chunks = [min(size, max(0, rows - sum(sizes[:n]))) for n, size in enumerate(sizes)]
    left -= sum(chunks)
    expected = algorithm_s(wanted, rows, seed)
    assert chosen(selection.masks([*chunks, left], wanted, rows, seed)) == expected
    assert list(selection.selected(range(rows), wanted, rows, seed)) == expected
    assert len(expected) == wanted


def test_every_row_is_as_likely_as_any_other():
    counts = Counter(
        row for seed in range(2000) for row in selection.selected(range(10), 3, 10, seed)
    )
    assert all(counts[row] == pytest.approx(600, abs=80) for row in range(10))  # 4 sigma


@relaxed
@given(codes=st.lists(st.integers(0, 4), min_size=1, max_size=200), share=st.floats(0, 1))
def test_strata_are_drawn_each_by_itself(codes, share):
    rows = dict(Counter(codes))
    wanted = selection.shares(round(len(codes) * share), rows)
    seeds = {code: f"42/{code}" for code in rows}
    chunks = [np.array(codes[n : n + 7], np.uint16) for n in range(0, len(codes), 7)]
    found = chosen(selection.masks_by(chunks, wanted, rows, seeds))
    assert Counter(codes[row] for row in found) == Counter(wanted)
    for code, count in rows.items():
        own = [row for row, name in enumerate(codes) if name == code]
        expected = [own[n] for n in algorithm_s(wanted[code], count, seeds[code])]
        assert [row for row in found if codes[row] == code] == expected


@relaxed
@given(st.dictionaries(st.integers(), st.integers(1, 10**7), min_size=1), st.floats(0, 1))
def test_shares_make_the_whole_and_are_off_by_less_than_a_row(rows, share):
    total = sum(rows.values())
    wanted = round(total * share)
    found = selection.shares(wanted, rows)
    assert sum(found.values()) == wanted
    for name, count in rows.items():
        assert abs(found[name] - wanted * count / total) < 1
        assert 0 <= found[name] <= count
