"""Owns the ``bench`` command."""

from typing import Annotated, Any

import typer

from leviathan.cli_config import (
    JsonOption,
    ModeOption,
    ProfileOption,
    RecipeOption,
    SampleOption,
    SetOption,
    StageOption,
    announce_schema,
    chosen,
)


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("bench", short_help="A short real run: tokens/s, memory by phase.")(bench)


def bench(
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    sample: SampleOption = None,
    mode: ModeOption = None,
    stage: StageOption = None,
    sets: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Steps to measure.")] = 10,
    warm_up: Annotated[
        int, typer.Option("--warm-up", min=0, max=10_000, help="Steps before those.")
    ] = 3,
    cap_gib: Annotated[
        float | None,
        typer.Option("--cap-gib", help="Run out of memory as a card of so many GiB would."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on although a check fails.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a few steps, evaluate and save for real: speed, and peak memory by phase.

    Through train's own launch path, longest rows first, in work/bench. A base model that is
    not here is replaced by random weights of its architecture.
    """
    from leviathan import bench as benching
    from leviathan import layers, ui, ui_live

    merged = layers.build(recipe, profile, sample, chosen(sets, mode, stage))
    announce_schema()
    planned = benching.decide(merged, steps=steps, warm_up=warm_up, cap_gib=cap_gib)
    from leviathan.cli_train import show_checks

    show_checks(planned.decision, force=force)
    name = planned.decision.paths.directory.name
    with ui_live.TrainView(f"bench {name}", foot="Ctrl+C ends it") as view:
        result = benching.run(planned, view)
    if result.calibration and as_json:
        ui.document(_document(result))
    elif result.calibration and result.calibration.fits:
        _show(result)
    _finish(result)


def _document(result: Any) -> dict[str, Any]:
    from leviathan import calibrations

    return {
        "run": str(result.ending.decision.paths.directory),
        "rows": result.rows,
        "next_rung": result.next_rung,
        **calibrations.as_document(result.calibration),
    }


def _show(result: Any) -> None:
    from leviathan import calibrations, ui

    found = result.calibration
    knobs = found.knobs
    weights = "random weights" if found.random else "real weights"
    ui.say(f"{found.model} ({found.parameters:,} parameters, {weights}) on {found.devices[0]}")
    if found.capped:
        ui.say(f"its memory capped to {found.memory_gib:.3g} GiB; the speed is the real card's")
    ui.say(f"{result.rows}; the first steps are of the longest rows")
    rows = [
        ["tokens/s", f"{found.tok_s:,.1f}", f"without padding; {found.padded_tok_s:,.1f} with"],
        ["step", f"{found.step_s:.3g} s",
         f"median of {found.steps}, quartiles {found.step_low_s:.3g} to {found.step_high_s:.3g}; "
         f"{knobs['gradient_accumulation_steps']} x {knobs['micro_batch_size']} rows of "
         f"{knobs['sequence_len']} x {knobs['processes']} processes"],
    ]  # fmt: skip
    for what, value, note in (
        ("evaluation", found.eval_s_per_batch, f"a batch of {knobs['eval_batch_size']} rows"),
        ("save", found.save_s, "a checkpoint, hashed and on disk"),
        ("load", found.load_s, "the base model"),
    ):
        if value is not None:
            rows.append([what, f"{value:.3g} s", note])
    for phase, gib in found.peaks_gib.items():
        tensors = found.allocated_gib.get(phase)
        note = f"of {found.memory_gib:.3g}" + (f"; tensors {tensors:.2f}" if tensors else "")
        rows.append([f"peak, {phase}", f"{gib:.2f} GiB", note])
    ui.table(["measured", "", ""], rows)
    ui.notice(f"kept in {calibrations.FILE}")


def _finish(result: Any) -> None:
    """The exit code, and one line of why."""
    from leviathan import ui
    from leviathan.errors import LeviathanError, Refused

    ending = result.ending
    outcome, found = ending.outcome, ending.diagnosis
    directory = ending.decision.paths.directory
    if outcome.kind == "done":
        return
    if outcome.kind != "failed":
        ui.notice(f"{outcome.reason}; {directory} can be removed")
        raise typer.Exit(130)
    if result.calibration:
        rung = f"the next rung would be {result.next_rung}" if result.next_rung else found.fix
        raise Refused(f"does not fit: in phase {found.phase}, {found.text}", rung)
    cause = f"{found.text} in phase {found.phase}" if found else outcome.reason
    fix = found.fix if found else "look at the log"
    raise LeviathanError(f"the bench failed: {cause}; log: {outcome.log}", fix)
