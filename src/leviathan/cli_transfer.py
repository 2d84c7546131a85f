"""Owns the commands ``cloud push``, ``cloud pull`` and ``cloud promote``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from leviathan.cli_config import JsonOption

PortOption = Annotated[
    int | None, typer.Option("--port", "-p", min=1, max=65535, help="ssh: port.")
]
KeyOption = Annotated[str, typer.Option("--key", "-i", help="ssh: file of the private key.")]
SshOption = Annotated[
    list[str] | None,
    typer.Option("--ssh-option", help="ssh: Name=value, as after its -o. Repeatable."),
]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", "-c", help="latest, best or N. Default: by --for.")
]
LimitOption = Annotated[str, typer.Option("--bwlimit", help="rsync's, for example 20m.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="List files and bytes; write nothing.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Also a model that is not proven.")]


def register(cloud: typer.Typer) -> None:
    """Add these commands to the group ``cloud``."""
    cloud.command("push", short_help="Bring a run or a model to another place.")(push)
    cloud.command("pull", short_help="Bring a run or a model back.")(pull)
    cloud.command("promote", short_help="Go on with a run on another machine class.")(promote)


def push(
    what: Annotated[str, typer.Argument(help="A run, or a merged model's directory.")],
    to: Annotated[str, typer.Argument(help="Project there: USER@HOST:DIR, or a directory.")],
    purpose: Annotated[
        str, typer.Option("--for", help="resume: a whole checkpoint. serve: the adapter only.")
    ] = "resume",
    checkpoint: CheckpointOption = "",
    sample: Annotated[
        bool, typer.Option("--sample/--no-sample", help="Configs and sample, where they lack.")
    ] = True,
    base: Annotated[bool, typer.Option("--base", help="The local base model, too.")] = False,
    port: PortOption = None,
    key: KeyOption = "",
    ssh_options: SshOption = None,
    bwlimit: LimitOption = "",
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a run or a merged model to another place, compared byte for byte before it counts.

    Interrupted, it leaves what was there as it was; the same command goes on.
    """
    from leviathan import luggage, remote, transfer

    place = remote.place(to, port=port, key=key, options=ssh_options or ())
    wishes = _wishes(purpose, checkpoint, bwlimit, force=force, dry_run=dry_run)
    paths = _run(what)
    with _told(as_json=as_json) as told:
        if paths is None:
            report, more = transfer.push_model(Path(what), place, wishes, told), luggage.NOTHING
        else:
            more, notes = luggage.NOTHING, list[str]()
            if purpose == "resume":
                more, notes = luggage.of_run(paths.directory, sample=sample, base=base)
            report = transfer.push_run(paths, place, wishes, more, told)
            report.notes += notes
    _show(report, more, as_json=as_json)


