"""Owns a run's report as data: everything its files tell, brought together once.

Reads files only, and never holds up who writes them. Does not lay it out (``page``).
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leviathan import (
    checkpoints,
    course,
    criteria,
    expected,
    files,
    grades,
    incidents,
    provenance,
    redaction,
    runs,
    series,
    status,
    telemetry,
    tidings,
    verdicts,
)
from leviathan.checkpoints import Checkpoint
from leviathan.config import Guards
from leviathan.course import Course
from leviathan.criteria import Criterion
from leviathan.expected import Expected
from leviathan.incidents import Incident
from leviathan.judgement import Verdict
from leviathan.provenance import Setting
from leviathan.recipe import Success
from leviathan.series import Curve, Series
from leviathan.spelled import count, counted, duration, figure

_MODELS = Path("models")
_JSON_COLUMNS = 500


@dataclass(frozen=True)
class Comparison:
    """A figure that was planned, and what became of it."""

    name: str
    unit: str
    expected: tuple[float, float, float] | None
    """Low, middle, high."""
    actual: float | None
    note: str = ""
    """What the plan rests on, or how the figure was made."""

    @property
    def verdict(self) -> str:
        """as planned, above, below; empty where one of the two is not known."""
        if self.expected is None or self.actual is None:
            return ""
        low, _, high = self.expected
        if low <= self.actual <= high:
            return "as planned"
        return "above" if self.actual > high else "below"


@dataclass(frozen=True)
class Sitting:
    """One session, as the report tells it."""

    number: int
    began_s: float
    seconds: float | None
    """None where nobody knows how long it lived."""
    begin: int
    end: int | None
    """Its last step that counts; None where it trained none."""
    undone: int
    outcome: str
    reason: str


@dataclass(frozen=True)
class Report:
    """All of it."""

    summary: status.RunSummary
    made_s: float
    headline: str
    recipe: str
    profile: str
    sample: str
    base_model: str
    criteria: tuple[Criterion, ...]
    verdicts: tuple[Verdict, ...]
    comparisons: tuple[Comparison, ...]
    sittings: tuple[Sitting, ...]
    incidents: tuple[Incident, ...]
    saved: tuple[Checkpoint, ...]
    aside: tuple[Checkpoint, ...]
    proof: dict[str, Any] | None
    """Of the merged model under ``models/``, where there is one (``merge``)."""
    settings: tuple[Setting, ...]
    environment: tuple[tuple[str, str], ...]
    plan: Expected | None
    success: Success
    hot_c: float
    tokens: float | None
    """Computed, padding included."""
    tok_s: float | None
    mfu_pct: float | None
    curves: Series
    """Empty of a run that logged nothing that can be read."""
    machine: dict[str, Curve]
    """temperature_c, used_gib, power_w and resident_gib, at the step that was trained then."""
    test_command: str
    course: Course | None = None
    """All stages, where this run is one of several."""

    @property
    def usd_hour(self) -> float | None:
        """What an hour of the machine costs, where the run was told."""
        return self.summary.budget.get("usd_hour")

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the log is missing here; half a line for each session is normal."""
        lines, unread = self.curves.lines, self.curves.unread
        if unread and not lines:
            return ("no line of metrics.jsonl can be read: there are no curves",)
        if unread > self.summary.sessions:
            return (f"{counted(unread, 'line')} of metrics.jsonl cannot be read: left out",)
        return ()

    def to_json(self) -> dict[str, Any]:
        """The document of ``report --json``; curves thinned, their peaks kept."""
        drawn = {**self.curves.curves, **self.machine}
        return {
            "summary": self.summary.to_json(),
            "headline": self.headline,
            **(self.course.to_json() if self.course else {}),
            "criteria": [asdict(criterion) for criterion in self.criteria],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "comparisons": [asdict(c) | {"verdict": c.verdict} for c in self.comparisons],
            "sessions": [asdict(sitting) for sitting in self.sittings],
            "incidents": [asdict(incident) for incident in self.incidents],
            "checkpoints": [c.to_json() for c in (*self.saved, *self.aside)],
            "proof": self.proof,
            "settings": [asdict(setting) for setting in self.settings],
            "environment": dict(self.environment),
            "tokens": self.tokens,
            "tok_s": self.tok_s,
            "mfu_pct": self.mfu_pct,
            "curves": {name: _points(curve) for name, curve in drawn.items()},
        }


def _points(curve: Curve) -> dict[str, list[float]]:
    thin = curve.thinned(_JSON_COLUMNS)
    return {"step": thin.step.tolist(), "value": thin.value.tolist()}


