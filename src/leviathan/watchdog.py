"""Owns what the supervisor watches from outside while training runs: heat, standstill, budget.

Does not act: ``supervise`` pauses, stops or kills as a finding says.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leviathan import guards, machine, runs
from leviathan.budget import USED_UP
from leviathan.config import Guards

_HEAT_EVERY_S = 10.0
_MOST_LOOKS_IN_VAIN = 30
_RESERVE_S = 5.0


@dataclass(frozen=True)
class Finding:
    """Something to act on: warn, pause, unpause, stop or kill, and why."""

    action: str
    kind: str
    text: str


class Watchdog:
    """Looks at one session; fed with its metrics and events."""

    def __init__(
        self,
        paths: runs.RunPaths,
        limits: Guards,
        left_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.paths, self.limits, self._clock = paths, limits, clock
        self._deadline = None if left_s is None else clock() + left_s
        self._heat = guards.Heat(limits)
        self._next_heat = 0.0
        self._looks_in_vain = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=400)
        self._heard: float | None = None
        """When the last log line arrived; None before training and where it has paused since."""
        self._longest_gap_s = 0.0
        self._paused: set[str] = set()
        self._sign: int | None = None
        self._sign_at = clock()
        self._asked = False

    @property
    def step_s(self) -> float | None:
        """Seconds of a usual step of this session, without saves and evaluations."""
        return guards.usual_step_s(list(self._marks)[-40:])

    def metrics(self, line: dict[str, Any]) -> None:
        """Take one log line: it tells the pace, and its arrival how long one thing takes."""
        self._note_gap()
        if not self._paused:
            self._heard = self._clock()
        if isinstance(line.get("time"), float) and isinstance(line.get("step"), int):
            self._marks.append((line["time"], line["step"]))

    def event(self, line: dict[str, Any]) -> None:
        """Take one event: while training pauses, nothing is being done that could take long."""
        if line.get("event") == "train_begin":
            self._heard = self._clock()
        elif line.get("event") == "pause":
            self._paused.add(str(line.get("kind")))
            self._heard = None
        elif line.get("event") == "unpause":
            self._paused.discard(str(line.get("kind")))

    def _note_gap(self) -> None:
        if self._heard is not None:
            self._longest_gap_s = max(self._longest_gap_s, self._clock() - self._heard)

    def look(self, training: bool) -> list[Finding]:
        """What has to be done now. ``training``: whether the first step has begun."""
        found = [self._budget(), self._temperature()]
        if training:
            found.append(self._standstill())
        return [finding for finding in found if finding]

    def _budget(self) -> Finding | None:
        if self._deadline is None or self._asked:
            return None
        # What is under way must end, and be saved, before the limit. Between two log lines
        # lies a step, an evaluation, or a save with the step after it; asked at the worst
        # moment, training still does two of these: step and evaluation, then the save.
        self._note_gap()
        reserve = 2 * self._longest_gap_s + _RESERVE_S
        if self._clock() < self._deadline - reserve:
            return None
        self._asked = True
        return Finding("stop", "budget", USED_UP)

    def _temperature(self) -> Finding | None:
        now = self._clock()
        if now < self._next_heat:
            return None
        self._next_heat = now + _HEAT_EVERY_S
        celsius = machine.hottest_c()
        if celsius is None:
            return self._blind()
        self._looks_in_vain = 0
        action = self._heat.feed(celsius)
        if action is None:
            return None
        text = {
            "warn": f"a GPU is at {celsius:g} C",
            "pause": f"a GPU is at {celsius:g} C: paused until {self.limits.resume_below_c:g} C",
            "unpause": f"cooled to {celsius:g} C: training goes on",
        }[action]
        return Finding(action, "heat", text)

    def _blind(self) -> Finding | None:
        """A pause must not last for ever because the driver stopped answering."""
        self._looks_in_vain += 1
        if not self._heat.paused or self._looks_in_vain < _MOST_LOOKS_IN_VAIN:
            return None
        self._heat.paused = False
        return Finding("unpause", "heat", "no GPU tells its temperature any more: going on")

    def _standstill(self) -> Finding | None:
        now = self._clock()
        try:
            sign = self.paths.phase.stat().st_mtime_ns
        except OSError:
            return None
        # Seen changes are timed here: a clock that is set back must not look like a stall.
        if sign != self._sign:
            self._sign, self._sign_at = sign, now
        idle = now - self._sign_at
        if not guards.stalled(idle, self.step_s, self.limits):
            return None
        usual = self.step_s or 0.0
        return Finding(
            "kill", "stall", f"no sign of life for {idle:.0f} s where a step takes {usual:.3g} s"
        )
