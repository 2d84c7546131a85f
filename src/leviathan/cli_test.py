"""Owns the command ``test``: the prompt suite put to a model."""

from typing import Annotated, Any

import typer

from leviathan.cli_checkpoints import CheckpointOption
from leviathan.cli_config import JsonOption

TargetArgument = Annotated[
    str | None,
    typer.Argument(help="A run's name or directory, a merged model's directory, or a URL (test)."),
]

_ANSWER = 44
"""Characters of an answer shown in a table; --json has them whole."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("test", short_help="The prompt suite, with a pass rate.")(examine)


def examine(
    target: TargetArgument = None,
    suite: Annotated[
        str | None, typer.Option(help="A suite's name or file; default the recipe's.")
    ] = None,
    min_pass: Annotated[
        str | None, typer.Option("--min-pass", help="As 75%; default the recipe's.")
    ] = None,
    checkpoint: CheckpointOption = "best",
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only cases with this tag; repeatable.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Cases asked at a time.")
    ] = 8,
    model: Annotated[str, typer.Option("--model", help="Which of a server's models.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Put the prompt suite to a run or a model; exit 3 below the pass rate wanted."""
    from leviathan import evaluate, ui
    from leviathan.errors import Refused

    examination = evaluate.prepare(
        target, checkpoint, suite, min_pass, tags=tag or (), batch_size=batch_size, model=model
    )
    summary = evaluate.examine(examination)
    if as_json:
        ui.document(summary)
    else:
        show_summary(summary)
    if summary["pass_pct"] < examination.min_pass_pct:
        raise Refused(
            f"{summary['pass_pct']} % passed, {examination.min_pass_pct:g} % wanted",
            "read the failed answers above; train longer or choose another checkpoint",
        )


def show_summary(summary: dict[str, Any]) -> None:
    """Every case with the tuned model's answer, then the rate with its interval."""
    from leviathan import ui

    based = summary["base_pass_pct"] is not None
    headers = ["case", *(["base"] if based else []), "tuned", "the tuned model's answer"]
    rows = []
    for case in summary["cases"]:
        marks = [case["base_passed"], case["passed"]] if based else [case["passed"]]
        answer = " ".join((case["answer"] or "").split())
        shown = answer if len(answer) <= _ANSWER else f"{answer[: _ANSWER - 1]}…"
        rows.append([case["name"], *("pass" if mark else "-" for mark in marks), shown])
    ui.table(headers, rows)
    low, high = summary["interval_pct"]
    base = f"; base model {summary['base_pass_pct']} %" if based else ""
    ui.say(
        f"{summary['passed']} of {summary['total']} passed: {summary['pass_pct']} % "
        f"(95 % interval {low}-{high} %){base}"
    )
    for tag, rate in summary["tags"].items():
        low, high = rate["interval_pct"]
        ui.say(
            f"  {tag}: {rate['passed']} of {rate['total']}, {rate['pass_pct']} % ({low}-{high} %)"
        )
    if versus := summary["versus_base"]:
        ui.say(
            f"against the base: {versus['gained']} cases gained, {versus['lost']} lost; "
            f"{versus['verdict']} (exact McNemar p = {versus['p_value']})"
        )
