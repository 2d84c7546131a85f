"""Owns the commands of living with runs: runs list, status, logs, stop."""

import time
from typing import Annotated, Any

import typer

from leviathan.cli_config import GROUP, JsonOption

RunArgument = Annotated[
    str | None,
    typer.Argument(help="A run's name or directory; the only one, or the only that runs."),
]
runs_app = typer.Typer(help="Every run of this directory.", **GROUP)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.add_typer(runs_app, name="runs")
    app.command("status", short_help="How a run stands, truthfully.")(status)
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


def _steps(row: dict[str, Any]) -> str | None:
    return f"{row['step']}/{row['max_steps'] or '?'}" if "step" in row else None


def status(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """How a run stands: state, progress, losses, checkpoints, warnings, and what to type next."""
    from leviathan import runs, ui
    from leviathan import status as statuses

    found = statuses.summarize(runs.find(run, living=True))
    if as_json:
        ui.document(found.to_json())
    else:
        show(found)


def show(found: Any) -> None:
    """One screen about a run."""
    from leviathan import ui

    ui.title(found.name, found.state, found.why)
    if found.percent is not None:
        ui.progress(found.percent / 100)
    left = [("left", _left(found))] if found.eta_s is not None else []
    rows = [("step", _progress(found)), *left, ("loss", _losses(found)), ("saved", _saved(found))]
    age = ui.age(time.time() - found.active)
    count = f"{found.sessions} session{'s' * (found.sessions != 1)}"
    rows.append(("trained", f"{ui.duration(found.hours * 3600)} in {count}; heard of {age}"))
    rows += [("warning", text) for text in found.warnings[-5:]]
    if len(found.warnings) > 5:
        rows.append(("", f"and {len(found.warnings) - 5} more in events.jsonl"))
    ui.facts([*rows, ("next", found.next)])


def _progress(found: Any) -> str:

    parts = [f"{found.step} of {found.max_steps or '?'}"]
    if found.percent is not None:
        parts.append(f"{found.percent:.1f} %")
    if found.epoch is not None:
        parts.append(f"epoch {found.epoch:.2f}")
    return ", ".join(parts)


def _left(found: Any) -> str:
    from leviathan import ui

    shown = ui.duration(found.eta_s)
    if found.eta_low_s is not None:
        shown += f" ({ui.duration(found.eta_low_s)} to {ui.duration(found.eta_high_s)})"
    return f"{shown}, by {found.eta_from}"


def _losses(found: Any) -> str:
    named = (("", found.loss), ("eval loss ", found.eval_loss), ("lr ", found.learning_rate),
             ("tok/s ", found.tok_s))  # fmt: skip
    parts = [f"{label}{value:.4g}" for label, value in named if value is not None]
    return "  ".join(parts) or "none yet"


def _saved(found: Any) -> str:
    if not found.last_checkpoint:
        return "no checkpoint yet"
    best = f" (best: {found.best_checkpoint})" if found.best_checkpoint else ""
    return f"{found.last_checkpoint}{best}"


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
