"""Owns the picture of a living training: its heart, its curves, and the block that `train` shows.

Draws what ``pulse`` knows. The full-screen view is ``ui_watch``; nothing here needs textual.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from leviathan import pulse as pulses
from leviathan import runs, telemetry, ui
from leviathan.braille import Canvas, Point, Window
from leviathan.errors import LeviathanError
from leviathan.machine import GpuState
from leviathan.pulse import Pulse

THEME_VARIABLE = "LEVIATHAN_THEME"
_SCALE = 8
"""Columns left of a curve: its labels and the axis."""
_STALE_S = 45.0
"""Older than four telemetry samples: worth saying."""


@dataclass(frozen=True)
class Palette:
    """Styles by role: the terminal's own colours, so that they suit its background."""

    curve: str
    second: str
    good: str
    warn: str
    bad: str
    note: str = ""
    faint: str = "dim"
    title: str = "bold"


DARK = Palette(curve="cyan", second="yellow", good="green", warn="yellow", bad="bold red")
# Yellow and cyan are hard to read on white.
LIGHT = Palette(curve="blue", second="magenta", good="green", warn="magenta", bad="bold red")


def palette() -> Palette:
    """LEVIATHAN_THEME=light or dark; else what the terminal says in COLORFGBG; else dark."""
    told = os.environ.get(THEME_VARIABLE, "").lower()
    if told in {"light", "dark"}:
        return LIGHT if told == "light" else DARK
    # rxvt, Konsole and others: "foreground;background", 7 and 15 are the whites.
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT if background in {"7", "15"} else DARK


# --- the heart ---------------------------------------------------------------------


def heart(pulse: Pulse, colours: Palette, width: int, elapsed_s: float, name: str = "") -> Text:
    """What matters most of a run, in a few lines that fit ``width`` columns."""
    lines = [
        _head(pulse, colours, width, elapsed_s, name),
        _progress(pulse, colours, width),
        *_figures(pulse, colours, width),
        *_machine(pulse, colours, width),
        _saves(pulse, colours, width),
    ]
    return _stacked(lines, width)


def _stacked(lines: Sequence[Text], width: int) -> Text:
    """Lines one below the other; one that is too long ends in an ellipsis."""
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    text = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _state_style(state: str, colours: Palette) -> str:
    return {
        "running": colours.curve, "done": colours.good, "stopped": colours.warn,
        "paused": colours.warn, "stopping": colours.warn, "restarting": colours.warn,
        "saving": colours.curve, "failed": colours.bad, "crashed": colours.bad,
        "stalled": colours.bad,
    }.get(state, "")  # fmt: skip


def _head(pulse: Pulse, colours: Palette, width: int, elapsed_s: float, name: str) -> Text:
    left = Text.assemble((name or pulse.name, colours.title), "  ",
                         (pulse.state, _state_style(pulse.state, colours)))  # fmt: skip
    if pulse.why:
        left.append(f"  {pulse.why}", colours.faint)
    session = f"session {pulse.session}, " if pulse.session > 1 else ""
    return _apart(left, Text(f"{session}{ui.duration(elapsed_s)}", colours.faint), width)


def _apart(left: Text, right: Text, width: int) -> Text:
    """Two texts at the ends of a line; the left one gives way."""
    room = width - right.cell_len - 2
    if room < width // 3:
        return left
    left.truncate(room, overflow="ellipsis")
    return left + Text(" " * (width - left.cell_len - right.cell_len)) + right


def _progress(pulse: Pulse, colours: Palette, width: int) -> Text:
    if not pulse.max_steps:
        return Text("imports, tokenising, loading", colours.faint)
    percent = f" {100 * pulse.share:5.1f} %"
    cells = width - len(percent)
    return _bar(pulse.share, cells, colours).append(percent)


