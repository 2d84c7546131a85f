"""Owns what ``train`` says at its end: how it ended, what to type next, the exit code."""

from typing import Any

import typer


def finish(
    ending: Any, usd_hour: float | None, extra: list[str], *, as_json: bool = False,
    follows: str = "",
) -> None:  # fmt: skip
    """Say how it ended and what to type next, with the exit code."""
    from leviathan import ladder, ui
    from leviathan import train as training

    decision, outcome = ending.decision, ending.outcome
    run = decision.paths.directory
    again = training.resume_command(decision, extra)
    saved = training.latest_saved(decision.paths)
    where = f"saved {saved}" if saved else "there is no checkpoint yet"
    advice = ladder.advice(ending.adjustments) if ending.adjustments else ""
    goes_on = outcome.kind == "done" and follows and not ending.asked
    if as_json and not goes_on:  # one document: the last stage's
        ui.document({"run": str(run), "outcome": outcome.kind, "reason": outcome.reason,
                     "step": outcome.step, "max_steps": outcome.max_steps, "checkpoint": saved,
                     "log": outcome.log, "resume": again, "advice": advice,
                     "diagnosis": ending.diagnosis and ending.diagnosis.kind})  # fmt: skip
    if advice:
        ui.notice(f"memory was short; {advice}")
    if outcome.kind == "failed":
        raise _failure(ending, where, again)
    lines = {
        "done": f"done: {run}, {outcome.step} steps",
        "stopped": f"stopped ({outcome.reason}): {where}, resume with: {again}",
        "killed": f"killed: {where}, resume with: {again}",
    }
    if not as_json:
        ui.say(lines[outcome.kind])
    if outcome.kind == "done":
        if follows and not goes_on:  # asked to stop in the last step: the next is not begun
            ui.notice(f"stopped ({ending.asked}) before stage {follows}; go on with: {again}")
            raise typer.Exit(4)
        ui.notice(f"next: stage {follows}" if follows else f"next: leviathan merge {run.name}")
        return
    _show_rest(decision.paths, outcome, usd_hour)
    raise typer.Exit(4 if outcome.kind == "stopped" else 130)


def _show_rest(paths: Any, outcome: Any, usd_hour: float | None) -> None:
    """What it takes to finish, as the run's history tells."""
    from leviathan import status, ui
    from leviathan.budget import to_finish

    if outcome.max_steps:
        left = status.history(paths).eta(outcome.step, outcome.max_steps)
        steps = outcome.max_steps - outcome.step
        ui.notice(f"to finish: {to_finish(steps, left, usd_hour)}")


def _failure(ending: Any, saved: str, again: str) -> Exception:
    """The error of a failed training: what, why, where the log is, how to go on."""
    from leviathan.errors import LeviathanError

    outcome, diagnosis = ending.outcome, ending.diagnosis
    known = diagnosis is not None and diagnosis.kind not in {"unknown", "setup"}
    cause = f"{diagnosis.cause}; " if known else ""
    fix = f"{diagnosis.fix}; then" if known else "once that is mended,"
    gave_up = f"; not tried again: {ending.gave_up}" if ending.gave_up else ""
    return LeviathanError(
        f"training failed at step {outcome.step} ({cause}{outcome.reason}){gave_up}; {saved}; "
        f"log: {outcome.log}",
        f"{fix} resume with: {again}",
    )
