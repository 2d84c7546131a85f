"""Owns the panes beside a run's heart: its curves, events, checkpoints, GPUs and log.

Draws what ``pulse`` knows, each pane into the columns and lines it is given.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from rich.text import Text

from leviathan import ui
from leviathan.braille import Canvas, Point, Window
from leviathan.machine import GpuState
from leviathan.pulse import Pulse
from leviathan.ui_heart import Palette, bar, gpu_lines, machine, stacked

_SCALE = 9
"""Columns left of a curve: its labels and the axis."""


@dataclass(frozen=True)
class Plot:
    """A figure over the steps: what of it is drawn how."""

    title: str
    key: str
    """What to press for it, and its name there."""
    curves: tuple[str, ...]
    form: str
    from_zero: bool = False
    """Else what varies a little would look as if it varied much."""


PLOTS = (
    Plot("loss", "l", ("loss", "smooth", "eval_loss"), ".3g"),
    Plot("eval loss", "e", ("eval_loss",), ".4g"),
    Plot("learning rate", "r", ("learning_rate",), ".2g"),
    Plot("tokens per second", "t", ("tok_s",), ",.0f", from_zero=True),
)


def plot(pulse: Pulse, which: Plot, colours: Palette, width: int, height: int) -> Text:
    """Title, curve and axis in ``height`` lines of ``width`` columns."""
    drawn = {name: _points(pulse, name) for name in which.curves}
    columns, rows = width - _SCALE, height - 2
    title = _plot_title(which, drawn, colours, columns)
    points = list(chain.from_iterable(drawn.values()))
    if not points or columns < 8 or rows < 1:
        return stacked([title, Text("nothing logged yet", colours.faint)][: max(height, 1)], width)
    window = _window(points, which.from_zero)
    canvas = Canvas(columns, rows, window)
    styles = {"loss": colours.faint, "smooth": colours.curve, "eval_loss": colours.second}
    for name, values in drawn.items():
        if name == "loss":
            canvas.dots(values, name)
        elif name == "eval_loss" and _are_marks(drawn, columns):
            canvas.marks(values, name, _MARK)
        else:
            canvas.line(values, name)
    lines = []
    for row, cells in enumerate(canvas.lines()):
        label = {0: window.high, rows - 1: window.low}.get(row) if rows > 1 else window.high
        scale = "" if label is None else _short(label, which.form)
        body = [(text, styles.get(owner, colours.curve)) for text, owner in cells]
        lines.append(Text.assemble((f"{scale:>{_SCALE - 2}} ┤", colours.faint), *body))
    return stacked([title, *lines, _axis(pulse, window, colours, columns)], width)


_MARK = "◆"


def _points(pulse: Pulse, name: str) -> Sequence[Point]:
    if name == "smooth":
        return _smoothed(tuple(pulse.curves["loss"]))
    return tuple(pulse.curves[name])


def _smoothed(points: Sequence[Point]) -> Sequence[Point]:
    """Each point the mean of those around it: a fifteenth of the curve, 101 points at most."""
    count = len(points)
    around = min(max(count // 30, 2), 50)
    sums = [0.0, *accumulate(value for _, value in points)]
    found = []
    for place, (step, _) in enumerate(points):
        side = min(around, place, count - 1 - place)  # as many on both sides: no lag, no lead
        found.append((step, (sums[place + side + 1] - sums[place - side]) / (2 * side + 1)))
    return found


def _are_marks(drawn: dict[str, Sequence[Point]], columns: int) -> bool:
    """Whether evaluations are marks on the loss: few enough to leave something of it to see."""
    return "smooth" in drawn and 3 * len(drawn["eval_loss"]) <= columns


def _plot_title(
    which: Plot, drawn: dict[str, Sequence[Point]], colours: Palette, columns: int
) -> Text:
    title = Text(which.title, colours.title)
    if "smooth" in drawn:
        title.append("   ⠒⠒ smoothed", colours.curve).append("   ⠐⠐ logged", colours.faint)
        if drawn["eval_loss"]:
            sign = _MARK if _are_marks(drawn, columns) else "⠒⠒"
            title.append(f"   {sign} eval", colours.second)
    elif drawn[which.curves[0]]:
        title.append(f"   {drawn[which.curves[0]][-1][1]:{which.form}}")
    return title


def _short(value: float, form: str) -> str:
    """A number that fits beside an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return format(value, form)


