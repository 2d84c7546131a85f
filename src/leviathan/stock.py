"""Owns the sources of a mix, counted: which rows may be trained on, which are drawn.

Does not decide how much is wanted of which (``mixture``) nor write anything (``interleave``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leviathan.balance import ByRows, ByTokens
from leviathan.index import Index, Spans
from leviathan.ledger import Ledger

Held = Callable[[NDArray[np.uint64]], NDArray[np.bool_]]
"""Of rows' identities, which must not be trained on."""

Among = Callable[["Chunk"], NDArray[np.bool_]]
"""Rows of a chunk."""
LONG = 8
"""Rows of more than so many times the mean's tokens are long."""


class Marks:
    """A mark for every row of a source, a bit each."""

    def __init__(self, rows: int) -> None:
        """No row is marked."""
        self._bits = np.zeros(-(-rows // 8), np.uint8)

    def put(self, rows: NDArray[np.int64] | Sequence[int]) -> None:
        """Mark these rows."""
        numbers = np.asarray(rows, np.int64)
        np.bitwise_or.at(self._bits, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))

    def of(self, chunk: "Chunk") -> NDArray[np.bool_]:
        """Which rows of a chunk are marked."""
        begin, end = chunk.first, chunk.first + len(chunk.spans)
        bits = np.unpackbits(self._bits[begin >> 3 : (end + 7) >> 3], bitorder="little")
        return bits[begin & 7 :][: end - begin].view(bool)


class Chunk(NamedTuple):
    """Some rows of a source, in order."""

    first: int
    """The number of the first."""
    spans: Spans
    tokens: NDArray[np.uint32]
    identities: NDArray[np.uint64]
    trained: NDArray[np.bool_]
    """Which may be trained on."""


@dataclass
class Sums:
    """Rows, their tokens, and their bytes."""

    rows: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, chunk: Chunk, chosen: NDArray[np.bool_], times: int = 1) -> None:
        """Add rows of a chunk."""
        spans = chunk.spans[chosen]
        self.rows += times * len(spans)
        self.tokens += times * int(chunk.tokens[chosen].sum(dtype=np.int64))
        self.bytes += times * int((spans[:, 1] - spans[:, 0]).sum())


