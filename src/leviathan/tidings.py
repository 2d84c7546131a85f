"""Owns the tidings of a run: the newest of what it told, read without the rest.

What it told in all is ``runs``'s, and its curves ``series``'s.
"""

import re
from dataclasses import dataclass
from typing import Any

from leviathan import files, runs


@dataclass(frozen=True)
class Tidings:
    """What a run told lately, and what of long ago still matters; read in a moment."""

    events: list[dict[str, Any]]
    """In the order written, without the saves, removals and evaluations of long ago: in a long
    run there are ten thousands of those, and a few of all others."""
    metrics: list[dict[str, Any]]
    """The newest of ``runs.metrics``."""
    evaluations: list[bytes]
    """Every event that tells of an evaluation, as it was written."""


_METRICS_BYTES = 1 << 20
"""Some 2,500 log lines: more than the time left and every trend are made of (``eta``)."""
_EVENTS_BYTES = 1 << 17
_EVAL = b'"event":"eval"'
_RARE = re.compile(rb'"event":"(?!save"|remove"|eval")')


def read(paths: runs.RunPaths) -> Tidings:
    """What a run told lately, however long it has been going on."""
    try:
        data = paths.events.read_bytes()
    except FileNotFoundError:
        data = b""
    begin = data.rfind(b"\n", 0, max(len(data) - _EVENTS_BYTES, 0)) + 1
    # Not line by line: there are ten thousands.
    rare = [_line_around(data, match.start()) for match in _RARE.finditer(data, 0, begin)]
    found = files.objects((*dict.fromkeys(rare), *data[begin:].split(b"\n")))
    told = [e for e in found if isinstance(e.get("event"), str)]
    evaluations = [line for line in data.split(b"\n") if _EVAL in line]
    newest, whole = files.last_lines(paths.metrics, _METRICS_BYTES)
    lines = files.objects(newest)
    if not whole:
        first = lines[0].get("time") if lines else None
        before = [e for e in told if e["event"] == "eval" and _is_before(e.get("time"), first)]
        lines = [*({n: v for n, v in e.items() if n != "event"} for e in before), *lines]
    return Tidings(told, runs.undisputed(lines, runs.beginnings(told)), evaluations)


def heard(paths: runs.RunPaths, record: runs.RunRecord) -> dict[int, float]:
    """When each session was last heard of."""
    told = read(paths)
    return runs.last_heard(record, [*told.events, *told.metrics])


def _line_around(data: bytes, place: int) -> bytes:
    end = data.find(b"\n", place)
    return data[data.rfind(b"\n", 0, place) + 1 : end if end >= 0 else len(data)]


def _is_before(moment: Any, other: Any) -> bool:
    one, two = files.number(moment), files.number(other)
    return one is not None and two is not None and one < two
