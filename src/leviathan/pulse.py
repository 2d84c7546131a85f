"""Owns what a live view knows of a run: its newest figures, recent curves, events, time left.

Fed with messages, reads files only to begin with (``of``), shows nothing.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median, variance
from typing import Any

from leviathan import checkpoints, eta, expected, files, runs, story, telemetry, tidings
from leviathan.braille import Point

CURVES = ("loss", "eval_loss", "learning_rate", "tok_s")
_POINTS = 2048
"""Newest points of a curve that are kept: more than a wide terminal has dots."""
_EVENTS = 200
_NO_BEST = (math.inf, "")
_LATELY = 20
"""Log lines that count as the newest, as in ``trends``, which has the same of numpy's arrays."""
_FEWEST = 5


@dataclass(frozen=True)
class Told:
    """One event in words."""

    time_s: float
    grade: str
    """good, note, warn or bad."""
    text: str
    number: int
    """Counts the events; clocks may be set."""


class Pulse:
    """What is known of a run now; every message brings it up to date."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.state = "starting"
        """starting, running, stalled, paused, saving, stopping, restarting; or how it ended."""
        self.why = ""
        self.session = 0
        self.began_s: float | None = None
        """Wall clock at which the newest session began, where it is known."""
        self.now: dict[str, Any] = {}
        """The newest log lines of this session, one over the other."""
        self.curves: dict[str, deque[Point]] = {n: deque(maxlen=_POINTS) for n in CURVES}
        self.resumes: deque[int] = deque(maxlen=32)
        """Steps that sessions resumed from."""
        self.told: deque[Told] = deque(maxlen=_EVENTS)
        self.routine: deque[Told] = deque(maxlen=_EVENTS)
        """Apart from all others, which they would bury: saves, evaluations, removals."""
        self.sample: telemetry.Sample | None = None
        self.saved: tuple[checkpoints.Checkpoint, ...] = ()
        self._best = _NO_BEST
        self._evaluated: tuple[float, Any] = (math.inf, None)
        """The newest evaluation's loss and step."""
        self.last_save, self.saved_s = "", 0.0
        """The newest checkpoint, and the wall clock then; empty and 0 where there is none."""
        self.expected: expected.Expected | None = None
        self.history = eta.History()
        self._pace = _Pace()
        self._events = 0
        self._paced = 0
        """How many of the newest tokens a second are of this session."""

    # --- what a view asks ----------------------------------------------------------

    @property
    def step(self) -> int:
        """The step of the newest log line, or where the session begins."""
        return int(self.now.get("step") or 0)

    @property
    def heard_s(self) -> float:
        """How long the newest session lasted, as far as it was heard of."""
        moments = [
            files.number(self.now.get("time")),
            *(told.time_s for told in (*self.told, *self.routine)),
        ]
        last = max((m for m in moments if m is not None), default=0.0)
        return max(last - self.began_s, 0.0) if self.began_s else 0.0

    @property
    def max_steps(self) -> int | None:
        """The last step there will be; None while it is not known."""
        found = self.now.get("max_steps")
        return found if runs.is_whole(found) and found > 0 else None

    @property
    def share(self) -> float:
        """How much of the steps is done, from 0 to 1."""
        return min(self.step / self.max_steps, 1.0) if self.max_steps else 0.0

    def figure(self, name: str) -> float | None:
        """The newest figure that was logged under a name."""
        return files.number(self.now.get(name))

    @property
    def eval_loss(self) -> float | None:
        """Of the newest evaluation."""
        return self.curves["eval_loss"][-1][1] if self.curves["eval_loss"] else None

    @property
    def tok_s(self) -> float | None:
        """Computed tokens a second over all processes, the median of this session's newest."""
        curve = self.curves["tok_s"]
        newest = [curve[n][1] for n in range(-min(_LATELY, self._paced, len(curve)), 0)]
        return median(newest) if newest else None

    @property
    def mfu_pct(self) -> float | None:
        """What of the cards' peak goes into the model's own work; None without a plan."""
        return self.expected.mfu_pct(self.tok_s) if self.expected else None

    @property
    def best(self) -> str:
        """The checkpoint with the lowest evaluation loss; empty where none was evaluated.

        Of those that were looked at and those that this run has told of since: ``train`` looks
        once, when it begins.
        """
        return self._best[1]

    def eta(self) -> eta.Eta:
        """What is left after the newest log line."""
        return self.history.eta(self.step, self.max_steps)

    def news(self, count: int) -> list[Told]:
        """The newest events in order: two that are routine, and more where there is room."""
        rare = min(max(count - 2, 0), len(self.told))
        routine = min(count - rare, len(self.routine))
        rare = min(count - routine, len(self.told))
        newest = (*_last(self.told, rare), *_last(self.routine, routine))
        return sorted(newest, key=lambda told: told.number)

    def trend(self) -> str:
        """falling, rising or level, as ``trends.of`` has it; nothing while that is not known."""
        curve = self.curves["loss"]
        window = min(_LATELY, len(curve) // 2)
        if window < _FEWEST:
            return ""
        values = [curve[n][1] for n in range(-2 * window, 0)]
        before, newest = values[:window], values[window:]
        change = fmean(newest) - fmean(before)
        chance = 2 * math.sqrt((variance(before) + variance(newest)) / window)
        if abs(change) <= chance:
            return "level"
        return "falling" if change < 0 else "rising"

    # --- what it is told ------------------------------------------------------------

    def take(self, kind: str, facts: dict[str, Any]) -> None:
        """One message: metrics, event, start, resume, sample, checkpoints, state."""
        handler = getattr(self, f"_{kind}", None)
        if handler and kind in _KINDS:
            handler(facts)

    def _start(self, facts: dict[str, Any]) -> None:
        if facts["session"] != self.session:
            self._begin(facts["session"], 0)

    def _resume(self, facts: dict[str, Any]) -> None:
        if facts["session"] != self.session:
            self._begin(facts["session"], facts["step"])
            self.resumes.append(facts["step"])

    def _begin(self, session: int, step: int) -> None:
        self.session, self.state, self.why = session, "starting", ""
        self.now = {"step": step, "max_steps": self.max_steps}
        self.began_s = None
        self._pace, self._paced = _Pace(), 0
        for curve in self.curves.values():
            while curve and curve[-1][0] > step:  # what is trained once more
                curve.pop()
        while self.resumes and self.resumes[-1] >= step:
            self.resumes.pop()

    def _metrics(self, line: dict[str, Any]) -> None:
        self.history.metrics(line)
        session = line.get("session")
        if runs.is_whole(session) and session > self.session:
            self._begin(session, self.step)
        self.now = {**self.now, **line}
        step = self.step
        for name in ("loss", "eval_loss", "learning_rate"):
            self._add(name, step, line.get(name))
        if "loss" in line:
            if self.state in {"starting", "restarting", "stalled"}:
                self.state, self.why = "running", ""
            tok_s = self._pace.tok_s(line)
            self._add("tok_s", step, tok_s)
            self._paced += tok_s is not None
        if (eval_s := files.number(line.get("eval_s"))) is not None:
            self._pace.spend(step, eval_s)

    def _add(self, name: str, step: int, value: Any) -> None:
        number = files.number(value)
        curve = self.curves[name]
        if number is None or not math.isfinite(number):
            return
        if curve and curve[-1][0] >= step:
            curve.pop()
        curve.append((step, number))

    def _event(self, event: dict[str, Any]) -> None:
        self.history.event(event)
        kind = event.get("event")
        found = story.line(event)
        moment = files.number(event.get("time")) or 0.0
        if found:
            self._events += 1
            kept = self.routine if kind in _ROUTINE else self.told
            kept.append(Told(moment, *found, self._events))
        if kind in {"start", "resume"} and event.get("session") == self.session:
            self.began_s = moment or None
        if kind == "eval":
            self._evaluated = (files.number(event.get("eval_loss")) or math.inf, event.get("step"))
        if kind == "save":
            self.last_save, self.saved_s = f"checkpoint-{event.get('step')}", moment
            # Retention never takes the best; an evaluation is told before the save of its step.
            if self._evaluated[1] == event.get("step"):
                self._best = min(self._best, (self._evaluated[0], self.last_save))
        self._follow_state(str(kind), event)
        for name, after in (("save_s", 0), ("wait_s", -1)):
            seconds, step = files.number(event.get(name)), event.get("step")
            if seconds is not None and runs.is_whole(step):
                self._pace.spend(step + after, seconds)

    def _follow_state(self, kind: str, event: dict[str, Any]) -> None:
        state = _STATES.get(kind)
        if state is None or (state == "running" and self.state == "stopping"):
            return
        text = event.get("text") or event.get("why") or ""
        self.state, self.why = state, str(text) if state in {"paused", "restarting"} else ""

    def _sample(self, facts: dict[str, Any]) -> None:
        self.sample = facts["sample"]

    def _checkpoints(self, facts: dict[str, Any]) -> None:
        self.saved = tuple(facts["found"])
        best = next((c for c in self.saved if c.best), None)
        self._best = (best.eval_loss or 0.0, best.path.name) if best else _NO_BEST
        sound = [c for c in self.saved if c.sound]
        if sound:
            self.last_save, self.saved_s = sound[-1].path.name, sound[-1].modified

    def _state(self, facts: dict[str, Any]) -> None:
        self.state, self.why = facts["state"], facts.get("why", "")


def _last(told: Sequence[Told], count: int) -> Iterator[Told]:
    return islice(told, len(told) - count, None)


_ROUTINE = {"save", "eval", "remove", "slim"}
_KINDS = {"start", "resume", "metrics", "event", "sample", "checkpoints", "state"}
_STATES = {
    "train_begin": "running",
    "unpause": "running",
    "save": "running",
    "save_asked": "saving",
    "pause": "paused",
    "stop_asked": "stopping",
    "stop": "stopping",
    "restart": "restarting",
    "ladder": "restarting",
}
"""What an event makes of a run's state. How it ends is told by run.json, not by events."""


class _Pace:
    """Tokens a second from log line to log line, without evaluations, saves and waiting."""

    def __init__(self) -> None:
        self._line: dict[str, Any] = {}
        self._spent: dict[int, float] = {}

    def spend(self, step: int, seconds: float) -> None:
        """Note what was no training, by the step it came after."""
        self._spent[step] = self._spent.get(step, 0.0) + seconds

    def tok_s(self, line: dict[str, Any]) -> float | None:
        """Of the steps since the training line before this one, as ``series`` has it."""
        before, self._line = self._line, line
        since, until = (_clock_s(one) for one in (before, line))
        steps = [one.get("step") for one in (before, line)]
        lost = 0.0
        if all(runs.is_whole(step) for step in steps):
            lost = sum(self._spent.pop(s) for s in sorted(self._spent) if s < line["step"])
        tokens = [files.number(one.get("tokens/total")) for one in (before, line)]
        if since is None or until is None or tokens[0] is None or tokens[1] is None:
            return None
        seconds, count = until - since - lost, tokens[1] - tokens[0]
        return count / seconds if seconds > 0 and count > 0 else None


def _clock_s(line: dict[str, Any]) -> float | None:
    return files.number(line.get("monotonic_s", line.get("time")))


def of(paths: runs.RunPaths) -> Pulse:
    """A run as it stands: what its files told until now.

    Raises:
        BadInput: there is no run, or its record is damaged.
    """
    pulse = Pulse(paths.directory.resolve().name)
    record = runs.read(paths)
    recent = tidings.read(paths)
    for kind, facts in _in_order(recent.events, [*_older(recent), *recent.metrics]):
        pulse.take(kind, facts)
    if record.sessions:
        newest = record.sessions[-1]
        kind = "start" if newest.resumed_from is None else "resume"
        pulse.take(kind, {"session": newest.number, "step": newest.resumed_from or 0})
        pulse.began_s = newest.started
    pulse.expected = expected.read(paths)
    pulse.sample = telemetry.last(paths)
    pulse.take("checkpoints", {"found": checkpoints.scan(paths.directory)})
    pulse.take("state", {"state": pulse.state, "why": pulse.why})
    return pulse


def _older(recent: tidings.Tidings) -> Iterator[dict[str, Any]]:
    """Evaluations from before the newest log lines, as log lines."""
    first = files.number(recent.metrics[0].get("time")) if recent.metrics else None
    for line in files.objects(recent.evaluations):
        moment = files.number(line.get("time"))
        if first is not None and moment is not None and moment < first:
            yield {name: value for name, value in line.items() if name != "event"}


def _in_order(
    told: Iterable[dict[str, Any]], lines: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Events with the beginnings they tell, and log lines, by time; both are in order."""
    waiting = deque(lines)
    for event in told:
        moment = files.number(event.get("time")) or 0.0
        while waiting and (files.number(waiting[0].get("time")) or 0.0) < moment:
            yield "metrics", waiting.popleft()
        kind, session, step = event["event"], event.get("session"), event.get("step")
        if kind in {"start", "resume"} and runs.is_whole(session) and runs.is_whole(step):
            yield kind, {"session": session, "step": step}
        yield "event", event
    for line in waiting:
        yield "metrics", line


def elapsed_s(pulse: Pulse) -> float:
    """Seconds since the newest session began; 0 where that is not known."""
    return max(time.time() - pulse.began_s, 0.0) if pulse.began_s else 0.0
