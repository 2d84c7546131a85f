"""Owns charts of a run's curves: inline SVG, coloured by the page's style sheet.

Pure: curves and marks in, text out. Does not choose what is shown (``page``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from leviathan.series import Curve
from leviathan.spelled import count, figure

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 20, 26
_CLOCK = 16
"""Height of the second row of labels under the axis."""
_LABEL_PX = 30
"""Marks nearer than this to the one before have their label left out."""
_STRIPS = 60
"""Places of a chart that tell their figures when pointed at."""
_MOST_MARKS = 60
_SMOOTHED = 20
"""Points below which a curve is smooth enough, or tells nothing."""
_EARLY = 0.02
"""Share of the steps whose figures do not stretch the scale: a loss begins far above."""
_BEGINNING = 3.0
"""So many times as high as all that follows may a beginning be and still be shown whole."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    curve: Curve
    colour: str
    """A class of the style sheet: s1, s2 or s3."""
    style: str = "line"
    """line, faint (raw figures behind a smooth line) or dots (a line with its points)."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    step: int
    kind: str
    """session, oom, trouble, checkpoint or best."""
    label: str
    """A word beside the mark; empty for none."""
    text: str
    """What is told when it is pointed at."""


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    zero: bool = False
    """Whether the scale begins at zero."""
    limit: tuple[float, str] | None = None
    """A level that should not be crossed, and its name."""
    band: tuple[float, float] | None = None
    """What was expected."""


@dataclass(frozen=True)
class _Frame:
    """Where on the drawing a figure lies."""

    width: int
    height: int
    bottom: int
    first: float
    last: float
    low: float
    high: float

    @property
    def inner(self) -> int:
        return self.width - _LEFT - _RIGHT

    @property
    def base(self) -> int:
        return self.height - self.bottom

    def x(self, step: NDArray[np.float64]) -> NDArray[np.float64]:
        return _LEFT + (step - self.first) * self.inner / (self.last - self.first)

    def y(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = (value - self.low) * (self.base - _TOP) / (self.high - self.low)
        # A stroke a thousand pixels beyond the edge is as good as one of a million.
        return np.clip(self.base - scaled, -1e3, 1e3 + self.height)

    def at(self, step: float, value: float) -> tuple[float, float]:
        return float(self.x(np.array([step]))[0]), float(self.y(np.array([value]))[0])


def draw(
    chart: Chart,
    steps: tuple[int, int],
    marks: Sequence[Mark] = (),
    *,
    size: tuple[int, int] = (470, 190),
    clock: Callable[[float], str] | None = None,
) -> str:
    """The chart as an ``<svg>`` element, whole: its only needs are the style sheet's colours.

    Args:
        chart: what to show; lines without points are left out.
        steps: first and last step of the axis.
        marks: what happened when.
        size: width and height in pixels.
        clock: names the moment of a step, for a second row under the axis.
    """
    lines = [line for line in chart.lines if len(line.curve)]
    if not lines:
        return ""
    low, high = _scale(chart, lines)
    bottom = _BOTTOM + (_CLOCK if clock else 0)
    first, last = steps[0], max(steps[1], steps[0] + 1)
    frame = _Frame(*size, bottom, first, last, low, high)
    name = f"clip-{''.join(filter(str.isalnum, chart.title))}-{size[0]}"
    inside = [_band(chart, frame), *(_line(line, frame) for line in lines), _limit(chart, frame)]
    return "".join(
        [
            f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" '
            f'aria-label="{escape(_described(chart, lines))}">',
            f'<clipPath id="{name}"><rect x="{_LEFT}" y="{_TOP}" width="{frame.inner}" '
            f'height="{frame.base - _TOP}"/></clipPath>',
            _axes(frame, clock),
            f'<g clip-path="url(#{name})">{"".join(inside)}</g>',
            _strips(lines, frame),
            _marks(marks, frame),
            _beyond(lines, frame),
            "</svg>",
        ]
    )


def smoothed(curve: Curve) -> Curve:
    """Means over a fiftieth of the curve around each point, so that nothing lags behind.

    A single figure that sticks out is left to the raw curve: it would lift the means of all
    its neighbours.
    """
    if len(curve) < _SMOOTHED:
        return curve
    half = max(len(curve) // 100, 2)
    sums = np.concatenate([[0.0], np.cumsum(_without_spikes(curve.value))])
    place = np.arange(len(curve))
    reach = np.minimum(half, np.minimum(place, place[::-1]))  # as far on one side as on the other
    begin, end = place - reach, place + reach + 1
    return Curve(curve.step, (sums[end] - sums[begin]) / (end - begin), curve.session, curve.time_s)


def _without_spikes(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each five neighbours; the first and last two as they are."""
    if len(value) < _SMOOTHED:
        return value
    inner = np.median(np.lib.stride_tricks.sliding_window_view(value, 5), axis=1)
    return np.concatenate([value[:2], inner, value[-2:]])


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round figures between ``low`` and ``high``: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / max(wanted, 1)
    if not (math.isfinite(rough) and rough > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(n * power for n in (1, 2, 5, 10) if n * power >= rough * (1 - 1e-9))
    begin = math.ceil(low / apart - 1e-9)
    end = math.floor(high / apart + 1e-9)
    return [round(n * apart, 12) for n in range(begin, min(end, begin + 50) + 1)]


def _scale(chart: Chart, lines: Sequence[Line]) -> tuple[float, float]:
    bounds = [_bounds(line.curve) for line in lines]
    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    span = high - low
    for level in (*(chart.band or ()), *([chart.limit[0]] if chart.limit else ())):
        if low - span <= level <= high + max(span, 0.3 * abs(high)):
            low, high = min(low, level), max(high, level)
    if chart.zero:
        low = min(low, 0.0)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low if chart.zero and low == 0 else low - margin, high + margin


def _bounds(curve: Curve) -> tuple[float, float]:
    """What the scale has to hold: all of it, but for what dwarfs the rest.

    That is single figures that stick out, and a beginning far above everything after it.
    """
    begin = int(len(curve) * _EARLY) if len(curve) > _SMOOTHED else 0
    usual_low, usual_high = (float(q) for q in np.quantile(curve.value[begin:], (0.01, 0.99)))
    span = usual_high - usual_low
    low, high = float(curve.value.min()), float(curve.value.max())
    if not span:
        return low, high
    level = _without_spikes(curve.value)
    bottom, top = min(float(level.min()), usual_low), max(float(level.max()), usual_high)
    top = top if top - usual_high <= _BEGINNING * span else usual_high + span / 4
    bottom = bottom if usual_low - bottom <= _BEGINNING * span else usual_low - span / 4
    return low if bottom - low <= span else bottom, high if high - top <= span else top


def _described(chart: Chart, lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        steps, values = line.curve.step, line.curve.value
        parts.append(
            f"{line.name} from {figure(float(values[0]))} at step {steps[0]} to "
            f"{figure(float(values[-1]))} at step {steps[-1]}"
        )
    return f"{chart.title}: {'; '.join(parts)}"


def _axes(frame: _Frame, clock: Callable[[float], str] | None) -> str:
    out = []
    right = frame.width - _RIGHT
    for value in ticks(frame.low, frame.high, (frame.base - _TOP) // 32):
        _, y = frame.at(frame.first, value)
        out.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        out.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{figure(value)}</text>"
        )
    out.append(f'<path class="axis" d="M{_LEFT} {frame.base}H{right}"/>')
    places = [t for t in ticks(frame.first, frame.last, frame.inner // 90) if t == int(t)]
    for place in places:
        x, _ = frame.at(place, frame.low)
        anchor = "end" if x > right - 14 else "middle"
        out.append(
            f'<text class="tick" x="{x:.1f}" y="{frame.base + 16}" text-anchor="{anchor}">'
            f"{_step(place)}</text>"
        )
        if clock:
            out.append(
                f'<text class="tick faded" x="{x:.1f}" y="{frame.base + 31}" '
                f'text-anchor="{anchor}">{escape(clock(place))}</text>'
            )
    for name, y in (("step", 16), *([("after", 31)] if clock else [])):
        out.append(f'<text class="tick faded" x="4" y="{frame.base + y}">{name}</text>')
    return "".join(out)


def _step(step: float) -> str:
    return count(step) if step < 1e6 else f"{step / 1e6:g} M"


def _line(line: Line, frame: _Frame) -> str:
    shown = line.curve.thinned(frame.inner)
    x, y = frame.x(shown.step.astype(float)), frame.y(shown.value)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    single = f'<circle class="{line.colour} dot" cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="2.5"/>'
    if len(shown) == 1:
        return single
    kind = "faint" if line.style == "faint" else "line"
    drawn = f'<polyline class="{line.colour} {kind}" points="{points}"/>'
    if line.style == "dots" and len(shown) <= frame.inner // 8:
        dots = (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in zip(x, y, strict=True))
        drawn += f'<g class="{line.colour} dot">{"".join(dots)}</g>'
    return drawn


def _band(chart: Chart, frame: _Frame) -> str:
    if chart.band is None:
        return ""
    (_, bottom), (_, top) = (frame.at(frame.first, value) for value in chart.band)
    return (
        f'<rect class="band" x="{_LEFT}" y="{top:.1f}" width="{frame.inner}" '
        f'height="{max(bottom - top, 1):.1f}"><title>expected: {figure(chart.band[0])} to '
        f"{figure(chart.band[1])} {escape(chart.unit)}</title></rect>"
    )


def _limit(chart: Chart, frame: _Frame) -> str:
    if chart.limit is None or not frame.low <= chart.limit[0] <= frame.high:
        return ""
    _, y = frame.at(frame.first, chart.limit[0])
    return (
        f'<path class="limit" d="M{_LEFT} {y:.1f}H{frame.width - _RIGHT}"/>'
        f'<text class="limit-name" x="{frame.width - _RIGHT - 4}" '
        f'y="{y - 4 if y > _TOP + 16 else y + 13:.1f}" '
        f'text-anchor="end">{escape(chart.limit[1])}</text>'
    )


def _marks(marks: Sequence[Mark], frame: _Frame) -> str:
    out = []
    labelled: list[float] = []
    # What went wrong is named first: a resume beside it goes without saying.
    for mark in sorted(_fewer(marks), key=lambda mark: (mark.kind == "session", mark.step)):
        if not frame.first <= mark.step <= frame.last:
            continue
        x, _ = frame.at(mark.step, frame.low)
        title = f"<title>{escape(mark.text)}</title>"
        if mark.kind in {"checkpoint", "best"}:
            y = frame.base
            shape = f"M{x:.1f} {y - 7}l4 7h-8z" if mark.kind == "checkpoint" else _star(x, y - 5)
            out.append(f'<path class="mark {mark.kind}" d="{shape}">{title}</path>')
            continue
        label = ""
        if mark.label and all(abs(x - other) >= _LABEL_PX for other in labelled):
            near_end = x > frame.width - _RIGHT - _LABEL_PX / 2
            label = (
                f'<text class="{mark.kind}" x="{x:.1f}" y="{_TOP - 6}" '
                f'text-anchor="{"end" if near_end else "middle"}">'
                f"{escape(mark.label)}</text>"
            )
            labelled.append(x)
        out.append(
            f'<g class="mark {mark.kind}"><path d="M{x:.1f} {_TOP - 3}V{frame.base}"/>'
            f"{label}{title}</g>"
        )
    return "".join(out)


def _fewer(marks: Sequence[Mark]) -> list[Mark]:
    """So many of a kind as can be told apart, the last among them."""
    kept: list[Mark] = []
    for kind in dict.fromkeys(mark.kind for mark in marks):
        mine = [mark for mark in marks if mark.kind == kind]
        every = -(-len(mine) // _MOST_MARKS)
        kept += mine[::-1][::every]
    return kept


def _star(x: float, y: float) -> str:
    points = []
    for corner in range(10):
        radius = 7.0 if corner % 2 == 0 else 3.0
        angle = math.pi * (corner / 5 - 0.5)
        points.append(f"{x + radius * math.cos(angle):.1f} {y + radius * math.sin(angle):.1f}")
    return f"M{'L'.join(points)}z"


def _beyond(lines: Sequence[Line], frame: _Frame) -> str:
    """What lies above or below the scale, told where it leaves the drawing."""
    out = []
    for sign, edge, arrow, y in (
        (1, frame.high, "▲", _TOP + 11),
        (-1, frame.low, "▼", frame.base - 6),
    ):
        furthest = None
        for line in lines:
            index = int((line.curve.value * sign).argmax())
            value = float(line.curve.value[index])
            if value * sign > edge * sign and (
                furthest is None or value * sign > furthest[0] * sign
            ):
                furthest = value, int(line.curve.step[index])
        if furthest:
            x, _ = frame.at(furthest[1], frame.low)
            anchor, shift = ("start", 5) if x < frame.width * 0.6 else ("end", -5)
            out.append(
                f'<text class="beyond" x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}">'
                f"{arrow} {figure(furthest[0])} at step {count(furthest[1])}</text>"
            )
    return "".join(out)


def _strips(lines: Sequence[Line], frame: _Frame) -> str:
    """Invisible strips that tell the figures of their place: a chart without any script."""
    strips = int(min(_STRIPS, frame.last - frame.first))
    width = frame.inner / strips
    height = frame.base - _TOP
    out = []
    for number in range(strips):
        middle = frame.first + (number + 0.5) * (frame.last - frame.first) / strips
        told = [f"step {count(round(middle))}"]
        for line in lines:
            if line.style != "faint":
                told.append(f"{line.name} {figure(_nearest(line.curve, middle))}")
        out.append(
            f'<rect x="{_LEFT + number * width:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{height}"><title>{escape(" · ".join(told))}</title></rect>'
        )
    return f'<g class="strips">{"".join(out)}</g>'


def _nearest(curve: Curve, step: float) -> float:
    right = int(np.searchsorted(curve.step, step))
    near = (max(right - 1, 0), min(right, len(curve) - 1))
    return float(curve.value[min(near, key=lambda place: abs(curve.step[place] - step))])
