"""Owns the commands that only read configuration: profiles, recipes, render."""

from pathlib import Path
from typing import Annotated, Any

import typer

ProfileOption = Annotated[
    str, typer.Option("--profile", "-p", help="Machine class: a4000, a100, cpu, or a YAML file.")
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="What is trained: a name or a YAML file.")
]
SampleOption = Annotated[
    str | None,
    typer.Option(
        "--sample",
        "-s",
        help="Part of the corpus: 10pct, 5000 (rows), full. Default: the recipe's.",
    ),
]
ModeOption = Annotated[
    str | None, typer.Option("--mode", help="Time-boxed form of the recipe: demo, small, ... full.")
]
StageOption = Annotated[
    str | None, typer.Option("--stage", help="Only this stage of a recipe that has several.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one key, as learning_rate=1e-4. Repeatable."),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option("--track", help="tensorboard, wandb, trackio, mlflow or none. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

GROUP: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}

profiles_app = typer.Typer(help="Machine classes and their training knobs.", **GROUP)
recipes_app = typer.Typer(help="What is trained.", **GROUP)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.add_typer(profiles_app, name="profiles")
    app.add_typer(recipes_app, name="recipes")
    app.command("render", short_help="The Axolotl YAML, and who set what.")(render)


@profiles_app.command("list")
def profiles_list(as_json: JsonOption = False) -> None:
    """Every profile, yours in ./configs first."""
    from leviathan import config, ui

    found = [config.load_profile(str(path)) for path in config.names("profiles").values()]
    if as_json:
        ui.document([{"name": name, **profile.model_dump()} for name, profile, _ in found])
        return
    ui.table(
        ["profile", "also", "GPU", "GiB", "description"],
        [
            [name, ", ".join(p.aliases), _gpus(p.hardware), p.hardware.memory_gib, p.description]
            for name, p, _ in found
        ],
        right="GiB",
    )


def _gpus(hardware: Any) -> str:
    name = hardware.gpu or hardware.device
    cards = f"{hardware.count} x {name}" if hardware.count > 1 else name
    return f"{hardware.nodes} hosts of {cards}" if hardware.nodes > 1 else cards


@profiles_app.command("show")
def profiles_show(name: str, as_json: JsonOption = False) -> None:
    """One profile: the file itself, comments and all."""
    from leviathan import config, ui

    name, profile, source = config.load_profile(name)
    if as_json:
        ui.document({"name": name, **profile.model_dump(), "path": str(source.path)})
        return
    ui.notice(str(source.path))
    ui.say(source.path.read_text().rstrip())


@profiles_app.command("diff")
def profiles_diff(first: str, second: str, as_json: JsonOption = False) -> None:
    """What differs between two profiles, key by key."""
    from leviathan import config, ui

    (one, a, _), (two, b, _) = config.load_profile(first), config.load_profile(second)
    rows = config.differences(a, b)
    if as_json:
        ui.document([{"key": key, one: left, two: right} for key, left, right in rows])
        return
    ui.table(["key", one, two], rows)


@profiles_app.command("detect")
def profiles_detect(
    write: Annotated[
        str | None, typer.Option("--write", help="Write it to ./configs/profiles/NAME.yaml.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A profile for the GPUs of this machine: facts measured and known, knobs of the nearest."""
    from leviathan import config, detect, files, machine, ui

    path = detect.new_file(write) if write is not None else None
    found = machine.probe()
    if path and not found.gpus:
        raise _no_gpu(found.driver_problem)
    text, notes = detect.profile_for(found.gpus, write or "detected")
    for note in notes:
        ui.notice(note)
    if path:
        files.write_text(path, text)
    if as_json:
        profile = config.parse_profile(text)
        ui.document({"name": write, "path": path, "notes": notes, **profile.model_dump()})
    elif path:
        ui.say(f"wrote {path}")
        ui.notice(f"next: leviathan train --profile {write} --sample 10pct --dry-run")
    else:
        ui.say(text.rstrip())


def _no_gpu(problem: str) -> Exception:
    from leviathan.errors import Refused

    why = f" ({problem})" if problem else ""
    return Refused(f"no NVIDIA GPU answers{why}; nothing was written", "use --profile cpu")


@recipes_app.command("list")
def recipes_list(as_json: JsonOption = False) -> None:
    """Every recipe, yours in ./configs first."""
    from leviathan import config, ui

    found = [config.load_recipe(str(path)) for path in config.names("recipes").values()]
    if as_json:
        ui.document([{"name": name, **recipe.model_dump()} for name, recipe, _ in found])
        return
    ui.table(
        ["recipe", "base model", "samples", "description"],
        [
            [n, r.base_model or "made from nothing", ", ".join(r.samples) or "-", r.description]
            for n, r, _ in found
        ],
    )


@recipes_app.command("show")
def recipes_show(name: str, as_json: JsonOption = False) -> None:
    """One recipe: the file itself, comments and all."""
    from leviathan import config, ui

    name, recipe, source = config.load_recipe(name)
    if as_json:
        ui.document({"name": name, **recipe.model_dump(), "path": str(source.path)})
        return
    ui.notice(str(source.path))
    ui.say(source.path.read_text().rstrip())


def chosen(sets: list[str] | None, mode: str | None, stage: str | None = None) -> list[str]:
    """The overrides with mode and stage among them, as ``layers.build`` takes them."""
    named = [f"mode={mode}"] if mode is not None else []
    return [*(sets or []), *named, *([f"stage={stage}"] if stage is not None else [])]


def announce_schema() -> None:
    """Say why the first command after an Axolotl installation takes ten seconds."""
    from leviathan import schema, ui

    if not schema.is_cached():
        ui.notice("reading which keys this Axolotl knows (once per version, about ten seconds)")


def render(
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    sample: SampleOption = None,
    mode: ModeOption = None,
    stage: StageOption = None,
    sets: SetOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which layer and line set each key.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the YAML to this file.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    track: TrackOption = None,
    as_json: JsonOption = False,
) -> None:
    """The Axolotl YAML that train would launch, and where every value comes from."""
    from leviathan import files, layers, trackers, train, ui

    tracked = trackers.parse(track)
    merged = layers.build(recipe, profile, sample, chosen(sets, mode, stage))
    announce_schema()
    rendered = train.preview(merged, name, tracked)
    for note in rendered.notes:
        ui.notice(note)
    if output:
        files.write_text(output, rendered.yaml())
    if as_json:
        ui.document(_explained(rendered) if explain else rendered.tree)
    elif explain:
        rows = [[key, value, o.layer, o.where] for key, value, o in rendered.rows()]
        ui.table(["key", "value", "layer", "from"], rows)
    elif not output:
        ui.say(rendered.yaml().rstrip())


def _explained(rendered: Any) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": value, "layer": origin.layer, "from": origin.where}
        for key, value, origin in rendered.rows()
    ]
