"""Owns the judgements of the guards: losses that jump or diverge, heat, standstill.

Pure state machines fed with numbers. Inside training ``callbacks`` feeds them, outside
``watchdog``; what to do about a finding is theirs.
"""

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from statistics import fmean, median

from leviathan.config import Guards

_FEW = 5
_SMOOTH = 20


class LossWatch:
    """Training losses in, at most one finding of each kind out.

    A resume is judged by the mean of 5 log lines on each side of it, divergence by the
    mean of the last 20 lines against the lowest such mean of the run.
    """

    def __init__(self, limits: Guards, before: Iterable[float] = ()) -> None:
        self.limits = limits
        self._recent: deque[float] = deque(maxlen=_SMOOTH)
        self._lowest = math.inf
        for loss in filter(math.isfinite, before):
            self._smooth(loss)
        self._before = list(self._recent)[-_FEW:]
        self._after: list[float] = []
        self._told: set[str] = set()

    def feed(self, loss: float) -> list[tuple[str, str]]:
        """Findings after one more log line: pairs of kind (jump, divergence) and text."""
        if not math.isfinite(loss):
            return []
        smooth = self._smooth(loss)
        found = [("jump", text)] if (text := self._jump(loss)) else []
        if smooth is not None and smooth - self._lowest > self.limits.divergence:
            text = (
                f"the loss diverges: {smooth:.3f} over the last {_SMOOTH} log lines, "
                f"{self._lowest:.3f} at its lowest"
            )
            found.append(("divergence", text))
        fresh = [(kind, text) for kind, text in found if kind not in self._told]
        self._told |= {kind for kind, _ in fresh}
        return fresh

    def _smooth(self, loss: float) -> float | None:
        self._recent.append(loss)
        if len(self._recent) < _SMOOTH:
            return None
        mean = fmean(self._recent)
        self._lowest = min(self._lowest, mean)
        return mean

    def _jump(self, loss: float) -> str | None:
        if not self._before or len(self._after) >= _FEW:
            return None
        self._after.append(loss)
        before, after = fmean(self._before), fmean(self._after)
        if len(self._after) < _FEW or after - before <= self.limits.loss_jump:
            return None
        return (
            f"the loss jumped after the resume: {before:.3f} before, {after:.3f} after "
            f"({_FEW} log lines each); resume from an earlier checkpoint if it stays"
        )


class Heat:
    """Temperatures in; what has to change out: warn, pause, unpause, or nothing."""

    def __init__(self, limits: Guards) -> None:
        self.limits = limits
        self.paused = False
        self._warned = False

    def feed(self, celsius: float) -> str | None:
        """Judge the hottest GPU's temperature."""
        limit = self.limits.pause_above_c
        if self.paused:
            if celsius > self.limits.resume_below_c:
                return None
            self.paused = False
            return "unpause"
        if limit is not None and celsius > limit:
            self.paused = True
            return "pause"
        if celsius >= self.limits.hot_c:
            # Once until it has cooled down, not at every look.
            told, self._warned = self._warned, True
            return None if told else "warn"
        if celsius < self.limits.hot_c - 5:
            self._warned = False
        return None


def stalled(idle_s: float, step_s: float | None, limits: Guards) -> bool:
    """Whether ``idle_s`` without a sign of life is far beyond a usual step.

    Before two steps were logged there is no usual: nothing counts as a stall then.
    """
    if step_s is None:
        return False
    return idle_s > max(limits.stall_factor * step_s, limits.stall_min_s)


def usual_step_s(marks: Iterable[tuple[float, int]]) -> float | None:
    """Median seconds a step, from (time, step) pairs; None while there are not two.

    The median passes over the gaps that evaluations and saves leave.
    """
    pairs = list(marks)
    each = [
        (later[0] - earlier[0]) / (later[1] - earlier[1])
        for earlier, later in pairwise(pairs)
        if later[1] > earlier[1]
    ]
    return median(each) if each else None
