"""Owns ``data tokenizer``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from leviathan.cli_config import JsonOption
from leviathan.cli_data import data_app


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    data_app.command("tokenizer", short_help="Learn a tokenizer from a corpus.")(data_tokenizer)


def data_tokenizer(
    corpus: Annotated[Path, typer.Argument(help="A file or a directory of them; text, too.")],
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", min=1, help="Tokens, the special ones included.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The tokenizer's directory.")],
    kind: Annotated[
        Literal["bpe", "characters"], typer.Option(help="Byte-level BPE, or a token a character.")
    ] = "bpe",
    row_format: Annotated[
        Literal["alpaca", "chat", "sharegpt", "completion"] | None,
        typer.Option("--format", help="Of the rows; default: what the first ones look like."),
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option("--special", help="One more special token; repeatable.")
    ] = None,
    chars: Annotated[
        int, typer.Option("--chars", min=1000, help="Learn from as many characters at most.")
    ] = 500_000_000,
    as_json: JsonOption = False,
) -> None:
    """Learn a tokenizer from a corpus and write its directory, with ChatML as its template.

    The same text gives the same tokenizer. Bytes a token are measured on rows that it was not
    learned from. A recipe with model: does this by itself; here it can be tried.
    """
    from leviathan import scratch, ui, vocabulary

    rows = scratch.rows_of(corpus, row_format)
    wish = vocabulary.Wish(corpus, rows, kind, vocab_size, tuple(special or ()), chars)
    learned = scratch.make_tokenizer(output, wish, ui.notice, ui.corpus_progress())
    if as_json:
        ui.document({"path": str(output), **learned.facts})
        return
    ui.say(f"{output}: {vocabulary.describe(learned)}")
    ui.notice(f"learned from {learned.chars:,} characters in {learned.rows:,} rows of {corpus}")