def gather(paths: runs.RunPaths) -> Report:
    """Everything about a run.

    Raises:
        BadInput: there is no run, or its record is damaged.
    """
    record, events = runs.read(paths), runs.events(paths)
    summary = _without_secrets(status.summarize(paths))
    curves, samples, plan = series.read(paths), telemetry.read(paths), expected.read(paths)
    saved, aside = checkpoints.scan(paths.directory), checkpoints.aside(paths.directory)
    settings = tuple(map(_shown, provenance.read(paths)))
    running = summary.state in {"running", "stalled"}
    wrong = [_told(i) for i in incidents.find(record, events, curves, running=running)]
    success, hot_c = _success(record), _hot_c(settings)
    command = f"leviathan test {status.called(paths)}"
    over = summary.state == "done"
    rewarded = len(curves["reward"]) > 0  # such a training's loss says nothing
    judged = (
        *(() if rewarded else (criteria.final_loss(curves["loss"], success, over=over),)),
        criteria.no_oom(wrong, over=over),
        criteria.sound_checkpoints(saved, aside, over=over),
        criteria.temperature(samples, hot_c, over=over),
        criteria.prompts(grades.read(paths), success, command),
    )
    tok_s = _median(curves["tok_s"])
    return Report(
        summary=summary,
        made_s=time.time(),
        headline=_headline(summary, judged),
        recipe=record.recipe,
        profile=record.profile,
        sample=record.sample,
        base_model=str(record.tree.get("base_model", "")),
        criteria=judged,
        verdicts=tuple(verdicts.judge(curves, events, samples, saved)),
        comparisons=tuple(_comparisons(summary, plan, curves, samples, saved, tok_s)),
        sittings=tuple(_sittings(record, events, curves, wrong)),
        incidents=tuple(wrong),
        saved=tuple(saved),
        aside=tuple(aside),
        proof=_proof(record),
        settings=settings,
        environment=tuple(_environment(record, samples)),
        plan=plan,
        success=success,
        hot_c=hot_c,
        tokens=_tokens(paths),
        tok_s=tok_s,
        mfu_pct=plan.mfu_pct(tok_s) if plan else None,
        curves=curves,
        machine=_by_step(samples, curves["loss"]),
        test_command=command,
        course=course.of(paths),
    )


# --- secrets: what others wrote (settings, log lines, reasons) goes through here -----------


def _shown(setting: Setting) -> Setting:
    secret = isinstance(setting.value, str) and redaction.names_secret(setting.key.split(".")[-1])
    value = redaction.BLANK if secret else _blanked(setting.value)
    return replace(setting, value=value, where=redaction.redact(setting.where))


def _blanked(value: Any) -> Any:
    if isinstance(value, str):
        return redaction.redact(value)
    return [_blanked(item) for item in value] if isinstance(value, list) else value


def _told(incident: Incident) -> Incident:
    text, after = redaction.redact(incident.text), redaction.redact(incident.after)
    return replace(incident, text=text, after=after)


def _without_secrets(summary: status.RunSummary) -> status.RunSummary:
    warnings = tuple(map(redaction.redact, summary.warnings))
    return replace(summary, why=redaction.redact(summary.why), warnings=warnings)


# --- what it is made of ----------------------------------------------------------------


def _success(record: runs.RunRecord) -> Success:
    try:
        return Success(**record.settings["success"])
    except (KeyError, TypeError, ValueError):  # of another version, or damaged
        return Success()


def _hot_c(settings: Sequence[Setting]) -> float:
    told = next((s.value for s in settings if s.key == "leviathan.guards.hot_c"), None)
    return files.number(told) or Guards().hot_c


def _headline(summary: status.RunSummary, judged: Sequence[Criterion]) -> str:
    """The run in two sentences."""
    of = f" of {count(summary.max_steps)}" if summary.max_steps else ""
    words = {"done": "Finished", "running": "Training", "stopped": "Stopped"}
    state = words.get(summary.state, summary.state.capitalize())
    why = f" ({summary.why})" if summary.why else ""
    first = (
        f"{state}{why} at step {count(summary.step)}{of} after "
        f"{duration(summary.hours * 3600)} in {counted(summary.sessions, 'session')}."
    )
    groups = {
        word: [c.name for c in judged if c.verdict == word]
        for word in ("fail", "unchecked", "open")
    }
    met = sum(c.verdict == "pass" for c in judged)
    rest = [f"{word if word != 'fail' else 'failed'}: {', '.join(n)}" for word, n in groups.items()
            if n]  # fmt: skip
    return f"{first} {met} of {len(judged)} criteria met{''.join('; ' + text for text in rest)}."


def _comparisons(
    summary: status.RunSummary, plan: Expected | None, curves: Series,
    samples: Sequence[telemetry.Sample], saved: Sequence[Checkpoint], tok_s: float | None,
) -> list[Comparison]:  # fmt: skip
    told = plan or Expected(None, None, None, None, None, None, None, None, {})
    over = summary.state == "done"
    share = 1.0 if over else (summary.percent or 0.0) / 100
    hours = summary.hours / share if share else None
    used = [s.used_gib for s in samples if s.used_gib is not None]
    torch = curves["memory_gib"].value
    peak = max(used, default=None) if used else float(torch.max()) if len(torch) else None
    size = checkpoints.newest_bytes(list(saved))
    steps = _exactly(told.steps)
    disk = _exactly(told.checkpoint_bytes, 0.1)
    found = [
        Comparison("steps", "", steps, summary.max_steps, told.evidence.get("tokens", "")),
        Comparison("hours", "h", told.hours, hours,
                   "" if over else "at the pace so far"),
        Comparison("tokens a second", "tok/s", told.tok_s, tok_s, told.evidence.get("time", "")),
        Comparison(_GPU_MEMORY, "GiB", told.memory_gib, peak if curves.lines else None,
                   told.evidence.get("memory", "")),
        Comparison("size of a checkpoint", "B", disk, size),
    ]  # fmt: skip
    # Without a GPU the plan counts tensors, and the machine tells of whole processes.
    return found if peak is not None else [c for c in found if c.name != _GPU_MEMORY]


