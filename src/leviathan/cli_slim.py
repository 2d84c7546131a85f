"""Owns the command ``checkpoints slim``."""

from typing import Annotated, Any

import typer

from leviathan.cli_checkpoints import RunArgument, checkpoints_app, find_run
from leviathan.cli_config import JsonOption


def register(_app: typer.Typer) -> None:
    """Add the command to the group ``checkpoints``."""
    checkpoints_app.command("slim")(slim)


def slim(
    run: RunArgument = None,
    keep_optimizer: Annotated[
        int,
        typer.Option("--keep-optimizer", min=1, help="Newest checkpoints that keep theirs."),
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take the optimizer out of old checkpoints: half to three quarters of a full model's size.

    They stay good for merging, testing and serving; training cannot go on from them.
    """
    from leviathan import runs, slimming, ui, writer
    from leviathan.errors import BadInput

    paths = find_run(run)

    def choose() -> list[Any]:
        return slimming.candidates(slimming.verified(paths.directory), keep_optimizer)

    if dry_run:
        _tell(choose(), as_json)
        return
    if not yes and not ui.is_terminal():
        names = ", ".join(c.path.name for c in choose()) or "none"
        raise BadInput(f"nothing was removed; these would be slimmed: {names}", "say --yes")
    with writer.locked(paths):
        going = choose()
        if not as_json:
            _tell(going, as_json)
        agreed = bool(going) and (yes or ui.confirm(f"slim these {len(going)}?"))
        done = slimming.apply(going if agreed else [])
        for step, freed in done.slimmed:
            runs.event(paths, "slim", session=None, step=step, bytes=freed, reason="by hand")
    _show(paths, done, as_json)


def _tell(going: list[Any], as_json: bool) -> None:
    from leviathan import slimming, ui

    sizes = {c.step: slimming.freed(c) for c in going}
    if as_json:
        named = [{"step": c.step, "path": str(c.path), "frees": sizes[c.step]} for c in going]
        ui.document({"slimmed": [], "freed_bytes": 0, "would_slim": named})
        return
    for c in going:
        ui.say(f"{c.path.name}  {ui.size(sizes[c.step])} of {ui.size(c.bytes)}")
    ui.say(f"{len(going)} to slim, {ui.size(sum(sizes.values()))}" if going else "nothing to slim")


def _show(paths: Any, done: Any, as_json: bool) -> None:
    from leviathan import checkpoints, ui
    from leviathan.errors import LeviathanError

    total = sum(freed for _, freed in done.slimmed)
    steps = {step for step, _ in done.slimmed}
    if as_json:
        now = [c.to_json() for c in checkpoints.scan(paths.directory) if c.step in steps]
        ui.document({"slimmed": now, "freed_bytes": total})
    elif done.slimmed:
        ui.say(f"slimmed {len(steps)} checkpoints, {ui.size(total)} freed")
    elif not done.problem:
        ui.say("nothing was slimmed")
    if done.problem:
        raise LeviathanError(done.problem, "the others are slimmed; see the disk and its rights")
