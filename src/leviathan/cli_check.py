"""Owns ``data check``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leviathan.cli_config import JsonOption, ProfileOption, RecipeOption, SetOption
from leviathan.cli_data import CorpusArgument, data_app

if TYPE_CHECKING:
    from leviathan.audit import Finding
    from leviathan.inspection import Inspection
    from leviathan.layers import Config
    from leviathan.lengths import Report

_SHOWN = 3


def register(_: typer.Typer) -> None:
    """Add this command to ``data``."""
    data_app.command("check", short_help="Look at every row; --fix writes a clean corpus.")(
        data_check
    )


def data_check(
    corpus: CorpusArgument = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="Write the clean corpus here, the rest beside it.")
    ] = None,
    reject: Annotated[
        list[str] | None, typer.Option("--reject", help="A kind to leave out, too. Repeatable.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="A kind to keep all the same. Repeatable.")
    ] = None,
    near: Annotated[
        bool, typer.Option("--near", help="Look for near-duplicates, too: takes longer.")
    ] = False,
    similarity: Annotated[
        float, typer.Option("--similarity", help="From which texts are near-duplicates.")
    ] = 0.8,
    exact: Annotated[
        bool, typer.Option("--exact", help="Tokenise every row: which are too long, not how many.")
    ] = False,
    show: Annotated[
        int, typer.Option("--show", help="So many first rows as they will be read; 0: none.")
    ] = 2,
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at every row: what is wrong, where, how often. Changes nothing in place.

    Exit code 3 where a row would break a training or should not be trained on (with --fix: 0, once
    the clean corpus is written).
    """
    from leviathan import inspection, layers, mending, ui
    from leviathan.errors import BadInput

    if not 0.5 <= similarity < 1:
        raise BadInput(f"--similarity {similarity:g} is out of range", "0.5 to 1, as 0.8")
    request = inspection.Request(
        exact=exact,
        near=similarity if near else None,
        shown=max(show, 0),
        clean=fix,
        reject=mending.kinds(reject or [], keep or []),
    )

    def configure(format_: Sequence[str]) -> "Config":
        named = [f"corpus={corpus}"] if corpus else []
        return layers.build(recipe, profile, "full", [*named, *(sets or []), *format_])

    found = inspection.inspect(configure, request, ui.corpus_progress())
    if as_json:
        ui.document(inspection.as_document(found))
    else:
        _show(found)
    if not (found.sound or found.mended):
        raise typer.Exit(3)


def _show(found: "Inspection") -> None:
    from leviathan import cli_preview, ui

    word = "fail" if not found.sound else "warn" if found.findings else "pass"
    ui.title(str(found.corpus), word, f"{found.rows:,} rows, {ui.size(found.bytes)}")
    if found.surprise:
        ui.warn(found.surprise)
    for finding in found.findings:
        _show_finding(finding)
    told = found.lengths
    ui.facts([("lengths", told if isinstance(told, str) else _lengths_text(told))])
    if found.places:
        cli_preview.show(found.preview, found.places)
    if found.mended:
        ui.say(f"wrote {found.mended.path}: {found.mended.rows:,} rows")
        ui.say(f"rejected {found.mended.rejected:,}: {found.mended.rejects}")
    elif found.findings:
        ui.notice("next: leviathan data check --fix CLEAN.jsonl, or --json for every finding")


def _show_finding(finding: "Finding") -> None:
    from leviathan import ui

    word = "fail" if finding.severity == "error" else "warn"
    share = f"{finding.share_pct:.2g} %" if finding.share_pct < 99.5 else "all"
    ui.finding(word, finding.kind, f"{finding.rows:,} ({share})", finding.text)
    for example in finding.examples[:_SHOWN]:
        ui.detail(example.text)


def _lengths_text(report: "Report") -> str:
    from leviathan import lengths

    (fate,) = (fate for fate in report.fates if fate.sequence_len == report.sequence_len)
    between = None if fate.over.low == fate.over.high else (fate.over.low, fate.over.high)
    return (
        f"{lengths.percent(fate.over.value, between)} of the rows are longer than "
        f"sequence_len {report.sequence_len:,} and {report.fate}; "
        f"{report.statistics.source}"
    )
