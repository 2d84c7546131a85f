"""Owns how a session of a run begins: its record, what is moved out of its way, what is told.

Does not launch it (``sessions``) nor decide from where it goes on (``train``).
"""

import json
import shutil
import time

from leviathan import checkpoints, machine, render, runs
from leviathan.supervise import Listener
from leviathan.train import Decision


def begin(decision: Decision, record: runs.RunRecord, heard: dict[int, float]) -> runs.Session:
    """Add the new session to the record; those whose supervisor died get the end they had."""
    resume = decision.resume_from
    for before in record.sessions:  # one whose supervisor was killed has no end of its own
        before.ended = heard[before.number] if before.ended is None else before.ended
    session = runs.Session(
        number=len(record.sessions) + 1,
        started=time.time(),
        supervisor=machine.process_identity(),
        resumed_from=resume.step if resume else None,
    )
    record.sessions.append(session)
    record.state = "running"
    record.versions = decision.machine.versions
    return session


def set_aside(decision: Decision, session: int) -> None:
    """Move what the decision leaves out of the line."""
    for checkpoint in decision.aside:
        folder = "set-aside" if checkpoint.sound else "quarantine"
        target = checkpoints.set_aside(checkpoint, folder)
        runs.event(
            decision.paths, folder.replace("-", "_"), session=session, step=checkpoint.step,
            reason=checkpoint.problem or "newer than the checkpoint resumed from", to=str(target),
        )  # fmt: skip


def drop_half_prepared(paths: runs.RunPaths) -> None:
    """A launch killed while tokenising leaves a dataset Axolotl would take for whole."""
    try:
        whole = set(json.loads(paths.prepared_mark.read_bytes()))
    except (OSError, ValueError, TypeError):
        whole = set()
    for directory in paths.prepared.glob("*"):
        if directory.name not in whole and directory.is_dir():
            shutil.rmtree(directory)


def announce(
    decision: Decision, session: runs.Session, rendered: render.Rendered, listener: Listener
) -> None:
    """Tell, and note, where the session begins from."""
    for checkpoint in decision.aside:
        why = checkpoint.problem or "newer than the checkpoint resumed from"
        folder = "set aside" if checkpoint.sound else "quarantined"
        listener("notice", {"text": f"{checkpoint.path.name} {folder}: {why}"})
    for note in (*rendered.notes, *decision.notes):
        listener("notice", {"text": note})
    kind = "resume" if decision.resume_from else "start"
    runs.event(
        decision.paths, kind, session=session.number, step=session.resumed_from or 0,
        log=str(decision.paths.logs),
    )  # fmt: skip
    listener(kind, {"step": session.resumed_from or 0, "session": session.number,
                    "run": str(decision.paths.directory)})  # fmt: skip
