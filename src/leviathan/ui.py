"""Owns what a person sees: results on stdout, notices on stderr, tables, the live line.

Imported by the command modules and by ``ui_*`` only. Does not compute anything it shows; the
view of a living training is ``ui_live``.
"""

import atexit
import json
import math
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from leviathan import spelled
from leviathan.errors import LeviathanError
from leviathan.spelled import plain

if TYPE_CHECKING:
    from leviathan.excerpt import Part


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave `leviathan ... | head` to the error boundary; rich would exit with 1."""
        raise BrokenPipeError


# A pipe has no width: one row one line there, for grep and friends.
_PIPE_WIDTH = 1000
_BAR_WIDTH = 60
_LABEL = 13
_out = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
_err = _Console(stderr=True, highlight=False, soft_wrap=True)


def story_to_stderr() -> None:
    """For a long job with ``--json``: what it tells on the way leaves stdout to the document."""
    global _out  # noqa: PLW0603 - one console for the process, chosen once
    _out = _err


def stderr_console() -> Console:
    """Where notices go; a live block must share it, or they would tear it apart."""
    return _err


def say(text: str = "", style: str | None = None) -> None:
    """A result, on stdout."""
    _out.print(plain(text), style=style, markup=False)


def notice(text: str) -> None:
    """Something the user should know, on stderr."""
    _err.print(plain(text), style="dim", markup=False)


def warn(text: str) -> None:
    """Something the user should act on, on stderr."""
    _err.print(f"warning: {plain(text)}", style="yellow", markup=False)


def document(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(document_text(value))


def document_text(value: Any) -> str:
    """One JSON document, for a file."""
    return json.dumps(_strict(value), indent=2, ensure_ascii=False, default=str) + "\n"


def _strict(value: Any) -> Any:
    """``value`` without NaN and infinity, which are no JSON: they become null."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def error(problem: LeviathanError, verbose: bool) -> None:
    """One line per problem on stderr; the traceback only when asked for."""
    if verbose:
        _err.print(traceback.format_exc().rstrip(), style="dim", markup=False)
    for line in plain(problem.line).splitlines():
        _err.print(Text.assemble(("leviathan: ", "bold red"), line))


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], right: str = "") -> None:
    """Rows under headers on stdout; columns named in ``right`` are right-aligned."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        grid.add_column(
            header, justify="right" if header in right.split() else "left", overflow="fold"
        )
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(_cell(cell)) for cell in row))
    _out.print(grid)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value))


_STATES = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "bold red",
           "stalled": "bold red", "crashed": "bold red", "damaged": "bold red",
           "pass": "green", "warn": "yellow", "fail": "bold red"}  # fmt: skip


def state(word: str) -> Text:
    """A run's state, or a check's, in its colour."""
    return Text(word, _STATES.get(word, ""))


def title(name: str, word: str, text: str = "") -> None:
    """The head of one screen about a run: its name, its state, and why, on stdout."""
    why = f"  {plain(text)}" if text else ""
    _out.print(Text.assemble((plain(name), "bold"), "  ", state(word), (why, "")))


def finding(word: str, name: str, count: str, text: str) -> None:
    """One kind of finding: how grave, how often, what it is, on stdout."""
    _out.print(Text.assemble(state(word), "  ", (name, "bold"), f"  {count}  ", (text, "dim")))


def detail(text: str) -> None:
    """A line that belongs to the one above, on stdout."""
    _out.print(Text(f"      {text}", "dim"))


def progress(share: float) -> None:
    """A bar as the live view draws it, on stdout; in a pipe it would be noise."""
    if sys.stdout.isatty():
        _out.print(bar(share, _BAR_WIDTH))


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Labels and values in two columns, on stdout; long values go on under themselves."""
    for label, value in rows:
        lines = textwrap.wrap(plain(value), max(_out.width - _LABEL, 20), break_long_words=False)
        for place, line in enumerate(lines or [""]):
            shown = label if place == 0 else ""
            _out.print(Text.assemble((f"{shown:<{_LABEL}}", "dim"), line))


_BLOCKS = " ▁▂▃▄▅▆▇█"
_CHART_WIDTH, _CHART_HEIGHT, _SCALE = 80, 5, 9


