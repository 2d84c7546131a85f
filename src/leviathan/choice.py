"""Owns why a checkpoint is the one to use.

Pure. Does not choose for ``merge`` or ``train``, nor verify anything (``checkpoints``): it
explains a choice beside what else there is, or was.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leviathan import chance
from leviathan.checkpoints import Checkpoint
from leviathan.series import Curve

_ENOUGH = 6
"""Evaluations from which on their scatter tells something: with fewer, the steep beginning does."""


@dataclass(frozen=True)
class Choice:
    """A checkpoint, and what speaks for and against it."""

    checkpoint: Checkpoint
    why: str
    """A line."""
    reasons: tuple[str, ...]
    """What else a person should know before relying on it, a line each."""
    of: int
    """Sound checkpoints that were evaluated."""
    second: Checkpoint | None
    """The next best of those."""
    noise: float | None
    """Standard deviation of one evaluation; None while there are too few to tell."""

    def to_json(self) -> dict[str, Any]:
        """What ``checkpoints best --json`` has besides the checkpoint."""
        second = self.second and {
            "step": self.second.step, "eval_loss": self.second.eval_loss,
            "eval_reward": self.second.eval_reward,
            "path": str(self.second.path),
        }  # fmt: skip
        return {
            "why": self.why, "reasons": list(self.reasons), "of": self.of, "second": second,
            "noise": self.noise,
        }  # fmt: skip


def explain(
    chosen: Checkpoint, found: Sequence[Checkpoint], evals: Curve, events: Sequence[dict[str, Any]]
) -> Choice:
    """Why ``chosen`` is the best there is.

    Args:
        chosen: what ``checkpoints.choose`` says to ``best``.
        found: every checkpoint of the run; where one was verified, with what was found.
        evals: the run's evaluation losses.
        events: what tells which checkpoints were saved and removed.
    """
    ranked = sorted(_evaluated(found), key=lambda c: (_loss(c), c.step))
    ranked = [c for c in ranked if not better(c, chosen)]
    noise = chance.noise(evals.value) if len(evals) >= _ENOUGH else None
    if math.isinf(_loss(chosen)):
        why = "no sound checkpoint was evaluated: it is the latest"
        reasons = [*_elsewhere(chosen, found, evals), *_damaged(chosen, found)]
        return Choice(chosen, why, tuple(reasons), 0, None, noise)
    others = [c for c in ranked if c.step != chosen.step]
    if chosen.eval_reward is not None:
        why = f"highest reward in evaluation, {chosen.eval_reward:.4g}, of {len(ranked)} sound "
        why += "checkpoints that were evaluated"
        damaged = tuple(_damaged(chosen, found))
        return Choice(chosen, why, damaged, len(ranked), next(iter(others), None), None)
    why = f"lowest evaluation loss, {_loss(chosen):.4f}, "
    why += f"of {len(ranked)} sound checkpoints that were evaluated" if others else (
        "and the only sound checkpoint that was evaluated"
    )  # fmt: skip
    reasons = [
        *_beside(chosen, others[:1], noise),
        *_newer(chosen, [c for c in others[1:] if c.step > chosen.step], noise),
        *_gone(chosen, found, evals, events),
        *_damaged(chosen, found),
    ]
    return Choice(chosen, why, tuple(reasons), len(ranked), next(iter(others), None), noise)


def best_left(found: Sequence[Checkpoint], evals: Curve) -> tuple[Checkpoint | None, str]:
    """The sound checkpoint nearest to the lowest evaluation, and what to know of it.

    One whose own evaluation is the lowest; where saves and evaluations fall on different
    steps, the one at which the line between the evaluations is lowest.
    """
    sound = [c for c in found if c.sound]
    evaluated = _evaluated(sound)
    if not sound or not len(evals):
        return None, "no sound checkpoint is left"
    lowest = int(evals.value.argmin())
    step = int(evals.step[lowest])
    if evaluated:
        best = min(evaluated, key=lambda c: (_loss(c), c.step))
        remark = "" if best.step == step else f", its evaluation loss is {_loss(best):.4f}"
    else:
        at = np.interp([c.step for c in sound], evals.step, evals.value)
        best = sound[int(at.argmin())]
        remark = ", by the evaluations before and after it" if best.step != step else ""
    if best.step == step:
        return best, ""
    return best, f"no sound checkpoint of step {step:,} is there; {best.path.name} is next{remark}"


def _evaluated(found: Sequence[Checkpoint]) -> list[Checkpoint]:
    return [c for c in found if c.sound and math.isfinite(_loss(c))]


def _loss(checkpoint: Checkpoint) -> float:
    return math.inf if checkpoint.score is None else checkpoint.score


def better(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether one has the lower evaluation loss (of two equal ones, the earlier)."""
    return _rank(one) < _rank(other) and math.isfinite(_loss(one))


