"""Owns the order of a mix and writing it: every source keeps up with every other.

The next row is always the first that is left of the source that has given the smallest share
of what it has to give. Copies bytes; does not choose rows (``stock``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import xxhash
from numpy.typing import NDArray

from leviathan import corpus, index
from leviathan.index import Window
from leviathan.stock import Among, Stock

_READ_BYTES = 256 << 10  # of each source: what stays in a core's own cache is put in order fastest


@dataclass(frozen=True)
class Written:
    """What was written."""

    rows: int
    bytes: int
    digest: str
    """``xxh3_128:<hex>``."""


def write(
    out: IO[bytes], stocks: Sequence[Stock], turns: Sequence[Sequence[Among]],
    totals: Sequence[int], told: Callable[[int], None],
) -> Written:  # fmt: skip
    """Write rows of several stocks, each row ending in one line feed.

    Args:
        out: where to.
        stocks: whose rows.
        turns: of each, pass after pass, which rows.
        totals: of each, the tokens of all these rows.
        told: called with the bytes written so far.
    """
    queues = [
        _Queue(_blocks(stock, passes, total))
        for stock, passes, total in zip(stocks, turns, totals, strict=True)
    ]
    digest, rows, written = xxhash.xxh3_128(), 0, 0
    for lines in _merged(queues):
        data = b"".join(lines)
        out.write(data)
        digest.update(data)
        rows += len(lines)
        written += len(data)
        told(written)
    return Written(rows, written, f"xxh3_128:{digest.hexdigest()}")


@dataclass(frozen=True)
class _Block:
    """Rows of one stock, in order."""

    shares: NDArray[np.float64]
    """Before each row, the share that the stock had given."""
    lines: list[bytes]


class _Queue:
    """What is left of one stock."""

    def __init__(self, blocks: Iterator[_Block]) -> None:
        self._blocks = blocks
        self._block = next(blocks, None)
        self._first = 0

    @property
    def end(self) -> float | None:
        """The share before the last row that is at hand; None where none is left."""
        return None if self._block is None else float(self._block.shares[-1])

    def take(self, share: float, *, equal: bool) -> _Block:
        """The rows at hand before ``share``; ``equal``: those at it, too."""
        block, first = self._block, self._first
        if block is None:
            return _Block(np.empty(0), [])
        last = int(np.searchsorted(block.shares, share, "right" if equal else "left"))
        self._first = last
        if last == len(block.lines):
            self._block, self._first = next(self._blocks, None), 0
        return _Block(block.shares[first:last], block.lines[first:last])


def _merged(queues: Sequence[_Queue]) -> Iterator[list[bytes]]:
    """All rows in the order of the shares before them; where those are equal, of the queues."""
    while ends := [(end, n) for n, queue in enumerate(queues) if (end := queue.end) is not None]:
        # Up to here no queue can still get a row that comes earlier.
        share, number = min(ends)
        taken = [queue.take(share, equal=n <= number) for n, queue in enumerate(queues)]
        order = np.argsort(np.concatenate([block.shares for block in taken]), kind="stable")
        lines = [line for block in taken for line in block.lines]
        yield [lines[place] for place in order.tolist()]


def _blocks(stock: Stock, passes: Sequence[Among], total: int) -> Iterator[_Block]:
    """The rows of a stock, pass after pass."""
    given = 0
    for among in passes:
        tokens = _Tokens(stock, among)
        for lines in _gathered(stock, among):
            counts = tokens.next(len(lines))
            before = given + np.cumsum(counts) - counts
            given += int(counts.sum())
            yield _Block(before / max(total, 1), lines)


class _Tokens:
    """The tokens of chosen rows, in order."""

    def __init__(self, stock: Stock, among: Among) -> None:
        self._chunks = (chunk.tokens[among(chunk)].astype(np.int64) for chunk in stock.chunks())
        self._left = np.empty(0, np.int64)

    def next(self, count: int) -> NDArray[np.int64]:
        """Those of the next rows."""
        while len(self._left) < count:
            self._left = np.concatenate((self._left, next(self._chunks)))
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _gathered(stock: Stock, among: Among) -> Iterator[list[bytes]]:
    """Chosen rows, as many at a time as fill a block, however far they lie apart."""
    masks = (among(chunk) for chunk in stock.chunks())
    lines, held = list[bytes](), 0
    for window, data in index.read_in_turn(index.windows(stock.index, masks, _READ_BYTES)):
        found = _lines(window, bytes(data))
        lines += found
        held += sum(map(len, found))
        if held >= _READ_BYTES:
            yield lines
            lines, held = [], 0
    if lines:
        yield lines


def _lines(window: Window, data: bytes) -> list[bytes]:
    """The rows of a window, each ending in one line feed, whatever its file's lines end in."""
    begin = int(window.spans[0, 0])
    places = zip(*(window.spans - begin).T.tolist(), strict=True)
    if begin and data.endswith(b"\n") and b"\r" not in data:
        return [data[start:end] for start, end in places]
    lines = [data[start:end].rstrip(b"\r\n") + b"\n" for start, end in places]
    if not begin:
        lines[0] = lines[0].removeprefix(corpus.BOM)
    return lines
