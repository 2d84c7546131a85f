"""Owns the heart of a run's picture: how far it is, how it goes, what the machine does; colours.

Draws what ``pulse`` knows. Curves and lists are ``ui_panes``.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from leviathan import telemetry, ui
from leviathan.machine import GpuState
from leviathan.pulse import Pulse

THEME_VARIABLE = "LEVIATHAN_THEME"
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


def heart(pulse: Pulse, colours: Palette, width: int, elapsed_s: float, name: str = "") -> Text:
    """What matters most of a run, in a few lines that fit ``width`` columns."""
    lines = [
        _head(pulse, colours, width, elapsed_s, name),
        _progress(pulse, colours, width),
        *_figures(pulse, colours, width),
        *machine(pulse, colours, width),
        _saves(pulse, colours, width),
    ]
    return stacked(lines, width)


def stacked(lines: Sequence[Text], width: int) -> Text:
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
        loads = pulse.state in {"starting", "running"}
        return Text("imports, tokenising, loading" if loads else "", colours.faint)
    percent = f" {100 * pulse.share:5.1f} %"
    cells = width - len(percent)
    return bar(pulse.share, cells, colours).append(percent)


def bar(share: float, cells: int, colours: Palette) -> Text:
    """A share of something, from 0 to 1."""
    full = round(min(max(share, 0.0), 1.0) * cells)
    return Text.assemble(("━" * full, colours.curve), ("─" * (cells - full), colours.faint))


def _figures(pulse: Pulse, colours: Palette, width: int) -> list[Text]:
    """How far it is, and how it goes: labelled figures, as many on a line as fit."""
    far = [("step", f"{pulse.step:,} of {_or(pulse.max_steps, ',')}")]
    if (epoch := pulse.figure("epoch")) is not None:
        far.append(("epoch", f"{epoch:.2f}"))
    if pulse.state in _LIVING and pulse.max_steps:
        far.append(("left", _left(pulse)))
    arrow = {"falling": " ↓", "rising": " ↑", "level": " →"}.get(pulse.trend(), "")
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


_LIVING = {"starting", "running", "paused", "saving", "stopping", "restarting", "stalled"}


def _best_eval(pulse: Pulse) -> str:
    """The lowest evaluation, where it was an earlier one."""
    if not pulse.curves["eval_loss"]:
        return ""
    step, value = min(pulse.curves["eval_loss"], key=lambda point: point[1])
    best, last = f"{value:.4g}", f"{pulse.curves['eval_loss'][-1][1]:.4g}"
    return f" (best {best} at {step:,.0f})" if best != last else ""


def _left(pulse: Pulse) -> str:
    left = pulse.eta()
    if left.mid_s is None:
        return "not known yet"
    text = ui.duration(left.mid_s)
    if left.low_s is not None and left.high_s is not None:
        low, high = ui.duration(left.low_s), ui.duration(left.high_s)
        text += f" ({low} to {high})" if low != high else ""
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


def machine(pulse: Pulse, colours: Palette, width: int) -> list[Text]:
    """What the newest sample of telemetry says, in a line or two."""
    sample = pulse.sample
    if sample is None:
        return []
    if not sample.gpus:
        pairs = [("memory", f"{sample.resident_gib:.1f} GiB")] if sample.resident_gib else []
        if sample.free_disk_gib is not None:
            pairs.append(("free disk", f"{sample.free_disk_gib:,.0f} GiB"))
        return _flow(pairs, colours, width) if pairs else []
    if len(sample.gpus) == 1:
        lines = gpu_lines(sample.gpus[0], colours, width)
    else:
        lines = gpu_lines(_worst(sample), colours, width, f"{len(sample.gpus)} GPUs")
    age_s = time.time() - sample.time_s
    if age_s > _STALE_S and pulse.state in _LIVING:
        lines[-1].append(f"   {ui.age(age_s)}", colours.warn)
    return lines


def _worst(sample: telemetry.Sample) -> GpuState:
    """All GPUs as one: the fullest, idlest and hottest, and the power of all together."""
    limits = [g.power_limit_w for g in sample.gpus]
    limit = sum(w for w in limits if w is not None) if all(limits) else None
    totals = [g.total_gib for g in sample.gpus if g.total_gib is not None]
    return GpuState(
        -1, sample.used_gib, max(totals, default=None), sample.busy_pct, sample.hottest_c,
        sample.power_w, limit, None, sample.throttle,
    )  # fmt: skip


def gpu_lines(gpu: GpuState, colours: Palette, width: int, name: str = "") -> list[Text]:
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
    if not gpu.throttle:
        return [line]
    slowed = Text(f"slowed: {', '.join(gpu.throttle)}", colours.warn)
    if line.cell_len + 3 + slowed.cell_len > width:
        return [line, slowed]
    return [line.append("   ").append_text(slowed)]


def _saves(pulse: Pulse, colours: Palette, width: int) -> Text:
    age = f" {ui.age(time.time() - pulse.saved_s)}" if pulse.saved_s else ""
    pairs = [("saved", f"{pulse.last_save}{age}" if pulse.last_save else "no checkpoint yet")]
    if pulse.best and pulse.best != pulse.last_save:
        pairs.append(("best", pulse.best))
    return _flow(pairs, colours, width)[0]
