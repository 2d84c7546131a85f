"""Owns what a run looks like from outside: its summary, made of files alone.

Does not need the writer alive, nor change anything. Showing it is ``cli_runs``.
"""

import shlex
import time
from dataclasses import asdict, dataclass
from typing import Any

from leviathan import checkpoints, eta, files, machine, runs


@dataclass(frozen=True)
class RunSummary:
    """What a person wants to know of a run, at one moment."""

    name: str
    directory: str
    state: str
    """running, stopped, done, failed or crashed, checked against the process table."""
    why: str
    """How it came to this state; empty where the state says it all."""
    step: int
    max_steps: int | None
    epoch: float | None
    percent: float | None
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    tok_s: float | None
    eta_s: float | None
    """Seconds of training left (``eta``); None unless running, and without evidence."""
    eta_low_s: float | None
    """With ``eta_high_s`` the interval it lies in, nine times of ten."""
    eta_high_s: float | None
    eta_from: str
    """What it was made of; empty unless running."""
    last_checkpoint: str | None
    """The newest sound one."""
    best_checkpoint: str | None
    """The sound one with the lowest evaluation loss."""
    sessions: int
    hours: float
    """Summed over all sessions."""
    began: float
    """When the newest session began."""
    active: float
    """When the run was last heard of."""
    warnings: tuple[str, ...]
    next: str
    """The command to type now."""

    def to_json(self) -> dict[str, Any]:
        """The document of ``status --json``."""
        return asdict(self)


def summarize(paths: runs.RunPaths) -> RunSummary:
    """The run as its files tell it; half-written lines and strange values are passed over.

    Raises:
        BadInput: there is no run, or its record is damaged.
    """
    record = runs.read(paths)
    state = runs.true_state(record)
    events, metrics = runs.events(paths), runs.metrics(paths)
    trained = [*metrics, *(e for e in events if e["event"] in _OF_TRAINING)]
    step, max_steps = _progress(record, trained)
    # A session that has logged nothing yet stands where it began: not at what was lost.
    metrics = [line for line in metrics if line["step"] <= step]
    running = state == "running"
    left = eta.History(events, metrics).eta(step, max_steps) if running else _OVER
    last, best = _checkpoints(paths)
    now = time.time()
    heard = runs.last_heard(record, [*events, *metrics])
    return RunSummary(
        name=paths.directory.resolve().name,
        directory=str(paths.directory),
        state=state,
        why=_why(paths, record, state, events),
        step=step,
        max_steps=max_steps,
        epoch=_last(metrics, "epoch"),
        percent=min(100 * step / max_steps, 100.0) if max_steps else None,
        loss=_last(metrics, "loss"),
        eval_loss=_last(metrics, "eval_loss"),
        learning_rate=_last(metrics, "learning_rate"),
        tok_s=_last(metrics, "tokens/train_per_sec_per_gpu"),
        eta_s=left.mid_s,
        eta_low_s=left.low_s,
        eta_high_s=left.high_s,
        eta_from=left.source,
        last_checkpoint=last,
        best_checkpoint=best,
        sessions=len(record.sessions),
        hours=runs.seconds(record, heard, now if running else None) / 3600,
        began=record.sessions[-1].started if record.sessions else record.created,
        active=max([record.created, *heard.values()]),
        warnings=_warnings(events),
        next=_next(paths, record, state),
    )


def history(paths: runs.RunPaths) -> eta.History:
    """What the run has told of its pace."""
    return eta.History(runs.events(paths), runs.metrics(paths))


_OVER = eta.Eta(None, None, None, "")
# Other events name the step of a checkpoint, not of the training.
_OF_TRAINING = {"train_begin", "save", "train_end"}


def _progress(record: runs.RunRecord, lines: list[dict[str, Any]]) -> tuple[int, int | None]:
    """The step the run stands at: of its newest session, which may have begun further back."""
    newest = record.sessions[-1] if record.sessions else None
    begun = newest.resumed_from if newest else None
    mine = [line for line in lines if newest and line.get("session") == newest.number]
    steps = [step for line in mine if runs.is_whole(step := line.get("step"))]
    totals = (line.get("max_steps") for line in [*lines, *mine])
    known = [total for total in totals if runs.is_whole(total) and total > 0]
    return max([begun or 0, *steps]), known[-1] if known else None


