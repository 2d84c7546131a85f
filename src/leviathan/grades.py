"""Owns how a run's model did in its prompt suite: kept beside the run as tests.json.

Does not examine it (``evaluate``).
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from leviathan import files, runs


@dataclass(frozen=True)
class Grade:
    """The newest examination."""

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


def note(paths: runs.RunPaths, suite: str, checkpoint: str, summary: dict[str, Any]) -> None:
    """Keep the summary of an examination (``prompts.summary``) without its answers."""
    low, high = summary["interval_pct"]
    grade = Grade(
        time.time(), suite, checkpoint, summary["passed"], summary["total"],
        summary["pass_pct"], (low, high), summary["base_pass_pct"],
    )  # fmt: skip
    with files.unless_full():
        files.write_json(paths.tests, asdict(grade))


def read(paths: runs.RunPaths) -> Grade | None:
    """The newest; None of a run that was never examined, or with a damaged file."""
    try:
        told = json.loads(paths.tests.read_bytes())
        low, high = (float(v) for v in told["interval_pct"])
        base = told["base_pass_pct"]
        return Grade(
            float(told["time_s"]), str(told["suite"]), str(told["checkpoint"]),
            int(told["passed"]), int(told["total"]), float(told["pass_pct"]), (low, high),
            None if base is None else float(base),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
