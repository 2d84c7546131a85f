"""Owns what a run's figures mean: overfitting, plateau, divergence, resumes, slowdowns.

Pure: curves, events and samples in, verdicts with their evidence out. Acts on nothing; what
must be acted on while training runs is ``guards``'.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leviathan import continuity, earnings, learning, slowdown
from leviathan.checkpoints import Checkpoint
from leviathan.judgement import Limits, Usual, Verdict, ordered
from leviathan.series import Series
from leviathan.telemetry import Sample

__all__ = ["Verdict", "judge"]

_USUAL = Usual()


def judge(
    series: Series,
    events: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    saved: Sequence[Checkpoint],
    limits: Limits = _USUAL,
) -> list[Verdict]:
    """What a run's figures mean, the worst first; what cannot be judged yet is left out.

    Args:
        series: all of a run's curves, or the newest lines only.
        events: all of them.
        samples: of the machine; none where nothing was sampled.
        saved: the run's checkpoints (``checkpoints.scan``), damaged ones among them.
        limits: what the guards go by (``config.Guards``); their defaults when left out.
    """
    with np.errstate(all="ignore"):  # a damaged file may hold numbers near the largest there is
        rewarded = len(series["reward"]) > 0
        losses = list(
            earnings.rewards(series) if rewarded else _losses(series, events, saved, limits)
        )
        compared = _without(series, "loss") if rewarded else series
        resumes = continuity.resumes(compared, events, samples, limits)
        pace = slowdown.throughput(series, events, samples, limits)
        return ordered([*losses, *resumes, *pace])


def _losses(
    series: Series, events: Sequence[dict[str, Any]], saved: Sequence[Checkpoint], limits: Limits
) -> list[Verdict]:
    found = [
        *learning.divergence(series, events, saved, limits),
        *learning.overfitting(series, saved),
    ]
    if all(verdict.grade == "good" for verdict in found):
        found += learning.plateau(series)
    return found


def _without(series: Series, name: str) -> Series:
    """All curves but one: the loss of a training by rewards says nothing."""
    return replace(series, curves={n: c for n, c in series.curves.items() if n != name})
