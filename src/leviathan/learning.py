"""Owns what a run's losses mean: overfitting, plateau, divergence.

Pure. Does not look at what the machine did, nor at resumes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leviathan import chance, choice, files, runs
from leviathan.checkpoints import Checkpoint
from leviathan.judgement import Limits, Verdict
from leviathan.series import Curve, Series

# --- overfitting ------------------------------------------------------------------

_MATERIAL, _BAD = 0.01, 0.05
"""Shares by which the evaluation loss is above its lowest: the generalisation losses GL 1 and
GL 5 of Prechelt (1998, Early stopping - but when?)."""
_SURE = 3.0
_RECENT = 2
_ENOUGH = 6
_MOST_LINES = 200


@dataclass(frozen=True)
class _Turn:
    """What the evaluations did after the lowest of them."""

    lowest: int
    """Its index."""
    rise: float
    """From it to the mean of the newest two."""
    noise: float
    """Standard deviation of one evaluation."""
    beyond_chance: bool

    def share(self, evals: Curve) -> float:
        """The rise, as a share of the lowest."""
        level = abs(float(evals.value[self.lowest]))
        return self.rise / level if level else 0.0


def overfitting(series: Series, saved: Sequence[Checkpoint]) -> Iterator[Verdict]:
    """Whether the evaluation loss turned up while the training loss went on falling.

    The lowest evaluation must lie two or more back, and the rise since be beyond chance:
    beyond what the lowest of so many evaluations lies below the others by chance alone
    (sqrt(2 ln n) standard deviations) and three more; or steady (Mann-Kendall, 2.6 standard
    errors: what follows a minimum has no trend of itself); or 5 % and more, higher
    at each evaluation since (with six evaluations or more, also 3 standard deviations).
    """
    evals = series["eval_loss"]
    if len(evals) < 3:
        return
    turn = _turn(evals)
    if turn is None or not turn.beyond_chance:
        yield _fine(evals, turn)
        return
    yield _turned(series["loss"], evals, turn, saved)


def _turned(loss: Curve, evals: Curve, turn: _Turn, saved: Sequence[Checkpoint]) -> Verdict:
    before, after, where = _trained(loss, evals, turn.lowest)
    share, step = turn.share(evals), int(evals.step[turn.lowest])
    lowest = float(evals.value[turn.lowest])
    grade = "note" if share < _MATERIAL else "warn" if share < _BAD else "bad"
    rose = f"the evaluation loss is {100 * share:.1f} % above its lowest, {lowest:.4f} at step "
    rose += f"{step:,}"
    evidence = [
        f"evaluation loss: {lowest:.4f} at step {step:,}, {lowest + turn.rise:.4f} over the "
        f"newest {_RECENT}; one scatters by {turn.noise:.2g}",
    ]
    fallen = ""
    if len(before) and len(after):
        evidence.append(
            f"training loss: {before.mean():.4f} {where}, {after.mean():.4f} before the newest"
        )
        errors = chance.fall(before, after)
        if errors <= 2:
            told, grade = (
                ("rose, too: no overfitting, training itself goes wrong", grade)
                if errors < -2
                else ("did not fall: no overfitting", "note")
            )
            text = f"{rose}, and the training loss {told}"
            return Verdict("divergence", grade, text, tuple(evidence), step)
        fallen = ", while the training loss fell"
    best, remark = choice.best_left(saved, evals)
    evidence += [*([remark] if remark else []), _cost(evals, turn.lowest)]
    name = best.path.name if best else None
    text = f"overfitting: {rose}{fallen}" + (f"; use {name}" if name else "")
    return Verdict("overfitting", grade, text, tuple(evidence), step, name)


def _turn(evals: Curve) -> _Turn | None:
    """None where nothing follows the lowest."""
    values = evals.value
    count, lowest = len(values), int(values.argmin())
    after = values[lowest + 1 :]
    if len(after) < 2:
        return None
    newest = after[-_RECENT:]
    rise = float(newest.mean() - values[lowest])
    noise = chance.noise(values)
    # Few evaluations tell their own noise badly: Student's t widens about so fast.
    widened = noise * (1 + 4 / max(count - 2, 1)) * math.sqrt(1 + 1 / len(newest))
    least = (math.sqrt(2 * math.log(count)) + _SURE) * widened
    clear = noise > 0 and float(newest.min() - values[lowest]) > 0 and rise > least
    steady = len(after) >= 6 and chance.trend(after) > 2.6
    # Of a few evaluations, as of one an epoch, nobody knows by how much they scatter.
    known = count >= _ENOUGH
    large = bool((after - values[lowest] > _BAD * abs(values[lowest])).all())
    large &= bool((np.diff(after) > 0).all()) and (not known or rise > _SURE * widened)
    return _Turn(lowest, rise, noise, bool(clear or steady or large))


def _trained(loss: Curve, evals: Curve, lowest: int) -> tuple[chance.Numbers, chance.Numbers, str]:
    """Training losses before the lowest evaluation and before the newest."""
    after = _between(loss, int(evals.step[-2]), int(evals.step[-1]))
    since = int(evals.step[lowest - 1]) if lowest else -1
    before = _between(loss, since, int(evals.step[lowest]))
    if len(before):
        return before, after, "before the lowest"
    # Of a long run only the newest lines may be at hand.
    first = loss.value[loss.step > evals.step[lowest]][: len(after)]
    apart = len(first) and 2 * len(after) <= int((loss.step > evals.step[lowest]).sum())
    return (first if apart else first[:0]), after, "in the first lines at hand after the lowest"


def _between(loss: Curve, since: int, until: int) -> chance.Numbers:
    """Losses after one step up to another; the newest where there are many."""
    begin, end = np.searchsorted(loss.step, [since, until], side="right")
    return loss.value[max(int(begin), int(end) - _MOST_LINES) : int(end)]


def _cost(evals: Curve, lowest: int) -> str:
    steps = int(evals.step[-1] - evals.step[lowest])
    hours = float(evals.time_s[-1] - evals.time_s[lowest]) / 3600
    took = f" in {hours:.1f} h" if math.isfinite(hours) and hours > 0 else ""
    return f"{steps:,} steps{took} since then made it worse; those to come will, too"


def _fine(evals: Curve, turn: _Turn | None) -> Verdict:
    newest, lowest = float(evals.value[-1]), int(evals.value.argmin())
    if lowest == len(evals) - 1:
        text = f"no overfitting: the newest evaluation, {newest:.4f}, is the lowest"
    else:
        text = f"no overfitting: the newest evaluation, {newest:.4f}, is no further above the "
        text += f"lowest, {evals.value[lowest]:.4f} at step {int(evals.step[lowest]):,}, than "
        text += "evaluations scatter" if turn else "a single one can be"
    return Verdict("overfitting", "good", text, (f"{len(evals)} evaluations",))


# --- plateau ----------------------------------------------------------------------

_LEVEL = 0.01
"""Share of the loss: less improvement over a third of the run is none."""
_STILL_LEARNING = 0.3
"""Share of the highest learning rate; below it a loss that does not move is what is meant."""
_T = 2.2
"""Standard errors of a slope that 95 % of slopes do not exceed, with 4 degrees of freedom."""


def plateau(series: Series) -> Iterator[Verdict]:
    """Whether the loss has stopped falling although the learning rate is still substantial.

    By evaluations, six or more in the last third of the run; without, by the training loss in
    ten parts. Not seeing an improvement proves nothing: the most that the last third can
    hide (the upper end of the slope's 95 % interval) must be below 1 % of the loss, as in
    an equivalence test (Schuirmann 1987).
    """
    rates, curve, name = series["learning_rate"], series["eval_loss"], "evaluation"
    evals = _last_third(curve)
    at, values = evals.step.astype(np.float64), evals.value
    if len(evals) < 6:
        lines, name = _last_third(series["loss"]), "training"
        at, values = _means(lines)
    if len(values) < 6 or not len(rates):
        return
    trained = _last_third(rates)
    share = float(np.median(trained.value) / rates.value.max()) if rates.value.max() > 0 else 0.0
    found, level = chance.line(at, values), float(values.mean())
    if share < _STILL_LEARNING or found is None or level <= 0:
        return
    span = float(at[-1] - at[0])
    fell, most = -found.slope * span, (_T * found.slope_error - found.slope) * span
    if most > _LEVEL * level or -fell > _LEVEL * level:
        return
    text = (
        f"plateau: the {name} loss has stayed at {level:.4f} since step {int(at[0]):,}, with the "
        f"learning rate at {100 * share:.0f} % of its highest"
    )
    evidence = (
        f"it fell by {fell:.4f} over {span:,.0f} steps, by {most:.4f} at most",
        f"less than {100 * _LEVEL:g} % of the loss over the last third counts as none",
    )
    yield Verdict("plateau", "note", text, evidence, int(at[0]))


def _last_third(curve: Curve) -> Curve:
    if not len(curve):
        return curve
    first, last = int(curve.step[0]), int(curve.step[-1])
    return curve.taken(curve.step >= last - (last - first) // 3)


def _means(lines: Curve) -> tuple[chance.Numbers, chance.Numbers]:
    """Ten means; of what single lines scatter by, less is left, and they depend on each other
    less (batch means)."""
    if len(lines) < 50:
        return np.zeros(0), np.zeros(0)
    parts = [np.array_split(column, 10) for column in (lines.step, lines.value)]
    at, values = ([float(part.mean()) for part in column] for column in parts)
    return np.array(at), np.array(values)


# --- divergence -------------------------------------------------------------------

_SMOOTH = 20
"""Log lines, as ``guards.LossWatch`` has it."""


def divergence(
    series: Series, events: Sequence[dict[str, Any]], saved: Sequence[Checkpoint], limits: Limits
) -> Iterator[Verdict]:
    """Whether the loss left for good, by the numbers of the guard that watches it."""
    yield from _not_finite(series, events)
    loss = series["loss"]
    if len(loss) < _SMOOTH:
        return
    total = np.concatenate([[0.0], np.cumsum(loss.value - loss.value[0])])
    smooth = (total[_SMOOTH:] - total[:-_SMOOTH]) / _SMOOTH + loss.value[0]
    lowest = np.minimum.accumulate(smooth)
    above = smooth - lowest
    worst, now, low = int(above.argmax()), float(smooth[-1]), float(lowest[-1])
    step = int(loss.step[int(smooth.argmin()) + _SMOOTH - 1])
    evidence = (
        f"{now:.4f} over the newest {_SMOOTH} log lines, {low:.4f} at the lowest, at step {step:,}",
        f"more than {limits.divergence:g} above counts as divergence",
    )
    if above[-1] > limits.divergence:
        best = next((c for c in reversed(saved) if c.sound and c.step <= step), None)
        advice = f"; resume from {best.path.name} with a lower learning rate" if best else ""
        yield Verdict(
            "divergence", "bad",
            f"the loss diverges: {now:.3f}, it was {low:.3f} at step {step:,}{advice}",
            evidence, step, best.path.name if best else None,
        )  # fmt: skip
    elif above[worst] > limits.divergence:
        at = int(loss.step[worst + _SMOOTH - 1])
        text = f"the loss diverged at step {at:,} ({smooth[worst]:.3f}) and came back to {now:.3f}"
        yield Verdict("divergence", "note", text, evidence, at)
    else:
        yield Verdict("divergence", "good", "the loss does not diverge", evidence)


def _not_finite(series: Series, events: Sequence[dict[str, Any]]) -> Iterator[Verdict]:
    """Losses that are no numbers: the guard's events, and the newest evaluation."""
    loss = series["loss"]
    trained = int(loss.step[-1]) if len(loss) else -1
    guarded = [e for e in events if e.get("event") == "guard" and e.get("kind") == "nan"]
    for event in guarded[-1:]:
        step = event.get("step")
        at = step if runs.is_whole(step) else None
        told = str(event.get("text") or "the loss is no finite number")
        passed = at is not None and trained > at
        count = f"{len(guarded)} time{'s' * (len(guarded) != 1)} in all"
        text = f"{told}, at step {at}" + ("; a later session trained past it" if passed else "")
        yield Verdict("divergence", "note" if passed else "bad", text, (count,), at)
    evals = [e for e in events if e.get("event") == "eval" and "eval_loss" in e]
    newest = files.number(evals[-1]["eval_loss"]) if evals else None
    if newest is not None and not math.isfinite(newest):
        step = evals[-1].get("step")
        text = f"the newest evaluation is {newest}, no finite number"
        yield Verdict("divergence", "bad", text, (f"step {step}",),
                      step if runs.is_whole(step) else None)  # fmt: skip
