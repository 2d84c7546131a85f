"""Owns following a run from another process: its metrics and events, its logs.

Reads files only: whoever watches can go at any time and the run does not notice.
"""

import codecs
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from leviathan import checkpoints, files, machine, runs, telemetry

Listener = Callable[[str, dict[str, Any]], None]
"""Called with a kind (metrics, event, start, resume, checkpoints, sample, tick) and its facts."""

_POLL_S = 0.5


def follow(paths: runs.RunPaths, listener: Listener) -> None:
    """Tell a listener what the run does until it is over, over restarts."""
    follower = Follower(paths)
    while not follower.poll(listener):
        listener("tick", {})
        time.sleep(_POLL_S)


class Follower:
    """Looks at a run again and again, and tells what is new."""

    def __init__(self, paths: runs.RunPaths) -> None:
        self.paths = paths
        self._events, self._metrics = files.Tail(paths.events), files.Tail(paths.metrics)
        self._sampled = _size(paths.telemetry)
        session = _session(paths)
        self._number = session.number if session else None

    def poll(self, listener: Listener) -> bool:
        """Tell what was written since the last time; whether the run is over."""
        over = not lives(self.paths)  # before reading: what was written until then is told
        self._tell_session(listener)
        lines = self._metrics.lines()  # before events: what an event explains is told after it
        events = [e for e in self._events.lines() if isinstance(e.get("event"), str)]
        for event in events:
            if runs.is_whole(event.get("step")) or event["event"] in _WITHOUT_STEP:
                listener("event", event)
        for line in lines:
            if is_of_a_step(line):
                listener("metrics", line)
        if any(event["event"] in _OF_CHECKPOINTS for event in events):
            listener("checkpoints", {"found": checkpoints.scan(self.paths.directory)})
        size = _size(self.paths.telemetry)
        if size != self._sampled:
            self._sampled = size
            listener("sample", {"sample": telemetry.last(self.paths)})
        return over

    def _tell_session(self, listener: Listener) -> None:
        newest = _session(self.paths)
        # By number: its end is written while the supervisor still lives.
        if newest and newest.number != self._number:
            self._number = newest.number
            facts = {"session": newest.number, "step": newest.resumed_from or 0}
            listener("start" if newest.resumed_from is None else "resume", facts)


_WITHOUT_STEP = {"stop_asked", "rung_refused", "shrink"}
_OF_CHECKPOINTS = {"save", "remove", "slim", "quarantine", "set_aside"}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def is_of_a_step(line: dict[str, Any]) -> bool:
    """Whether a metrics line says of which step it is, and when it was."""
    moment = line.get("time")
    return runs.is_whole(line.get("step")) and isinstance(moment, int | float)


def lives(paths: runs.RunPaths) -> bool:
    """Whether someone trains this run, be it between two sessions."""
    holder = runs.identity_in(paths.holder)
    return runs.true_state(runs.read(paths)) == "running" or bool(
        holder and machine.is_alive(holder)
    )


def _session(paths: runs.RunPaths) -> runs.Session | None:
    sessions = runs.read(paths).sessions
    return sessions[-1] if sessions else None


def newest_log(paths: runs.RunPaths) -> Path | None:
    """The training log of the newest session that has one."""
    return max(paths.logs.glob("training_*_*.log"), key=_age, default=None)


def _age(log: Path) -> tuple[int, str]:
    """By session, then name: never by file time, which a wrong clock turns round."""
    number = log.stem.rpartition("_")[2]
    return (int(number) if number.isdecimal() else 0, log.name)


def last_lines(log: Path, count: int) -> tuple[str, int]:
    """The last ``count`` lines of a log, and the byte its end was at."""
    with log.open("rb") as stream:
        end = position = stream.seek(0, 2)
        data = b""
        while position and data.count(b"\n") <= count:
            size = min(1 << 16, position)
            position -= size
            stream.seek(position)
            data = stream.read(size) + data
    lines = data.splitlines(keepends=True)
    return b"".join(lines[-count:] if count else []).decode(errors="replace"), end


class LogTail:
    """The last lines of the newest training log, over restarts, as a terminal would show them."""

    def __init__(self, paths: runs.RunPaths, count: int) -> None:
        self.paths, self.count = paths, count
        self.lines: list[str] = []
        self._seen: tuple[Path | None, int] = (None, -1)

    def poll(self) -> bool:
        """Look again; whether anything was written."""
        log = newest_log(self.paths)
        seen = (log, _size(log) if log else 0)
        if seen == self._seen:
            return False
        self._seen = seen
        text = _last_text(log, _LOG_BYTES) if log else ""
        self.lines = [line for raw in text.split("\n") if (line := _as_shown(raw))][-self.count :]
        return True


_LOG_BYTES = 1 << 15
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]|[\x00-\x08\x0b-\x1f\x7f]")


_BLANKS = " " * 16
"""A line that begins so follows a bar that was wiped out, or is a column of its own."""


def _last_text(log: Path, size: int) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(stream.seek(0, 2) - size, 0))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _as_shown(raw: str) -> str:
    """A line without colours; of a progress bar that overwrites itself its last state."""
    states = [part for part in raw.split("\r") if part.strip()]
    text = _ESCAPES.sub("", states[-1].replace("\t", "  ")).rstrip() if states else ""
    return text.lstrip() if text.startswith(_BLANKS) else text


def follow_log(paths: runs.RunPaths, log: Path, offset: int) -> Iterator[str]:
    """What is appended to a log, then to the logs of the sessions after it, until the run ends."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        over, newest = not lives(paths), newest_log(paths)
        with log.open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
        offset += len(data)
        if data:
            yield decoder.decode(data)
        if newest and newest != log:
            log, offset = newest, 0
        elif over:
            return
        else:
            time.sleep(_POLL_S)
