"""Owns the command ``infer``: questions to a run or a model."""

from typing import Annotated

import typer

from leviathan.cli_checkpoints import CheckpointOption
from leviathan.cli_test import TargetArgument


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("infer", short_help="Ask a run or a merged model.")(infer)


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
