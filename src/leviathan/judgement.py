"""Owns what a verdict about a run is, and in which order a reader wants several.

Does not reach any: that is ``verdicts``, and what it brings together.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """One conclusion about a run."""

    kind: str
    """overfitting, plateau, divergence, resume or throughput."""
    grade: str
    """good, note, warn or bad."""
    text: str
    """The conclusion, in a line that stands alone."""
    evidence: tuple[str, ...]
    """The figures it rests on, a line each."""
    step: int | None = None
    """Where it shows."""
    checkpoint: str | None = None
    """The checkpoint to use because of it."""


_WORST_FIRST = ("bad", "warn", "note", "good")


def ordered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The worst first; of one grade in the order given."""
    return sorted(verdicts, key=lambda v: _WORST_FIRST.index(v.grade))
