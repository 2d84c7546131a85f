"""Owns how far a training in stages has come: its stages side by side.

Reads files only. Does not look into one stage (``status`` does).
"""

from dataclasses import dataclass
from typing import Any

from leviathan import runs, status
from leviathan.runs import RunPaths


@dataclass(frozen=True)
class Standing:
    """One stage."""

    stage: str
    run: str | None
    """None where it is not begun."""
    state: str = "not begun"
    step: int = 0
    max_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    reward: float | None = None
    """Where rewards train it: its loss says nothing then."""

    @property
    def steps(self) -> str:
        """12 of 340."""
        if self.run is None:
            return ""
        return f"{self.step:,} of {f'{self.max_steps:,}' if self.max_steps else '?'}"

    @property
    def row(self) -> tuple[str, str, str, str, str, str]:
        """Under ``HEADS``."""
        shown = [self.loss, self.eval_loss, self.reward]
        if self.reward is not None:
            shown[0] = shown[1] = None
        loss, eval_loss, reward = ("" if v is None else f"{v:.4g}" for v in shown)
        return self.stage, self.state, self.steps, loss, eval_loss, reward

    def to_json(self) -> dict[str, Any]:
        """One of ``stages`` in ``status --json`` and ``report --json``."""
        return {
            "stage": self.stage, "run": self.run, "state": self.state, "step": self.step,
            "max_steps": self.max_steps, "loss": self.loss, "eval_loss": self.eval_loss,
            "reward": self.reward,
        }  # fmt: skip


HEADS = ["stage", "state", "steps", "loss", "eval loss", "reward"]


@dataclass(frozen=True)
class Course:
    """All of them, in order."""

    whole: str
    """What they are called together."""
    stages: tuple[Standing, ...]

    @property
    def done(self) -> str:
        """How many have ended."""
        ended = sum(one.state == "done" for one in self.stages)
        return f"{ended} of {len(self.stages)} stages done"

    def to_json(self) -> dict[str, Any]:
        """What ``status --json`` and ``report --json`` have besides."""
        return {"whole": self.whole, "stages": [one.to_json() for one in self.stages]}


def of(paths: RunPaths) -> Course | None:
    """The training that this run is a stage of; None where it is the whole itself.

    Raises:
        BadInput: the run's record cannot be read.
    """
    whole = runs.whole_of(paths)
    if not whole:
        return None
    root = paths.directory.parent
    begun = {runs.read(one).stage: one for one in runs.of_stages(whole, root)}
    names = runs.read(paths).stages
    return Course(whole, tuple(_standing(name, begun.get(name)) for name in names))


def _standing(name: str, paths: RunPaths | None) -> Standing:
    if paths is None:
        return Standing(name, None)
    found = status.summarize(paths)
    return Standing(name, found.name, found.state, found.step, found.max_steps, found.loss,
                    found.eval_loss, found.reward)  # fmt: skip
