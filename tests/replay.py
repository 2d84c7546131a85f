"""What a run's own history said was left at some moment of it, beside what was left.

Of recorded lines alone: nothing here depends on how fast this machine is today.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import runs
from leviathan.eta import Eta, History


@dataclass(frozen=True)
class Moment:
    """One look at a session that trained to the run's end."""

    session: int
    share_pct: int
    """Of the steps this session had to train."""
    step: int
    said: Eta
    true_s: float
    """From that log line to the end of training, without waiting."""

    @property
    def error_pct(self) -> float:
        """Of the middle; below 0 where too little was said."""
        return 100 * ((self.said.mid_s or 0.0) / self.true_s - 1)


def moments(directory: Path, shares_pct: tuple[int, ...]) -> Iterator[Moment]:
    """Looks at each session of a run that reached the last step, at shares of its steps."""
    paths = runs.RunPaths(directory)
    events = [e for e in runs.events(paths) if "monotonic_s" in e]
    metrics = runs.files.read_json_lines(paths.metrics)
    begins = {e["session"]: e for e in events if e["event"] == "train_begin"}
    for end in (e for e in events if e["event"] == "train_end"):
        session, first, last = end["session"], begins[end["session"]]["step"], end["max_steps"]
        if end["step"] < last:
            continue
        for share_pct in shares_pct:
            at = first + max((last - first) * share_pct // 100, 1)
            line = next(m for m in metrics if (m["session"], m["step"]) == (session, at))
            yield Moment(
                session, share_pct, at, _said(events, metrics, line), _truth(events, line, end)
            )


def _said(events: list[dict[str, Any]], metrics: list[dict[str, Any]], line: dict[str, Any]) -> Eta:
    def known(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [e for e in lines if e["monotonic_s"] <= line["monotonic_s"]]

    return History(known(events), known(metrics)).eta(line["step"], line["max_steps"])


def _truth(events: list[dict[str, Any]], line: dict[str, Any], end: dict[str, Any]) -> float:
    since = line["monotonic_s"]
    waited = sum(e.get("wait_s", 0.0) for e in events if e["monotonic_s"] > since)
    return float(end["monotonic_s"]) - float(since) - waited