def pull(
    source: Annotated[str, typer.Argument(help="Run or model: USER@HOST:DIR, or a directory.")],
    project: Annotated[Path, typer.Argument(help="Project to bring it into.")] = Path(),
    purpose: Annotated[
        str, typer.Option("--for", help="resume: a whole checkpoint. serve: the best adapter only.")
    ] = "resume",
    checkpoint: CheckpointOption = "",
    port: PortOption = None,
    key: KeyOption = "",
    ssh_options: SshOption = None,
    bwlimit: LimitOption = "",
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a run's adapter, a whole run or a model here, verified before it counts.

    Interrupted, it leaves what was here as it was; the same command goes on.
    """
    from leviathan import luggage, remote, transfer

    place = remote.place(source, port=port, key=key, options=ssh_options or ())
    wishes = _wishes(purpose, checkpoint, bwlimit, force=force, dry_run=dry_run)
    with _told(as_json=as_json) as told:
        report = transfer.pull(place, project, wishes, told)
    _show(report, luggage.NOTHING, as_json=as_json)


def promote(
    run: Annotated[str, typer.Argument(help="A run with a checkpoint.")],
    profile: Annotated[str, typer.Option("--profile", help="The new machine class.")],
    micro_batch: Annotated[
        str,
        typer.Option(help="Rows of one pass, or fit. Default: the run's own, which is exact."),
    ] = "",
    to: Annotated[
        str, typer.Option("--to", help="Also push it: USER@HOST:DIR, or a directory.")
    ] = "",
    sample: Annotated[
        bool, typer.Option("--sample/--no-sample", help="--to: also the sample, where it lacks.")
    ] = True,
    base: Annotated[bool, typer.Option("--base", help="--to: the local base model, too.")] = False,
    port: PortOption = None,
    key: KeyOption = "",
    ssh_options: SshOption = None,
    bwlimit: LimitOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the profile with which a run goes on elsewhere: same batch, schedule and adapter.

    Says what is kept, what changes and why, and the command that resumes.
    """
    from leviathan import export, luggage, promotion, remote, render, runs, schema, transfer, ui
    from leviathan.errors import BadInput

    if not to and (port or key or ssh_options):
        raise BadInput("ssh's options are for --to", "example: --to root@1.2.3.4:project")
    place = remote.place(to, port=port, key=key, options=ssh_options or ()) if to else None
    wishes = _wishes("resume", "", bwlimit, force=False, dry_run=dry_run)
    paths = runs.find(run)
    made = promotion.of(paths, profile, _micro_batch(micro_batch))
    render.check_keys(made.config, schema.load())
    if not as_json:
        _show_promotion(made)
    if not dry_run:
        made.write()
    report, command = None, made.command
    if place and not dry_run:
        more = luggage.of(export.of(made.wanted, draw=False), sample=sample, base=base)
        command = more.command
        with _told(as_json=as_json) as told:
            report = transfer.push_run(paths, place, wishes, more, told)
    if as_json:
        sent = report.document() if report else None
        ui.document({**made.document(), "command": list(command), "pushed": sent})
    elif report:
        _show(report, more, as_json=False)
    else:
        _say_next(made, dry_run=dry_run)


def _micro_batch(text: str) -> int | str | None:
    from leviathan.errors import BadInput

    if text and text != "fit" and not (text.isdecimal() and int(text)):
        raise BadInput(f"--micro-batch {text!r} is neither a number nor fit")
    return int(text) if text.isdecimal() else text or None


def _show_promotion(made: Any) -> None:
    from leviathan import ui

    ui.table(
        ["setting", "run", "new profile", "then", "", "why"],
        [[r.key, r.run, r.profile, r.then, r.verdict, r.why] for r in made.rows],
    )
    for note in made.notes:
        ui.warn(note)
    ui.say(f"goes on from step {made.step} of {made.max_steps or '?'}: {made.likeness}")
    if made.plan and made.plan.card_gib:
        memory = f"{made.plan.memory.total_gib:.1f} of {made.plan.card_gib:g} GiB"
        ui.say(f"memory: {memory} ({made.plan.verdict})")
    if made.left_h:
        left = made.left_h
        ui.say(f"to the end: {left.mid:.2g} h ({left.low:.2g} to {left.high:.2g})")


def _say_next(made: Any, *, dry_run: bool) -> None:
    import shlex

    from leviathan import ui

    if dry_run:
        ui.notice("nothing was written (--dry-run)")
    else:
        ui.say(f"wrote {made.path}")
    ui.say(shlex.join(made.command))


def _wishes(purpose: str, checkpoint: str, bwlimit: str, *, force: bool, dry_run: bool) -> Any:
    import re

    from leviathan import transfer
    from leviathan.errors import BadInput

    if purpose not in transfer.PURPOSES:
        raise BadInput(f"--for {purpose!r} is neither resume nor serve")
    if not re.fullmatch(r"latest|best|(checkpoint-)?\d+|", checkpoint):
        raise BadInput(f"--checkpoint {checkpoint!r} names none", "use latest, best or N")
    if not re.fullmatch(r"(\d+(\.\d+)?[kKmMgG]?)?", bwlimit):
        raise BadInput(f"--bwlimit {bwlimit!r} is no rate", "20m is 20 MiB a second")
    return transfer.Wishes(purpose, checkpoint, bwlimit, force, dry_run)


def _run(what: str) -> Any:
    """The run called so; None for a model's directory."""
    from leviathan import runs

    is_run = (runs.TRAINING / what / "run.json").is_file() or (Path(what) / "run.json").is_file()
    return None if Path(what).is_dir() and not is_run else runs.find(what)


@contextmanager
def _told(*, as_json: bool) -> Iterator[Any]:
    from leviathan import transfer, ui

    if as_json:
        yield transfer.Told()
        return
    with ui.stages("") as show:
        yield transfer.Told(ui.notice, lambda share: show("copying", share))


def _show(report: Any, more: Any, *, as_json: bool) -> None:
    import shlex

    from leviathan import ui

    if as_json:
        ui.document({**report.document(), "command": list(more.command)})
        return
    for note in report.notes:
        ui.warn(note)
    if more.left_out_bytes:
        ui.notice(f"the base model ({ui.size(more.left_out_bytes)}) stays here; --base sends it")
    if report.dry_run:
        for name, size in report.files.items():
            ui.say(f"{size:>14,} {name}")
        ui.notice("nothing was written (--dry-run)")
    what = report.what if report.checkpoint is None else f"checkpoint-{report.checkpoint}"
    verb = "would be" if report.dry_run else "is"
    how = "" if report.dry_run else ", compared byte for byte"
    how = ", whole; it was there already" if report.there_already else how
    ui.say(f"{what} {verb} in {report.target} ({ui.size(report.bytes)}{how})")
    if more.command:
        ui.notice(f"goes on there with: {shlex.join(more.command)}")