def _rank(checkpoint: Checkpoint) -> tuple[float, int]:
    return _loss(checkpoint), checkpoint.step


def within(margin: float, noise: float | None) -> bool | None:
    """Whether two evaluations differ by no more than chance puts them apart, 19 times of 20."""
    return None if noise is None else margin <= 1.96 * math.sqrt(2) * noise


def _beside(chosen: Checkpoint, second: list[Checkpoint], noise: float | None) -> Iterator[str]:
    for other in second:
        margin, longer = _loss(other) - _loss(chosen), other.step - chosen.step
        same = within(margin, noise)
        word = {
            None: "too few evaluations to tell whether that is chance",
            True: f"within the noise of evaluations ({noise or 0:.2g} each)",
            False: f"beyond the noise of evaluations ({noise or 0:.2g} each)",
        }[same]
        trained = f"trained {abs(longer):,} steps {'longer' if longer > 0 else 'less'}"
        yield f"second is {other.path.name}, {margin:.4f} above it, {word}; it {trained}"


def _newer(chosen: Checkpoint, newer: list[Checkpoint], noise: float | None) -> Iterator[str]:
    if not newer:
        return
    margin = _loss(newer[-1]) - _loss(chosen)
    worse = within(margin, noise) is False
    told = "training on made it worse" if worse else "no more than evaluations scatter"
    if noise is None:
        told = "too few evaluations to tell whether that is chance"
    count = "another newer one is" if len(newer) == 1 else f"{len(newer)} other newer ones are"
    yield f"{count} above it by up to {margin:.4f}: {told}"


def _gone(
    chosen: Checkpoint, found: Sequence[Checkpoint], evals: Curve, events: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """The run's lowest evaluation, where it is another's and that is not there."""
    if not len(evals):
        return
    lowest = int(evals.value.argmin())
    step, value = int(evals.step[lowest]), float(evals.value[lowest])
    if value >= _loss(chosen) or step == chosen.step or any(c.step == step for c in found):
        return
    told = [e for e in events if e.get("step") == step]
    if any(e.get("event") == "remove" for e in told):
        fate = "its checkpoint was removed"
    elif any(e.get("event") in {"quarantine", "set_aside"} for e in told):
        fate = "its checkpoint was moved aside"
    elif any(e.get("event") == "save" for e in told):
        fate = "its checkpoint is gone"
    else:
        fate = "no checkpoint was saved there"
    yield f"the run's lowest evaluation was {value:.4f} at step {step:,}; {fate}"


def _damaged(chosen: Checkpoint, found: Sequence[Checkpoint]) -> Iterator[str]:
    for other in found:
        if better(other, chosen):
            problem = other.problem or "it is damaged"
            yield f"passed over: {other.path.name} with {_loss(other):.4f}, damaged: {problem}"


def _elsewhere(chosen: Checkpoint, found: Sequence[Checkpoint], evals: Curve) -> Iterator[str]:
    """What evaluations at other steps say of a run none of whose checkpoints has its own."""
    if not len(evals):
        yield "the run has no evaluations; val_set_size and evals_per_epoch make some"
        return
    near, _ = best_left(found, evals)
    lowest = int(evals.value.argmin())
    text = f"the run's lowest evaluation was {evals.value[lowest]:.4f} at step "
    text += f"{int(evals.step[lowest]):,}, where no sound checkpoint is"
    if near is not None and near.step != chosen.step:
        text += f"; {near.path.name} is nearest to it"
    yield text
