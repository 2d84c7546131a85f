"""Owns the time a run has left, told by the run's own history.

Pure: log lines and events in, an interval out. Reads no file and no clock, and predicts
nothing for a run that has not begun.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean, quantiles, stdev
from typing import Any, NamedTuple

from leviathan import files, runs

WARM_UP_STEPS = 5
"""Of a session's beginning that tell no pace: caches, autotuning, compilation. On the CPU only
the first differs (ten times a usual step, docs/measurements.md); what compiles does so again for
the first batches of other shapes."""

_WINDOW = 400
"""Newest log lines that tell a session's pace, so that it follows the machine's."""
_STRETCHES = 10
"""Schmeiser, Batch size effects in the analysis of simulation output, Operations Research 30
(1982) 556-568: more than 10 to 30 batches make an interval hardly better, and fewer, longer
ones depend less on each other."""
_ENOUGH = 3
"""Stretches from which on a session's own pace counts more than an earlier session's."""
_STUDENT = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
"""The 95th percentile of Student's t for 1 to 9 degrees of freedom: NIST/SEMATECH e-Handbook
of Statistical Methods, section 1.3.6.7.2."""
_MOST = 2.0**53
"""Steps and seconds beyond what floats count exactly are a damaged file's."""


@dataclass(frozen=True)
class Eta:
    """Seconds until the last step is trained, evaluated and saved.

    Waiting (for a cool GPU, for room on the disk) is not in it, nor is starting a session
    anew, nor what Axolotl does after the last save.
    """

    low_s: float | None
    """With ``high_s`` the 90 % prediction interval; None while there is no spread to tell it."""
    mid_s: float | None
    """None without evidence."""
    high_s: float | None
    source: str
    """What it is made of: this session's 40 steps, session 2's 300 steps, no evidence yet."""


NO_EVIDENCE = Eta(None, None, None, "no evidence yet")


class _Mark(NamedTuple):
    """A training log line."""

    clock_s: float
    step: int


class _Stretch(NamedTuple):
    """Some steps in a row, without what lay between them."""

    seconds: float
    steps: int

    @property
    def step_s(self) -> float:
        return self.seconds / self.steps