def _last(lines: list[dict[str, Any]], name: str) -> float | None:
    values = (files.number(line.get(name)) for line in reversed(lines) if name in line)
    return next((value for value in values if value is not None), None)


def _checkpoints(paths: runs.RunPaths) -> tuple[str | None, str | None]:
    sound = [c for c in checkpoints.scan(paths.directory) if c.sound]
    best = next((c.path.name for c in sound if c.best), None)
    return (sound[-1].path.name if sound else None), best


def _why(
    paths: runs.RunPaths, record: runs.RunRecord, state: str, events: list[dict[str, Any]]
) -> str:
    if state == "running":
        return "asked to stop: it saves after its step" if paths.stop.exists() else _waits(events)
    if not record.sessions or state == "done":
        return ""
    session = record.sessions[-1]
    if state == "crashed":
        return _why_crashed(paths, session.supervisor)
    ends = [e for e in events if e["event"] == "session_end" and e.get("session") == session.number]
    reason = str(ends[-1].get("reason") or "") if ends else ""
    first, comma, rest = reason.partition(",")
    return _ASKED.get(first, first) + comma + rest or session.outcome or ""


def _waits(events: list[dict[str, Any]]) -> str:
    """What a running run waits for, if it does; empty while it trains."""
    waits = {
        "pause": "paused: {text}",
        "restart": "between two sessions: {why}; {reason}",
        "ladder": "between two sessions: {why}; {reason}",
    }
    telling = {*waits, "unpause", "start", "resume"}
    last: dict[str, Any] = next((e for e in reversed(events) if e["event"] in telling), {})
    template = waits.get(str(last.get("event")), "")
    told = {name: last.get(name) or "" for name in ("text", "why", "reason")}
    return template.format(**told)


# How a stop was asked for, in words; the names are supervise's.
_ASKED = {
    "SIGINT": "by Ctrl+C",
    "SIGTERM": "asked to (SIGTERM)",
    "SIGHUP": "its terminal closed (SIGHUP)",
    "stop file": "asked to (stop file)",
}


def _why_crashed(paths: runs.RunPaths, supervisor: dict[str, Any]) -> str:
    if supervisor.get("boot") != machine.boot_id():
        return "the machine was rebooted"
    pid = runs.orphan(paths)
    saving = f"; its training process {pid} is still saving" if pid else ""
    return f"its process {supervisor.get('pid')} is gone: killed or power loss{saving}"


def _warnings(events: list[dict[str, Any]]) -> tuple[str, ...]:
    """What the run warned of and what was quarantined, each once, in the order of the first."""
    told: dict[str, None] = {}
    for event in events:
        if event["event"] == "warning" and isinstance(event.get("text"), str):
            told[event["text"]] = None
        elif event["event"] == "quarantine":
            told[f"checkpoint-{event.get('step')} quarantined: {event.get('reason')}"] = None
    return tuple(told)


def _next(paths: runs.RunPaths, record: runs.RunRecord, state: str) -> str:
    if state in {"running", "done"}:
        return shlex.join(["leviathan", "watch" if state == "running" else "merge", called(paths)])
    name = paths.directory.resolve().name
    if record.again and record.name == name:
        return record.again
    # The directory was renamed: the command as it was would begin another run.
    return shlex.join(
        ["leviathan", "train", "--profile", record.profile, "--recipe", record.recipe,
         "--sample", record.sample, "--name", name,
         *(part for override in record.overrides for part in ("--set", override))]
    )  # fmt: skip


def called(paths: runs.RunPaths) -> str:
    """What to call the run in a command: its name, or its directory where that is elsewhere."""
    here = paths.directory.resolve().parent == runs.TRAINING.resolve()
    return paths.directory.name if here else str(paths.directory)
