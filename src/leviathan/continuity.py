"""Owns whether a run went on as it was after each resume: loss, learning rate, memory.

Pure. Does not judge losses away from resumes (``learning``).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leviathan import chance, runs
from leviathan.judgement import Limits, Verdict, worst
from leviathan.series import Curve, Series
from leviathan.telemetry import Sample

_FEW = 5
"""Log lines on each side, as ``guards.LossWatch`` has it."""
_USUAL = 20
_CLEAR, _SHARE = 4.0, 0.05
"""A loss is higher than before when by so many standard errors, and by 5 %."""
_MORE_MEMORY, _MORE_GIB = 0.1, 0.5


@dataclass(frozen=True)
class _Part:
    """One thing compared across a resume."""

    grade: str
    remark: str
    """What is wrong; empty where nothing is."""
    evidence: str


def resumes(
    series: Series, events: Sequence[dict[str, Any]], samples: Sequence[Sample], limits: Limits
) -> Iterator[Verdict]:
    """One verdict for each resume.

    Loss: means of 5 log lines on each side; bad when beyond the limit of the guard that
    watches it and beyond chance (4 standard errors, from the differences of neighbouring
    lines: von Neumann 1941), a note when beyond one of the two. Learning rate: the step across
    it must be no larger than those around it lead one to expect. Memory: medians.
    """
    sampled = _by_session(samples)
    lowered = False
    for event in events:
        session, step = event.get("session"), event.get("step")
        if event.get("event") == "ladder":
            lowered = True
        elif event.get("event") == "resume" and runs.is_whole(session) and runs.is_whole(step):
            memory = _memory(series, sampled, session, step, lowered)
            yield _judged(series, limits, session, step, list(memory))
            lowered = False


def _by_session(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.session, []).append(sample)
    return found


def _judged(
    series: Series, limits: Limits, session: int, step: int, memory: list[_Part]
) -> Verdict:
    found = [
        *_loss(*_sides(series["loss"], session, step), limits),
        *_rate(series["learning_rate"], session, step),
        *memory,
    ]
    lost = _lost(series, session, step)
    name = f"resume at step {step:,} (session {session})"
    again = f"{lost:,} steps were trained again" if lost else "no step was lost"
    evidence = (*(part.evidence for part in found), *([again] if lost is not None else []))
    if not found:
        why = "no log line of it counts" if _undone(series, session) else "no log lines at hand"
        return Verdict("resume", "note", f"{name}: {why}", evidence, step)
    remarks = "; ".join(part.remark for part in found if part.remark)
    text = f"{name}: {remarks or 'it went on as it was'}"
    return Verdict("resume", worst(part.grade for part in found), text, evidence, step)


def _sides(curve: Curve, session: int, step: int) -> tuple[Curve, Curve]:
    """What earlier sessions told up to ``step``, and this one after it."""
    edge = int(np.searchsorted(curve.step, step, side="right"))
    before = curve.taken(slice(max(edge - _USUAL, 0), edge))
    after = curve.taken(slice(edge, edge + _USUAL))
    return before, after.of(session)


def _undone(series: Series, session: int) -> bool:
    return any(p.session == session and p.undone and p.end <= p.begin for p in series.parts)


def _lost(series: Series, session: int, step: int) -> int | None:
    """Steps that the session before had trained beyond ``step``; None where nobody knows."""
    earlier = [p for p in series.parts if p.session < session]
    return max(earlier[-1].end + earlier[-1].undone - step, 0) if earlier else None


def _loss(before: Curve, after: Curve, limits: Limits) -> Iterator[_Part]:
    if not len(before) or not len(after):
        return
    usual, old, new = before.value, before.value[-_FEW:], after.value[:_FEW]
    jump = float(new.mean() - old.mean())
    evidence = f"loss: {old.mean():.4f} before, {new.mean():.4f} after, over {len(old)} and "
    evidence += f"{len(new)} log lines"
    one = math.sqrt(float((np.diff(usual) ** 2).mean()) / 2) if len(usual) > 1 else math.inf
    error = one * math.sqrt(1 / len(old) + 1 / len(new))
    whole = len(new) == len(old) == _FEW
    if whole and jump > max(limits.loss_jump, _CLEAR * error):
        remark = f"the loss jumped by {jump:.3f}"
        yield _Part("bad", f"{remark}; resume from an earlier checkpoint if it stays", evidence)
    elif whole and jump > _CLEAR * error and jump > _SHARE * abs(float(old.mean())):
        yield _Part("note", f"the loss is {jump:.3f} higher, beyond what it scatters", evidence)
    elif whole and jump > limits.loss_jump:
        yield _Part("note", f"the loss is {jump:.3f} higher, as it scatters anyway", evidence)
    else:
        yield _Part("good", "", evidence)


def _rate(rates: Curve, session: int, step: int) -> Iterator[_Part]:
    before, after = _sides(rates, session, step)
    if not len(before) or not len(after):
        return
    old, new = float(before.value[-1]), float(after.value[0])
    evidence = f"learning rate: {old:.4g} before, {new:.4g} after"
    if _meets(before, after):
        yield _Part("good", "", evidence)
        return
    scale = new / old if old else math.inf
    start = rates.taken(slice(0, len(after)))
    again = int(start.step[0]) <= _USUAL and len(after) > 1 and _alike(start.value, after.value)
    if again and not _alike(start.value, np.full(len(start), new)):
        yield _Part("bad", f"the learning rate's schedule began anew, at {new:.3g}", evidence)
        return
    kept = _shape(before, old, after) and _shape(after, new, before)
    remark = f"the learning rate went from {old:.3g} to {new:.3g}"
    if kept and math.isfinite(scale) and scale > 0:
        remark += f" ({scale:.3g} times, its schedule kept: a changed learning_rate)"
        yield _Part("note", remark, evidence)
    else:
        yield _Part("warn", f"{remark}, which its schedule does not tell", evidence)


def _alike(one: chance.Numbers, other: chance.Numbers) -> bool:
    count = min(len(one), len(other), _FEW)
    return bool(np.allclose(one[:count], other[:count], rtol=0.02, atol=0.0))


def _meets(before: Curve, after: Curve) -> bool:
    """Whether the step across is what the steps on either side lead one to expect."""
    gap = float(after.step[0] - before.step[-1])
    steepest = max(_steepest(before), _steepest(after))
    across = abs(float(after.value[0] - before.value[-1]))
    level = max(abs(float(before.value[-1])), abs(float(after.value[0])))
    # A schedule bends: the step across may be half as large again as any near it.
    return across <= 1.5 * steepest * gap + 0.005 * level


def _steepest(rates: Curve) -> float:
    """The largest change a step, of the few lines next to the resume and some around."""
    if len(rates) < 2:
        return 0.0
    steps = np.maximum(np.diff(rates.step), 1)
    return float(np.abs(np.diff(rates.value) / steps).max())


def _shape(rates: Curve, level: float, others: Curve) -> bool:
    """Whether the relative slope is the other side's: the same schedule, scaled."""
    if len(rates) < 2 or len(others) < 2:
        return True
    mine, theirs = (
        float((c.value[-1] - c.value[0]) / max(int(c.step[-1] - c.step[0]), 1) / c.value.mean())
        if c.value.mean() else 0.0
        for c in (rates, others)
    )  # fmt: skip
    return abs(mine - theirs) <= 0.5 * max(abs(mine), abs(theirs)) + 1e-4