def _figures(pulse: Pulse, colours: Palette, width: int) -> list[Text]:
    """How far it is, and how it goes: labelled figures, as many on a line as fit."""
    far = [("step", f"{pulse.step:,} of {_or(pulse.max_steps, ',')}")]
    if (epoch := pulse.figure("epoch")) is not None:
        far.append(("epoch", f"{epoch:.2f}"))
    if pulse.state in _LIVING and pulse.max_steps:
        far.append(("left", _left(pulse)))
    arrow = {"falls": " ↓", "rises": " ↑", "level": " →"}.get(pulse.trend(), "")
    figures = (
        ("loss", pulse.figure("loss"), ".4g", arrow),
        ("eval", pulse.eval_loss, ".4g", _best_eval(pulse)),
        ("lr", pulse.figure("learning_rate"), ".3g", ""),
        ("tok/s", pulse.tok_s, ",.0f", ""),
        ("MFU", pulse.mfu_pct, ".1f", " %"),
    )
    goes = [
        (label, f"{value:{form}}{more}")
        for label, value, form, more in figures
        if value is not None
    ]
    return [*_flow(far, colours, width), *(_flow(goes, colours, width) if goes else [])]


_LIVING = {"starting", "running", "paused", "saving", "stopping", "restarting"}


def _best_eval(pulse: Pulse) -> str:
    """The lowest evaluation, where it was an earlier one."""
    if not pulse.curves["eval_loss"]:
        return ""
    step, value = min(pulse.curves["eval_loss"], key=lambda point: point[1])
    last = pulse.curves["eval_loss"][-1]
    return f" (best {value:.4g} at {step:.0f})" if value < last[1] else ""


def _left(pulse: Pulse) -> str:
    left = pulse.eta()
    if left.mid_s is None:
        return "not known yet"
    text = ui.duration(left.mid_s)
    if left.low_s is not None and left.high_s is not None:
        text += f" ({ui.duration(left.low_s)} to {ui.duration(left.high_s)})"
    return text


def _or(value: int | None, form: str) -> str:
    return "?" if value is None else format(value, form)


def _flow(pairs: Sequence[tuple[str, str]], colours: Palette, width: int) -> list[Text]:
    """(label, value) pairs in as few lines as they need, none broken in two."""
    lines = [Text()]
    for label, value in pairs:
        piece = Text.assemble((f"{label} ", colours.faint), value)
        gap = 3 if lines[-1] else 0
        if lines[-1] and lines[-1].cell_len + gap + piece.cell_len > width:
            lines.append(Text())
            gap = 0
        lines[-1].append(" " * gap).append_text(piece)
    return lines


def _machine(pulse: Pulse, colours: Palette, width: int) -> list[Text]:
    sample = pulse.sample
    if sample is None:
        return []
    if not sample.gpus:
        pairs = [("memory", f"{sample.resident_gib:.1f} GiB")] if sample.resident_gib else []
        if sample.free_disk_gib is not None:
            pairs.append(("free disk", f"{sample.free_disk_gib:,.0f} GiB"))
        return _flow(pairs, colours, width) if pairs else []
    if len(sample.gpus) == 1:
        line = gpu_line(sample.gpus[0], colours)
    else:
        line = gpu_line(_worst(sample), colours, f"{len(sample.gpus)} GPUs")
    age_s = time.time() - sample.time_s
    if age_s > _STALE_S and pulse.state in _LIVING:
        line.append(f"  ({ui.age(age_s)})", colours.warn)
    return [line]


def _worst(sample: telemetry.Sample) -> GpuState:
    """All GPUs as one: the fullest, idlest and hottest, and the power of all together."""
    limits = [g.power_limit_w for g in sample.gpus]
    limit = sum(w for w in limits if w is not None) if all(limits) else None
    totals = [g.total_gib for g in sample.gpus if g.total_gib is not None]
    return GpuState(
        -1, sample.used_gib, max(totals, default=None), sample.busy_pct, sample.hottest_c,
        sample.power_w, limit, None, sample.throttle,
    )  # fmt: skip


