"""Owns ``data check``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leviathan.cli_config import JsonOption, ProfileOption, RecipeOption, SetOption
from leviathan.cli_data import CorpusArgument, data_app

if TYPE_CHECKING:
    from leviathan.audit import Audit, Finding
    from leviathan.formats import Shape
    from leviathan.layers import Config
    from leviathan.lengths import Report
    from leviathan.mending import Mended


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
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
    from leviathan import audit, cli_preview, formats, mending, preview, scrutiny, ui

    config = _config(corpus, profile, recipe, sets or [])
    source = Path(config.recipe.corpus)
    rejected = mending.kinds(reject or [], keep or [])
    if not 0.5 <= similarity < 1:
        raise _bad(f"--similarity {similarity:g} is out of range", "0.5 to 1, as 0.8")
    if fix:
        mending.refuse(fix, source)
    shape, surprise = _shape(config, source)
    if surprise:
        config = _config(corpus, profile, recipe, [*(sets or []), *formats.settings(shape)])
    rows, places = cli_preview.first(source, show)
    wish = scrutiny.Wish(shape, similarity if near else None)
    progress = ui.corpus_progress()
    with (
        preview.start(config.tree, rows) as pending,
        audit.look(source, wish, progress) as looked,
    ):
        lengths = _lengths(config, shape, exact=exact, progress=progress)
        if exact and not isinstance(lengths, str):
            looked.mark_lengths(lengths)
        findings = looked.findings()
        mended = mending.mend(looked, fix, rejected, progress) if fix else None
        if as_json:
            read = preview.as_document(pending.result())
            document = _document(looked, findings, surprise, lengths, mended)
            ui.document({**document, "preview": read})
        else:
            _show(looked, findings, surprise, lengths)
            if rows:
                cli_preview.show(pending.result(), places)
            _next(findings, mended)
    if mended is None and any(finding.severity == "error" for finding in findings):
        raise typer.Exit(3)


def _bad(message: str, hint: str) -> Exception:
    from leviathan.errors import BadInput

    return BadInput(message, hint)


def _config(corpus: Path | None, profile: str, recipe: str, sets: list[str]) -> "Config":
    from leviathan import layers

    named = [f"corpus={corpus}"] if corpus else []
    return layers.build(recipe, profile, "full", [*named, *sets])


def _shape(config: "Config", source: Path) -> tuple["Shape", str | None]:
    """How the rows are to be read, and what to say where the recipe says otherwise."""
    from leviathan import corpus, formats

    said, seen = formats.of(config.tree), formats.detect(corpus.first_rows(source))
    if said.kind == "unknown" or seen.kind == "unknown" or seen == said:
        return said, None
    if said.kind == seen.kind == "completion":
        return said, None
    return seen, (
        f"these rows are {seen.kind}, and recipe {config.recipe_name} says {said.kind}: "
        f"checked as {seen.kind}; to train on them: --set {' --set '.join(formats.settings(seen))}"
    )


def _lengths(config: "Config", shape: "Shape", *, exact: bool, progress: Any) -> "Report | str":
    """How long rows are in tokens, or why that was not looked at."""
    from leviathan import figures, formats, survey
    from leviathan.errors import BadInput

    if shape.kind != formats.of(config.tree).kind:
        return f"the recipe does not read {shape.kind} rows"
    try:
        source, report = survey.lengths_of(config, exact=exact, closer=False, progress=progress)
    except BadInput as error:
        return error.message
    figures.keep(source, report.statistics)
    return report


def _lengths_text(report: "Report") -> str:
    from leviathan import lengths

    (fate,) = (fate for fate in report.fates if fate.sequence_len == report.sequence_len)
    between = None if fate.over.low == fate.over.high else (fate.over.low, fate.over.high)
    return (
        f"{lengths.percent(fate.over.value, between)} of the rows are longer than "
        f"sequence_len {report.sequence_len:,} and {report.fate}; "
        f"{report.statistics.source}"
    )


def _show(
    looked: "Audit", findings: tuple["Finding", ...], surprise: str | None,
    lengths: "Report | str",
) -> None:  # fmt: skip
    from leviathan import ui

    rows = looked.rows()
    word = "fail" if any(f.severity == "error" for f in findings) else "warn" if findings else ""
    ui.title(str(looked.path), word or "pass", f"{rows:,} rows, {ui.size(looked.size)}")
    if surprise:
        ui.warn(surprise)
    for finding in findings:
        state = "fail" if finding.severity == "error" else "warn"
        share = f"{finding.share_pct:.2g} %" if finding.share_pct < 99.5 else "all"
        ui.finding(state, finding.kind, f"{finding.rows:,} ({share})", finding.text)
        for example in finding.examples[:3]:
            ui.detail(example.text)
    ui.facts([("lengths", lengths if isinstance(lengths, str) else _lengths_text(lengths))])


def _next(findings: tuple["Finding", ...], mended: "Mended | None") -> None:
    from leviathan import ui

    if mended:
        ui.say(f"wrote {mended.path}: {mended.rows:,} rows")
        ui.say(f"rejected {mended.rejected:,}: {mended.rejects}")
    elif findings:
        ui.notice("next: leviathan data check --fix CLEAN.jsonl, or --json for every finding")


def _document(
    looked: "Audit", findings: tuple["Finding", ...], surprise: str | None,
    lengths: "Report | str", mended: "Mended | None",
) -> dict[str, Any]:  # fmt: skip
    from dataclasses import asdict

    from leviathan import lengths as telling

    told = lengths if isinstance(lengths, str) else telling.as_document(lengths, None)
    return {
        "corpus": str(looked.path),
        "format": looked.shape.kind,
        "format_differs": surprise,
        "rows": looked.rows(),
        "bytes": looked.size,
        "sound": not any(finding.severity == "error" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
        "lengths": told,
        "fixed": asdict(mended) if mended else None,
    }
