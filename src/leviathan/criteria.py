"""Owns whether a run is a success: its recipe's and everybody's criteria, each with evidence.

Pure: figures in, verdicts out. Does not explain how a run went (``verdicts``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leviathan.checkpoints import Checkpoint
from leviathan.grades import Grade
from leviathan.incidents import Incident
from leviathan.recipe import Success
from leviathan.series import Curve
from leviathan.spelled import count, counted, figure, times
from leviathan.telemetry import Sample

_LAST = 0.02
"""Share of the log lines whose mean is the final loss: a single one says little."""


@dataclass(frozen=True)
class Criterion:
    """One of them."""

    name: str
    wanted: str
    actual: str
    verdict: str
    """pass, fail, open (the run is not over) or unchecked."""
    evidence: str


def final_loss(loss: Curve, success: Success, *, over: bool) -> Criterion:
    """Whether the training loss ended below the recipe's."""
    wanted = f"< {success.final_loss:g}" if success.final_loss else ""
    if not len(loss):
        return Criterion("final loss", wanted, "-", "open" if not over else "unchecked",
                         "no loss was logged")  # fmt: skip
    last = loss.value[-max(int(len(loss) * _LAST), min(len(loss), 5)) :]
    mean = float(last.mean())
    evidence = (
        f"mean of the last {counted(len(last), 'log line')} "
        f"({figure(float(last.min()))} to {figure(float(last.max()))})"
    )
    if success.final_loss is None:
        verdict, evidence = "unchecked", f"{evidence}; the recipe's success.final_loss sets a goal"
    else:
        verdict = ("pass" if mean < success.final_loss else "fail") if over else "open"
    return Criterion("final loss", wanted, figure(mean), verdict, evidence)


def no_oom(incidents: Sequence[Incident], *, over: bool) -> Criterion:
    """Whether memory never ran out."""
    found = [incident for incident in incidents if incident.kind == "oom"]
    if found:
        steps = ", ".join(count(i.step) for i in found[:4] if i.step is not None)
        after = f"; {found[-1].after}" if found[-1].after else ""
        evidence = f"at step {steps}{' ...' * (len(found) > 4)}{after}"
        return Criterion("out of memory", "never", times(len(found)), "fail", evidence)
    return Criterion("out of memory", "never", "never", "pass" if over else "open",
                     "no session ended by it")  # fmt: skip


def sound_checkpoints(
    saved: Sequence[Checkpoint], aside: Sequence[Checkpoint], *, over: bool
) -> Criterion:
    """Whether what was saved can be used."""
    bad = [f"checkpoint-{c.step} ({c.problem})" for c in saved if not c.sound]
    quarantined = sum(c.where == "quarantine" for c in aside)
    note = f"; {counted(quarantined, 'other')} quarantined" if quarantined else ""
    actual = f"{len(saved) - len(bad)} of {len(saved)}"
    if bad:
        text = f"not sound: {', '.join(bad[:4])}{' ...' * (len(bad) > 4)}"
        return Criterion("checkpoints", "all sound", actual, "fail", text + note)
    if not saved:
        return Criterion("checkpoints", "all sound", "none", "unchecked" if over else "open",
                         f"nothing was saved{note}")  # fmt: skip
    evidence = f"names and sizes; leviathan checkpoints verify reads every byte{note}"
    return Criterion("checkpoints", "all sound", actual, "pass" if over else "open", evidence)


def temperature(samples: Sequence[Sample], limit_c: float, *, over: bool) -> Criterion:
    """Whether the GPUs stayed cool enough."""
    told = [s.hottest_c for s in samples if s.hottest_c is not None]
    wanted = f"< {limit_c:g} °C"
    if not told:
        return Criterion("temperature", wanted, "-", "unchecked",
                         "no GPU told its temperature")  # fmt: skip
    hottest = max(told)
    evidence = f"median {np.median(told):.0f} °C of {counted(len(told), 'sample')}"
    verdict = "fail" if hottest >= limit_c else "pass" if over else "open"
    return Criterion("temperature", wanted, f"{hottest:g} °C", verdict, evidence)


def prompts(grade: Grade | None, success: Success, command: str) -> Criterion:
    """Whether the model does what its prompt suite asks."""
    wanted = f"≥ {success.prompts_pass_pct:g} %"
    if grade is None:
        return Criterion("prompts", wanted, "-", "unchecked", command)
    low, high = grade.interval_pct
    base = f"; base model {grade.base_pass_pct:g} %" if grade.base_pass_pct is not None else ""
    evidence = (
        f"{grade.passed} of {grade.total} of {grade.suite}, {grade.checkpoint} "
        f"(95 % interval {low:g} to {high:g} %){base}"
    )
    verdict = "pass" if grade.pass_pct >= success.prompts_pass_pct else "fail"
    return Criterion("prompts", wanted, f"{grade.pass_pct:g} %", verdict, evidence)
