"""Owns the ``data`` commands: the corpus and its samples."""

from pathlib import Path
from typing import Annotated

import typer

from leviathan import cli_stats
from leviathan.cli_config import GROUP, JsonOption, SampleOption

data_app = typer.Typer(help="The corpus: sample, check, measure, mix.", **GROUP)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.add_typer(data_app, name="data")


data_app.command("stats")(cli_stats.stats)


@data_app.command("sample")
def data_sample(
    corpus: Annotated[Path, typer.Argument(help="A JSONL file.")],
    sample: SampleOption = "10pct",
    seed: Annotated[int, typer.Option(help="The same seed draws the same rows.")] = 42,
    as_json: JsonOption = False,
) -> None:
    """Draw an exact, ordered, seeded sample into work/data/, bytes unchanged."""
    from leviathan import corpus as corpora
    from leviathan import train, ui

    drawn = corpora.draw(corpus, sample, seed, train.DATA, progress=ui.corpus_progress())
    if as_json:
        ui.document(corpora.as_document(drawn))
        return
    ui.say(f"{drawn.path}: {drawn.rows:,} of {drawn.of_rows:,} rows, {ui.size(drawn.bytes)}")
