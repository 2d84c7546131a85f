"""Owns the commands ``cloud export`` and ``cloud keep``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from leviathan.cli_config import JsonOption, SetOption, TrackOption
from leviathan.cli_train import (
    BudgetOption,
    MaxHoursOption,
    NodesOption,
    PriceOption,
    ShrinkOption,
    SmokeOption,
)

RunArgument = Annotated[
    str | None, typer.Argument(help="An existing run; left out: the options of a new one.")
]
TargetOption = Annotated[str, typer.Option("--target", "-t", help="skypilot, k8s or ssh.")]
OtherProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="Machine class; default: the run's.")
]
OtherRecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", help="What is trained; default: the run's.")
]
OtherSampleOption = Annotated[
    str | None, typer.Option("--sample", "-s", help="10pct, 5000 (rows), full.")
]
NameOption = Annotated[str | None, typer.Option(help="The run's name there.")]
IncludeDataOption = Annotated[
    bool, typer.Option("--include-data", help="Put sample and local base model into it.")
]
SecretOption = Annotated[
    list[str] | None, typer.Option("--secret", help="Name of a variable wanted there. Repeatable.")
]
GraceOption = Annotated[int | None, typer.Option(min=1, help="k8s: seconds a stop may take.")]
BucketOption = Annotated[
    str, typer.Option(help="skypilot: keeps the run; a name, or s3://bucket/folder.")
]
SpotOption = Annotated[bool, typer.Option("--spot/--no-spot", help="skypilot: spot machines.")]
IdleOption = Annotated[int, typer.Option(min=0, help="skypilot: stop when idle.")]
VolumeOption = Annotated[
    str, typer.Option(help="skypilot: network volume for runs, which several hosts need.")
]
AcceleratorsOption = Annotated[
    str | None, typer.Option(help="skypilot: instead of the profile's, A100-80GB:8.")
]
DiskOption = Annotated[int, typer.Option(min=1, help="skypilot, k8s: disk for the run.")]
KindOption = Annotated[str, typer.Option(help="k8s: job, jobset or pytorchjob.")]
ImageOption = Annotated[str, typer.Option(help="k8s: image with Leviathan in it.")]
StorageClassOption = Annotated[str | None, typer.Option(help="k8s: class of the volumes.")]
HostOption = Annotated[str, typer.Option(help="ssh: USER@HOST.")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="ssh: port.")]
KeyOption = Annotated[str, typer.Option(help="ssh: file of the private key.")]
DirectoryOption = Annotated[str, typer.Option("--dir", help="ssh: directory there.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what it would hold; write nothing.")
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Directory to write.")]


def register(cloud: typer.Typer) -> None:
    """Add these commands to the group ``cloud``."""
    cloud.command("export", short_help="A bundle that trains the same run elsewhere.")(export)
    cloud.command("keep", short_help="Train, and keep the run in a second place.")(keep)


def export(
    run: RunArgument = None,
    target: TargetOption = "ssh",
    output: OutputOption = None,
    profile: OtherProfileOption = None,
    recipe: OtherRecipeOption = None,
    sample: OtherSampleOption = None,
    name: NameOption = None,
    sets: SetOption = None,
    max_hours: MaxHoursOption = None,
    budget_usd: BudgetOption = None,
    usd_hour: PriceOption = None,
    track: TrackOption = None,
    shrink: ShrinkOption = False,
    smoke: SmokeOption = None,
    nodes: NodesOption = None,
    include_data: IncludeDataOption = False,
    secrets: SecretOption = None,
    grace_s: GraceOption = None,
    bucket: BucketOption = "",
    spot: SpotOption = True,
    idle_minutes: IdleOption = 10,
    volume: VolumeOption = "",
    accelerators: AcceleratorsOption = None,
    disk_gib: DiskOption = 256,
    kind: KindOption = "job",
    image: ImageOption = "leviathan-train:latest",
    storage_class: StorageClassOption = None,
    host: HostOption = "",
    port: PortOption = None,
    key: KeyOption = "",
    directory: DirectoryOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle that trains the same run elsewhere: configs, pins, scripts or manifests."""
    from leviathan import cluster, scripts, skypilot, targets, ui
    from leviathan import export as exporting

    wanted = exporting.Wanted(
        run, profile, recipe, sample, name, tuple(sets or ()), max_hours, budget_usd, usd_hour,
        nodes, _more(track, smoke, shrink=shrink), tuple(secrets or ()), grace_s,
    )  # fmt: skip
    wishes = targets.Wishes(
        include_data,
        skypilot.Wish(bucket, spot, idle_minutes, accelerators, disk_gib, volume),
        cluster.Wish(cluster.kind_of(kind), image, disk_gib, storage_class),
        scripts.Host(host, port, key, directory),
    )
    document = _written(target, wanted, wishes, output, dry_run=dry_run)
    if as_json:
        ui.document({**document, "directory": None if dry_run else str(output)})
        return
    _show(document, None if dry_run else output)


def _written(
    target: str, wanted: Any, wishes: Any, output: Path | None, *, dry_run: bool
) -> dict[str, Any]:
    """The manifest; all that can be wrong is found before the sample is drawn."""
    from leviathan import bundle, targets, ui
    from leviathan import export as exporting
    from leviathan.errors import BadInput

    if output is None and not dry_run:
        raise BadInput("where to? name a directory", "example: -o cloud/my-run")
    made = targets.build(target, exporting.of(wanted, draw=False), wishes)
    if dry_run or output is None:
        return made.manifest()
    made = targets.build(target, exporting.of(wanted, ui.corpus_progress()), wishes)
    return bundle.write(made, output)


def _more(track: list[str] | None, smoke: bool | None, *, shrink: bool) -> tuple[str, ...]:
    """Words for ``train`` that are no settings."""
    from leviathan import trackers

    trackers.parse(track)
    words = [word for name in track or () for word in ("--track", name)]
    if smoke is not None:
        words.append("--smoke" if smoke else "--no-smoke")
    return (*words, *["--shrink"] * shrink)


def _show(manifest: dict[str, Any], output: Path | None) -> None:
    import shlex

    from leviathan import ui

    for name, entry in manifest["files"].items():
        ui.say(f"{entry['bytes']:>12} {name}")
    for one in manifest["data"]:
        how = "included" if one["included"] else f"sent from {one['source']}"
        ui.say(f"{one['bytes']:>12} {one['name']} ({how})")
    ui.notice(f"trains with: {shlex.join(manifest['command'])}")
    if output is None:
        ui.notice("nothing was written (--dry-run)")
    else:
        ui.notice(f"next: see {output / 'README.md'}")


def keep(
    run: Annotated[str, typer.Argument(help="Name of the run that the command trains.")],
    command: Annotated[list[str], typer.Argument(help="After --: the command to run.")],
    place: Annotated[
        Path,
        typer.Option("--in", help="Directory that outlives this machine."),
    ],
) -> None:
    """Bring a run back from a second place, run the command, keep there what is committed.

    Ends with the command's exit code. Only whole checkpoints are copied, their commit record
    last; what comes back is read in full before it counts (docs/cloud.md).
    """
    from leviathan import keeping, layers, runs, ui

    paths = runs.RunPaths(runs.TRAINING / layers.checked_name(run))
    code = keeping.run(paths, place, command, ui.notice)
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)
