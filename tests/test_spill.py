"""Numbers on disk: what went in comes out, in order, in parts, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leviathan import spill

numbers = st.lists(st.integers(0, 2**64 - 1), max_size=200)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So small that a few records need several reads and parts."""
    monkeypatch.setattr(spill, "PIECE_BYTES", 40)
    monkeypatch.setattr(spill, "PER_PART", 8)


# Each example makes files of its own: nothing of one is seen by the next.
@settings(max_examples=40, deadline=None, suppress_health_check=[])
@given(st.lists(numbers, max_size=5))
def check_order(appended):
    with spill.Spill("<u8") as kept:
        for records in appended:
            kept.append(np.array(records, np.uint64))
        whole = [number for records in appended for number in records]
        assert len(kept) == len(whole)
        pieces = list(kept.pieces())
        assert [number for _, piece in pieces for number in piece.tolist()] == whole
        assert [first for first, _ in pieces] == list(range(0, len(whole), 5))
        backwards = np.arange(len(whole))[::-1]
        assert kept.at(backwards).tolist() == whole[::-1]


def test_records_come_back_in_order():
    check_order()


def test_a_record_can_be_a_row_of_an_array():
    rows = np.arange(60, dtype=np.uint8).reshape(20, 3)
    with spill.Spill((np.uint8, 3)) as kept:
        kept.append(rows[:7])
        kept.append(rows[7:])
        assert (np.concatenate([piece for _, piece in kept.pieces()]) == rows).all()
        assert (kept.at(np.array([19, 0, 19])) == rows[[19, 0, 19]]).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, max_size=5), st.integers(1, 70))
def check_parts(appended, count):
    with spill.Parts("<u8", count) as parts:
        expected = [[] for _ in range(count)]
        for records in appended:
            hashes = np.array(records, np.uint64)
            where = spill.by_hash(hashes, count)
            parts.append(hashes, where)
            for number, part in zip(records, where.tolist(), strict=True):
                assert part == (number >> 32) * count >> 32
                expected[part].append(number)
        found = [[n for piece in pieces for n in piece.tolist()] for pieces in parts]
    assert found == expected


def test_parts_keep_the_order_within():
    check_parts()


def test_a_large_part_comes_in_pieces():
    with spill.Parts("<u8", 2) as parts:
        for first in range(0, 100, 10):
            parts.append(np.arange(first, first + 10, dtype=np.uint64), np.ones(10))
        none, pieces = (list(pieces) for pieces in parts)
    assert none == []
    assert [len(piece) for piece in pieces] == [20] * 5
    assert np.concatenate(pieces).tolist() == list(range(100))


def test_more_parts_than_16_bits_have_numbers():
    with spill.Parts("<u8", 70_000) as parts:
        parts.append(np.array([1, 2], np.uint64), np.array([69_999, 3]))
        found = {n: [p.tolist() for p in pieces] for n, pieces in enumerate(parts)}
    assert {n: f for n, f in found.items() if f} == {3: [[2]], 69_999: [[1]]}


def test_the_file_is_in_the_given_directory_and_has_no_name(tmp_path):
    with spill.Spill("<u8", tmp_path) as kept:
        kept.append(np.zeros(1000, np.uint64))
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        spill.Spill("<u8", tmp_path / "nowhere")
