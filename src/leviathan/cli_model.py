"""Owns the commands about finished models: merge, test, infer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from leviathan.cli_checkpoints import CheckpointOption, RunArgument
from leviathan.cli_config import JsonOption

TargetArgument = Annotated[
    str | None, typer.Argument(help="A run's name or directory, or a merged model's directory.")
]


_ANSWER = 44
"""Characters of an answer shown in a table; --json has them whole."""


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("merge", short_help="Merge, and prove the merge.")(merge)
    app.command("test", short_help="The prompt suite, with a pass rate.")(examine)
    app.command("infer", short_help="Ask a run or a merged model.")(infer)


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


def examine(
    target: TargetArgument = None,
    suite: Annotated[
        str | None, typer.Option(help="A suite's name or file; default the recipe's.")
    ] = None,
    min_pass: Annotated[
        str | None, typer.Option("--min-pass", help="As 75%; default the recipe's.")
    ] = None,
    checkpoint: CheckpointOption = "best",
    as_json: JsonOption = False,
) -> None:
    """Put the prompt suite to a run or a model; exit 3 below the pass rate wanted."""
    from leviathan import evaluate, ui
    from leviathan.errors import Refused

    examination = evaluate.prepare(target, checkpoint, suite, min_pass)
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


def infer(
    target: TargetArgument = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-q", help="One question; without it, a prompt.")
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also show the base model's answer.")
    ] = False,
    checkpoint: CheckpointOption = "best",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
) -> None:
    """Ask a run or a merged model; --base shows what the adapter changed."""
    from leviathan import evaluate, ui
    from leviathan.errors import BadInput

    if prompt is None and not ui.is_terminal():
        raise BadInput("nothing to ask: no --prompt and no terminal", "give --prompt TEXT")
    ask = evaluate.asker(target, checkpoint, max_new_tokens, of_base=base)
    for question in [prompt] if prompt is not None else ui.questions():
        ui.say(ask(question, False))
        if base:
            ui.say(f"base: {ask(question, True)}", style="dim")
