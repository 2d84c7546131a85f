"""Owns the ``checkpoints`` commands."""

import time
from typing import Annotated, Any

import typer

from leviathan.cli_config import GROUP, JsonOption

RunArgument = Annotated[
    str | None, typer.Argument(help="A run's name or directory; the only run when left out.")
]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", "-c", help="best, latest, N or checkpoint-N.")
]
checkpoints_app = typer.Typer(help="List, verify, choose, pin and clean up.", **GROUP)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.add_typer(checkpoints_app, name="checkpoints")


@checkpoints_app.command("list")
def list_(
    run: RunArgument = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what lies in quarantine/ and set-aside/.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Every checkpoint of a run: step, losses, size, date, and whether it is sound."""
    from leviathan import checkpoints, ui

    paths = find_run(run)
    aside = checkpoints.aside(paths.directory)
    found = checkpoints.scan(paths.directory)
    if as_json:
        print_checkpoints([*found, *(aside if everything else [])], as_json)
        return
    print_checkpoints(found, as_json)
    if aside and everything:
        _print_aside(aside, paths)
    elif aside:
        each = {where: sum(c.where == where for c in aside) for where in checkpoints.ASIDE}
        lying = " and ".join(f"{count} in {where}/" for where, count in each.items() if count)
        total = ui.size(sum(c.bytes for c in aside))
        ui.notice(f"besides: {lying}, {total}; --all lists them")
    ui.notice(f"{paths.directory}; sizes checked, verify reads every byte")


def find_run(run: str | None) -> Any:
    """The run; one whose record cannot be read is not guessed at."""
    from leviathan import runs

    paths = runs.find(run)
    runs.read(paths)
    return paths


def _print_aside(aside: list[Any], paths: Any) -> None:
    from leviathan import runs, ui

    moved = (e for e in runs.events(paths) if e["event"] in {"quarantine", "set_aside"})
    why = {str(e.get("to")).rpartition("/")[2]: e.get("reason") for e in moved}
    ui.say()
    ui.table(
        ["step", "size", "saved", "where", "why"],
        [
            [c.step, ui.size(c.bytes), _date(c.modified), f"{c.where}/{c.path.name}",
             why.get(c.path.name)]
            for c in aside
        ],
        right="step size",
    )  # fmt: skip


@checkpoints_app.command("show")
def show(
    run: RunArgument = None,
    checkpoint: CheckpointOption = "latest",
    as_json: JsonOption = False,
) -> None:
    """One checkpoint in full: losses, files and sizes."""
    from leviathan import checkpoints

    _detail(checkpoints.choose(find_run(run).directory, checkpoint), as_json)


@checkpoints_app.command("latest")
def latest(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """The newest sound checkpoint."""
    show(run, "latest", as_json)


@checkpoints_app.command("best")
def best(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """The checkpoint with the lowest evaluation loss, and why; without evaluations, the latest."""
    from leviathan import checkpoints

    paths = find_run(run)
    chosen = checkpoints.choose(paths.directory, "best")
    _detail(chosen, as_json, _explained(paths, chosen))


def _explained(paths: Any, chosen: Any) -> Any:
    from dataclasses import replace

    from leviathan import checkpoints, choice, grades, runs, series, tidings

    # Where the best by evaluation was not chosen, every byte of it tells why.
    found = [
        checkpoints.verify(c) if choice.better(c, chosen) else c
        for c in checkpoints.scan(paths.directory)
    ]
    evals = series.recent(tidings.read(paths))["eval_loss"]
    told = choice.explain(chosen, found, evals, runs.events(paths))
    written = {c.path.name: c.modified for c in found if c.sound}
    other = grades.dissent(grades.every(paths), chosen.path.name, written)
    return replace(told, reasons=(*told.reasons, other)) if other else told


@checkpoints_app.command("verify")
def verify(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Read every byte of every checkpoint; exit 3 if one is damaged."""
    from leviathan import checkpoints, ui
    from leviathan.errors import Refused

    found = [checkpoints.verify(c) for c in checkpoints.scan(find_run(run).directory)]
    print_checkpoints(found, as_json)
    damaged = [f"{c.path.name}: {c.problem}" for c in found if not c.sound]
    if damaged:
        raise Refused("; ".join(damaged), "train resumes from the newest sound one by itself")
    if not as_json:
        ui.say(f"{len(found)} checkpoints, all sound")


@checkpoints_app.command("pin")
def pin(
    run: RunArgument = None, checkpoint: CheckpointOption = "latest", as_json: JsonOption = False
) -> None:
    """Keep a checkpoint for good: neither retention nor cleanup deletes it."""
    from leviathan import checkpoints

    chosen = checkpoints.choose(find_run(run).directory, checkpoint)
    _say_pinned(chosen, "pinned", checkpoints.pin(chosen), as_json)


@checkpoints_app.command("unpin")
def unpin(
    run: RunArgument = None, checkpoint: CheckpointOption = "latest", as_json: JsonOption = False
) -> None:
    """Let retention and cleanup have a pinned checkpoint again."""
    from leviathan import checkpoints

    chosen = checkpoints.named(find_run(run).directory, checkpoint)
    _say_pinned(chosen, "unpinned", checkpoints.unpin(chosen), as_json)


def _say_pinned(chosen: Any, word: str, changed: bool, as_json: bool) -> None:
    from leviathan import ui

    if as_json:
        ui.document({**chosen.to_json(), "pinned": word == "pinned", "changed": changed})
    elif changed:
        ui.say(f"{chosen.path.name} is {word}")
    else:
        was = "pinned already" if word == "pinned" else "not pinned"
        ui.say(f"{chosen.path.name} is {was}")


@checkpoints_app.command("cleanup")
def cleanup(
    run: RunArgument = None,
    keep: Annotated[int, typer.Option(min=1, help="Newest sound checkpoints to keep.")] = 2,
    drop_best: Annotated[
        bool, typer.Option("--drop-best", help="Let the best one go, too.")
    ] = False,
    aside: Annotated[
        bool,
        typer.Option("--set-aside", help="Instead, all that lies in quarantine/ and set-aside/."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete older checkpoints; never the last sound one, never damaged ones."""
    from leviathan import checkpoints, runs, ui, writer
    from leviathan.errors import BadInput

    paths = find_run(run)

    def choose() -> list[Any]:
        return checkpoints.aside(paths.directory) if aside else _going(paths, keep, drop_best)

    if not yes and not ui.is_terminal():
        names = ", ".join(c.path.name for c in choose()) or "none"
        raise BadInput(f"nothing was deleted; these would go: {names}", "say --yes")
    with writer.locked(paths):
        going = choose()
        total = ui.size(sum(c.bytes for c in going))
        if not as_json:
            for c in going:
                ui.say(f"{c.path.name}  {ui.size(c.bytes)}")
        agreed = bool(going) and (yes or ui.confirm(f"delete these {len(going)} ({total})?"))
        for c in going if agreed else []:
            checkpoints.remove(c)
            runs.event(paths, "remove", session=None, step=c.step, where=c.where)
    if as_json:
        ui.document({"deleted": agreed, "checkpoints": [c.to_json() for c in going]})
    elif not going:
        ui.say("nothing to delete")
    elif agreed:
        ui.say(f"deleted {len(going)} checkpoints, {total}")
    else:
        ui.say("nothing was deleted")


def _going(paths: Any, keep: int, drop_best: bool) -> list[Any]:
    """What cleanup may delete. Every byte is read: what stays must be sound."""
    from leviathan import checkpoints

    found = [checkpoints.verify(c) for c in checkpoints.scan(paths.directory)]
    return checkpoints.removable(found, keep, drop_best=drop_best)


def print_checkpoints(found: list[Any], as_json: bool) -> None:
    """The table, or the JSON document, of ``checkpoints list``."""
    from leviathan import ui

    if as_json:
        ui.document([c.to_json() for c in found])
        return
    rewarded = any(c.eval_reward is not None for c in found)
    judged = "eval reward" if rewarded else "eval loss"
    ui.table(
        ["step", "epoch", "loss", judged, "size", "saved", "sound", ""],
        [
            [c.step, c.epoch, c.loss, c.eval_reward if rewarded else c.eval_loss,
             ui.size(c.bytes), _date(c.modified),
             "yes" if c.sound else f"no: {c.problem}", _marks(c)]
            for c in found
        ],
        right="step epoch loss size",
    )  # fmt: skip


def _detail(c: Any, as_json: bool, choice: Any = None) -> None:
    from leviathan import ui

    files = {p.name: p.stat().st_size for p in sorted(c.path.iterdir()) if p.is_file()}
    if as_json:
        ui.document({**c.to_json(), "files": files, **(choice.to_json() if choice else {})})
        return
    ui.say(f"{c.path}  {_marks(c)}")
    if choice:
        ui.facts([("why", choice.why), *(("", reason) for reason in choice.reasons)])
    facts = {"step": c.step, "epoch": c.epoch, "loss": c.loss, "eval loss": c.eval_loss,
             **({} if c.eval_reward is None else {"eval reward": c.eval_reward}),
             "saved": _date(c.modified), "size": ui.size(c.bytes),
             "committed": "yes" if c.committed else "no (written without Leviathan)"}  # fmt: skip
    ui.table(["", ""], [*facts.items()])
    ui.table(["file", "size"], [[name, ui.size(count)] for name, count in files.items()])


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _marks(c: Any) -> str:
    marks = (("best", c.best), ("pinned", c.pinned), ("slim", c.slim))
    return " ".join(mark for mark, on in marks if on)
