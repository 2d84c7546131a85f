"""Owns what a run's figures mean: overfitting, plateau, divergence, resumes, slowdowns.

Pure: curves, events and samples in, verdicts with their evidence out. Acts on nothing; what
must be acted on while training runs is ``guards``'.
"""

from collections.abc import Sequence
from typing import Any

from leviathan.checkpoints import Checkpoint
from leviathan.config import Guards
from leviathan.judgement import Verdict, ordered
from leviathan.series import Series
from leviathan.telemetry import Sample

__all__ = ["Verdict", "judge"]

_LIMITS = Guards()


def judge(
    series: Series,
    events: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    saved: Sequence[Checkpoint],
    limits: Guards = _LIMITS,
) -> list[Verdict]:
    """What a run's figures mean, the worst first; what cannot be judged yet is left out.

    Args:
        series: all of a run's curves, or the newest lines only.
        events: all of them.
        samples: of the machine; none where nothing was sampled.
        saved: the run's checkpoints (``checkpoints.scan``), damaged ones among them.
        limits: what the guards go by.
    """
    return ordered([])
