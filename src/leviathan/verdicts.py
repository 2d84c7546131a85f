"""Owns what a run's figures mean: overfitting, plateau, divergence, resumes, slowdowns.

Pure: curves, events and samples in, verdicts with their evidence out. Acts on nothing; what
must be acted on while training runs is ``guards``'.
"""

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
