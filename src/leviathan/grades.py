"""Owns how a run's checkpoints did in its prompt suites: kept beside the run as tests.json.

The newest result stands at the top, the newest of each suite and checkpoint below it. Does not
examine anything (``evaluate``, ``ranking``).
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leviathan import files, runs


@dataclass(frozen=True)
class Grade:
    """One examination."""

    time_s: float
    """Wall clock."""
    suite: str
    checkpoint: str
    passed: int
    total: int
    pass_pct: float
    interval_pct: tuple[float, float]
    """95 % interval of the rate."""
    base_pass_pct: float | None
    """Of the base model; None where it was not asked."""
    lm_eval: tuple[dict[str, Any], ...] = ()
    """Scores of lm-eval's tasks put together with the suite (``harness.Score``)."""
    seed: int | None = None
    """What sampled answers were drawn by; None of results that are older than that."""


def note(
    paths: runs.RunPaths,
    suite: str,
    checkpoint: str,
    summary: dict[str, Any],
    lm_eval: Sequence[dict[str, Any]] = (),
) -> None:
    """Keep the summary of an examination (``scores.summary``) without its answers."""
    low, high = summary["interval_pct"]
    grade = Grade(
        time.time(), suite, checkpoint, summary["passed"], summary["total"],
        summary["pass_pct"], (low, high), summary["base_pass_pct"],
        tuple(lm_eval), summary.get("seed"),
    )  # fmt: skip
    others = [g for g in every(paths) if (g.suite, g.checkpoint) != (suite, checkpoint)]
    with files.unless_full():
        told = {**asdict(grade), "all": [asdict(g) for g in (*others, grade)]}
        files.write_json(paths.tests, told)


def read(paths: runs.RunPaths) -> Grade | None:
    """The newest; None of a run that was never examined, or with a damaged file."""
    return _grade(_told(paths))


def every(paths: runs.RunPaths) -> list[Grade]:
    """The newest of each suite and checkpoint, the newest last; what is damaged is left out."""
    told = _told(paths)
    listed = told.get("all") if isinstance(told, dict) else None
    entries = listed if isinstance(listed, list) else [told]  # one grade alone: as it was once
    found = (_grade(entry) for entry in entries)
    return [grade for grade in found if grade is not None]


def dissent(found: Sequence[Grade], chosen: str, present: Mapping[str, float]) -> str | None:
    """What the suite examined last says against ``chosen``; None: nothing.

    Args:
        found: as ``every`` has them.
        chosen: name of the checkpoint that the evaluation loss puts first.
        present: when each sound checkpoint was written, by name: an older grade is another's.
    """
    fresh = [g for g in found if g.time_s >= present.get(g.checkpoint, math.inf)]
    if not fresh:
        return None
    suite = {g.checkpoint: g for g in fresh if g.suite == fresh[-1].suite}
    own = suite.get(chosen)
    best = max(suite.values(), key=lambda g: g.pass_pct)
    if own is None or best.pass_pct <= own.pass_pct:
        return None
    return (
        f"the suite {best.suite} puts {best.checkpoint} first: {best.pass_pct:g} % passed, "
        f"{own.pass_pct:g} % of this one; merge --checkpoint {best.checkpoint} takes it"
    )


def _told(paths: runs.RunPaths) -> Any:
    try:
        return json.loads(paths.tests.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _grade(told: Any) -> Grade | None:
    try:
        low, high = (float(v) for v in told["interval_pct"])
        base = told["base_pass_pct"]
        return Grade(
            float(told["time_s"]), str(told["suite"]), str(told["checkpoint"]),
            int(told["passed"]), int(told["total"]), float(told["pass_pct"]), (low, high),
            None if base is None else float(base),
            tuple(dict(score) for score in told.get("lm_eval", [])),
            None if told.get("seed") is None else int(told["seed"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
