"""Owns a corpus in blocks of whole lines: which there are, and reading one.

For work that goes through every line (``audit``). Where a few rows are wanted, ``index``
is faster.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from leviathan import corpus
from leviathan.corpus import Part

BLOCK_BYTES = 1 << 20
_SLACK = 32 << 10  # read beyond a block: its last line ends there, mostly


@dataclass(frozen=True)
class Block:
    """Whole lines of one part; read by whoever works on them, in another process if need be."""

    part: Part
    first: bool
    """It begins its part."""
    begin: int
    """Plain: the lines whose first byte is here or after,"""
    end: int
    """and before here."""
    streamed: bytes | None
    """The lines themselves, where they come out of a stream."""
    share: int
    """Bytes on disk that are done with it."""

    def read(self) -> bytes:
        """Its lines; empty in the middle of a very long one."""
        if self.streamed is not None:
            return self.streamed
        with self.part.path.open("rb", buffering=0) as file:
            return _lines_beginning(file, self.begin, self.end)


def of(parts: tuple[Part, ...]) -> Iterator[Block]:
    """The blocks of a corpus in order, the same ones each time; of Parquet, rows as JSON.

    Raises:
        BadInput: see ``corpus.stream``.
    """
    for part in parts:
        if part.kind == "plain":
            for begin in range(0, part.size, BLOCK_BYTES):
                end = min(begin + BLOCK_BYTES, part.size)
                yield Block(part, begin == 0, begin, end, None, end - begin)
            continue
        first = True
        for data in corpus.stream(part):
            yield Block(part, first, 0, 0, data, 0)
            first = False
        # A stream does not tell how much of its file was read: its end stands for all.
        yield Block(part, first, 0, 0, b"", part.size)


def _lines_beginning(file: IO[bytes], begin: int, end: int) -> bytes:
    start = max(begin - 1, 0)
    data = os.pread(file.fileno(), end - start + _SLACK, start)
    first = data.find(b"\n", 0, end - start - 1) + 1 if begin else 0
    if begin and not first:
        return b""
    searched = end - start - 1
    if last := data.find(b"\n", searched) + 1:
        return data[first:last]
    pieces = [data]
    while not (last := pieces[-1].find(b"\n", searched) + 1):
        start += len(pieces[-1])
        more = os.pread(file.fileno(), max(_SLACK, sum(map(len, pieces))), start)
        if not more:
            break
        pieces.append(more)
        searched = 0
    pieces[-1] = pieces[-1][: last or None]
    return b"".join(pieces)[first:]
