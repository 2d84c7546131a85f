"""Owns drawing rows so that their tokens add up, while every row keeps its chance.

The cube method (Deville and Tille, Efficient balanced sampling, Biometrika 91, 2004), one pass
over the rows: two or three undecided ones play against each other until one is in or out, and
what one gains in chance the others lose, in such measure that the tokens to be expected stay
what they are. Does not read rows. docs/data.md says why it is done so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NEVER = 1e-12  # what rounding leaves of a chance that has come to 0, or to 1


class ByTokens:
    """Rows of so many tokens: off by less than the one row that is undecided in the end."""

    def __init__(self, random: Random) -> None:
        """Begin without rows; ``random`` decides."""
        self._random = random
        self._row = 0
        self._size = 0
        """Tokens of the undecided row; 0: there is none."""
        self._stake = 0.0
        """Those that are expected of it: its tokens times its chance."""

    def order(self, tokens: NDArray[Any]) -> NDArray[np.intp]:
        """In which order to ``add`` rows: long before short, so that a short one is left.

        Long and short by the octave: within one, rows keep their order.
        """
        return _falling(tokens)

    def add(
        self, rows: Sequence[int], tokens: Sequence[int], chances: Sequence[float]
    ) -> list[int]:
        """Take up rows, each with its tokens and its chance; gives those that are in by now."""
        chosen: list[int] = []
        random = self._random.random
        row, held, stake = self._row, self._size, self._stake
        for new, size, chance in zip(rows, tokens, chances, strict=True):
            own = chance * size
            room, rest = held - stake, size - own
            if not size:
                if random() < chance:
                    chosen.append(new)
            elif not held:
                row, held, stake = new, size, own
            elif random() * (min(room, own) + min(stake, rest)) < min(stake, rest):
                if own <= room:  # the new row is out
                    stake += own
                else:
                    chosen.append(row)
                    row, held, stake = new, size, own - room
            elif stake <= rest:  # the other one is out
                row, held, stake = new, size, own + stake
            else:
                chosen.append(new)
                stake -= rest
        self._row, self._size, self._stake = row, held, stake
        return chosen

    def finish(self) -> list[int]:
        """Decide on the row that is left."""
        is_in = self._size and self._random.random() * self._size < self._stake
        self._size = 0
        return [self._row] if is_in else []


@dataclass
class _Row:
    number: int
    tokens: int
    chance: float


class ByRows:
    """Exactly so many rows, of so many tokens.

    Three rows play: the sum of their chances stays, and that of their tokens. Two are left in
    the end, and one of them is in: the tokens are off by less than what those two differ.
    """

    def __init__(self, random: Random, wanted: int, mean: float) -> None:
        """Begin without rows.

        Args:
            random: decides.
            wanted: rows, the sum of all chances.
            mean: tokens of the mean row.
        """
        self._random, self._wanted, self._mean = random, wanted, mean
        self._open: list[_Row] = []

    def order(self, tokens: NDArray[Any]) -> NDArray[np.intp]:
        """In which order to ``add`` rows: such as are much like the others are left."""
        return _falling(abs(tokens - self._mean))

    def add(
        self, rows: Sequence[int], tokens: Sequence[int], chances: Sequence[float]
    ) -> list[int]:
        """Take up rows, each with its tokens and its chance; gives those that are in by now."""
        chosen: list[int] = []
        for row in map(_Row, rows, tokens, chances):
            self._open.append(row)
            if len(self._open) == 3:
                _play(self._open, self._random)
                chosen += [x.number for x in self._open if x.chance >= 1]
                self._open = [x for x in self._open if 0 < x.chance < 1]
        self._wanted -= len(chosen)
        return chosen

    def finish(self) -> list[int]:
        """Decide on the rows that are left."""
        left, self._open = self._open, []
        if len(left) == 2 and self._wanted == 1 and self._random.random() >= left[0].chance:
            left.reverse()
        return [x.number for x in left[: self._wanted]]


def _play(rows: list[_Row], random: Random) -> None:
    """Move three chances along the only line that keeps both sums, until one is 0 or 1."""
    a, b, c = (row.tokens for row in rows)
    line = (b - c, c - a, a - b) if not a == b == c else (1, -1, 0)
    moved = [(row, step) for row, step in zip(rows, line, strict=True) if step]
    up = min((1 - x.chance) / step if step > 0 else x.chance / -step for x, step in moved)
    down = min(x.chance / step if step > 0 else (1 - x.chance) / -step for x, step in moved)
    by = up if random.random() * (up + down) < down else -down
    for row, step in moved:
        row.chance += by * step
        if row.chance < _NEVER or row.chance > 1 - _NEVER:
            row.chance = round(row.chance)


def _falling(sizes: NDArray[Any]) -> NDArray[np.intp]:
    return np.argsort(-np.frexp(sizes)[1], kind="stable")
