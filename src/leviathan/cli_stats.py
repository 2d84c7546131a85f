"""Owns the ``data stats`` command."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leviathan.cli_config import (
    JsonOption,
    ProfileOption,
    RecipeOption,
    SampleOption,
    SetOption,
    announce_schema,
)

if TYPE_CHECKING:
    from leviathan.lengths import Fate, Report, Share


def stats(
    corpus: Annotated[
        Path | None, typer.Argument(help="A JSONL file; without one, the recipe's corpus.")
    ] = None,
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    sample: SampleOption = "full",
    sets: SetOption = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Tokenise every row: every figure is exact.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """How long the rows are in tokens, what a sequence_len loses of them, and which to use.

    Without CORPUS, of the recipe's. Counted with the base model's own tokenizer and the format
    that training uses, and kept, so that plan knows. Of a corpus over 16 MiB, rows in evenly
    spread places are counted, and every figure has its error; --exact counts all.
    """
    from leviathan import figures, layers, lengths, render, schema, survey, ui

    config = layers.build(recipe, profile, sample, sets or [])
    announce_schema()
    render.check_keys(config, schema.load())
    progress = ui.corpus_progress()
    source, report = survey.lengths_of(config, corpus, exact=exact, progress=progress)
    path = figures.keep(source, report.statistics)
    if as_json:
        ui.document({"corpus": str(source.corpus), "sample": source.sample, "seed": source.seed,
                     **lengths.as_document(report, path)})  # fmt: skip
        return
    ui.title(f"{source.corpus}", "", f"sample {sample}, for {recipe} on {profile}")
    ui.facts(_rows(report))
    _draw(report)
    _table(report)
    ui.facts(_advice(report))
    if path:
        ui.notice(f"kept for plan in {path}")


def _rows(report: "Report") -> Iterator[tuple[str, str]]:
    from leviathan import lengths, ui

    found, (low, high) = report.statistics, report.tokens_interval
    off = 1.96 * found.rows_error
    about = f"about {found.rows:,} (+- {off:,.0f})" if off else f"{found.rows:,}"
    yield "rows", f"{about}, {ui.size(found.size)}"
    between = "" if high == low else f" ({_count(low)} to {_count(high)})"
    yield (
        "tokens",
        f"{_count(found.total_tokens)}{between}, {found.mean_tokens:,.0f} a row; "
        f"{lengths.percent(found.trainable_share)} trained on",
    )
    told = report.percentiles
    yield (
        "lengths",
        f"{told['min']:,} to {told['max']:,}; "
        f"median {told['50']:,}, p95 {told['95']:,}, p99 {told['99']:,}",
    )


def _draw(report: "Report") -> None:
    """The histogram, ``sequence_len`` marked."""
    import numpy as np

    from leviathan import lengths, ui

    tokens = np.asarray(report.statistics.tokens)
    drawn = lengths.histogram(tokens, report.sequence_len, ui.chart_columns())
    powers = [2**n for n in range(33) if drawn.edges[0] <= 2**n < drawn.edges[-1]]
    ui.histogram(
        drawn.shares,
        lengths.percent(max(drawn.shares)),
        [(drawn.column(power), f"{power:,}") for power in powers],
        (drawn.column(report.sequence_len), f"sequence_len {report.sequence_len:,}"),
    )


def _table(report: "Report") -> None:
    from leviathan import ui

    headers = ["sequence_len", f"rows {report.fate}", "tokens lost", "packed", "unpacked"]
    ui.table(headers, [_fate_row(fate, report) for fate in report.fates])


def _fate_row(fate: "Fate", report: "Report") -> list[str]:
    from leviathan import lengths

    own = " *" if fate.sequence_len == report.sequence_len else ""
    full = (fate.packed, fate.unpacked)
    shown = ["-" if share is None else lengths.percent(share) for share in full]
    return [f"{fate.sequence_len:>6,}{own}", _share_text(fate.over), _share_text(fate.lost), *shown]


def _share_text(share: "Share") -> str:
    from leviathan import lengths

    sure = share.low == share.high
    return lengths.percent(share.value, None if sure else (share.low, share.high))


def _advice(report: "Report") -> Iterator[tuple[str, str]]:
    advice = report.advice
    as_it_is = ", as it is" if advice.sequence_len == report.sequence_len else ""
    doubt = "" if advice.certain else "; too close to tell from a part: see --exact"
    yield "recommended", f"{advice.sequence_len:,}{as_it_is}: {advice.reason}{doubt}"
    yield "evidence", report.statistics.source


def _count(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:,.0f}"