_GPU_MEMORY = "GPU memory, peak"


def _exactly(value: float | None, share: float = 0.0) -> tuple[float, float, float] | None:
    return None if value is None else (value * (1 - share), value, value * (1 + share))


def _sittings(
    record: runs.RunRecord, events: Sequence[dict[str, Any]], curves: Series,
    wrong: Sequence[Incident],
) -> list[Sitting]:  # fmt: skip
    parts = {part.session: part for part in curves.parts}
    reasons: dict[Any, str] = {incident.session: incident.text for incident in wrong}
    reasons |= {
        e.get("session"): redaction.redact(str(e.get("reason") or ""))
        for e in events
        if e["event"] == "session_end"
    }
    found = []
    for session in record.sessions:
        part = parts.get(session.number)
        seconds = session.seconds
        if seconds is None and part and math.isfinite(part.ended_s):
            seconds = max(part.ended_s - session.started, 0.0)
        living = session is record.sessions[-1] and runs.true_state(record) == "running"
        outcome = session.outcome or ("running" if living else "killed")
        found.append(
            Sitting(
                session.number, session.started, seconds, session.resumed_from or 0,
                part.end if part else None, part.undone if part else 0, outcome,
                reasons.get(session.number, ""),
            )
        )  # fmt: skip
    return found


def _proof(record: runs.RunRecord) -> dict[str, Any] | None:
    """Of the merged model where ``merge`` puts it; one put elsewhere is not looked for."""
    path = _MODELS / f"{record.name}-merged" / "merge-proof.json"
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.get("run") != record.name:
        return None
    names = ("verdict", "reason", "checkpoint", "argmax_agreement", "relative_error", "positions")
    return {name: told.get(name) for name in names} | {"directory": str(path.parent)}


def _environment(
    record: runs.RunRecord, samples: Sequence[telemetry.Sample]
) -> list[tuple[str, str]]:
    rows = list(record.versions.items())
    rows.append(("processes", str(record.processes)))
    for gpu in samples[-1].gpus if samples else ():
        parts = [
            f"{figure(value)} {unit}"
            for value, unit in ((gpu.total_gib, "GiB"), (gpu.power_limit_w, "W limit"))
            if value is not None
        ]
        rows.append((f"GPU {gpu.index}", ", ".join(parts)))
    corpus = record.corpus
    if corpus.get("rows") is not None:
        share = f"{corpus.get('rows')} of {corpus.get('of_rows')} rows"
        rows.append(("corpus", f"{corpus.get('source')}: {share}, {corpus.get('digest')}"))
    if record.base:
        rows.append(("base model", f"{record.tree.get('base_model')}, {record.base}"))
    return rows


def _tokens(paths: runs.RunPaths) -> float | None:
    lines = tidings.read(paths).metrics
    told = (files.number(line.get("tokens/total")) for line in reversed(lines))
    return next((value for value in told if value), None)


def _median(curve: Curve) -> float | None:
    return float(np.median(curve.value)) if len(curve) else None


def _by_step(samples: Sequence[telemetry.Sample], loss: Curve) -> dict[str, Curve]:
    """What the machine told, at the step that was trained then; nothing of a session's start."""
    if not len(loss):
        return {}
    clock = np.maximum.accumulate(np.nan_to_num(loss.time_s))  # a clock may have been set back
    sessions, first = np.unique(loss.session, return_index=True)
    begun = dict(zip(sessions.tolist(), clock[first].tolist(), strict=True))
    within = [s for s in samples if begun.get(s.session, math.inf) <= s.time_s <= clock[-1]]
    found = {
        "temperature_c": [s.hottest_c for s in within],
        "used_gib": [s.used_gib for s in within],
        "power_w": [s.power_w for s in within],
        "resident_gib": [s.resident_gib for s in within],
    }
    times = np.array([s.time_s for s in within])
    steps = np.interp(times, clock, loss.step).round().astype(np.int64)
    session = np.array([s.session for s in within], np.int64)
    curves = {}
    for name, told in found.items():
        value = np.array([math.nan if v is None else v for v in told], float)
        kept = np.argsort(steps, kind="stable")
        kept = kept[np.isfinite(value[kept])]
        curves[name] = Curve(steps[kept], value[kept], session[kept], times[kept])
    return {name: curve for name, curve in curves.items() if len(curve)}
