"""Owns the order of a mix and writing it: every source keeps up with every other.

The next row is always the first that is left of the source that has given the smallest share
of what it has to give. Copies bytes; does not choose rows (``stock``).
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import xxhash
from numpy.typing import NDArray

from leviathan import corpus, index
from leviathan.stock import Among, Stock

_READ_BYTES = 16 << 20  # of all sources together
_LEAST_BYTES = 128 << 10
_WRITE_BYTES = 1 << 20


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
    window = max(_LEAST_BYTES, _READ_BYTES // len(stocks))
    streams = [
        _keyed(stock, passes, total, window)
        for stock, passes, total in zip(stocks, turns, totals, strict=True)
    ]
    digest, rows, size = xxhash.xxh3_128(), 0, 0
    for block in _blocks(line for _, _, line in heapq.merge(*streams)):
        data = b"".join(block)
        out.write(data)
        digest.update(data)
        rows += len(block)
        size += len(data)
        told(size)
    return Written(rows, size, f"xxh3_128:{digest.hexdigest()}")


def _blocks(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    block, size = list[bytes](), 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= _WRITE_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _keyed(
    stock: Stock, passes: Sequence[Among], total: int, window: int
) -> Iterator[tuple[float, int, bytes]]:
    """The rows of a stock, each with the share that was given before it: smallest comes next."""
    given, number, whole = 0, stock.number, max(total, 1)
    for among in passes:
        lines = _lines(stock, among, window)
        for tokens in _tokens(stock, among):
            yield given / whole, number, next(lines)
            given += tokens


def _tokens(stock: Stock, among: Among) -> Iterator[int]:
    for chunk in stock.chunks():
        yield from chunk.tokens[among(chunk)].tolist()


def _lines(stock: Stock, among: Among, window: int) -> Iterator[bytes]:
    def masks() -> Iterator[NDArray[np.bool_]]:
        return (among(chunk) for chunk in stock.chunks())

    for found, data in index.read_in_turn(index.windows(stock.index, masks(), window)):
        for piece, start in zip(index.pieces(found, data), found.spans[:, 0].tolist(), strict=True):
            line = bytes(piece)
            if not start:
                line = line.removeprefix(corpus.BOM)
            yield _ended(line)


def _ended(line: bytes) -> bytes:
    """A row that ends in one line feed, whatever its file's lines end in."""
    if line.endswith(b"\n") and not line.endswith(b"\r\n"):
        return line
    return line.rstrip(b"\r\n") + b"\n"