def gpu_line(gpu: GpuState, colours: Palette, name: str = "") -> Text:
    """One GPU at a moment; what it does not tell is left out."""
    parts = []
    if gpu.used_gib is not None:
        total = f" of {gpu.total_gib:.1f}" if gpu.total_gib else ""
        parts.append(f"{gpu.used_gib:.1f}{total} GiB")
    if gpu.busy_pct is not None:
        parts.append(f"{gpu.busy_pct:.0f} % busy")
    if gpu.temperature_c is not None:
        parts.append(f"{gpu.temperature_c:.0f} C")
    if gpu.power_w is not None:
        limit = f" of {gpu.power_limit_w:.0f}" if gpu.power_limit_w else ""
        parts.append(f"{gpu.power_w:.0f}{limit} W")
    line = Text.assemble((f"{name or f'GPU {gpu.index}'} ", colours.faint), "   ".join(parts))
    if gpu.throttle:
        line.append(f"   slowed by: {', '.join(gpu.throttle)}", colours.warn)
    return line


def _saves(pulse: Pulse, colours: Palette, width: int) -> Text:
    age = f" {ui.age(time.time() - pulse.saved_s)}" if pulse.saved_s else ""
    pairs = [("saved", f"{pulse.last_save}{age}" if pulse.last_save else "no checkpoint yet")]
    if pulse.best and pulse.best.path.name != pulse.last_save:
        pairs.append(("best", pulse.best.path.name))
    return _flow(pairs, colours, width)[0]


# --- curves ------------------------------------------------------------------------


@dataclass(frozen=True)
class Plot:
    """A figure over the steps: what of it is drawn how."""

    title: str
    key: str
    """What to press for it, and its name there."""
    curves: tuple[str, ...]
    form: str


PLOTS = (
    Plot("loss", "l", ("loss", "smooth", "eval_loss"), ".3g"),
    Plot("eval loss", "e", ("eval_loss",), ".4g"),
    Plot("learning rate", "r", ("learning_rate",), ".2g"),
    Plot("tokens per second", "t", ("tok_s",), ",.0f"),
)


def plot(pulse: Pulse, which: Plot, colours: Palette, width: int, height: int) -> Text:
    """Title, curve and axis in ``height`` lines of ``width`` columns."""
    drawn = {name: _points(pulse, name) for name in which.curves}
    title = _plot_title(which, drawn, colours)
    points = list(chain.from_iterable(drawn.values()))
    columns, rows = width - _SCALE, height - 2
    if not points or columns < 8 or rows < 1:
        return _stacked([title, Text("nothing logged yet", colours.faint)][: max(height, 1)], width)
    window = _window(points)
    canvas = Canvas(columns, rows, window)
    styles = {"loss": colours.faint, "smooth": colours.curve, "eval_loss": colours.second}
    for name, values in drawn.items():
        if name == "loss":
            canvas.dots(values, name)
        elif name == "eval_loss" and "smooth" in drawn:
            canvas.marks(values, name, _MARK)
        else:
            canvas.line(values, name)
    lines = []
    for row, cells in enumerate(canvas.lines()):
        label = {0: window.high, rows - 1: window.low}.get(row) if rows > 1 else window.high
        scale = "" if label is None else _short(label, which.form)
        body = [(text, styles.get(owner, colours.curve)) for text, owner in cells]
        lines.append(Text.assemble((f"{scale:>{_SCALE - 2}} ┤", colours.faint), *body))
    return _stacked([title, *lines, _axis(pulse, window, colours, columns)], width)


_MARK = "◆"


def _points(pulse: Pulse, name: str) -> Sequence[Point]:
    return tuple(pulse.smooth if name == "smooth" else pulse.curves[name])


def _plot_title(which: Plot, drawn: dict[str, Sequence[Point]], colours: Palette) -> Text:
    title = Text(which.title, colours.title)
    if "smooth" in drawn:
        title.append("   ⠒⠒ smoothed", colours.curve).append("   ⠐⠐ logged", colours.faint)
        if drawn["eval_loss"]:
            title.append(f"   {_MARK} eval", colours.second)
    elif drawn[which.curves[0]]:
        title.append(f"  {drawn[which.curves[0]][-1][1]:{which.form}}")
    return title


