"""Owns what is kept out of training: which contents, and which rows of them are shown.

By content, so that equal rows are on the same side of the line, in whatever file and however
often. What equal means is ``identity``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import xxhash
from numpy.typing import NDArray

from leviathan.duplicates import Duplicates
from leviathan.stock import Marks, Stock, Sums, Want, draw

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Split:
    """Which contents are held out: a share of all there can be, by a seeded hash.

    It asks for nothing but the content: the same line in every mix of one seed and share, and
    a larger share holds out the same and more.
    """

    share: Fraction
    seed: int

    def held(self, identities: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Of rows' identities, which are not trained on."""
        if not self.share:
            return np.zeros(len(identities), bool)
        # splitmix64's last steps, so that every seed has another line (Steele et al., 2014).
        z = identities ^ np.uint64(xxhash.xxh3_64_intdigest(f"{self.seed}/holdout".encode()))
        z = (z ^ (z >> np.uint64(30))) * _MIX[0]
        z = (z ^ (z >> np.uint64(27))) * _MIX[1]
        below: NDArray[np.bool_] = z ^ (z >> np.uint64(31)) < np.uint64(int(self.share * 2**64))
        return below


def choose(stocks: Sequence[Stock], split: Split, wanted: Sequence[Fraction]) -> None:
    """Mark the rows that the holdout shows.

    Of each stock the share of what the mix takes of it, or all there is: nothing is repeated
    here. A content is shown once, by the first row that has it.

    Args:
        stocks: all of them.
        split: what is held out.
        wanted: tokens of each stock in the mix.
    """
    repeated, seen = _repeated(stocks), 0
    for stock, tokens in zip(stocks, wanted, strict=True):
        firsts, there = Marks(stock.index.rows), Sums()
        for chunk in stock.chunks():
            rows = np.flatnonzero(~chunk.trained)
            numbers = np.arange(seen, seen + len(rows))
            seen += len(rows)
            firsts.put(rows[~np.isin(numbers, repeated, assume_unique=True)] + chunk.first)
            there.add(chunk, firsts.of(chunk))
        stock.shown = firsts
        if split.share * tokens < there.tokens:
            want = Want(split.share * tokens, None, there)
            stock.shown = draw(stock, firsts.of, want, f"{split.seed}/{stock.number}/holdout")


def _repeated(stocks: Sequence[Stock]) -> NDArray[np.int64]:
    """Of all held-out rows, numbered through the stocks, those whose content came before."""
    found = Duplicates()
    try:
        for stock in stocks:
            for chunk in stock.chunks():
                found.add(chunk.identities[~chunk.trained])
        return np.concatenate([np.empty(0, np.int64), *(x["row"] for x in found.find())])
    finally:
        found.close()