def chart_columns() -> int:
    """How many columns a histogram can have here."""
    return min(_out.width, _CHART_WIDTH) - _SCALE


def histogram(
    shares: Sequence[float],
    top: str,
    ticks: Sequence[tuple[int, str]],
    mark: tuple[int, str],
) -> None:
    """A histogram on stdout, a column a share; what lies behind ``mark`` in another colour.

    Args:
        shares: heights, the largest as high as there is room.
        top: what the largest one is.
        ticks: columns with a label below them; one that would touch another is left out.
        mark: a column to point at, and what it is.
    """
    column, name = mark
    high = max(shares)
    eighths = [round(8 * _CHART_HEIGHT * share / high) if high else 0 for share in shares]
    for row in range(_CHART_HEIGHT - 1, -1, -1):
        cells = [_BLOCKS[min(max(size - 8 * row, 0), 8)] for size in eighths]
        if cells[column] == " ":
            cells[column] = "│"
        scale = top if row == _CHART_HEIGHT - 1 else ""
        body, behind = "".join(cells[: column + 1]), "".join(cells[column + 1 :]).rstrip()
        _out.print(Text.assemble((f"{scale:>{_SCALE - 2}} ┤", "dim"), body, (behind, "yellow")))
    labels, kept = _labels(ticks, len(shares))
    axis = "".join("┬" if place in kept else "─" for place in range(len(shares)))
    _out.print(f"{'':{_SCALE - 2}} └{axis}", style="dim", markup=False)
    _out.print(f"{'':{_SCALE}}{labels}", style="dim", markup=False)
    pointed = f"▲ {name}"
    if column + len(pointed) > len(shares):
        pointed = f"{name} ▲"
        column = max(0, column - len(name) - 1)
    _out.print(f"{'':{_SCALE}}{'':{column}}{pointed}", markup=False)