def _short(value: float, form: str) -> str:
    """A number that fits beside an axis."""
    text = format(value, form)
    for size, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        if len(text) > _SCALE - 2:
            text = f"{value / size:.3g}{unit}"
    return text


def _window(points: Sequence[Point]) -> Window:
    steps, values = [x for x, _ in points], [y for _, y in points]
    low, high = min(values), max(values)
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


# --- lists -------------------------------------------------------------------------


def events(pulse: Pulse, colours: Palette, width: int, height: int) -> Text:
    """The newest events, the newest last."""
    grades = {"good": colours.good, "warn": colours.warn, "bad": colours.bad}
    lines = [
        Text.assemble((_clock(told.time_s), colours.faint), "  ",
                      (told.text, grades.get(told.grade, "")))
        for told in list(pulse.told)[-max(height - 1, 0) :]
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
        lines.append(gpu_line(gpu, colours))
        if sample and 2 * len(sample.gpus) < height:
            lines.append(_gauges(gpu, colours, width))
    if sample and not sample.gpus:
        lines += [Text("no GPU", colours.faint), *_machine(pulse, colours, width)]
    return _listed("GPUs", lines[: max(height - 1, 0)], colours, width)


def _gauges(gpu: GpuState, colours: Palette, width: int) -> Text:
    cells = max((width - 18) // 2, 4)
    full = gpu.used_gib / gpu.total_gib if gpu.used_gib is not None and gpu.total_gib else 0.0
    line = Text("memory ", colours.faint).append_text(_bar(full, cells, colours))
    line.append("   busy ", colours.faint)
    return line.append_text(_bar((gpu.busy_pct or 0.0) / 100, cells, colours))


def _bar(share: float, cells: int, colours: Palette) -> Text:
    full = round(min(max(share, 0.0), 1.0) * cells)
    return Text.assemble(("━" * full, colours.curve), ("─" * (cells - full), colours.faint))


def log(lines: Sequence[str], colours: Palette, width: int, height: int) -> Text:
    """The end of the training's own log."""
    return _listed("log", [Text(line) for line in lines[-max(height - 1, 0) :]], colours, width)


def _listed(name: str, lines: Sequence[Text], colours: Palette, width: int) -> Text:
    head = Text.assemble((f"{name} ", colours.title), ("─" * width, colours.faint))
    head.right_crop(max(head.cell_len - width, 0))
    return _stacked([head, *(lines or [Text("none yet", colours.faint)])], width)


def _clock(time_s: float) -> str:
    """When it was, in local time; the day only where it was another one."""
    then, now = time.localtime(time_s), time.localtime()
    same = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same else "%d %b %H:%M", then)


# --- the block of train ---------------------------------------------------------------


_WARNINGS = {"warning", "guard", "pause", "unpause", "kill"}
_WIDEST = 100
_CURVE_ROWS = 7
_ROOM_FOR_CURVE = 18
"""Lines a terminal must have for the curve in the block of `train`."""
_REDRAW_S = 1.0
_RESAMPLE_S = 10.0


class TrainView:
    """The view of a running training: one live block on a terminal, plain lines elsewhere."""

    def __init__(
        self, name: str, foot: str = "Ctrl+C saves and stops", pulse: Pulse | None = None
    ) -> None:
        self.name = name
        self.pulse = pulse or Pulse(name)
        self._foot = foot
        self._paths: runs.RunPaths | None = None
        self._opened_s = time.monotonic()
        self._live = _Block(self._drawn) if ui.is_terminal() else None
        self._sampled_s = 0.0
        self._gone = False

    def __enter__(self) -> "TrainView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._guard(self._live.stop)

    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        """Take one message of the launch; never fails, whatever became of the terminal."""
        self._guard(lambda: self._take(kind, facts))

    def _guard(self, action: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            action()
        except OSError:  # the terminal went away (SSH, tmux); training has not
            self._gone = True

    def _take(self, kind: str, facts: dict[str, Any]) -> None:
        if kind in {"start", "resume"} and "run" in facts:
            self._open(runs.RunPaths(Path(facts["run"])))
        self.pulse.take(kind, facts)
        event = facts.get("event")
        if kind == "notice":
            ui.notice(facts["text"])
        elif kind in {"start", "resume"}:
            ui.notice(f"{self.name}: {_beginning(kind, facts)}")
        elif event == "save":
            self._plain(f"saved checkpoint-{facts['step']}")
        elif kind == "metrics":
            self._tell_metrics(facts)
        elif kind == "warning" or (kind == "event" and event in _WARNINGS):
            ui.warn(facts.get("text", ""))
        if self._live:
            self._resample()
            self._live.update()

    def _open(self, paths: runs.RunPaths) -> None:
        """Begin anew with what the run has told so far, be it another, smaller one."""
        self._paths = paths
        try:
            self.pulse = pulses.of(paths)
        except (OSError, LeviathanError):  # a full disk may have refused its record
            self.pulse = Pulse(self.name)

    def _resample(self) -> None:
        if self._paths and time.monotonic() - self._sampled_s >= _RESAMPLE_S:
            self._sampled_s = time.monotonic()
            self.pulse.take("sample", {"sample": telemetry.last(self._paths)})

    def _tell_metrics(self, line: dict[str, Any]) -> None:
        if "eval_loss" in line:
            number = self.pulse.figure("eval_loss")
            shown = "-" if number is None else f"{number:.4g}"
            self._plain(f"step {line['step']}: eval loss {shown}")
        elif "loss" in line:
            self._plain(summary(self.pulse))

    def _plain(self, text: str) -> None:
        if not self._live:
            ui.notice(text)

    def _drawn(self, width: int, height: int) -> Text:
        width, colours = min(width - 1, _WIDEST), palette()
        elapsed_s = pulses.elapsed_s(self.pulse) or time.monotonic() - self._opened_s
        text = heart(self.pulse, colours, width, elapsed_s, self.name)
        if height >= _ROOM_FOR_CURVE and self.pulse.curves["loss"]:
            text.append("\n").append_text(plot(self.pulse, PLOTS[0], colours, width, _CURVE_ROWS))
        return text.append(f"\n{self._foot}", colours.faint)


class _Block:
    """A live block that is drawn once a second at most, and only from our own thread."""

    def __init__(self, draw: Callable[[int, int], Text]) -> None:
        self._draw = draw
        self._console: Console = ui.stderr_console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._drawn_s = 0.0

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        """With what came since it was drawn last."""
        self._redraw()
        self._live.stop()

    def update(self) -> None:
        if time.monotonic() - self._drawn_s >= _REDRAW_S:
            self._redraw()

    def _redraw(self) -> None:
        self._drawn_s = time.monotonic()
        size = self._console.size
        self._live.update(self._draw(size.width, size.height), refresh=True)


def summary(pulse: Pulse) -> str:
    """One line for where there is no terminal."""
    parts = [f"step {pulse.step}/{pulse.max_steps or '?'}"]
    for label, value in (
        ("loss", pulse.figure("loss")),
        ("lr", pulse.figure("learning_rate")),
        ("tok/s", pulse.tok_s),
    ):
        if value is not None:
            parts.append(f"{label} {value:.4g}")
    left = pulse.eta()
    parts.append(f"eta {'?' if left.mid_s is None else ui.duration(left.mid_s)}")
    return "  ".join(parts)


def _beginning(kind: str, facts: dict[str, Any]) -> str:
    if kind == "resume":
        return f"session {facts['session']}, resuming from checkpoint-{facts['step']}"
    return f"session {facts['session']}, starting from the base model"
