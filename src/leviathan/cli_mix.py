"""Owns ``data mix``."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from leviathan.cli_config import JsonOption, ProfileOption, RecipeOption, SetOption
from leviathan.cli_data import OutputOption, SeedOption, data_app, token_count

if TYPE_CHECKING:
    from leviathan.mixture import Mixture, Wish


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    data_app.command("mix", short_help="One corpus of several, by shares of tokens.")(data_mix)


def data_mix(
    sources: Annotated[
        list[str], typer.Argument(help="PATH:WEIGHT, as web.jsonl:0.45; weights add up to 1.")
    ],
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="How much to train on: 11B, 50M, 200000.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Or how many rows; weights hold in tokens.")
    ] = None,
    holdout: Annotated[
        str | None, typer.Option("--holdout", help="Keep a share out, as 0.5pct, beside the mix.")
    ] = None,
    seed: SeedOption = 42,
    output: OutputOption = None,
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mix corpora: weights are shares of the tokens, and hold all along the file.

    A source that is too short is repeated, and how often is told. Recipe and profile say what a
    row is in tokens; all sources have the recipe's format. What was counted is kept.
    """
    from leviathan import layers, mixing, mixture, samples, ui
    from leviathan.errors import BadInput

    if (tokens is None) == (rows is None):
        raise BadInput("how much is to be mixed?", "give --tokens, as 11B, or else --rows")
    wish = mixture.Wish(
        mixture.parse(sources),
        None if tokens is None else token_count(tokens),
        rows,
        seed,
        layers.build(recipe, profile, "full", sets or []).tree,
        samples.DIRECTORY,
        mixture.parse_share(holdout),
        output,
    )
    mixed = mixing.mix(wish, ui.corpus_progress())
    if as_json:
        ui.document(mixture.as_document(mixed, wish.tree))
        return
    _show(mixed, wish)
    ui.notice(f"corpus: {mixed.path} in a recipe trains on it")
    train = ["leviathan", "train", "-p", profile, "-r", recipe, "-s", "full"]
    train += [x for key in [*(sets or []), f"corpus={mixed.path}"] for x in ("--set", key)]
    ui.notice(f"next: {shlex.join(train)}")


def _show(mixed: "Mixture", wish: "Wish") -> None:
    from leviathan import mixture, ui

    ui.table(
        ["source", "weight", "reached", "rows", "tokens", "epochs"],
        [
            [p.source, f"{p.weight:.2%}", f"{p.share:.2%}", f"{p.rows:,}", f"{p.tokens:,}",
             f"{p.epochs:.2f}"]
            for p in mixed.portions
        ],
        right="weight reached rows tokens epochs",
    )  # fmt: skip
    unit = "tokens" if mixed.in_tokens else "tokens (assumed)"
    ui.say(f"{mixed.path}: {mixed.rows:,} rows, {mixed.tokens:,} {unit}, {ui.size(mixed.bytes)}")
    if held := mixed.holdout:
        ui.say(f"{held.path}: {held.rows:,} rows, {held.tokens:,} {unit}, {ui.size(held.bytes)}")
        ui.notice(f"of all sources {held.rows_kept_out:,} rows are kept out of training")
    for text in mixture.warnings(mixed, wish.tree):
        ui.warn(text)
