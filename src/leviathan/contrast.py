"""Owns runs side by side: what was set otherwise, how they went, where they ended.

Reads run directories only. Machine classes side by side are ``comparison``'s; whether a
run may go on with other settings is ``compatibility``'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leviathan import render, runs, series, status, trends
from leviathan.errors import BadInput
from leviathan.series import Curve, Series
from leviathan.status import RunSummary
from leviathan.yamlfile import dotted

_MARKS_PCT = (10, 25, 50, 75, 100)
_NEAR = 10
"""Log lines on each side of a mark whose losses are averaged."""


@dataclass(frozen=True)
class Side:
    """One of the runs."""

    summary: RunSummary
    series: Series
    final_loss: float | None
    """Mean of the newest log lines: a single step's is mostly chance."""
    settings: dict[str, Any]
    """Dotted key by value: Axolotl's keys, and what else makes the run what it is."""


@dataclass(frozen=True)
class Contrast:
    """Two runs or more."""

    sides: tuple[Side, ...]
    differences: tuple[tuple[str, tuple[Any, ...]], ...]
    """Settings that are not the same in all, with each run's value; None where it has none."""
    losses: tuple[tuple[int, tuple[float | None, ...]], ...]
    """Training losses around the same steps, in percent of the shortest plan's steps."""
    steps: tuple[int, ...]
    """The steps those percentages are."""

    def to_json(self) -> dict[str, Any]:
        """The document of ``runs compare --json``."""
        return {
            "runs": [
                {**s.summary.to_json(), "final_loss": s.final_loss} for s in self.sides
            ],
            "differences": {name: list(values) for name, values in self.differences},
            "losses": [
                {"step": step, "loss": list(values)}
                for step, (_, values) in zip(self.steps, self.losses, strict=True)
            ],
            "curves": [
                {name: _points(side.series[name]) for name in ("loss", "eval_loss")}
                for side in self.sides
            ],
        }  # fmt: skip


def of(found: Sequence[runs.RunPaths]) -> Contrast:
    """The runs held against each other.

    Raises:
        BadInput: fewer than two, or a run whose record cannot be read.
    """
    if len({paths.directory.resolve() for paths in found}) < 2:
        raise BadInput("comparing takes two runs", "leviathan runs compare A B")
    sides = tuple(_side(paths) for paths in found)
    steps = _marks(sides)
    return Contrast(
        sides,
        tuple(_differences(sides)),
        tuple(
            (percent, tuple(_loss_at(side.series["loss"], step) for side in sides))
            for percent, step in zip(_MARKS_PCT, steps, strict=False)
        ),
        steps,
    )


def _side(paths: runs.RunPaths) -> Side:
    told = series.read(paths)
    trend = trends.of(told["loss"])
    return Side(status.summarize(paths), told, trend.mean if trend else None, _settings(paths))


def _settings(paths: runs.RunPaths) -> dict[str, Any]:
    record = runs.read(paths)
    own = {
        "recipe": record.recipe, "profile": record.profile, "sample": record.sample,
        "processes": record.processes, "corpus": record.corpus.get("digest"), "base": record.base,
    }  # fmt: skip
    versions = {f"versions.{name}": version for name, version in record.versions.items()}
    tree = {dotted(key): value for key, value in render.leaves(record.tree)}
    return {**own, **tree, **versions}


def _differences(sides: tuple[Side, ...]) -> list[tuple[str, tuple[Any, ...]]]:
    names = dict.fromkeys(name for side in sides for name in side.settings)
    rows = [(name, tuple(side.settings.get(name) for side in sides)) for name in names]
    return [(name, values) for name, values in rows if any(v != values[0] for v in values)]


def _marks(sides: tuple[Side, ...]) -> tuple[int, ...]:
    """Steps that every run that got so far can be asked about."""
    planned = [side.summary.max_steps for side in sides if side.summary.max_steps]
    reached = max((side.summary.step for side in sides), default=0)
    shortest = min(planned, default=reached)
    steps = (max(shortest * percent // 100, 1) for percent in _MARKS_PCT)
    return tuple(step for step in steps if step <= reached)


def _loss_at(curve: Curve, step: int) -> float | None:
    """The mean loss around a step; None where the run has not been there."""
    if not len(curve) or not curve.step[0] <= step <= curve.step[-1]:
        return None
    place = int(np.searchsorted(curve.step, step))
    return float(curve.value[max(place - _NEAR, 0) : place + _NEAR + 1].mean())


def row(curve: Curve, last: int, columns: int) -> list[float | None]:
    """A curve as ``columns`` means over equal ranges of steps up to ``last``; None in a gap."""
    if not len(curve):
        return [None] * columns
    column = np.minimum((curve.step - 1) * columns // max(last, 1), columns - 1)
    parts = (curve.value[column == number] for number in range(columns))
    return [float(part.mean()) if len(part) else None for part in parts]


def _points(curve: Curve) -> dict[str, list[float]]:
    thin = curve.thinned(_JSON_COLUMNS)
    return {"step": thin.step.tolist(), "value": thin.value.tolist()}


_JSON_COLUMNS = 250
