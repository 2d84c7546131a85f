"""Owns what went wrong in a run and what it cost: steps trained twice, hours without training.

Pure: record, events and curves in, incidents out. Judges nothing (``criteria``, ``verdicts``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from leviathan import diagnosis, files, machine, runs
from leviathan.series import Part, Series
from leviathan.spelled import counted


@dataclass(frozen=True)
class Incident:
    """One thing that went wrong, or several of a kind."""

    kind: str
    """oom, crash, stop, kill, power, pause, quarantine or warning."""
    time_s: float | None
    """Wall clock."""
    step: int | None
    text: str
    """What happened, and why."""
    after: str = ""
    """What was done about it."""
    steps_lost: int = 0
    """Trained once more, or still to be."""
    lost_s: float = 0.0
    """Wall clock without new steps."""
    session: int | None = None
    """The session that it ended; None where it ended none."""


def find(
    record: runs.RunRecord, events: Sequence[dict[str, Any]], curves: Series, *, running: bool
) -> list[Incident]:
    """Everything that went wrong, in the order it happened."""
    step_s = float(np.median(curves["step_s"].value)) if len(curves["step_s"]) else 0.0
    found = [
        *_ends(record, events, curves.parts, step_s, running=running),
        *_smoke_tests(events),
        *_pauses(events),
        *_quarantines(events),
        *_warnings(events),
    ]
    return sorted(found, key=lambda incident: incident.time_s or 0.0)


def is_memory(text: str) -> bool:
    """Whether the reason of an end is memory that ran out."""
    evidence = diagnosis.Evidence(
        exit_code=1, log=text, phase="train", kernel_killed=False, disk_short=False, guard=""
    )
    return diagnosis.diagnose(evidence).kind in {"memory", "host_memory"}


# --- sessions that ended badly ------------------------------------------------------


def _ends(
    record: runs.RunRecord, events: Sequence[dict[str, Any]], parts: Sequence[Part],
    step_s: float, *, running: bool,
) -> list[Incident]:  # fmt: skip
    by_number = {part.session: part for part in parts}
    ends = {e.get("session"): e for e in events if e["event"] == "session_end"}
    measures = [e for e in events if e["event"] in _MEASURES and e.get("reason") != _SMOKE_TEST]
    found = []
    for session, after in pairwise([*record.sessions, None]):
        if session is None or (after is None and running):
            continue
        end, part = ends.get(session.number, {}), by_number.get(session.number)
        told = _told(session, after, end)
        if told is None:
            continue
        measure = _measure(measures, session, after)
        ended = _ended(session, part)
        resumed = _resumed(after, by_number)
        undone = part.undone if part else 0
        idle_s = max(resumed - ended, 0.0) if resumed is not None else 0.0
        last = part.end + part.undone if part else None
        step = _step(end)
        found.append(
            Incident(
                kind="oom" if measure.get("event") == "ladder" else told[0],
                time_s=session.ended or ended,
                step=last if step is None else step,
                text=str(measure.get("why") or told[1]),
                after=str(measure.get("reason") or ""),
                steps_lost=undone,
                lost_s=idle_s + undone * step_s,
                session=session.number,
            )
        )
    return found


_MEASURES = {"ladder", "restart", "shrink"}


def _told(
    session: runs.Session, after: runs.Session | None, end: dict[str, Any]
) -> tuple[str, str] | None:
    """What kind of end it was; None where nothing went wrong."""
    reason = str(end.get("reason") or "")
    if session.outcome is None:
        boots = {str(s.supervisor.get("boot")) for s in (session, after) if s}
        boots |= {machine.boot_id()} if after is None else set()
        rebooted = len(boots) > 1
        return ("power", "the machine was rebooted or lost power") if rebooted else (
            "kill", "its process was killed")  # fmt: skip
    if session.outcome == "failed":
        return ("oom" if is_memory(reason) else "crash"), reason or "the training failed"
    if session.outcome == "killed":
        return "kill", reason or "killed"
    by_a_person = reason.startswith(("SIG", "stop file")) or not reason
    return None if session.outcome == "done" or by_a_person else ("stop", reason)


def _ended(session: runs.Session, part: Part | None) -> float:
    """When the session last got further."""
    return part.ended_s if part and math.isfinite(part.ended_s) else session.started


def _resumed(after: runs.Session | None, parts: dict[int, Part]) -> float | None:
    """When training went on; of a session without a step, when it was tried."""
    if after is None:
        return None
    part = parts.get(after.number)
    return part.began_s if part and math.isfinite(part.began_s) else after.started


def _measure(
    measures: Sequence[dict[str, Any]], session: runs.Session, after: runs.Session | None
) -> dict[str, Any]:
    """What was decided between this session and the next."""
    begin = session.ended if session.ended is not None else session.started
    end = after.started if after else math.inf
    return next((m for m in measures if begin <= (_time(m) or 0.0) <= end), {})


_SMOKE_TEST = "smoke test"


def _smoke_tests(events: Sequence[dict[str, Any]]) -> list[Incident]:
    """Rungs taken before the first step: they cost nothing, and yet memory ran out."""
    return [
        Incident("oom", _time(e), _step(e), _text(e), f"found by the {_SMOKE_TEST}")
        for e in events
        if e["event"] == "ladder" and e.get("reason") == _SMOKE_TEST
    ]


# --- what happened within a session --------------------------------------------------


def _pauses(events: Sequence[dict[str, Any]]) -> list[Incident]:
    found: list[Incident] = []
    for number, event in enumerate(events):
        if event["event"] != "pause":
            continue
        began = _time(event)
        over = next((e for e in events[number + 1 :] if e["event"] in _ENDS_A_PAUSE), None)
        until = _time(over) if over else None
        lost_s = max(until - began, 0.0) if until is not None and began is not None else 0.0
        after = str(over.get("text") or "") if over and over["event"] == "unpause" else ""
        found.append(Incident("pause", began, _step(event), _text(event), after, 0, lost_s))
    return found


_ENDS_A_PAUSE = {"unpause", "session_end", "start", "resume"}


def _quarantines(events: Sequence[dict[str, Any]]) -> list[Incident]:
    return [
        Incident("quarantine", _time(e), _step(e), f"checkpoint-{e.get('step')}: {e.get('reason')}",
                 "moved to quarantine/")
        for e in events
        if e["event"] == "quarantine"
    ]  # fmt: skip


def _warnings(events: Sequence[dict[str, Any]]) -> list[Incident]:
    """One for each kind: a hot day warns a thousand times."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["event"] in {"warning", "rung_refused"}:
            kinds.setdefault(str(event.get("kind") or event["event"]), []).append(event)
    return [
        Incident("warning", _time(told[0]), _step(told[0]), _text(told[-1]),
                 counted(len(told), "warning") + " of this kind" if len(told) > 1 else "")
        for told in kinds.values()
    ]  # fmt: skip


def _text(event: dict[str, Any]) -> str:
    return str(event.get("text") or event.get("why") or event["event"])


def _time(event: dict[str, Any]) -> float | None:
    moment = files.number(event.get("time"))
    return moment if moment is not None and math.isfinite(moment) else None


def _step(event: dict[str, Any]) -> int | None:
    step = event.get("step")
    return step if runs.is_whole(step) else None
