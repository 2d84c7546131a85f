"""Owns a corpus in blocks of whole lines: which there are, and reading one.

For work that goes through every line (``scrutiny``). Where a few rows are wanted, ``index``
is faster.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from leviathan import corpus
from leviathan.corpus import Part

BLOCK_BYTES = 1 << 20
"""About; a block ends with a line. Fits the caches of a core."""
_LOOKED_BYTES = 16 << 10


@dataclass(frozen=True)
class Block:
    """Whole lines of one part; read by whoever works on them, in another process if need be."""

    part: Part
    first: bool
    """It begins its part."""
    begin: int
    """Plain: its first byte in the file."""
    end: int
    """And the byte after its last."""
    streamed: bytes | None
    """The lines themselves, where they come out of a stream."""
    share: int
    """Bytes on disk that are done with it."""

    def read(self) -> bytes:
        """Its lines.

        Raises:
            LeviathanError: the file has become shorter.
        """
        if self.streamed is not None:
            return self.streamed
        with self.part.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), self.end - self.begin, self.begin)
            while len(data) < self.end - self.begin:  # one call gives 2 GiB at most
                more = os.pread(
                    file.fileno(), self.end - self.begin - len(data), self.begin + len(data)
                )
                if not more:
                    raise corpus.changed(self.part.path)
                data += more
        return data


def of(parts: tuple[Part, ...]) -> Iterator[Block]:
    """The blocks of a corpus in order, the same ones each time; of Parquet, rows as JSON.

    Raises:
        BadInput: see ``corpus.stream``.
    """
    for part in parts:
        if part.kind == "plain":
            yield from _plain(part)
            continue
        first = True
        for data in corpus.stream(part):
            yield Block(part, first, 0, 0, data, 0)
            first = False
        # A stream does not tell how much of its file was read: its end stands for all.
        yield Block(part, first, 0, 0, b"", part.size)


def _plain(part: Part) -> Iterator[Block]:
    begin = 0
    with part.path.open("rb", buffering=0) as file:
        while begin < part.size:
            end = _line_end(file.fileno(), begin + BLOCK_BYTES, part.size)
            yield Block(part, begin == 0, begin, end, None, end - begin)
            begin = end


def _line_end(fd: int, place: int, size: int) -> int:
    """Where the line ends that the byte before ``place`` belongs to."""
    place -= 1
    while place < size:
        data = os.pread(fd, _LOOKED_BYTES, place)
        if not data:
            break
        if end := data.find(b"\n") + 1:
            return min(place + end, size)
        place += len(data)
    return size
