"""Owns the command report: a run as one HTML file, as Markdown or as data."""

from pathlib import Path
from typing import Annotated

import typer

from leviathan.cli_config import JsonOption
from leviathan.cli_status import RunArgument


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("report", short_help="A run as one page: verdicts, curves, costs.")(report)


def report(
    run: RunArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write, - for stdout; default RUN/report.html."
        ),
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Markdown, on stdout unless -o names a file.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """How a run went: success criteria, verdicts, curves, the plan beside it, what went wrong."""
    from leviathan import files, page, runs, ui
    from leviathan import report as reports
    from leviathan.errors import BadInput

    if as_json and as_markdown:
        raise BadInput("--json and --markdown are two documents", "give one of them")
    paths = runs.find(run, living=True)
    found = reports.gather(paths)
    for remark in found.remarks:
        ui.warn(remark)
    if as_json:
        text = ui.document_text(found.to_json())
    else:
        text = page.markdown(found) if as_markdown else page.html(found)
    to_stdout = as_markdown or as_json if output is None else str(output) == "-"
    if to_stdout:
        ui.raw(text)
        return
    path = output or paths.report
    files.write_text(path, text)
    ui.say(str(path))
