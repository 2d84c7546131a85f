"""Owns the ``status`` command: one screen about a run."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from leviathan.cli_config import JsonOption

if TYPE_CHECKING:
    from leviathan.machine import GpuState
    from leviathan.status import RunSummary
    from leviathan.trends import Trend

RunArgument = Annotated[
    str | None,
    typer.Argument(help="A run's name or directory; the only one, or the only that runs."),
]
_MOST_WARNINGS = 5


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("status", short_help="How a run stands, truthfully.")(status)


def status(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """How a run stands: progress, losses and where they go, speed, machine, checkpoints, money,
    warnings, and what to type next."""
    from leviathan import course, runs, ui
    from leviathan import status as statuses

    paths = runs.find(run, living=True)
    found, whole = statuses.summarize(paths), course.of(paths)
    if as_json:
        ui.document(found.to_json() | (whole.to_json() if whole else {}))
        return
    if whole:
        ui.title(whole.whole, whole.done, "")
        ui.table(course.HEADS, [list(one.row) for one in whole.stages])
    show(found)


def show(found: "RunSummary") -> None:
    """One screen about a run."""
    from leviathan import ui

    ui.title(found.name, found.state, found.why)
    if found.percent is not None:
        ui.progress(found.percent / 100)
    rows = [*_training(found), *_machine(found), *_keeping(found)]
    # Notes are for the report; a screen to act on has what asks for it.
    rows += [(v.grade, v.text) for v in found.verdicts if v.grade in {"bad", "warn"}]
    rows += [("warning", text) for text in found.warnings[-_MOST_WARNINGS:]]
    if len(found.warnings) > _MOST_WARNINGS:
        rows.append(("", f"and {len(found.warnings) - _MOST_WARNINGS} more in events.jsonl"))
    ui.facts([*rows, ("next", found.next)])


def _training(found: "RunSummary") -> Iterator[tuple[str, str]]:
    from leviathan import ui

    parts = [f"{found.step:,} of {f'{found.max_steps:,}' if found.max_steps else '?'}"]
    if found.percent is not None:
        parts.append(f"{found.percent:.1f} %")
    if found.epoch is not None:
        parts.append(f"epoch {found.epoch:.2f}")
    yield "step", ", ".join(parts)
    if found.eta_s is not None:
        yield "left", _left(found)
    if found.reward is not None:
        yield "reward", _reward(found)
    else:
        yield "loss", _moving(found.loss, found.loss_trend)
    if found.reward is None and found.eval_loss is not None:
        yield "eval loss", _evaluated(found)
    pace = _joined(
        (found.tok_s, "{:,.0f} tok/s"),
        (found.mfu_pct, "MFU {:.0f} %"),
        (found.step_s, "{:.3g} s a step"),
        (found.learning_rate, "learning rate {:.3g}"),
    )
    if pace:
        yield "pace", pace
    if found.curve:
        yield "", ui.sparkline(found.curve)


def _joined(*parts: tuple[float | None, str]) -> str:
    return ", ".join(shape.format(value) for value, shape in parts if value is not None)


def _left(found: "RunSummary") -> str:
    from leviathan import ui

    shown = ui.duration(found.eta_s or 0)
    if found.eta_low_s is not None and found.eta_high_s is not None:
        shown += f" ({ui.duration(found.eta_low_s)} to {ui.duration(found.eta_high_s)})"
    return f"{shown}, by {found.eta_from}"


def _moving(value: float | None, trend: "Trend | None") -> str:
    """A figure, and where it is going."""
    if value is None:
        return "none yet"
    if trend is None:
        return f"{value:.4g}"
    return f"{value:.4g}, {trend.direction}: {trend.mean:.4g} lately, {trend.before:.4g} before"


def _reward(found: "RunSummary") -> str:
    more = _joined(
        (found.eval_reward, "in evaluation {:.4g}"),
        (found.answer_tokens, "answers of {:.3g} tokens"),
    )
    return _moving(found.reward, found.reward_trend) + (f"; {more}" if more else "")


def _evaluated(found: "RunSummary") -> str:
    shown = f"{found.eval_loss:.4g}"
    if found.eval_change is not None:
        shown += f" ({found.eval_change:+.4f} since the one before)"
    if found.lowest_eval_step is not None and found.lowest_eval_loss != found.eval_loss:
        shown += f"; lowest {found.lowest_eval_loss:.4g} at step {found.lowest_eval_step:,}"
    return shown


_OLD_SAMPLE_S = 60.0


def _machine(found: "RunSummary") -> Iterator[tuple[str, str]]:
    from leviathan import ui

    age_s = time.time() - (found.sampled or 0)
    when = f", {ui.age(age_s)}" if age_s > _OLD_SAMPLE_S else ""
    for gpu in found.gpus:
        yield f"GPU {gpu.index}", _gpu(gpu) + when
    if found.resident_gib and not found.gpus:
        yield "memory", f"{found.resident_gib:.2f} GiB resident{when}"


def _gpu(gpu: "GpuState") -> str:
    used = "" if gpu.used_gib is None else f"{gpu.used_gib:.1f}"
    total = "" if gpu.total_gib is None else f" of {gpu.total_gib:.1f}"
    watts = "" if gpu.power_w is None else f"{gpu.power_w:.0f}"
    limit = "" if gpu.power_limit_w is None else f" of {gpu.power_limit_w:.0f}"
    told = [
        used and f"{used}{total} GiB",
        "" if gpu.busy_pct is None else f"{gpu.busy_pct:.0f} % busy",
        "" if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} C",
        watts and f"{watts}{limit} W",
        *gpu.throttle,
    ]
    return ", ".join(part for part in told if part)


def _keeping(found: "RunSummary") -> Iterator[tuple[str, str]]:
    """What is safe, what room there is, what it has cost."""
    from leviathan import ui

    now = time.time()
    saved = "no checkpoint yet"
    if found.last_checkpoint:
        best = f"; best: {found.best_checkpoint}" if found.best_checkpoint else ""
        when = f", {ui.age(now - found.last_saved)}" if found.last_saved else ""
        saved = f"{found.last_checkpoint}{when}{best}"
    yield "saved", saved
    room = f"{ui.size(found.free_disk_gib * 2**30)} free"
    if found.checkpoint_gib is not None:
        room += f", a checkpoint takes {ui.size(found.checkpoint_gib * 2**30)}"
    if found.disk_full_in_s is not None:
        room += f"; filling: full in {ui.duration(found.disk_full_in_s)}"
    yield "disk", room
    count = f"{found.sessions} session{'s' * (found.sessions != 1)}"
    spent = f"{ui.duration(found.hours * 3600)} in {count}"
    yield "trained", f"{spent}; heard of {ui.age(now - found.active)}"
    if found.usd is not None or found.budget:
        yield "budget", _budget(found)


def _budget(found: "RunSummary") -> str:
    hours, usd = found.budget.get("max_hours"), found.budget.get("budget_usd")
    parts = [f"{found.hours:.3g} h" + (f" of {hours:g}" if hours is not None else "")]
    if found.usd is not None:
        parts.append(f"${found.usd:.2f}" + (f" of {usd:g}" if usd is not None else ""))
    return ", ".join(parts) + " used"
