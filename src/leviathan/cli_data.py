"""Owns the ``data`` commands: the corpus and its samples."""

import re
from pathlib import Path
from typing import Annotated

import typer

from leviathan import cli_stats
from leviathan.cli_config import (
    GROUP,
    JsonOption,
    ProfileOption,
    RecipeOption,
)

CorpusArgument = Annotated[
    Path | None, typer.Argument(help="A file or a directory of them; else the recipe's.")
]

SeedOption = Annotated[int, typer.Option(help="The same seed draws the same rows.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="A file, instead of one in work/data.")
]
_STRATA = 20  # shown; all of them fill no screen that anyone reads

data_app = typer.Typer(help="The corpus: sample, check, measure, mix.", **GROUP)


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.add_typer(data_app, name="data")


data_app.command("stats")(cli_stats.stats)


@data_app.command("sample")
def data_sample(
    corpus: CorpusArgument = None,
    sample: Annotated[
        str | None, typer.Option("--sample", "-s", help="10pct (the default), 5000 (rows), full.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="As many rows as make 50M tokens, about.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Keep the proportions of this field's values.")
    ] = None,
    seed: SeedOption = 42,
    output: OutputOption = None,
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    as_json: JsonOption = False,
) -> None:
    """Draw an exact, ordered, seeded sample, bytes unchanged.

    Reads JSONL, plain or compressed (.gz, .zst), Parquet, and directories of them. Profile and
    recipe matter for --tokens: they say how a row becomes tokens. Rows are not parsed: data
    check and train do that.
    """
    from leviathan import samples, ui
    from leviathan.errors import BadInput

    source = corpus or _recipe_corpus(recipe)
    if tokens is not None:
        if sample is not None:
            raise BadInput("--tokens and --sample both say how much", "give one of them")
        sample, note = _rows_for(tokens, source, recipe, profile)
        ui.notice(note)
    wish = samples.Wish(source, sample or "10pct", seed, samples.DIRECTORY, by, output)
    drawn = samples.draw(wish, None, progress=ui.corpus_progress())
    if as_json:
        ui.document(samples.as_document(drawn))
        return
    ui.say(f"{drawn.path}: {drawn.rows:,} of {drawn.of_rows:,} rows, {ui.size(drawn.bytes)}")
    if drawn.strata:
        ordered = sorted(drawn.strata.items(), key=lambda stratum: -stratum[1])
        ui.table([f"{by}", "rows"], ordered[:_STRATA], right="rows")
        if len(ordered) > _STRATA:
            ui.notice(f"and {len(ordered) - _STRATA:,} more values: --json has all")


def _recipe_corpus(recipe: str) -> Path:
    from leviathan import config  # pydantic takes longer to come than a small sample

    return Path(config.load_recipe(recipe)[1].corpus)


def token_count(text: str) -> int:
    """``50M`` -> 50,000,000; k, M, G or B (billions) and T, or a plain number.

    Raises:
        BadInput: anything else, or less than one.
    """
    from leviathan.errors import BadInput

    powers = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgbt]?)", text.strip().lower().replace("_", ""))
    count = round(float(match[1]) * 10 ** powers[match[2]]) if match else 0
    if count < 1:
        raise BadInput(f"--tokens {text!r} is no number of tokens", "as 50M, 1.5B or 200000")
    return count


def _rows_for(tokens: str, source: Path, recipe: str, profile: str) -> tuple[str, str]:
    """A row count whose rows make about so many tokens, and how good that is."""
    from leviathan import figures, layers, samples
    from leviathan import tokens as measuring
    from leviathan.errors import BadInput

    wanted = token_count(tokens)
    config = layers.build(recipe, profile, "full", [f"corpus={source}"])
    asked = figures.Source(source, "full", config.recipe.seed, samples.DIRECTORY, config.tree)
    found = measuring.measure(asked)
    rows = round(wanted / found.mean_tokens)
    if rows < 1 or rows > found.rows * (1 + 4 * found.rows_error / found.rows):
        raise BadInput(
            f"--tokens {tokens}: {source} has about {found.rows:,} rows of "
            f"{found.mean_tokens:,.0f} tokens, {found.total_tokens:,.0f} in all",
            "ask for fewer, or repeat it with data mix",
        )
    error = 100 * found.mean_error / found.mean_tokens
    note = f"about {rows * found.mean_tokens:,.0f} tokens (+-{error:.1f} %): {found.source}"
    return str(rows), note
