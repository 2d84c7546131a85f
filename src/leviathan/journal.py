"""Owns writing events and metrics from inside the training process, full disk or not.

Does not know what they mean. The supervisor's own events are ``runs``'s.
"""

import time
from pathlib import Path
from typing import Any

from leviathan import files, runs


class Journal:
    """Writes the run's events and metrics; what a full disk refuses waits in memory.

    Training is worth more than its log lines: a full disk must not end it here.
    """

    def __init__(self, paths: runs.RunPaths, session: int) -> None:
        self.paths, self.session = paths, session
        self._waiting: list[tuple[Path, dict[str, Any]]] = []

    def metrics(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append(self.paths.metrics, {**_now(), "session": self.session, **line})

    def event(self, kind: str, /, **facts: Any) -> None:
        """Append one event of this session."""
        line = {**_now(), "event": kind, "session": self.session, **facts}
        self._append(self.paths.events, line)

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        self._waiting.append((path, line))
        try:
            while self._waiting:
                files.append_json(*self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if error.errno not in files.FULL:
                raise


def _now() -> dict[str, float]:
    """The wall clock, and seconds since boot, which nobody can set: what durations are made of."""
    return {"time": time.time(), "monotonic_s": round(time.monotonic(), 3)}
