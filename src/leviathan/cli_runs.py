"""Owns the commands of living with runs: runs list, watch, logs, stop."""

import time
from typing import Annotated, Any

import typer

from leviathan.cli_config import GROUP, JsonOption
from leviathan.cli_status import RunArgument, show

runs_app = typer.Typer(help="Every run of this directory.", **GROUP)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.add_typer(runs_app, name="runs")
    app.command("watch", short_help="The live view, from another shell.")(watch)
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


def watch(run: RunArgument = None) -> None:
    """The live view of a running training, from any shell; leaving it leaves the run alone."""
    from leviathan import runs, ui
    from leviathan import status as statuses
    from leviathan import watch as watching

    paths = runs.find(run, living=True)
    found = statuses.summarize(paths)
    if watching.lives(paths):
        foot = "Ctrl+C leaves, the run goes on"
        age_s = time.time() - found.began
        view = ui.TrainView(found.name, statuses.history(paths), foot, age_s)
        try:
            with view:
                _recall(view, paths, found)
                watching.follow(paths, view)
        except KeyboardInterrupt:
            ui.notice(f"the run goes on; leviathan stop {statuses.called(paths)} saves and stops")
            return
        found = statuses.summarize(paths)
    show(found)


def _recall(view: Any, paths: Any, found: Any) -> None:
    """Begin the view with what the session has said so far."""
    from leviathan import runs
    from leviathan import watch as watching

    session = found.sessions
    lines = [m for m in runs.metrics(paths) if m["session"] == session if watching.is_of_a_step(m)]
    trained = [line for line in lines if "loss" in line] or lines
    if trained:
        view.recall(trained[-1], found.eval_loss, found.last_checkpoint)


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
