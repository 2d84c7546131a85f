"""Owns lines and dots drawn with braille characters: two by four of them in every cell.

Pure; knows nothing of colours, axes, or what the points mean.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Point = tuple[float, float]
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of the dots in a cell, by column and row: Unicode 16, chapter 21.1, Braille Patterns."""
_EMPTY = 0x2800


@dataclass(frozen=True)
class Window:
    """Which part of the plane a canvas shows."""

    left: float
    right: float
    low: float
    high: float


@dataclass
class Canvas:
    """Some rows of cells; each belongs to whoever drew into it last."""

    columns: int
    rows: int
    window: Window
    _dots: list[list[int]] = field(init=False)
    _owners: list[list[str]] = field(init=False)
    _marks: dict[tuple[int, int], str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._dots = [[0] * self.columns for _ in range(self.rows)]
        self._owners = [[""] * self.columns for _ in range(self.rows)]

    def line(self, points: Sequence[Point], owner: str) -> None:
        """Join the points, however many fall on one column."""
        placed = self._thinned(self._placed(points))
        if len(placed) == 1:
            self._set(*placed[0], owner)
        for (x0, y0), (x1, y1) in pairwise(placed):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for n in range(steps + 1):
                self._set(
                    x0 + round((x1 - x0) * n / steps), y0 + round((y1 - y0) * n / steps), owner
                )

    def dots(self, points: Iterable[Point], owner: str) -> None:
        """The points by themselves; what is above or below the window is at its edge."""
        for place in dict.fromkeys(self._placed(points)):
            self._set(*place, owner)

    def marks(self, points: Iterable[Point], owner: str, mark: str) -> None:
        """A character where each point is, which is told apart without colour, too."""
        for x, y in self._placed(points):
            if 0 <= x < 2 * self.columns:
                self._owners[y // 4][x // 2], self._marks[y // 4, x // 2] = owner, mark

    def lines(self) -> list[list[tuple[str, str]]]:
        """The cells row by row from the top, as runs of (text, owner)."""
        found = []
        for row, (dots, owners) in enumerate(zip(self._dots, self._owners, strict=True)):
            runs: list[tuple[str, str]] = []
            for column, (dot, owner) in enumerate(zip(dots, owners, strict=True)):
                cell = self._marks.get((row, column)) or (chr(_EMPTY + dot) if dot else " ")
                if runs and runs[-1][1] == owner:
                    runs[-1] = (runs[-1][0] + cell, owner)
                else:
                    runs.append((cell, owner))
            found.append(runs)
        return found

    def _placed(self, points: Iterable[Point]) -> list[tuple[int, int]]:
        """The dots that points fall on, those outside at the upper or lower edge."""
        window, bottom = self.window, 4 * self.rows - 1
        across = (2 * self.columns - 1) / ((window.right - window.left) or 1)
        up = bottom / ((window.high - window.low) or 1)
        left, low = window.left, window.low
        return [
            (round((x - left) * across), bottom - min(max(round((y - low) * up), 0), bottom))
            for x, y in points
        ]

    @staticmethod
    def _thinned(placed: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of each column of dots the first, highest, lowest and last: they draw the same line."""
        kept: list[tuple[int, int]] = []
        begin = 0
        for place in range(1, len(placed) + 1):
            if place == len(placed) or placed[place][0] != placed[begin][0]:
                column = placed[begin:place]
                kept += dict.fromkeys((column[0], min(column), max(column), column[-1]))
                begin = place
        return kept

    def _set(self, x: int, y: int, owner: str) -> None:
        if 0 <= x < 2 * self.columns and 0 <= y < 4 * self.rows:
            row, column = y // 4, x // 2
            if self._owners[row][column] != owner:  # a clear line, not a mixture of two
                self._owners[row][column], self._dots[row][column] = owner, 0
            self._dots[row][column] |= _BITS[x % 2][y % 4]
