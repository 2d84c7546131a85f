"""Drawing from counted sources: whole passes, long rows first, one seed one draw."""

import math
from contextlib import ExitStack
from fractions import Fraction
from random import Random

import numpy as np
import pytest

from leviathan import index, ledger, stock
from leviathan.holdout import Split
from leviathan.stock import Marks, Stock


@pytest.fixture
def make(tmp_path):
    """A source whose rows have these tokens; every ``block`` rows are a file of their own."""
    with ExitStack() as stack:
        made = []

        def build(tokens, *, block=None):
            number = len(made)
            directory = tmp_path / str(number)
            directory.mkdir()
            for first in range(0, len(tokens), block or len(tokens)):
                rows = min(block or len(tokens), len(tokens) - first)
                (directory / f"{first:06d}.jsonl").write_bytes(b"{}\n" * rows)
            records = np.zeros(len(tokens), [("tokens", "<u4"), ("identity", "<u8")])
            records["tokens"] = tokens
            kept = tmp_path / f"{number}.counts"
            kept.write_bytes(records.tobytes())
            found = stack.enter_context(index.build(directory))
            held = Split(Fraction(0), 1).held
            made.append(Stock(directory, number, found, ledger.Ledger(kept, 0.0), held, (100,)))
            return made[-1]

        yield build


def taken(one):
    """How often each row is taken."""
    return np.concatenate([
        sum(among(chunk).astype(int) for among in one.turns()) for chunk in one.chunks()
    ])  # fmt: skip


def test_marks_are_found_again_in_any_piece(make):
    one = make([1] * 1000, block=37)
    marks, wanted = Marks(1000), np.zeros(1000, bool)
    rows = Random(1).sample(range(1000), 300)
    marks.put(rows[:150])
    marks.put(np.array(rows[150:], np.int64))
    wanted[rows] = True
    found = np.concatenate([marks.of(chunk) for chunk in one.chunks()])
    assert found.tolist() == wanted.tolist()


def test_what_is_longer_is_added_up(make):
    one = make([50, 100, 101, 300])
    assert (one.longer[100], one.beyond[100]) == (401, 201)
    assert (one.trained.rows, one.trained.tokens, one.trained.bytes) == (4, 551, 12)


@pytest.mark.parametrize("amount", [0, 7, 275, 550, 551, 900, 5510])
def test_whole_passes_and_a_part_of_one_more(make, amount):
    one = make([50, 100, 101, 300])
    stock.take_tokens([one], [Fraction(amount)], 1)
    assert one.passes == amount // 551
    assert set(taken(one).tolist()) <= {one.passes, one.passes + 1}
    assert abs(one.taken().tokens - amount) < 300
    if amount % 551 == 0:
        assert one.taken().tokens == amount


def test_a_row_of_a_third_of_all_is_made_up_for(make):
    """It is in or out as a whole, and is so as often as any other; the sum holds all the same."""
    sizes = [100_000, *(50 + n % 100 for n in range(2000))]
    one, often = make(sizes, block=300), 0
    wanted = Fraction(sum(sizes), 2)
    for seed in range(40):
        stock.take_tokens([one], [wanted], seed)
        often += int(taken(one)[0])
        assert abs(one.taken().tokens - wanted) < 100
    assert 10 <= often <= 30


def test_long_rows_do_not_move_the_number_of_rows(make):
    sizes = [5000, *(50 + n % 100 for n in range(3000)), 5000]
    one = make(sizes, block=300)
    for seed in range(20):
        stock.take_rows([one], [1000], seed)
        sums = one.taken()
        assert sums.rows == 1000
        assert abs(sums.tokens - 1000 * sum(sizes) / len(sizes)) < 150


@pytest.mark.parametrize("rows", [1, 2, 5, 299, 300, 301, 899])
def test_so_many_rows_whatever_their_lengths(make, rows):
    chance = Random(3)
    one = make([int(chance.paretovariate(0.8) * 10) for _ in range(300)], block=70)
    for seed in range(10):
        stock.take_rows([one], [rows], seed)
        assert one.taken().rows == rows


def test_chances_are_equal_for_long_rows_and_short_ones(make):
    """The others' chance follows what became of the long rows; in the mean it is everyone's."""
    sizes = [4000, 3000, *(10 + n for n in range(30)), 2500, *(60 - n for n in range(30))]
    draws, one = 800, make(sizes, block=20)
    for wanted, take in ((Fraction(sum(sizes), 3), stock.take_tokens), (21, stock.take_rows)):
        counts = np.zeros(len(sizes), int)
        for seed in range(draws):
            take([one], [wanted], seed)
            counts += taken(one)
        chance = 1 / 3
        off = 4.2 * math.sqrt(chance * (1 - chance) * draws)
        assert np.abs(counts - chance * draws).max() < off, counts


def test_one_source_gives_less_where_the_one_before_gave_more(make):
    """The mix has its tokens, though every source may be a part of a row off."""
    stocks = [make([1000] * 20) for _ in range(5)]
    for seed in range(10):
        stock.take_tokens(stocks, [Fraction(2700)] * 5, seed)
        assert abs(sum(one.taken().tokens for one in stocks) - 13_500) <= 1000
