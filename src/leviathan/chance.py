"""Owns telling a change from chance: noise of a curve, trends, levels that changed.

Pure arithmetic on arrays of finite numbers; what a change means is its callers'.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_MOST_PAIRED = 200
_LEAST_RUN = 8
_CLEAR = 4.5
"""Standard errors. In pure noise the largest of all stretches' statistics was beyond them in at
most 8 series of 1,000 (docs/verdicts.md)."""


def noise(values: Numbers) -> float:
    """Standard deviation of single points around a smooth curve; 0 of fewer than four.

    By second differences (Gasser, Sroka and Jennen-Steinmetz 1986, Biometrika 73), which a
    slope leaves alone; by their median, so that a bend or an outlier does not count.
    """
    if len(values) < 4:
        return 0.0
    return float(np.median(np.abs(np.diff(values, 2)))) / 0.6745 / math.sqrt(6)


def trend(values: Numbers) -> float:
    """Standard errors by which values rise (below 0: fall), by Mann (1945) and Kendall.

    Only their order counts: independent of outliers and of what they are distributed as.
    More than 200 values are judged by the means of 200 parts.
    """
    if len(values) > _MOST_PAIRED:
        values = np.array([part.mean() for part in np.array_split(values, _MOST_PAIRED)])
    count = len(values)
    if count < 3:
        return 0.0
    rising = np.sign(values[None, :] - values[:, None])[np.triu_indices(count, 1)].sum()
    return float(rising) / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)


def fall(before: Numbers, after: Numbers) -> float:
    """Standard errors by which the mean fell, by Welch (1947); without spread 0 or infinite."""
    if not len(before) or not len(after):
        return 0.0
    difference = float(before.mean() - after.mean())
    error = math.sqrt(_error(before) ** 2 + _error(after) ** 2)
    if not error:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error


def _error(values: Numbers) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Line:
    """A straight line through equally weighted points."""

    slope: float
    slope_error: float


def line(at: Numbers, values: Numbers) -> Line | None:
    """Least squares; None of fewer than three points, or all at one place."""
    count = len(values)
    around = at - at.mean() if count else at
    width = float((around**2).sum())
    if count < 3 or not width:
        return None
    slope = float((around * values).sum()) / width
    rest = values - values.mean() - slope * around
    return Line(slope, math.sqrt(float((rest**2).sum()) / (count - 2) / width))


def levels(values: Numbers) -> list[int]:
    """Where the level of a figure changed: the index of the first value of each new level.

    Circular binary segmentation (Olshen et al. 2004, Biostatistics 5), by ranks: the stretch
    that differs most from all that is around it (by Wilcoxon's statistic, standardised) is
    cut out if that is beyond 4.5 standard errors, and the pieces are cut again. A level lasts
    at least 8 values; at most some hundred values are meant (``parts``).
    """
    found: list[int] = []
    open_ = [(0, len(values))]
    while open_:
        begin, end = open_.pop()
        edges = [begin, *(begin + cut for cut in _cuts(values[begin:end])), end]
        if len(edges) > 2:
            found += edges[1:-1]
            open_ += pairwise(edges)
    return sorted(found)


def _cuts(values: Numbers) -> list[int]:
    """Where the stretch that differs most begins and ends, without the ends of all."""
    count = len(values)
    if count < 2 * _LEAST_RUN:
        return []
    ranks = np.concatenate([[0.0], np.cumsum(_ranks(values) - (count + 1) / 2)])
    edges = np.array([0, *range(_LEAST_RUN, count - _LEAST_RUN + 1), count])
    inside = (edges[None, :] - edges[:, None]).astype(np.float64)
    possible = (inside >= _LEAST_RUN) & (inside <= count - _LEAST_RUN)
    inside[~possible] = np.nan
    error = np.sqrt(inside * (count - inside) * (count + 1) / 12)
    statistic = np.abs(ranks[edges][None, :] - ranks[edges][:, None]) / error
    best = int(np.nanargmax(statistic))
    begin, end = divmod(best, len(edges))
    if statistic[begin, end] <= _CLEAR:
        return []
    return [int(edge) for edge in (edges[begin], edges[end]) if 0 < edge < count]


def _ranks(values: Numbers) -> Numbers:
    """From 1; equal values share the mean of theirs."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(times)
    return (last - (times - 1) / 2)[place.reshape(-1)].astype(np.float64)


def parts(values: Numbers, count: int) -> tuple[Numbers, list[int]]:
    """Medians of at most ``count`` equal parts, and the index at which each begins."""
    size = max(-(-len(values) // count), 1)
    begins = list(range(0, len(values), size))
    return np.array([np.median(values[b : b + size]) for b in begins]), begins
