"""Owns the ``doctor`` command."""

from typing import Annotated, Any

import typer

from leviathan.cli_config import JsonOption, SetOption

HELP = """\
Can this machine train? Every check with its evidence and, unless it passed, its fix.

With --profile, --recipe, --sample or --set: the checks that `train` makes with the same options
(where left out, train's own defaults a4000, leviathan and 10pct). With none of them: the
machine alone, against the profile that suits it best.

Exit code 3 if any check fails, else 0.
"""


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("doctor", help=HELP, short_help="Can this machine train: pass, warn or fail.")(
        doctor
    )


def doctor(
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Machine class: a name or a YAML file.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="What is to be trained.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option("--sample", "-s", help="Part of the corpus: 10pct, 5000, full.")
    ] = None,
    sets: SetOption = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Import everything and ask the hub, too: half a minute."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """See HELP."""
    from leviathan import check_imports, preflight, ui

    if deep:
        from leviathan.cli_config import announce_schema

        announce_schema()
    if profile or recipe or sample or sets:
        first: list[Any] = []
        subject = _training(profile, recipe, sample, sets or [], deep=deep)
    else:
        first, subject = _machine(deep=deep)
    found = [*first, *preflight.checks(subject), *(check_imports.checks(subject) if deep else [])]
    if as_json:
        ui.document(
            [
                {"check": c.name, "state": c.state, "evidence": c.evidence, "fix": c.fix}
                for c in found
            ]
        )
    else:
        _show(found)
    if any(check.state == "fail" for check in found):
        raise typer.Exit(3)


def _keys(*, deep: bool) -> Any:
    """Axolotl's keys where that costs nothing, or where time was given."""
    from leviathan import schema

    return schema.load() if deep or schema.is_cached() else None


def _keys_read(keys: Any, *, deep: bool) -> bool | None:
    return True if keys else (False if deep else None)


def _training(
    profile: str | None, recipe: str | None, sample: str | None, sets: list[str], *, deep: bool
) -> Any:
    from leviathan import layers, machine, preflight, render, runs, samples

    config = layers.build(recipe or "leviathan", profile or "a4000", sample, sets)
    keys = _keys(deep=deep)
    render.check_keys(config, keys)
    paths = runs.RunPaths(runs.TRAINING / layers.run_name(config, None))
    return preflight.of_training(
        config, machine.probe(), paths, samples.DIRECTORY, keys_read=_keys_read(keys, deep=deep)
    )


def _machine(*, deep: bool) -> tuple[list[Any], Any]:
    """The machine against the profile that suits it, and the line that says which."""
    import os

    from leviathan import config, machine, preflight
    from leviathan.checkup import Check, visible

    here = machine.probe()
    known = {name: config.load_profile(name)[1] for name in config.names("profiles")}
    name = preflight.suited(visible(here.gpus, os.environ.get("CUDA_VISIBLE_DEVICES")), known)
    what = "a GPU" if here.gpus else "no GPU"
    if name is None:
        line = Check(
            "profile", "warn", f"{what} here, but no profile is made for it",
            "leviathan profiles detect --write NAME makes one",
        )  # fmt: skip
    else:
        line = Check("profile", "pass", f"{what} here: {name} suits; train --profile {name}")
    keys_read = _keys_read(_keys(deep=deep), deep=deep)
    return [line], preflight.of_machine(here, known.get(name or ""), keys_read=keys_read)


def _show(found: list[Any]) -> None:
    from leviathan import ui

    rows: list[list[Any]] = []
    for check in found:
        rows.append([ui.state(check.state), check.name, check.evidence])
        if check.fix:
            rows.append(["", "", f"  fix: {check.fix}"])
    ui.table(["state", "check", "evidence"], rows)
    counts = {state: sum(c.state == state for c in found) for state in ("fail", "warn")}
    if counts["fail"]:
        ui.notice(f"{counts['fail']} failed: train would refuse (--force goes on all the same)")
