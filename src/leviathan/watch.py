"""Owns following a run from another process: its metrics and events, its logs.

Reads files only: whoever watches can go at any time and the run does not notice.
"""

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from leviathan import files, machine, runs

Listener = Callable[[str, dict[str, Any]], None]
"""Called with a kind (metrics, event, start, resume, tick) and its facts."""

_POLL_S = 0.5


def follow(paths: runs.RunPaths, listener: Listener) -> None:
    """Tell a listener what the run does until it is over, over restarts."""
    events, metrics = files.Tail(paths.events), files.Tail(paths.metrics)
    session = _session(paths)
    number = session.number if session else None
    while True:
        over = not lives(paths)  # before reading: what was written until then is told
        newest = _session(paths)
        # By number: its end is written while the supervisor still lives.
        if newest and newest.number != number:
            number = newest.number
            facts = {"session": newest.number, "step": newest.resumed_from or 0}
            listener("start" if newest.resumed_from is None else "resume", facts)
        for event in events.lines():
            if isinstance(event.get("event"), str) and runs.is_whole(event.get("step")):
                listener("event", event)
        for line in metrics.lines():
            if is_of_a_step(line):
                listener("metrics", line)
        if over:
            return
        listener("tick", {})
        time.sleep(_POLL_S)


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
