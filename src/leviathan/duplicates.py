"""Owns finding rows that are equal to an earlier one, by a hash of each.

Does not know what a row is: whoever makes the hashes decides what makes two rows equal.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leviathan import spill

FOUND = np.dtype([("row", "<i8"), ("earlier", "<i8")])
"""A row, and the first row that equals it; numbered from 0 in the order of ``add``."""
_HASHED = np.dtype([("hash", "<u8"), ("row", "<i8")])


class Duplicates:
    """Rows that repeat an earlier row, of any number of rows in some 30 MiB of memory.

    Hashes wait in a temporary file of 8 bytes a row; while they are compared, up to 40 more.

    Equal hashes are taken for equal rows. Two different rows among n have equal hashes of 64
    uniform bits with a probability of about n^2 / 2^65: one in 1.2 million for 5.5 million
    rows, one in 3,700 for 100 million.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Begin without rows.

        Args:
            directory: where temporary files are made.
        """
        self._directory = directory
        self._hashes = spill.Spill("<u8", directory)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """The hashes of the rows that come next; 0 for a row that equals no other."""
        self._hashes.append(hashes)

    def find(self) -> Iterator[NDArray[Any]]:
        """Every row that has an equal one before it, in order: arrays of ``FOUND``."""
        rows = len(self._hashes)
        with spill.Spill(FOUND, self._directory) as found:
            with spill.Parts(_HASHED, spill.parts_for(rows), self._directory) as parts:
                self._divide(parts, spill.parts_for(rows))
                for pieces in parts:
                    _repeated(pieces, found)
            yield from spill.in_row_order(found, rows, self._directory)

    def close(self) -> None:
        """Give the disk back."""
        self._hashes.close()

    def _divide(self, parts: spill.Parts, count: int) -> None:
        for first, hashes in self._hashes.pieces():
            records = np.empty(len(hashes), _HASHED)
            records["hash"] = hashes
            records["row"] = np.arange(first, first + len(hashes))
            records = records[hashes != 0]
            parts.append(records, spill.by_hash(records["hash"], count))


def _repeated(pieces: Iterator[NDArray[Any]], found: spill.Spill) -> None:
    """Put the repetitions within a part into ``found``."""
    # Only the first row of each hash stays in memory: a part is large when rows repeat.
    first = np.empty(0, _HASHED)
    for piece in pieces:
        records = np.concatenate([first, piece])
        order = np.argsort(records["hash"], kind="stable")  # the earliest row stays first
        records = records[order]
        begins = np.ones(len(records), dtype=bool)
        begins[1:] = records["hash"][1:] != records["hash"][:-1]
        first = records[begins]
        pairs = np.empty(len(records) - len(first), FOUND)
        pairs["row"] = records["row"][~begins]
        pairs["earlier"] = first["row"][np.cumsum(begins) - 1][~begins]
        found.append(pairs)
