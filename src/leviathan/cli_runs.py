"""Owns the commands of living with runs: runs list and compare, logs, stop."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leviathan.cli_config import GROUP, JsonOption
from leviathan.cli_status import RunArgument

if TYPE_CHECKING:
    from leviathan.contrast import Contrast, Side

runs_app = typer.Typer(help="Every run of this directory.", **GROUP)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.add_typer(runs_app, name="runs")
    app.command("logs", short_help="The training log of a run.")(logs)
    app.command("stop", short_help="Save and stop a run; --now kills it.")(stop)


@runs_app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Every run: state, step, losses, sessions, and when it was last heard of."""
    from leviathan import runs, ui

    found = [_row(paths) for paths in runs.known_runs()]
    if as_json:
        ui.document(found)
        return
    now = time.time()
    ui.table(
        ["run", "state", "step", "loss", "eval loss", "sessions", "heard of"],
        [
            [r["name"], ui.state(r["state"]), _steps(r), r.get("loss"), r.get("eval_loss"),
             r.get("sessions"), ui.age(now - r["active"]) if "active" in r else None]
            for r in found
        ],
        right="step loss sessions",
    )  # fmt: skip
    for row in found:
        if row["state"] == "damaged":
            ui.warn(row["problem"])
    if not found:
        ui.notice(f"no runs in {runs.TRAINING} yet; leviathan train starts one")


def _row(paths: Any) -> dict[str, Any]:
    from leviathan import status as statuses
    from leviathan.errors import BadInput

    try:
        return statuses.summarize(paths).to_json()
    except BadInput as error:  # one damaged run must not hide the others
        directory = paths.directory
        return {"name": directory.name, "directory": str(directory), "state": "damaged",
                "problem": error.message}  # fmt: skip


@runs_app.command("compare")
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Names or directories.")],
    as_json: JsonOption = False,
) -> None:
    """Runs side by side: what was set otherwise, their curves, where they ended."""
    from leviathan import contrast, runs, ui

    found = contrast.of([runs.find(name) for name in names])
    if as_json:
        ui.document(found.to_json())
        return
    _show_numbers(found)
    _show_curves(found)
    titles = [side.summary.name for side in found.sides]
    ui.heading("set otherwise")
    if found.differences:
        ui.table(["", *titles], [[name, *map(_setting, v)] for name, v in found.differences])
    else:
        ui.say("nothing: the same settings, corpus, base model and versions")


_LONGEST = 60


def _setting(value: Any) -> str | None:
    shown = None if value is None else str(value)
    return f"{shown[: _LONGEST - 1]}…" if shown and len(shown) > _LONGEST else shown


def _show_numbers(found: "Contrast") -> None:
    from leviathan import ui

    figures: list[tuple[str, Callable[[Side], Any]]] = [
        ("state", lambda s: ui.state(s.summary.state)),
        ("step", lambda s: f"{s.summary.step:,} of {s.summary.max_steps or '?'}"),
        ("loss, newest 20", lambda s: s.final_loss),
        ("lowest eval loss", lambda s: s.summary.lowest_eval_loss),
        ("at step", lambda s: s.summary.lowest_eval_step),
        ("best checkpoint", lambda s: s.summary.best_checkpoint),
        ("tok/s", lambda s: s.summary.tok_s and round(s.summary.tok_s)),
        ("MFU, %", lambda s: s.summary.mfu_pct),
        ("hours", lambda s: s.summary.hours),
        ("cost, $", lambda s: s.summary.usd),
        ("sessions", lambda s: s.summary.sessions),
        ("steps undone", lambda s: sum(part.undone for part in s.series.parts)),
    ]
    rows = [[label, *(read(side) for side in found.sides)] for label, read in figures]
    rows = [row for row in rows if any(value is not None for value in row[1:])]
    ui.table(["", *(side.summary.name for side in found.sides)], rows)


_COLUMNS = 60


def _show_curves(found: "Contrast") -> None:
    """Each run's losses in a line, all on one scale; and as numbers, around the same steps."""
    from leviathan import contrast, ui

    last = max(side.summary.step for side in found.sides)
    for name, label in (("loss", "training loss"), ("eval_loss", "evaluation loss")):
        rows = [contrast.row(side.series[name], last, _COLUMNS) for side in found.sides]
        told = [value for row in rows for value in row if value is not None]
        if not told:
            continue
        ui.heading(f"{label}, to step {last:,}; {max(told):.4g} is high, {min(told):.4g} low")
        for side, row in zip(found.sides, rows, strict=True):
            ui.say(f"{ui.sparkline(row, min(told), max(told)):<{_COLUMNS}}  {side.summary.name}")
    if found.losses:
        ui.say()
        steps = [f"step {step:,}" for step in found.steps]
        ui.table(
            ["training loss around", *steps],
            [
                [side.summary.name, *(values[place] for _, values in found.losses)]
                for place, side in enumerate(found.sides)
            ],
        )


def _steps(row: dict[str, Any]) -> str | None:
    return f"{row['step']}/{row['max_steps'] or '?'}" if "step" in row else None


def logs(
    run: RunArgument = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it grows, until the run ends.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many lines of what is there.")
    ] = 40,
) -> None:
    """What the newest session of a run printed: Axolotl's own log, whole."""
    from leviathan import runs, ui
    from leviathan import watch as watching
    from leviathan.errors import BadInput

    paths = runs.find(run, living=True)
    runs.read(paths)
    log = watching.newest_log(paths)
    if log is None:
        raise BadInput(f"{paths.directory.name} has no training log yet")
    ui.notice(str(log))
    text, end = watching.last_lines(log, lines)
    ui.raw(text)
    try:
        for text in watching.follow_log(paths, log, end) if follow else ():
            ui.raw(text)
    except KeyboardInterrupt:
        return


def stop(
    run: RunArgument = None,
    now: Annotated[
        bool, typer.Option("--now", help="Kill at once: what is not saved yet is lost.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Have a run save a checkpoint and stop, and wait for it; nothing of it is left behind."""
    from leviathan import runs, stopping, ui
    from leviathan import status as statuses

    paths = runs.find(run, living=True)
    try:
        ran = stopping.kill(paths) if now else stopping.ask(paths, ui.notice)
    except KeyboardInterrupt:
        again = f"leviathan stop {statuses.called(paths)} --now"
        ui.notice(f"no longer waiting; where it was asked to, it still stops; at once: {again}")
        raise
    found = statuses.summarize(paths)
    if as_json:
        ui.document({"stopped": ran, **found.to_json()})
    elif ran:
        saved = f"saved {found.last_checkpoint}" if found.last_checkpoint else "no checkpoint yet"
        how = "killed" if now else found.state
        ui.say(f"{how}: {saved}, next: {found.next}")
    else:
        why = f" ({found.why})" if found.why else ""
        ui.say(f"{found.name} is not running: {found.state}{why}; next: {found.next}")
    if ran and not now and found.state == "failed":
        raise typer.Exit(1)
