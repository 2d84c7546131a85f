"""What is held out: by content alone, in the share that was asked for."""

from fractions import Fraction

import numpy as np
import pytest

from leviathan.holdout import Split

IDENTITIES = np.random.default_rng(1).integers(1, 2**64, 200_000, np.uint64)


@pytest.mark.parametrize("pct", ["0.1", "1", "25", "50"])
def test_a_share_of_all_contents_is_held_out(pct):
    share = Fraction(pct) / 100
    held = Split(share, 42).held(IDENTITIES).mean()
    assert held == pytest.approx(float(share), abs=4 * (float(share) / len(IDENTITIES)) ** 0.5)


def test_nothing_is_held_out_unless_asked_for():
    assert not Split(Fraction(0), 42).held(IDENTITIES).any()


def test_a_larger_share_holds_out_the_same_and_more():
    small, large = (Split(Fraction(pct, 100), 42).held(IDENTITIES) for pct in (1, 5))
    assert (large | ~small).all()
    assert large.sum() > 4 * small.sum()


def test_every_seed_holds_out_others():
    one, two = (Split(Fraction(1, 10), seed).held(IDENTITIES) for seed in (1, 2))
    assert (one & two).mean() == pytest.approx(0.01, abs=0.002)


def test_these_very_contents_are_held_out():
    """Pinned: a holdout must stay one after every upgrade, or it has been trained on."""
    held = Split(Fraction(1, 10), 42).held(np.arange(1, 101, dtype=np.uint64))
    assert (np.flatnonzero(held) + 1).tolist() == PINNED


PINNED = [2, 4, 8, 11, 20, 21, 32, 44, 47, 51, 58, 59, 60, 81, 83, 89, 94]
