"""Owns the ``demo`` command: the main job end to end on the embedded default."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from leviathan.cli_config import JsonOption

DIRECTORY = Path("work/demo")
PROFILE, RECIPE, SAMPLE = "cpu", "demo", "95pct"


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("demo", short_help="The main job end to end, in minutes.")(demo)


def demo(
    prepare_only: Annotated[
        bool, typer.Option("--prepare", help="Only put base model and corpora in work/demo/.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The main job, end to end, on a small shipped corpus: a few minutes on any machine."""
    from leviathan import ui
    from leviathan.errors import Refused

    began = time.monotonic()
    if as_json:
        ui.story_to_stderr()
    _prepare()
    if prepare_only:
        ui.say(f"base model and corpora are in {DIRECTORY}")
        return
    run = _train()
    merged = _merge(run)
    summary = _ask(run)
    result = _result(run, merged, summary, time.monotonic() - began)
    _tell(run, merged, result)
    if as_json:
        ui.document(result)
    if merged.verdict != "equal":
        raise Refused(f"{merged.directory} is unverified: {merged.reason}")


def _prepare() -> None:
    from leviathan import classroom, demo, ui

    ui.heading("1/5  the base model: a tokenizer and a small language model of Python's docs")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    shipped = classroom.shipped()
    classroom.prepare(shipped, DIRECTORY)
    corpus = DIRECTORY / "stdlib.jsonl"
    if not corpus.exists() or corpus.read_bytes() != shipped.read_bytes():
        shutil.copyfile(shipped, corpus)
    with ui.stages() as show:
        demo.prepare(DIRECTORY / "base", corpus, show)


def _train() -> Any:
    from leviathan import layers, runs, sessions, ui, ui_live
    from leviathan import train as training
    from leviathan.errors import Refused

    ui.heading(f"2/5  sample and train: {SAMPLE} of the corpus, real Axolotl, real accelerate")
    decision = training.decide(layers.build(RECIPE, PROFILE, SAMPLE))
    if decision.failed_checks:
        check = decision.failed_checks[0]
        raise Refused(check.evidence, check.fix)
    if decision.action == "nothing":
        ui.notice(f"{decision.paths.directory} is finished already")
        return runs.find(decision.paths.directory.name)
    with ui_live.TrainView(decision.paths.directory.name) as view:
        ending = sessions.run(decision, view, ui.corpus_progress())
    if ending.outcome.kind != "done":
        from leviathan.cli_ending import finish

        finish(ending, None, [])
    return decision.paths


def _merge(run: Any) -> Any:
    from leviathan import checkpoints, ui
    from leviathan import merge as merging

    ui.heading("3/5  checkpoints")
    from leviathan.cli_checkpoints import print_checkpoints

    print_checkpoints(checkpoints.scan(run.directory), as_json=False)
    ui.heading("4/5  merge, and the proof that the merged model is the trained one")
    chosen, directory = merging.plan(run, "best", None, replace=True)
    return merging.merge(run, chosen, directory, ui.notice)


def _ask(run: Any) -> dict[str, Any]:
    from leviathan import evaluate, ui
    from leviathan.cli_test import show_summary

    ui.heading("5/5  questions about names it has never seen, before and after")
    summary = evaluate.examine(evaluate.prepare(run.directory.name, "best", None, None))
    show_summary(summary)
    return summary


def _result(run: Any, merged: Any, summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the demo showed, as numbers: the document of ``demo --json``."""
    from leviathan import runs

    losses = [m["eval_loss"] for m in runs.metrics(run) if "eval_loss" in m]
    return {
        "seconds": round(seconds, 1),
        "held_out_loss": {"before": losses[0], "after": min(losses)},
        "suite_pass_pct": {"before": summary["base_pass_pct"], "after": summary["pass_pct"]},
        "merge": {
            "verdict": merged.verdict,
            **merged.comparison,
            "serving_parity": [asdict(one) for one in merged.parity],
        },
        "model": str(merged.directory),
    }


def _tell(run: Any, merged: Any, result: dict[str, Any]) -> None:
    from leviathan import parity_finding, ui

    loss, suite, found = result["held_out_loss"], result["suite_pass_pct"], merged.comparison
    change = 100 * (loss["after"] / loss["before"] - 1)
    ui.heading(f"done in {ui.duration(result['seconds'])}")
    ui.table(
        ["", "before", "after"],
        [
            ["held-out loss (nats per token)", f"{loss['before']:.3f}",
             f"{loss['after']:.3f}  ({change:+.0f} %)"],
            ["prompt suite", f"{suite['before']:.0f} %", f"{suite['after']:.0f} %"],
        ],
    )  # fmt: skip
    ui.say(
        f"merge proof: {merged.verdict}; {found['argmax_agreement']:.1%} of positions agree, "
        f"max difference {found['max_abs_diff']:.1g} of an effect of {found['adapter_effect']:.2g}"
    )
    for line in parity_finding.lines(merged.parity):
        ui.say(line)
    ui.say()
    ui.say("next:")
    ui.say(f"  leviathan infer {merged.directory} --prompt 'What kind of object is `json.dumps`?'")
    ui.say(f"  leviathan checkpoints list {run.directory.name}")
    ui.say("  leviathan render --profile a4000 --sample 10pct --explain")
