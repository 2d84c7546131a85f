"""Owns the command ``merge``."""

from pathlib import Path
from typing import Annotated

import typer

from leviathan.cli_checkpoints import CheckpointOption, RunArgument
from leviathan.cli_config import JsonOption


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("merge", short_help="Merge, and prove the merge.")(merge)


def merge(
    run: RunArgument = None,
    checkpoint: CheckpointOption = "best",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default models/<run>-merged.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing output directory.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge a checkpoint into the base model, and prove that the result is what was trained."""
    from leviathan import merge as merging
    from leviathan import runs, ui
    from leviathan.errors import Refused

    paths = runs.find(run)
    chosen, directory = merging.plan(paths, checkpoint, output, replace=force)
    result = merging.merge(paths, chosen, directory, ui.notice)
    if as_json:
        ui.document({"verdict": result.verdict, "reason": result.reason,
                     "output": str(result.directory), **result.comparison})  # fmt: skip
    if result.verdict != "equal":
        raise Refused(
            f"{result.directory} is unverified: {result.reason}",
            f"see {result.directory / merging.PROOF}",
        )
    if not as_json:
        found = result.comparison
        ui.say(f"merged {chosen.path.name} into {result.directory}")
        ui.say(
            f"proof: equal; {found['argmax_agreement']:.1%} of {found['positions']} positions "
            f"agree, max difference {found['max_abs_diff']:.2g} where the adapter's effect is "
            f"{found['adapter_effect']:.2g}"
        )
