"""Owns where a figure is going: the newest of a curve against what came before.

Pure. Does not judge what that means for the run (``verdicts``).
"""

import math
from dataclasses import dataclass

import numpy as np

from leviathan.series import Curve

_WINDOW = 20
"""Log lines on each side; as ``guards`` smooths a loss."""
_CURVE_POINTS = 24


@dataclass(frozen=True)
class Trend:
    """The mean of the newest 20 log lines against that of the 20 before."""

    mean: float
    before: float
    direction: str
    """falling, rising, or level: no further apart than chance puts them (two standard errors
    of the difference of two means)."""


def of(curve: Curve) -> Trend | None:
    """Where a curve is going; None while it has fewer than 10 points, half on each side."""
    window = min(_WINDOW, len(curve) // 2)
    if window < 5:
        return None
    newest, older = curve.value[-window:], curve.value[-2 * window : -window]
    change = float(newest.mean() - older.mean())
    chance = 2 * math.sqrt((newest.var(ddof=1) + older.var(ddof=1)) / window)
    direction = "level" if abs(change) <= chance else "falling" if change < 0 else "rising"
    return Trend(float(newest.mean()), float(older.mean()), direction)


def usual(curve: Curve) -> float | None:
    """The median of the newest 20 points; None of an empty curve."""
    return float(np.median(curve.value[-_WINDOW:])) if len(curve) else None


def points(curve: Curve, count: int = _CURVE_POINTS) -> tuple[float, ...]:
    """The curve in at most ``count`` points, each the mean of as many."""
    parts = np.array_split(curve.value, min(count, len(curve))) if len(curve) else []
    return tuple(float(part.mean()) for part in parts)
