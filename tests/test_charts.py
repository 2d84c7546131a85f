"""Charts: what is drawn is what was told, spikes and all."""

import re
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from leviathan import charts
from leviathan.charts import Chart, Line, Mark
from leviathan.series import Curve


def curve(values, steps=None):
    values = np.asarray(values, float)
    steps = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    return Curve(steps, values, np.ones(len(values), np.int64), steps * 1.0)


def noisy(count, base=1.0, seed=1):
    return base + np.random.default_rng(seed).normal(0, 0.05, count)


def draw(*lines, marks=(), steps=None, **more):
    chart = Chart("Loss", "nats", lines, **more)
    ends = steps or (0, int(lines[0].curve.step[-1]))
    svg = charts.draw(chart, ends, marks)
    ET.fromstring(svg)  # noqa: S314 - our own text, and whether it is well-formed is the question
    return svg


def polylines(svg):
    return [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline class="[^"]*" points="([^"]*)"', svg)
    ]


# --- faithful ------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 77_777, 123_456, 199_998, 199_999])
def test_a_spike_of_one_step_in_200_000_is_drawn_at_its_place(place):
    values = noisy(200_000)
    values[place] = 1.6  # within the scale
    (points,) = polylines(draw(Line("loss", curve(values), "s1")))
    x, _ = min(points, key=lambda point: point[1])
    share = (x - charts._LEFT) / (470 - charts._LEFT - charts._RIGHT)
    assert share == pytest.approx((place + 1) / 200_000, abs=0.003)
    assert len(points) < 4 * 470


def test_a_spike_beyond_the_scale_leaves_the_drawing_and_is_told():
    values = noisy(200_000)
    values[123_456] = 50
    svg = draw(Line("loss", curve(values), "s1"))
    (points,) = polylines(svg)
    assert min(y for _, y in points) < 0
    assert "▲ 50 at step 123\u202f457" in svg
    # The scale is still that of the others: they fill the drawing.
    usual = sorted(y for _, y in points)[len(points) // 20 : -len(points) // 20]
    assert max(usual) - min(usual) > 60


def test_a_beginning_far_above_the_rest_does_not_flatten_it():
    fall = 1 + 11 * np.exp(-np.arange(5000) / 30) + np.random.default_rng(1).normal(0, 0.05, 5000)
    svg = draw(Line("loss", curve(fall), "s1"))
    labels = [float(t) for t in re.findall(r'text-anchor="end">([\d.]+)</text>', svg)]
    assert max(labels) < 3
    assert "▲ 12" in svg


def test_a_loss_that_falls_slowly_is_shown_whole():
    svg = draw(Line("loss", curve(6 - np.linspace(0, 4, 500)), "s1"))
    assert "▲" not in svg
    assert "▼" not in svg


def test_smoothing_does_not_lag_and_passes_over_single_spikes():
    ramp = np.linspace(3, 1, 2000)
    spiked = ramp.copy()
    spiked[1000] = 90
    for values in (ramp, spiked):
        smooth = charts.smoothed(curve(values))
        assert np.abs(smooth.value - ramp).max() < 0.01
    short = curve([3.0, 1.0, 2.0])
    assert charts.smoothed(short) is short


# --- robust ------------------------------------------------------------------------------


def test_what_is_written_into_it_is_escaped():
    hostile = '<script>alert("x")</script>&'
    marks = [Mark(1, "session", hostile, hostile)]
    svg = draw(Line(hostile, curve([1.0, 2.0]), "s1"), marks=marks, limit=(1.5, hostile))
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0, 0.0], [5.0] * 300, [1e-300, 1e300], [-1.0, 1.0], [1e15, 1e15 + 1]]
)
@pytest.mark.parametrize("zero", [True, False])
def test_strange_curves_are_drawn_without_nan(values, zero):
    svg = draw(Line("x", curve(values), "s1"), zero=zero)
    assert not re.search(r"[\"\s,]-?(nan|inf)", svg)


def test_no_figures_no_chart():
    assert charts.draw(Chart("x", "", (Line("x", curve([]), "s1"),)), (0, 10)) == ""


def test_ten_thousand_marks_stay_few_and_labels_apart():
    marks = [Mark(step, "trouble", "crash", f"step {step}") for step in range(0, 10_000)]
    marks += [Mark(step, "checkpoint", "", f"checkpoint-{step}") for step in range(0, 10_000)]
    svg = draw(Line("x", curve(noisy(10_000)), "s1"), marks=marks)
    assert svg.count('class="mark trouble"') <= charts._MOST_MARKS
    assert svg.count('class="mark checkpoint"') <= charts._MOST_MARKS
    assert "checkpoint-9999" in svg
    places = sorted(map(float, re.findall(r'<text class="trouble" x="([\d.]+)"', svg)))
    assert min(np.diff(places)) >= charts._LABEL_PX


def test_a_resume_beside_a_failure_leaves_it_the_label():
    marks = [Mark(60, "session", "#3", ""), Mark(61, "oom", "OOM", "")]
    svg = draw(Line("x", curve(noisy(200)), "s1"), marks=marks)
    assert ">OOM</text>" in svg
    assert "#3" not in svg


def test_pointing_at_a_place_tells_its_figures():
    svg = draw(Line("loss", curve(np.linspace(2, 1, 100)), "s1"))
    titles = re.findall(r"<title>step (\d+) · loss ([\d.]+)</title>", svg)
    assert len(titles) == charts._STRIPS
    for step, value in titles:
        assert float(value) == pytest.approx(2 - (int(step) - 1) / 99, abs=0.02)


@pytest.mark.parametrize(
    ("low", "high", "wanted", "found"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (0.9, 1.53, 6, [1, 1.2, 1.4]),
        (0, 1_000_000, 4, [0, 500_000, 1_000_000]),
        (0, 0.0002, 3, [0, 0.0001, 0.0002]),
        (3, 3, 5, [3]),
        (0, float("inf"), 5, [0]),
    ],
)
def test_ticks_are_round(low, high, wanted, found):
    assert charts.ticks(low, high, wanted) == pytest.approx(found)


def test_a_million_points_are_drawn_in_a_moment():
    values = curve(noisy(1_000_000))
    began = time.perf_counter()
    svg = draw(Line("raw", values, "s1", "faint"), Line("loss", charts.smoothed(values), "s1"))
    assert time.perf_counter() - began < 3
    assert len(svg) < 80_000
