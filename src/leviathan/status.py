"""Owns what a run looks like from outside: its summary, made of files alone.

Does not need the writer alive, nor change anything, and reads the newest log lines only.
Showing it is ``cli_status``.
"""

import json
import shlex
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from leviathan import (
    checkpoints,
    eta,
    expected,
    files,
    machine,
    runs,
    series,
    telemetry,
    tidings,
    trends,
    verdicts,
)
from leviathan.verdicts import Verdict


@dataclass(frozen=True)
class RunSummary:
    """What a person wants to know of a run, at one moment."""

    name: str
    directory: str
    state: str
    """running, stalled, stopped, done, failed or crashed, checked against the process table."""
    why: str
    """How it came to this state; empty where the state says it all."""
    step: int
    max_steps: int | None
    epoch: float | None
    percent: float | None
    loss: float | None
    """Of the newest log line."""
    loss_trend: trends.Trend | None
    """Of the newest log lines against those before."""
    reward: float | None
    """Of the newest log line; None unless trained by rewards."""
    reward_trend: trends.Trend | None
    eval_reward: float | None
    answer_tokens: float | None
    """Mean length of the newest answers."""
    eval_loss: float | None
    eval_change: float | None
    """Since the evaluation before."""
    lowest_eval_loss: float | None
    lowest_eval_step: int | None
    learning_rate: float | None
    tok_s: float | None
    """Computed tokens a second over all processes, of the newest steps."""
    mfu_pct: float | None
    """Model FLOPs utilisation; None where no peak is known, as on a CPU."""
    step_s: float | None
    """Seconds of a usual step."""
    eta_s: float | None
    """Seconds of training left (``eta``); None unless running, and without evidence."""
    eta_low_s: float | None
    """With ``eta_high_s`` the interval it lies in, nine times of ten."""
    eta_high_s: float | None
    eta_from: str
    """What it was made of; empty unless running."""
    gpus: tuple[machine.GpuState, ...]
    """As last sampled; empty without GPUs."""
    resident_gib: float | None
    """Memory of the training processes, as last sampled."""
    sampled: float | None
    """When that was."""
    last_checkpoint: str | None
    """The newest sound one."""
    last_saved: float | None
    """When it was."""
    best_checkpoint: str | None
    """The sound one with the lowest evaluation loss, or the highest reward."""
    free_disk_gib: float
    checkpoint_gib: float | None
    """What the next save will take."""
    disk_full_in_s: float | None
    """If it goes on filling as it did; None where it does not fill, or nobody knows."""
    sessions: int
    hours: float
    """Summed over all sessions."""
    usd: float | None
    """What they cost; None where no price is known."""
    budget: dict[str, float | None]
    """{max_hours, budget_usd, usd_hour} as the newest session was told; {} without."""
    began: float
    """When the newest session began."""
    active: float
    """When the run was last heard of."""
    warnings: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    """What the figures mean, as far as the newest tell (``verdicts``), the worst first; those
    that say that all is well are not among them."""
    next: str
    """The command to type now."""
    curve: tuple[float, ...]
    """The newest losses (or rewards), averaged to a few points: enough to see where they go."""

    def to_json(self) -> dict[str, Any]:
        """The document of ``status --json``."""
        return asdict(self)


def summarize(paths: runs.RunPaths) -> RunSummary:
    """The run as its files tell it; half-written lines and strange values are passed over.

    Raises:
        BadInput: there is no run, or its record is damaged.
    """
    record = runs.read(paths)
    recent = tidings.read(paths)
    events, metrics = recent.events, recent.metrics
    trained = [*metrics, *(e for e in events if e["event"] in _OF_TRAINING)]
    step, max_steps = _progress(record, trained)
    heard = runs.last_heard(record, [*events, *metrics])
    garbage = not metrics and files.has_content(paths.metrics)
    # A session that has logged nothing yet stands where it began: not at what was lost.
    metrics = [line for line in metrics if line["step"] <= step]
    state = runs.true_state(record)
    told = eta.History(events, metrics)
    left = told.eta(step, max_steps) if state == "running" else _OVER
    curves = series.recent(replace(recent, metrics=metrics))
    standstill = _standstill(paths, state, trends.usual(curves["step_s"]))
    now, samples = time.time(), telemetry.recent(paths)
    saved = checkpoints.scan(paths.directory)
    judged = verdicts.judge(curves, events, samples, saved)
    hours = runs.seconds(record, heard, now if state == "running" else None) / 3600
    return RunSummary(
        name=paths.directory.resolve().name,
        directory=str(paths.directory),
        state="stalled" if standstill else state,
        why=standstill or _why(paths, record, state, events),
        step=step,
        max_steps=max_steps,
        epoch=_last(metrics, "epoch"),
        percent=min(100 * step / max_steps, 100.0) if max_steps else None,
        **_figures(metrics, curves, expected.read(paths)),
        eta_s=left.mid_s,
        eta_low_s=left.low_s,
        eta_high_s=left.high_s,
        eta_from=left.source,
        **_machine(samples),
        **_saved(paths, saved, samples if state == "running" else []),
        sessions=len(record.sessions),
        hours=hours,
        **_money(record, hours),
        began=record.sessions[-1].started if record.sessions else record.created,
        active=max([record.created, *heard.values()]),
        verdicts=tuple(v for v in judged if v.grade != "good"),
        warnings=_warnings(events, (f"no line of {paths.metrics} can be read",) * garbage),
        next=_next(paths, record, state),
    )