class Stock:
    """The rows of one source, and what is drawn of them."""

    def __init__(
        self, path: Path, number: int, index: Index, ledger: Ledger, held: Held,
        lengths: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Add up what may be trained on.

        Args:
            path: of the source.
            number: its place among the sources.
            index: its rows.
            ledger: what they are in tokens.
            held: which of them are held out.
            lengths: to be told of rows that are longer.
        """
        self.path, self.number, self.index = path, number, index
        self._ledger, self._held = ledger, held
        self.passes = 0
        """How often every row is taken."""
        self.part = Marks(index.rows)
        """Rows that are taken once more."""
        self.shown = Marks(index.rows)
        """Rows that the holdout shows."""
        self.trained = Sums()
        """Of all rows that may be trained on."""
        self.longer = dict.fromkeys(lengths, 0)
        """Their tokens that are in rows of more than so many."""
        self.beyond = dict.fromkeys(lengths, 0)
        """Their tokens that come after so many in their row."""
        for chunk in self.chunks():
            self.trained.add(chunk, chunk.trained)
            tokens = chunk.tokens[chunk.trained].astype(np.int64)
            for length in lengths:
                longer = tokens[tokens > length]
                self.longer[length] += int(longer.sum())
                self.beyond[length] += int((longer - length).sum())

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order, some thousands at a time."""
        first = 0
        for spans, records in self._ledger.chunks(self.index):
            identities = records["identity"]
            yield Chunk(first, spans, records["tokens"], identities, ~self._held(identities))
            first += len(spans)

    def turns(self) -> list[Among]:
        """Pass after pass, which rows are taken."""
        return [*[_trained] * self.passes, self.part.of]

    def taken(self) -> Sums:
        """What the mix takes of this source."""
        sums = Sums()
        for chunk in self.chunks():
            sums.add(chunk, chunk.trained, self.passes)
            sums.add(chunk, self.part.of(chunk))
        return sums


# --- drawing -----------------------------------------------------------------------------


def take_tokens(stocks: Sequence[Stock], wanted: Sequence[Fraction], seed: int) -> None:
    """Draw so many tokens of each stock: whole passes, and a part of one more.

    What a stock gave too much, by a part of a row, the next one gives less.
    """
    over = Fraction(0)
    for stock, tokens in zip(stocks, wanted, strict=True):
        there = stock.trained
        stock.passes, rest = divmod(max(tokens - over, Fraction(0)), there.tokens)
        name = f"{seed}/{stock.number}/{stock.passes}"
        stock.part = draw(stock, _trained, Want(rest, None, there), name)
        over += stock.taken().tokens - tokens


def take_rows(stocks: Sequence[Stock], wanted: Sequence[int], seed: int) -> None:
    """Draw so many rows of each stock, with as many tokens as so many mean rows have."""
    for stock, rows in zip(stocks, wanted, strict=True):
        there = stock.trained
        stock.passes, rest = divmod(rows, there.rows)
        want = Want(Fraction(rest * there.tokens, there.rows), rest, there)
        stock.part = draw(stock, _trained, want, f"{seed}/{stock.number}/{stock.passes}")


@dataclass(frozen=True)
class Want:
    """How much to draw."""

    tokens: Fraction
    rows: int | None
    """Exactly; None: as many as come."""
    of: Sums
    """Of what there is to draw from."""


def draw(stock: Stock, among: Among, want: Want, seed: str) -> Marks:
    """Mark rows so that their tokens are those wanted, each row being as likely as any other.

    Long rows are decided on first, and the others make up for what came of it: a row of
    100,000 tokens cannot be taken by a tenth.
    """
    marks, random = Marks(stock.index.rows), chances(seed)
    if not want.tokens:
        return marks
    long = LONG * want.of.tokens / want.of.rows
    share = float(want.tokens / want.of.tokens)

    def are_long(chunk: Chunk) -> NDArray[np.bool_]:
        return among(chunk) & (chunk.tokens > long)

    def are_short(chunk: Chunk) -> NDArray[np.bool_]:
        return among(chunk) & (chunk.tokens <= long)

    _mark(marks, stock, are_long, ByTokens(random), _Line(share, 0.0))
    taken, short = Sums(), _Spread()
    for chunk in stock.chunks():
        taken.add(chunk, marks.of(chunk))
        short.add(chunk.tokens[are_short(chunk)])
    if want.rows is None:
        line = _Line(float((want.tokens - taken.tokens) / (short.tokens or 1)), 0.0)
        _mark(marks, stock, are_short, ByTokens(random), line)
    else:
        rows = want.rows - taken.rows
        rule = ByRows(random, rows, short.tokens / (short.rows or 1))
        line = short.line(rows, float(want.tokens - taken.tokens))
        _mark(marks, stock, are_short, rule, line)
    return marks


@dataclass(frozen=True)
class _Line:
    """The chance of a row by its tokens."""

    base: float
    slope: float

    def at(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        return self.base + self.slope * tokens.astype(np.float64)


@dataclass
class _Spread:
    """Rows, their tokens, the squares of these, the least and the most."""

    rows: int = 0
    tokens: int = 0
    squares: int = 0
    least: int = 1 << 32
    most: int = 0

    def add(self, tokens: NDArray[np.uint32]) -> None:
        wide = tokens.astype(np.int64)
        self.rows += len(wide)
        self.tokens += int(wide.sum())
        self.squares += int((wide * wide).sum())
        self.least = int(wide.min(initial=self.least))
        self.most = int(wide.max(initial=self.most))

    def line(self, rows: int, tokens: float) -> _Line:
        """Chances that come to so many rows, and to so many tokens.

        To the rows alone where that would take chances below 0 or above 1: going as far as
        chances can would favour short rows, or long ones, as both ends are not equally far.
        """
        level = _Line(rows / (self.rows or 1), 0.0)
        spread = self.rows * self.squares - self.tokens * self.tokens
        if not spread:
            return level
        slope = (self.rows * tokens - rows * self.tokens) / spread
        line = _Line((rows - slope * self.tokens) / self.rows, slope)
        ends = line.at(np.array([self.least, self.most]))
        return line if ends.min() > 0 and ends.max() < 1 else level


def _mark(
    marks: Marks, stock: Stock, among: Among, rule: ByTokens | ByRows, line: _Line
) -> None:  # fmt: skip
    """Mark those rows that a rule takes."""
    for chunk in stock.chunks():
        rows = np.flatnonzero(among(chunk))
        likely = line.at(chunk.tokens[rows])
        marks.put(rows[likely >= 1] + chunk.first)
        rows = rows[(likely > 0) & (likely < 1)]
        rows = rows[rule.order(chunk.tokens[rows])]
        tokens = chunk.tokens[rows]
        marks.put(
            rule.add((rows + chunk.first).tolist(), tokens.tolist(), line.at(tokens).tolist())
        )
    marks.put(rule.finish())


def chances(seed: str) -> Random:
    """Chances that are the same on every version of Python, as it promises."""
    return Random(seed)  # noqa: S311 - a draw, not a secret


def _trained(chunk: Chunk) -> NDArray[np.bool_]:
    return chunk.trained
