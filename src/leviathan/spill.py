"""Owns numbers that are too many for memory: kept in temporary files, read back in pieces.

Does not know what they mean. The files have no name, so nothing is left of them when the
process ends, however it ends.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

PIECE_BYTES = 2 << 20
"""What is read at once."""
PER_PART = 1 << 17
"""Records that a part has in the mean: what is worked on in memory at once."""
_BUFFER = 1 << 20


def scratch() -> str | None:
    """A directory on a disk: /tmp is in memory on many systems. $TMPDIR decides where it is set."""
    usual = "/var/tmp"  # noqa: S108 - files in it have no name
    return None if "TMPDIR" in os.environ or not os.access(usual, os.W_OK) else usual


class Spill:
    """Records of one type, in the order they came in."""

    def __init__(self, dtype: DTypeLike, directory: Path | None = None) -> None:
        """Open an empty one.

        Args:
            dtype: numpy's type of a record; one with a shape makes rows of an array.
            directory: where the file is; else ``scratch()``.
        """
        self.dtype = np.dtype(dtype)
        place = directory or scratch()
        self._file = tempfile.TemporaryFile(buffering=_BUFFER, dir=place)  # noqa: SIM115
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def append(self, records: NDArray[Any]) -> None:
        """Put records behind those that are there."""
        data = np.ascontiguousarray(records, self.dtype.base)
        self._file.write(data.tobytes())
        self._count += len(data)

    def pieces(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All records in order, some at a time, each time with the number of the first."""
        most = max(1, PIECE_BYTES // self.dtype.itemsize)
        for first in range(0, self._count, most):
            yield first, self.read(first, min(most, self._count - first))

    def read(self, first: int, count: int) -> NDArray[Any]:
        """``count`` records from number ``first`` on."""
        self._file.flush()
        size = self.dtype.itemsize
        parts = []
        at, end = first * size, (first + count) * size
        while at < end:  # one pread gives 2 GiB at most
            parts.append(os.pread(self._file.fileno(), end - at, at))
            at += len(parts[-1])
        return np.frombuffer(b"".join(parts), dtype=self.dtype)

    def at(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """The records with these numbers, in this order."""
        self._file.flush()
        wanted, places = np.unique(numbers, return_inverse=True)
        # Not a memory map: its pages would count as this process's memory.
        handle, size = self._file.fileno(), self.dtype.itemsize
        data = b"".join([os.pread(handle, size, size * number) for number in wanted.tolist()])
        found: NDArray[Any] = np.frombuffer(data, dtype=self.dtype)[places]
        return found


class Parts:
    """Records divided into numbered parts, each of which can be worked on in memory.

    Every ``append`` writes its records sorted by part, and remembers where each part lies: one
    file, whatever the number of parts.
    """

    def __init__(self, dtype: DTypeLike, parts: int, directory: Path | None = None) -> None:
        self._records = Spill(dtype, directory)
        self._parts = parts
        self._bounds: list[NDArray[np.int64]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._records.close()

    def append(self, records: NDArray[Any], part: NDArray[Any]) -> None:
        """Put records into parts; a part keeps them in the order they came in."""
        # 16 bits are sorted by radix, in linear time.
        part = part.astype(np.uint16 if self._parts <= 1 << 16 else np.int64)
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(self._parts + 1))
        self._bounds.append(bounds + len(self._records))
        self._records.append(records[order])

    def __iter__(self) -> Iterator[Iterator[NDArray[Any]]]:
        """Part after part; a part comes in pieces, in order, and mostly in a single one."""
        return (self._pieces(number) for number in range(self._parts))

    def _pieces(self, part: int) -> Iterator[NDArray[Any]]:
        held: list[NDArray[Any]] = []
        for bounds in self._bounds:
            first, end = int(bounds[part]), int(bounds[part + 1])
            held.append(self._records.read(first, end - first))
            if sum(map(len, held)) >= 2 * PER_PART:
                yield np.concatenate(held)
                held = []
        if any(map(len, held)):
            yield np.concatenate(held)


def parts_for(count: int) -> int:
    """In how many parts so many records should be worked on."""
    return max(1, -(-count // PER_PART))


def by_hash(hashes: NDArray[np.uint64], parts: int) -> NDArray[np.uint64]:
    """Which part each hash belongs to; equal ones to the same."""
    top: NDArray[np.uint64] = (hashes >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)
    return top


def in_row_order(found: Spill, rows: int, directory: Path | None = None) -> Iterator[NDArray[Any]]:
    """Records that have a field ``row``, sorted by it, some at a time; a row comes up once."""
    parts = parts_for(rows)
    with Parts(found.dtype, parts, directory) as divided:
        for _, records in found.pieces():
            divided.append(records, records["row"] * parts // rows)
        for pieces in divided:
            for records in pieces:
                yield records[np.argsort(records["row"])]