def history(paths: runs.RunPaths) -> eta.History:
    """What the run has told of its pace."""
    told = tidings.read(paths)
    return eta.History(told.events, told.metrics)


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


def _figures(
    metrics: list[dict[str, Any]], curves: series.Series, plan: expected.Expected | None
) -> dict[str, Any]:
    """Losses, rates, and where they go."""
    evals = curves["eval_loss"]
    lowest = int(evals.value.argmin()) if len(evals) else None
    tok_s = trends.usual(curves["tok_s"].of(curves.parts[-1].session)) if curves.parts else None
    return {
        "loss": _last(metrics, "loss"),
        "loss_trend": trends.of(curves["loss"]),
        "reward": _last(metrics, "reward"),
        "reward_trend": trends.of(curves["reward"]),
        "eval_reward": _last(metrics, "eval_reward"),
        "answer_tokens": _last(metrics, "completions/mean_length"),
        "eval_loss": _last(metrics, "eval_loss"),
        "eval_change": float(evals.value[-1] - evals.value[-2]) if len(evals) > 1 else None,
        "lowest_eval_loss": None if lowest is None else float(evals.value[lowest]),
        "lowest_eval_step": None if lowest is None else int(evals.step[lowest]),
        "learning_rate": _last(metrics, "learning_rate"),
        # An older Leviathan's lines tell no clock that cannot be set; Axolotl's own figure
        # counts the tokens that are trained on only, of one process.
        "tok_s": _last(metrics, "tokens/train_per_sec_per_gpu") if tok_s is None else tok_s,
        "mfu_pct": plan.mfu_pct(tok_s) if plan else None,
        "step_s": trends.usual(curves["step_s"]),
        "curve": trends.points(curves["reward"] if len(curves["reward"]) else curves["loss"]),
    }


def _machine(samples: list[telemetry.Sample]) -> dict[str, Any]:
    newest = samples[-1] if samples else None
    return {
        "gpus": newest.gpus if newest else (),
        "resident_gib": newest.resident_gib if newest else None,
        "sampled": newest.time_s if newest else None,
    }


def _saved(
    paths: runs.RunPaths, found: list[checkpoints.Checkpoint], samples: list[telemetry.Sample]
) -> dict[str, Any]:
    """Checkpoints, and the room for the next."""
    sound = [c for c in found if c.sound]
    size = checkpoints.newest_bytes(found)
    return {
        "last_checkpoint": sound[-1].path.name if sound else None,
        "last_saved": sound[-1].modified if sound else None,
        "best_checkpoint": next((c.path.name for c in sound if c.best), None),
        "free_disk_gib": machine.free_gib(paths.directory),
        "checkpoint_gib": None if size is None else size / 2**30,
        "disk_full_in_s": telemetry.disk_full_in_s(samples),
    }


def _money(record: runs.RunRecord, hours: float) -> dict[str, Any]:
    names = ("max_hours", "budget_usd", "usd_hour")
    told = {name: files.number(record.budget.get(name)) for name in names}
    price = told["usd_hour"]
    return {
        "usd": None if price is None else hours * price,
        "budget": told if any(value is not None for value in told.values()) else {},
    }


_STALLED_STEPS, _STALLED_S = 10.0, 900.0
"""The defaults of the guards; a profile's own limits are its supervisor's to keep."""


def _standstill(paths: runs.RunPaths, state: str, step_s: float | None) -> str:
    """Why a run that should be training looks as if it stood still; empty where it does not."""
    if state != "running" or not step_s or paths.pause.exists():
        return ""
    try:
        idle_s = time.time() - paths.phase.stat().st_mtime
        phase = json.loads(paths.phase.read_bytes())["phase"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # between two sessions, or starting
    if phase not in {"train", "eval", "save"} or idle_s <= max(_STALLED_STEPS * step_s, _STALLED_S):
        return ""
    return (
        f"no sign of life for {idle_s / 60:.0f} min in phase {phase}, a step takes {step_s:.3g} s"
    )


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
        return "the machine was rebooted, or another host trains it: ask there"
    pid = runs.orphan(paths)
    saving = f"; its training process {pid} is still saving" if pid else ""
    return f"its process {supervisor.get('pid')} is gone: killed or power loss{saving}"


def _warnings(events: list[dict[str, Any]], own: tuple[str, ...]) -> tuple[str, ...]:
    """What the run warned of and what was quarantined, each once, in the order of the first."""
    told: dict[str, None] = {}
    for event in events:
        if event["event"] == "warning" and isinstance(event.get("text"), str):
            told[event["text"]] = None
        elif event["event"] == "quarantine":
            told[f"checkpoint-{event.get('step')} quarantined: {event.get('reason')}"] = None
    return (*told, *own)


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
