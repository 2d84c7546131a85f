"""Owns estimating a corpus from the rows that were counted: a regression, standard errors.

Pure. Does not choose the rows nor count their tokens (``tokens``).
"""

import itertools
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from leviathan.tokenizer import Count

_GROUPS = 64


def _numbers() -> "array[int]":
    return array("I")


@dataclass
class Counted:
    """Rows counted so far, in the order of the file: four numbers of four bytes each."""

    tokens: "array[int]" = field(default_factory=_numbers)
    masked: "array[int]" = field(default_factory=_numbers)
    """Tokens before the first one with loss; all of them where none has."""
    trainable: "array[int]" = field(default_factory=_numbers)
    sizes: "array[int]" = field(default_factory=_numbers)
    """Bytes of JSONL."""

    def add(self, sizes: Iterable[int], counts: list[Count]) -> None:
        """Add rows of these bytes."""
        self.tokens.extend(count.tokens for count in counts)
        self.masked.extend(count.masked for count in counts)
        self.trainable.extend(count.trainable for count in counts)
        self.sizes.extend(sizes)

    def chosen(self, rows: npt.NDArray[np.integer]) -> "Counted":
        """Only the rows of these numbers."""
        every = (self.tokens, self.masked, self.trainable, self.sizes)
        return Counted(*(array("I", np.asarray(one)[rows].tobytes()) for one in every))

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return total(self.sizes)

    @property
    def mean(self) -> float:
        """Tokens a row."""
        return total(self.tokens) / len(self.tokens)

    def line(self) -> "Line":
        """Tokens by bytes, fitted by least squares."""
        sizes, tokens = np.asarray(self.sizes, float), np.asarray(self.tokens, float)
        off = sizes - sizes.mean()
        spread = float(off @ off)
        slope = float(off @ tokens) / spread if spread else 0.0
        base = float(tokens.mean() - slope * sizes.mean())
        left = tokens - base - slope * sizes
        return Line(base, slope, error_of_sum(left) / len(tokens))

    def extend_by_size(self, sizes: Iterable[int], line: "Line") -> None:
        """Add rows of these bytes without tokenising them, masked as those tokenised are."""
        known = list(zip(self.tokens, self.masked, self.trainable, strict=True))
        for (tokens, masked, trainable), size in zip(itertools.cycle(known), sizes, strict=False):
            likely = round(line.at(size))
            self.tokens.append(likely)
            self.masked.append(round(likely * masked / tokens) if tokens else 0)
            self.trainable.append(round(likely * trainable / tokens) if tokens else 0)
            self.sizes.append(size)


def total(numbers: "array[int]") -> int:
    """Their sum, without an object for each."""
    return int(np.asarray(numbers).sum())


def error_of_sum(values: npt.NDArray[np.float64]) -> float:
    """Standard error of a sum over rows that were found in evenly spread blocks.

    By the differences of neighbouring groups of rows: those of one block are alike, and a
    file has its sources one after the other (Wolter, Introduction to Variance Estimation,
    2007, 8.2). The rows must be in the order of the file.
    """
    groups = min(_GROUPS, len(values))
    if groups < 2:
        return 0.0
    starts = np.linspace(0, len(values), groups, endpoint=False).astype(int)
    between = np.diff(np.add.reduceat(values, starts))
    return math.sqrt(float(between @ between) / 2 / len(between) * groups)


@dataclass(frozen=True)
class Line:
    """Tokens a row has by its bytes: the regression estimator.

    Tokens follow bytes closely, and the bytes of a row are known far better than the few
    tokenised rows tell (Cochran, Sampling Techniques, 1977, 7.3 and 12.6).
    """

    base: float
    slope: float
    error: float
    """Standard error of the mean row's tokens, from the rows' distances to the line."""

    def at(self, size: float) -> float:
        """Tokens of a row of ``size`` bytes; never less than one."""
        return max(1.0, self.base + self.slope * size)


@dataclass(frozen=True)
class Estimate:
    """Rows and mean of a sample, with their standard errors; 0 for what is known."""

    rows: int
    rows_error: float
    mean_bytes: float
    mean_bytes_error: float
    line: Line

    @property
    def mean(self) -> float:
        """Tokens a row."""
        return self.line.at(self.mean_bytes)

    @property
    def mean_error(self) -> float:
        """Its standard error."""
        return math.hypot(self.line.error, self.line.slope * self.mean_bytes_error)

    @property
    def total_error(self) -> float:
        """Of rows x mean, as a share. It is base x rows + slope x bytes, and bytes are known."""
        if not self.rows_error:
            return self.mean_error / self.mean
        own = self.line.error / self.mean
        return math.hypot(own, self.line.base * self.rows_error / (self.rows * self.mean))