def _memory(
    series: Series, sampled: dict[int, list[Sample]], session: int, step: int, lowered: bool
) -> Iterator[_Part]:
    before, after = _sides(series["memory_gib"], session, step)
    told = [("torch's memory", before.value[-_FEW:], after.value[:_FEW])]
    for name, of in (("GPU memory", "used_gib"), ("resident memory", "resident_gib")):
        told.append((name, *_sampled(sampled, of, session)))
    why = " (the settings were lowered between)" if lowered else ""
    for name, old, new in told:
        if not len(old) or not len(new):
            continue
        one, two = float(np.median(old)), float(np.median(new))
        evidence = f"{name}: {one:.2f} GiB before, {two:.2f} after{why}"
        more = two - one > max(_MORE_MEMORY * one, _MORE_GIB)
        remark = f"{name} is {two - one:.1f} GiB more than before ({one:.1f})" if more else ""
        yield _Part("warn" if more else "good", remark, evidence)


_SETTLED = 6
"""Samples of a session's beginning, a minute: while it loads it holds less."""
_COMPARED = 60


def _sampled(
    sampled: dict[int, list[Sample]], name: str, session: int
) -> tuple[chance.Numbers, chance.Numbers]:
    """A figure of the samples before a session began, and of its own after a minute."""
    earlier = max((number for number in sampled if number < session), default=None)
    before = sampled[earlier][_SETTLED:][-_COMPARED:] if earlier is not None else []
    after = sampled.get(session, [])[_SETTLED : _SETTLED + _COMPARED]
    one, two = (
        np.array([value for s in side if (value := getattr(s, name)) is not None], np.float64)
        for side in (before, after)
    )
    return one[np.isfinite(one)], two[np.isfinite(two)]
