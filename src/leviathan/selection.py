"""Owns which rows are chosen: an exact number, each as likely as any other, in order.

Knuth's selection sampling (TAOCP 3.4.2, algorithm S): row by row, with the chance
wanted / left. Does not read rows.
"""

import itertools
import random
from collections.abc import Hashable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Name = TypeVar("Name", bound=Hashable)
_BATCH = 512


class Selection:
    """``wanted`` of ``of_rows`` rows, drawn as they come.

    The chances are those of ``random.Random(seed).random()``, which Python promises to keep;
    numpy's ``RandomState``, which promises the same (NEP 19), makes them faster.
    """

    def __init__(self, wanted: int, of_rows: int, seed: int | str) -> None:
        self.wanted, self.left = wanted, of_rows
        self._chances = np.random.RandomState()
        state = random.Random(seed).getstate()[1]  # noqa: S311 - a sample, not a secret
        self._chances.set_state(("MT19937", np.array(state[:-1], np.uint32), state[-1], 0, 0.0))

    def mask(self, rows: int) -> NDArray[np.bool_]:
        """Which of the next ``rows`` rows are chosen."""
        shares = self._chances.random_sample(rows) * np.arange(self.left, self.left - rows, -1)
        # ``wanted`` only falls: what is not below it now will not be below it later.
        likely = np.flatnonzero(shares < self.wanted)
        chosen = []
        for row, share in zip(likely.tolist(), shares[likely].tolist(), strict=True):
            if share < self.wanted:
                chosen.append(row)
                self.wanted -= 1
        self.left -= rows
        mask = np.zeros(rows, bool)
        mask[chosen] = True
        return mask


def masks(
    sizes: Iterable[int], wanted: int, of_rows: int, seed: int
) -> Iterator[NDArray[np.bool_]]:
    """Which rows are chosen of chunks of these sizes, ``of_rows`` in all."""
    drawn = Selection(wanted, of_rows, seed)
    return (drawn.mask(size) for size in sizes)


def masks_by(
    codes: Iterable[NDArray[np.uint16]], wanted: Mapping[int, int], rows: Mapping[int, int],
    seeds: Mapping[int, str],
) -> Iterator[NDArray[np.bool_]]:  # fmt: skip
    """The same stratum by stratum: each chunk says of which stratum its rows are.

    Args:
        codes: of each chunk, the stratum of each of its rows.
        wanted: rows to choose of each stratum.
        rows: rows each stratum has.
        seeds: of each stratum.
    """
    drawn = {code: Selection(wanted[code], rows[code], seeds[code]) for code in rows}
    for chunk in codes:
        mask = np.zeros(len(chunk), bool)
        for code in np.unique(chunk).tolist():
            places = np.flatnonzero(chunk == code)
            mask[places] = drawn[code].mask(len(places))
        yield mask


def selected(items: Iterable[Item], wanted: int, of_rows: int, seed: int) -> Iterator[Item]:
    """Those of ``of_rows`` items that a sample of ``wanted`` has, in order."""
    drawn, left = Selection(wanted, of_rows, seed), iter(items)
    while batch := list(itertools.islice(left, _BATCH)):
        yield from itertools.compress(batch, drawn.mask(len(batch)).tolist())


def shares(wanted: int, rows: Mapping[Name, int | Fraction]) -> dict[Name, int]:
    """``wanted`` rows shared out in proportion to ``rows``, by largest remainders.

    Every stratum's share is off by less than one row, and all make ``wanted``.
    """
    total = sum(rows.values())
    exact = {name: Fraction(wanted * count, total) for name, count in rows.items()}
    shared = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shared[name] - exact[name], str(name)))
    for name in by_remainder[: wanted - sum(shared.values())]:
        shared[name] += 1
    return shared