class _Session:
    """What one launch has told."""

    def __init__(self) -> None:
        self.begin: int | None = None
        self.marks: deque[_Mark] = deque(maxlen=_WINDOW + 1)
        self.between: dict[int, float] = {}
        """Seconds that were no training, by the step they came after."""
        self.every: dict[str, int | None] = {"eval": None, "save": None}
        """Steps from one to the next; 0: there are none; None: not told."""
        self.took: dict[str, dict[int, float]] = {"eval": {}, "save": {}}
        """Seconds each of the newest took, by step."""

    def mark(self, mark: _Mark) -> None:
        if not self.marks or mark.step > self.marks[-1].step:
            self.marks.append(mark)

    def spend(self, kind: str | None, step: int, seconds: float) -> None:
        """Note what was no training: an evaluation, a save, or (None) waiting."""
        self.between[step] = self.between.get(step, 0.0) + seconds
        if kind:
            took = self.took[kind]
            took[step] = took.get(step, 0.0) + seconds
            if len(took) > _STRETCHES:
                del took[min(took)]

    def stretches(self, *, warm_up: bool = True) -> list[_Stretch]:
        """The steps in at most ten parts of about as many log lines, oldest first."""
        first = (self.begin or 0) + WARM_UP_STEPS
        marks = [m for m in self.marks if m.step >= first or not warm_up]
        count = min(_STRETCHES, len(marks) - 1)
        if count < 1:
            return []
        self.between = {s: t for s, t in self.between.items() if s >= self.marks[0].step}
        steps = sorted(self.between)
        lost = [0.0, *accumulate(self.between[s] for s in steps)]
        ends = [marks[n * (len(marks) - 1) // count] for n in range(count + 1)]
        # A log line is older than what comes after its step.
        training = [(m.clock_s - lost[bisect_left(steps, m.step)], m.step) for m in ends]
        found = [
            _Stretch(until - since, last - before)
            for (since, before), (until, last) in pairwise(training)
        ]
        return _usual([s for s in found if s.seconds > 0])


class History:
    """What a run has told so far, over all its sessions, line by line.

    Lines may be damaged or of an older Leviathan: what they do not tell is not used. The
    pace of a run that did not tell how long its saves and evaluations took has them in it.
    """

    def __init__(
        self, events: Iterable[dict[str, Any]] = (), metrics: Iterable[dict[str, Any]] = ()
    ) -> None:
        self._sessions: dict[int, _Session] = {}
        for line in events:
            self.event(line)
        for line in metrics:
            self.metrics(line)

    def event(self, line: dict[str, Any]) -> None:
        """Take one line of events.jsonl."""
        session, step = self._of(line), _count(line.get("step"))
        if session is None or step is None:
            return
        if line.get("event") in ("start", "resume", "train_begin"):
            session.begin = step
        if line.get("event") == "train_begin":
            for kind in session.every:
                session.every[kind] = _count(line.get(f"{kind}_every"))
        elif (save_s := _seconds(line.get("save_s"))) is not None:
            session.spend("save", step, save_s)
        elif (wait_s := _seconds(line.get("wait_s"))) is not None:
            # At the end of a step, before its log line.
            session.spend(None, step - 1, wait_s)

    def metrics(self, line: dict[str, Any]) -> None:
        """Take one line of metrics.jsonl."""
        session, step = self._of(line), _count(line.get("step"))
        if session is None or step is None:
            return
        if (eval_s := _seconds(line.get("eval_s"))) is not None:
            session.spend("eval", step, eval_s)
        # An older Leviathan told only the wall clock, which may be set.
        clock_s = _seconds(line.get("monotonic_s", line.get("time")))
        if "loss" in line and clock_s is not None:
            session.mark(_Mark(clock_s, step))

    def _of(self, line: dict[str, Any]) -> _Session | None:
        number = line.get("session")
        return self._sessions.setdefault(number, _Session()) if runs.is_whole(number) else None

    def eta(self, step: int, max_steps: int | None) -> Eta:
        """What is left after the newest log line.

        Steps, evaluations and saves are predicted each for itself, by how long they took
        on average, and their uncertainties added as independent ones are. The pace is the
        newest session's: the machine or the settings may be others than in the one before.

        Args:
            step: where the newest session stands.
            max_steps: where it ends; None while that is not known.
        """
        session = max(self._sessions, default=0)
        now = self._sessions.get(session, _Session())
        left = max((_count(max_steps) or 0) - step, 0)
        of, stretches = self._evidence()
        if max_steps is None or not stretches:
            return NO_EVIDENCE
        each = sum(s.steps for s in stretches) / len(stretches)
        parts = [_sum([s.step_s * each for s in stretches], left / each, lasting=True)]
        unmeasured = []
        for kind, name in (("eval", "evaluation"), ("save", "save")):
            count = _to_come(now, kind, step, left)
            took = self._durations(session, kind)
            if count and not took and now.every[kind]:
                unmeasured.append(name)
            parts.append(_sum(took, count))
        mid = sum(part for part, _ in parts)
        source = _source(of, session, stretches) + _without(unmeasured)
        if len(stretches) < 2 and left:
            return Eta(None, mid, None, source)
        half = math.hypot(*(half for _, half in parts))
        return Eta(max(mid - half, 0.0), mid, mid + half, source)

    def whole(self, steps: int) -> Eta:
        """What all of such a run would take at this pace, from its first step to its last."""
        newest = self._sessions.get(max(self._sessions, default=0), _Session())
        here = newest.marks[-1].step if newest.marks else 0
        return self.eta(here, here + steps)

    def _evidence(self) -> tuple[int, list[_Stretch]]:
        """The stretches that tell the pace, and the session they are of."""
        for enough, warm_up in ((_ENOUGH, True), (1, False)):
            for number in sorted(self._sessions, reverse=True):
                found = self._sessions[number].stretches(warm_up=warm_up)
                if len(found) >= enough:
                    return number, found
        return 0, []

    def _durations(self, session: int, kind: str) -> list[float]:
        """How long the newest evaluations or saves took, of the newest session that had some.

        An evaluation takes as much longer on another machine as a step does; a save does not.
        """
        for number in sorted(self._sessions, reverse=True):
            told = self._sessions[number]
            # The one before the first step warms the caches; it counts where there is no other.
            after = [s for step, s in told.took[kind].items() if step != told.begin]
            took = after or list(told.took[kind].values())
            if took:
                faster = self._ratio(session, number) if kind == "eval" else 1.0
                return [seconds * faster for seconds in took]
        return []

    def _ratio(self, session: int, other: int) -> float:
        """How many times as long as in another session a step takes in this one."""
        mine, theirs = (_pace_s(self._sessions[n].stretches()) for n in (session, other))
        return mine / theirs if mine and theirs else 1.0


def _to_come(session: _Session, kind: str, step: int, left: int) -> int:
    """Evaluations or saves from ``step`` on: at every so many steps, and at the last one.

    So does transformers' DefaultFlowCallback. The one at ``step`` counts until it is over.
    """
    every, last = session.every[kind], step + left
    if not every:
        return 0
    done = max([session.begin or 0, *session.took[kind]])
    since = max(done, step - 1)
    return max(math.ceil(last / every) - since // every, 0) if since < last else 0


def _sum(samples: Sequence[float], count: float, *, lasting: bool = False) -> tuple[float, float]:
    """The sum of ``count`` more like these: its expectation, and half its 90 % interval.

    Hahn and Meeker, Statistical Intervals (1991), chapter 4: the mean of m more draws lies
    within t s sqrt(1/k + 1/m) of the mean of k, for draws from a normal distribution.
    One sample tells no spread: then the half is 0.

    Args:
        samples: seconds that each took, oldest first.
        count: how many are to come; need not be whole.
        lasting: what makes them differ (other processes, heat) comes in spells, so that all
            that is to come may lie in one: m is 1, unless less than one comes.
    """
    if not samples or not count:
        return 0.0, 0.0
    mid = count * fmean(samples)
    if len(samples) < 2:
        return mid, 0.0
    student = _STUDENT[min(len(samples) - 1, len(_STUDENT)) - 1]
    draws = min(count, 1.0) if lasting else count
    return mid, student * stdev(samples) * count * math.sqrt(1 / len(samples) + 1 / draws)


def _usual(stretches: list[_Stretch]) -> list[_Stretch]:
    """Without those in which something stood still that nobody told of, as a suspended machine.

    Tukey, Exploratory Data Analysis (1977), chapter 2: far out is what lies more than three
    times the quartiles' distance above the upper one. And twice as slow at the least: what is
    slow in more than a quarter of the time, or by less, is the pace.
    """
    if len(stretches) < 5:
        return stretches
    lower, middle, upper = quantiles([s.step_s for s in stretches], method="inclusive")
    limit = max(upper + 3 * (upper - lower), 2 * middle)
    return [s for s in stretches if s.step_s <= limit]


def _pace_s(stretches: list[_Stretch]) -> float | None:
    steps = sum(s.steps for s in stretches)
    return sum(s.seconds for s in stretches) / steps if steps else None


def _source(of: int, session: int, stretches: list[_Stretch]) -> str:
    steps = sum(s.steps for s in stretches)
    whose = "this session's" if of == session else f"session {of}'s"
    few = "" if of == session else ", this one has too few yet"
    return f"{whose} {steps} step{'s' * (steps != 1)}{few}"


def _without(unmeasured: list[str]) -> str:
    return f"; no {' and no '.join(unmeasured)} was timed yet" if unmeasured else ""


def _count(value: Any) -> int | None:
    return value if runs.is_whole(value) and 0 <= value < _MOST else None


def _seconds(value: Any) -> float | None:
    number = files.number(value)
    return number if number is not None and 0 <= number < _MOST else None