def _labels(ticks: Sequence[tuple[int, str]], width: int) -> tuple[str, set[int]]:
    """The line of labels below an axis, each under its column, and the columns that have one."""
    line, kept = "", set[int]()
    for column, label in ticks:
        begin = max(0, column - len(label) // 2)
        if (not line or begin > len(line) + 1) and begin + len(label) <= width:
            line = f"{line:<{begin}}{label}"
            kept.add(column)
    return line, kept


_ROW_WIDTH = 100
_TRAINED = "bold green"


def token_legend() -> None:
    """How ``tokens`` tells tokens with loss from masked ones, on stdout."""
    if _in_colour():
        text = Text.assemble(("green", _TRAINED), " is trained on, the rest is masked; ")
        _out.print(text.append("special tokens", "underline").append(" are underlined"))
    else:
        say("what is trained on stands between \u27e6 and \u27e7, the rest is masked")


def tokens(parts: "Sequence[Part]") -> None:
    """A row's text, trained or masked, on stdout; a line ends where the text's does, too."""
    text, colour, within = Text(), _in_colour(), False
    for part in parts:
        if not colour and part.trained != within:
            text.append("\u27e6" if part.trained else "\u27e7")
        within = part.trained
        if part.left_out:
            begin = "" if text.plain.endswith("\n") else "\n"
            text.append(f"{begin}{_gap(part)}\n", "dim italic")
            continue
        style = f"{_TRAINED if part.trained else ''} {'underline' if part.special else ''}"
        text.append(part.text, style.strip() if colour else "")
    text.append("\u27e7" if within and not colour else "")
    text.rstrip()
    for line in text.wrap(_out, _row_width()) if parts else ():
        _out.print(Text("  ").append_text(line))


def remark(text: str) -> None:
    """What is to be said of a row, on stdout, under its head."""
    for line in textwrap.wrap(text, _row_width()):
        say(f"  {line}", "yellow")


def _row_width() -> int:
    return (min(_out.width, _ROW_WIDTH) if _out.is_terminal else 80) - 2


def _in_colour() -> bool:
    return _out.color_system is not None and not _out.no_color


def _gap(part: "Part") -> str:
    count, trained = part.left_out, part.left_trained
    kind = {0: "masked ", count: "trained "}.get(trained, "")
    some = "" if kind else f", {trained:,} of them trained"
    return f"\u22ef {count:,} more {kind}tokens{some} \u22ef"


def raw(text: str) -> None:
    """Text as it is, on stdout: a log's."""
    sys.stdout.write(text)
    sys.stdout.flush()


def is_terminal() -> bool:
    """Whether a person can be asked and a live view drawn."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def is_full_screen() -> bool:
    """Whether the whole terminal can be drawn on, and nothing of it goes elsewhere."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(s.isatty() for s in streams) and os.environ.get("TERM") not in {None, "", "dumb"}


def confirm(question: str) -> bool:
    """Ask yes or no; without a terminal the answer is no."""
    if not is_terminal():
        return False
    _err.print(f"{question} [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def bar(share: float, width: int) -> Text:
    """A progress bar of ``width`` cells."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * full, "cyan"), ("─" * (width - full), "dim"))


def sparkline(
    values: Sequence[float | None], low: float = math.inf, high: float = -math.inf
) -> str:
    """A curve in one line of blocks, a column a value; None is a gap.

    Args:
        values: heights.
        low, high: of the scale, where other lines share it; else the values' own.
    """
    told = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([low, *told]), max([high, *told])
    span = high - low or 1.0
    eighths = (None if v is None else 1 + round(7 * (v - low) / span) for v in values)
    return "".join(" " if size is None else _BLOCKS[min(max(size, 1), 8)] for size in eighths)


size = spelled.size
"""Bytes for people: 1.3 GB."""


def duration(seconds: float) -> str:
    """Seconds for people: 4 d 3 h, 12 m 5 s."""
    seconds = int(seconds)
    parts = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)]
    found: list[str] = []
    for unit, length in parts:
        count, seconds = divmod(seconds, length)
        if count or (unit == "s" and not found):
            found.append(f"{count} {unit}")
    return " ".join(found[:2])


def age(seconds: float) -> str:
    """How long ago, for people: 3 h ago."""
    if seconds < 5:
        return "just now"
    return f"{' '.join(duration(seconds).split()[:2])} ago"


def heading(text: str) -> None:
    """The title of one part of a longer job, on stdout."""
    _out.print()
    _out.print(text, style="bold", markup=False)


@contextmanager
def stages(doing: str = "building the ") -> Iterator[Callable[[str, float], None]]:
    """A listener for (stage, share done): one live line on a terminal, a line a stage elsewhere."""
    live = Live(console=_err, transient=True, refresh_per_second=8) if is_terminal() else None
    seen: set[str] = set()

    def show(stage: str, share: float) -> None:
        if live:
            live.update(Text.assemble(f"{stage} ", bar(share, 30)))
        elif stage not in seen:
            seen.add(stage)
            notice(f"{doing}{stage}")

    with live or nullcontext():
        yield show


def counting() -> Callable[[str, int, int], None]:
    """A listener for (what, done, total): one live line, or one line each where no one watches."""
    live = Live(console=_err, transient=True, refresh_per_second=8) if is_terminal() else None

    def show(what: str, done: int, total: int) -> None:
        if live is None:
            if what:
                notice(f"{what}, {done + 1} of {total}")
            return
        if not live.is_started:
            live.start()
            atexit.register(live.stop)
        live.update(Text.assemble(bar(done / max(total, 1), 20), f" {what} {done} of {total}"))
        if done >= total:
            live.stop()

    return show


_TOLD_EVERY_S = 60


def corpus_progress() -> Callable[[str, int, int], None]:
    """A listener for reading a corpus: one live line, or one a minute where no one watches."""
    live = Live(console=_err, transient=True, refresh_per_second=8) if is_terminal() else None
    begun: dict[str, float] = {}
    last = told = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last, told
        speed = done / max(time.monotonic() - begun.setdefault(what, last), 1e-3)
        last = time.monotonic()
        text = f"{what} {size(done)} of {size(total)}, {size(speed)}/s"
        if 0 < done < total:
            text += f", {duration((total - done) / speed)} left"
        if live is None:
            if last - told >= _TOLD_EVERY_S:
                told = last
                notice(text)
            return
        if not live.is_started:
            live.start()
            atexit.register(live.stop)  # whatever ends the reading: a cursor must not stay hidden
        live.update(Text.assemble(bar(done / max(total, 1), 20), f" {text}"))
        if done >= total:
            live.stop()

    return show
