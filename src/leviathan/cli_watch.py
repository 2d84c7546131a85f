"""Owns the commands at the side of a living run: watch, save."""

from typing import Any

import typer

from leviathan.cli_config import JsonOption
from leviathan.cli_status import RunArgument


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("watch", short_help="The live view, from another shell.")(watch)
    app.command("save", short_help="Have a run save a checkpoint now.")(save)


def watch(run: RunArgument = None) -> None:
    """The live view of a run, from any shell; leaving it leaves the run alone."""
    from leviathan import pulse as pulses
    from leviathan import runs, ui
    from leviathan import status as statuses
    from leviathan import watch as watching
    from leviathan.cli_status import show

    paths = runs.find(run, living=True)
    pulse = pulses.of(paths)
    if ui.is_full_screen():
        _full_screen(paths, pulse)
    elif watching.lives(paths):
        _plain(paths, pulse)
    else:
        show(statuses.summarize(paths))


def _full_screen(paths: Any, pulse: Any) -> None:
    from leviathan import status as statuses
    from leviathan import ui, ui_watch
    from leviathan import watch as watching
    from leviathan.cli_status import show

    if not watching.lives(paths):
        found = statuses.summarize(paths)
        pulse.take("state", {"state": found.state, "why": found.why})
    ui_watch.show(paths, pulse)
    if watching.lives(paths):
        ui.notice(_goes_on(paths))
    else:
        show(statuses.summarize(paths))


def _plain(paths: Any, pulse: Any) -> None:
    from leviathan import status as statuses
    from leviathan import ui, ui_live
    from leviathan import watch as watching
    from leviathan.cli_status import show

    try:
        with ui_live.TrainView(pulse.name, "Ctrl+C leaves, the run goes on", pulse) as view:
            watching.follow(paths, view)
    except KeyboardInterrupt:
        ui.notice(_goes_on(paths))
        return
    show(statuses.summarize(paths))


def _goes_on(paths: Any) -> str:
    from leviathan import status as statuses

    return f"the run goes on; leviathan stop {statuses.called(paths)} saves and stops"


def save(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Have a run save a checkpoint after the step it is in, wait for it, and train on."""
    from leviathan import runs, saving, ui

    paths = runs.find(run, living=True)
    step = saving.ask(paths, ui.notice)
    if as_json:
        ui.document({"step": step, "path": str(paths.directory / f"checkpoint-{step}")})
    else:
        ui.say(f"saved checkpoint-{step}; the run goes on")
