"""Owns what a verdict about a run is, and in which order a reader wants several.

Does not reach any: that is ``verdicts``, and what it brings together.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Limits(Protocol):
    """What the guards go by, as far as verdicts do: ``config.Guards`` is one."""

    @property
    def loss_jump(self) -> float:
        """Nats by which a loss may be above that before a resume."""

    @property
    def divergence(self) -> float:
        """Nats by which the smoothed loss may be above its lowest."""

    @property
    def hot_c(self) -> float:
        """Where a GPU is hot."""


@dataclass(frozen=True)
class Usual:
    """The defaults of ``config.Guards``: ``status`` has no time to read a profile."""

    loss_jump: float = 0.5
    divergence: float = 1.0
    hot_c: float = 85.0


@dataclass(frozen=True)
class Verdict:
    """One conclusion about a run."""

    kind: str
    """overfitting, plateau, divergence, reward, resume or throughput."""
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


def worst(grades: Iterable[str]) -> str:
    """The worst of some grades."""
    return min(grades, key=_WORST_FIRST.index)
