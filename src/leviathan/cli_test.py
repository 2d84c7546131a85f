"""Owns the command ``test``: the prompt suite put to a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leviathan.cli_checkpoints import CheckpointOption
from leviathan.cli_config import JsonOption

if TYPE_CHECKING:
    from leviathan.endpoint import Endpoint
    from leviathan.evaluate import Examination
    from leviathan.harness import Manner, Score
    from leviathan.models import Source

TargetArgument = Annotated[
    str | None,
    typer.Argument(help="A run's name or directory, a merged model's directory, or a URL."),
]
TasksOption = Annotated[
    str | None, typer.Option("--tasks", help="lm-eval's too, as arc_easy,piqa:5 (5 examples).")
]
TaskPathOption = Annotated[
    Path | None, typer.Option("--task-path", help="A directory with YAML tasks of your own.")
]
ChatTemplateOption = Annotated[
    bool, typer.Option("--chat-template", help="Tasks are put as conversations.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only so many rows of each task.")]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Of answers with a temperature; default the recipe's, else 42."),
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
    seed: SeedOption = None,
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", help="Every sound one of a run; the best by it.")
    ] = False,
    tasks: TasksOption = None,
    task_path: TaskPathOption = None,
    chat_template: ChatTemplateOption = False,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the prompt suite to a run or a model; exit 3 below the pass rate wanted."""
    from leviathan import evaluate, harness
    from leviathan.errors import BadInput, Refused

    if tasks and all_checkpoints:
        raise BadInput("--tasks and --all-checkpoints together", "--checkpoint N takes --tasks")
    for option, given in (("--task-path", task_path), ("--chat-template", chat_template),
                          ("--limit", limit)):  # fmt: skip
        if given and not tasks:
            raise BadInput(f"{option} without --tasks", "name the tasks: --tasks mine")
    if all_checkpoints:
        checkpoint = "latest"  # only to find the run's configuration by
    examination = None
    # What is asked of a suite needs one, tasks or not.
    of_suite = bool(min_pass or tag) or not tasks
    if of_suite or evaluate.suite_of(target, checkpoint, suite) is not None:
        examination = evaluate.prepare(
            target, checkpoint, suite, min_pass, tags=tag or (), batch_size=batch_size, model=model,
            seed=seed,
        )  # fmt: skip
    manner = harness.Manner(batch_size, chat_template, limit)
    source = examination.source if examination else evaluate.subject(target, checkpoint, model)[0]
    _caution(source)
    scored = _put_tasks(source, tasks, task_path, manner) if tasks else []
    summary = _examined(examination, scored, everything=all_checkpoints) if examination else {}
    _show(summary, scored, as_json=as_json)
    if examination and 100 * summary["pass_share"] < examination.min_pass_pct - 1e-9:
        raise Refused(
            f"{summary['pass_pct']} % passed, {examination.min_pass_pct:g} % wanted",
            "read the failed answers above; train longer or choose another checkpoint",
        )


def _examined(
    examination: "Examination", scored: "list[Score]", *, everything: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    from leviathan import evaluate, ranking, ui

    if everything:
        return ranking.rank(examination, ui.counting()).to_json()
    return evaluate.examine(examination, [asdict(score) for score in scored])


def _caution(source: "Source | Endpoint") -> None:
    from leviathan import ui
    from leviathan.endpoint import Endpoint

    if not isinstance(source, Endpoint) and source.caution:
        ui.warn(source.caution)


def _put_tasks(
    source: "Source | Endpoint", tasks: str, directory: Path | None, manner: "Manner"
) -> "list[Score]":
    from leviathan import harness, ui

    return harness.run(source, harness.parse(tasks), directory, manner, ui.notice)


def _show(summary: dict[str, Any], scored: "list[Score]", *, as_json: bool) -> None:
    from dataclasses import asdict

    from leviathan import ui

    if as_json:
        lm_eval = {"lm_eval": [asdict(score) for score in scored]} if scored else {}
        ui.document({**summary, **lm_eval})
        return
    if "checkpoints" in summary:
        _show_ranking(summary)
    elif summary:
        show_summary(summary)
    if scored:
        ui.say()
        ui.table(
            ["task", "metric", "base", "tuned", "standard error"],
            [[s.task, s.metric, s.base_value, s.value, s.stderr] for s in scored],
        )


def _show_ranking(told: dict[str, Any]) -> None:
    """Every checkpoint's rate, the best one's cases, and what speaks against it."""
    from leviathan import ui

    show_summary(told)
    ui.say()
    rows = []
    for entry in told["checkpoints"]:
        low, high = entry["interval_pct"]
        marks = [
            word for word, name in (("best here", told["checkpoint"]),
                                    ("best by evaluation loss", told["best_by_eval_loss"]))
            if name == entry["checkpoint"]
        ]  # fmt: skip
        loss = "-" if entry["eval_loss"] is None else f"{entry['eval_loss']:.4f}"
        rate = f"{entry['passed']} of {entry['total']}"
        rows.append([entry["checkpoint"], loss, rate, f"{entry['pass_pct']} %",
                     f"{low}-{high} %", ", ".join(marks)])  # fmt: skip
    ui.table(["checkpoint", "eval loss", "passed", "rate", "95 % interval", ""], rows)
    for entry in told["damaged"]:
        ui.warn(f"{entry['checkpoint']} was not asked: {entry['problem']}")
    other = told["versus_best_by_eval_loss"]
    if told["checkpoint"] != told["best_by_eval_loss"]:
        ui.say(
            f"{told['checkpoint']} against {told['best_by_eval_loss']}: {other['gained']} cases "
            f"gained, {other['lost']} lost; {other['verdict']} (exact McNemar "
            f"p = {other['p_value']}); it is the best of {len(rows)}, so a little luck is in it"
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
