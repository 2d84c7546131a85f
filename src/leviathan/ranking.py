"""Owns putting a prompt suite to every checkpoint of a run, and which is best by it.

One model is put to a suite by ``evaluate``; results are kept by ``grades``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import checkpoints, generation, grades, models, prompts, scores
from leviathan.checkpoints import Checkpoint
from leviathan.endpoint import Endpoint
from leviathan.errors import BadInput
from leviathan.evaluate import Examination

Progress = Callable[[str, int, int], None]
"""Told of the checkpoint being examined, how many are done, and of how many."""


@dataclass(frozen=True)
class Ranking:
    """Every sound checkpoint with its summary (``scores.summary``), by step."""

    suite: str
    entries: tuple[tuple[Checkpoint, dict[str, Any]], ...]
    damaged: tuple[Checkpoint, ...]

    @property
    def best(self) -> tuple[Checkpoint, dict[str, Any]]:
        """The highest rate; of equal ones the lower evaluation loss, then the earlier.

        The loss is made of thousands of tokens and tells equals apart better than chance; a
        model that is trained less has had less time to learn its corpus by heart.
        """
        return min(self.entries, key=lambda e: (-e[1]["pass_share"], _loss(e[0]), e[0].step))

    @property
    def by_loss(self) -> tuple[Checkpoint, dict[str, Any]]:
        """What ``merge`` takes unless told: the lowest evaluation loss, without any the latest."""
        if all(math.isinf(_loss(c)) for c, _ in self.entries):
            return self.entries[-1]
        return min(self.entries, key=lambda e: (_loss(e[0]), e[0].step))

    def to_json(self) -> dict[str, Any]:
        """The best's document of ``test --json``, and every checkpoint's figures."""
        (best, summary), (usual, other) = self.best, self.by_loss
        return {
            **summary,
            "suite": self.suite,
            "checkpoint": best.path.name,
            "best_by_eval_loss": usual.path.name,
            "versus_best_by_eval_loss": scores.versus(_pairs(summary, other)),
            "checkpoints": [
                {"checkpoint": c.path.name, "step": c.step, "eval_loss": c.eval_loss,
                 **{name: told[name] for name in _FIGURES},
                 "passed_cases": [case["name"] for case in told["cases"] if case["passed"]]}
                for c, told in self.entries
            ],
            "damaged": [{"checkpoint": c.path.name, "problem": c.problem} for c in self.damaged],
        }  # fmt: skip


_FIGURES = ("passed", "total", "pass_pct", "interval_pct", "versus_base")


def rank(examination: Examination, progress: Progress) -> Ranking:
    """Put the suite to every sound checkpoint; the base answers once. Grades are kept at the end.

    Raises:
        BadInput: the target is no run.
    """
    run, source = examination.run, examination.source
    if run is None or isinstance(source, Endpoint):
        raise BadInput("--all-checkpoints is about a run", "name the run, not a model or a URL")
    verified = [checkpoints.verify(c) for c in checkpoints.scan(run.directory)]
    sound = [c for c in verified if c.sound]
    entries = tuple(_examined(examination.suite.cases, source, sound, examination, progress))
    damaged = tuple(c for c in verified if not c.sound)
    ranking = Ranking(examination.suite_name, entries, damaged)
    if examination.whole:
        # The one that is merged comes last: the newest grade is the run's.
        for checkpoint, summary in sorted(entries, key=lambda e: e == ranking.by_loss):
            grades.note(run, examination.suite_name, checkpoint.path.name, summary)
    return ranking


def _examined(
    cases: Sequence[prompts.Case],
    source: models.Source,
    sound: Sequence[Checkpoint],
    examination: Examination,
    progress: Progress,
) -> list[tuple[Checkpoint, dict[str, Any]]]:
    entries: list[tuple[Checkpoint, dict[str, Any]]] = []
    model, base = None, None
    for place, checkpoint in enumerate(sound):
        progress(checkpoint.path.name, place, len(sound))
        if model is None or source.adapter is None:
            model = None  # the one before leaves memory before the next comes
            model = models.Model(_of(source, checkpoint.path))
        else:
            model.swap(checkpoint.path)
        if base is None and source.adapter:
            with model.without_adapter():
                base = generation.answers(model, cases, examination.batch_size)
        tuned = generation.answers(model, cases, examination.batch_size)
        entries.append((checkpoint, scores.summary(scores.judged(cases, tuned, base))))
    progress("", len(sound), len(sound))
    return entries


def _of(source: models.Source, checkpoint: Path) -> models.Source:
    if source.adapter:
        return replace(source, adapter=checkpoint)
    return replace(source, model=str(checkpoint))


def _loss(checkpoint: Checkpoint) -> float:
    return math.inf if checkpoint.score is None else checkpoint.score


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[bool, bool]]:
    return [
        (bool(a["passed"]), bool(b["passed"]))
        for a, b in zip(one["cases"], other["cases"], strict=True)
    ]