def _window(points: Sequence[Point], from_zero: bool) -> Window:
    steps, values = [x for x, _ in points], [y for _, y in points]
    low, high = 0.0 if from_zero else min(values), max(values)
    if low == high:  # a level line runs through the middle
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    return Window(min(steps), max(steps), low, high)


def _axis(pulse: Pulse, window: Window, colours: Palette, columns: int) -> Text:
    """First and last step under a curve, and a mark where a session resumed."""
    span = (window.right - window.left) or 1
    cells = ["─"] * columns
    for step in pulse.resumes:
        if window.left <= step <= window.right:
            cells[round((step - window.left) / span * (columns - 1))] = "╀"
    first, last = f"step {window.left:,.0f} ", f" {window.right:,.0f}"
    if len(first) + len(last) < columns:
        cells[: len(first)], cells[columns - len(last) :] = first, last
    return Text(f"{'':{_SCALE - 2}} └" + "".join(cells), colours.faint)


def events(pulse: Pulse, colours: Palette, width: int, height: int) -> Text:
    """The newest events, the newest last; what is rare before what is routine."""
    grades = {"good": colours.good, "warn": colours.warn, "bad": colours.bad}
    lines = [
        Text.assemble((_clock(told.time_s), colours.faint), "  ",
                      (told.text, grades.get(told.grade, "")))
        for told in pulse.news(max(height - 1, 0))
    ]  # fmt: skip
    return _listed("events", lines, colours, width)


def saved(pulse: Pulse, colours: Palette, width: int, height: int) -> Text:
    """The newest checkpoints, the newest last; unsound ones say why."""
    lines = []
    for found in pulse.saved[-max(height - 1, 0) :]:
        line = Text.assemble((_clock(found.modified), colours.faint), f"  {found.path.name:<18}")
        if found.problem:
            line.append(f"  unsound: {found.problem}", colours.bad)
        else:
            line.append(f"  {ui.size(found.bytes):>8}")
            line.append("" if found.eval_loss is None else f"  eval {found.eval_loss:.4g}")
            line.append("  best", colours.good) if found.best else None
            line.append("  pinned", colours.faint) if found.pinned else None
        lines.append(line)
    return _listed("checkpoints", lines, colours, width)


def gpus(pulse: Pulse, colours: Palette, width: int, height: int) -> Text:
    """A gauge a GPU: memory and work as bars, the rest in words."""
    sample = pulse.sample
    lines = []
    for gpu in sample.gpus if sample else ():
        lines += gpu_lines(gpu, colours, width)
        if sample and 3 * len(sample.gpus) < height:
            lines.append(_gauges(gpu, colours, width))
    if sample and not sample.gpus:
        lines += [Text("no GPU", colours.faint), *machine(pulse, colours, width)]
    return _listed("GPUs", lines[: max(height - 1, 0)], colours, width)


def _gauges(gpu: GpuState, colours: Palette, width: int) -> Text:
    cells = max((width - 18) // 2, 4)
    full = gpu.used_gib / gpu.total_gib if gpu.used_gib is not None and gpu.total_gib else 0.0
    line = Text("memory ", colours.faint).append_text(bar(full, cells, colours))
    line.append("   busy ", colours.faint)
    return line.append_text(bar((gpu.busy_pct or 0.0) / 100, cells, colours))


def log(lines: Sequence[str], colours: Palette, width: int, height: int) -> Text:
    """The end of the training's own log."""
    return _listed("log", [Text(line) for line in lines[-max(height - 1, 0) :]], colours, width)


def _listed(name: str, lines: Sequence[Text], colours: Palette, width: int) -> Text:
    head = Text.assemble((f"{name} ", colours.title), ("─" * width, colours.faint))
    head.right_crop(max(head.cell_len - width, 0))
    return stacked([head, *(lines or [Text("none yet", colours.faint)])], width)


def _clock(time_s: float) -> str:
    """When it was, in local time; the day only where it was another one."""
    try:
        then, now = time.localtime(time_s), time.localtime(time.time())
    except (ValueError, OverflowError, OSError):  # out of a damaged file
        return "?"
    same = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same else "%d %b %H:%M", then)
