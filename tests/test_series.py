"""Curves of a run: what later sessions undid is gone, peaks stay, damage is passed over."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leviathan import files, runs, series, tidings
from leviathan.series import Curve
from telling import Telling


def curve(values, session=None):
    values = np.asarray(values, float)
    steps = np.arange(1, len(values) + 1)
    sessions = np.ones_like(steps) if session is None else np.asarray(session)
    return Curve(steps, values, sessions, steps * 10.0)


@pytest.fixture
def told(tmp_path):
    return Telling(tmp_path / "r", began=1_000_000.0)


# --- what counts ------------------------------------------------------------------


def test_what_a_resume_went_back_behind_is_not_in_the_curves(told):
    told.begin()
    told.train(1, 60, floor=9.0)
    told.begin(50)
    told.train(51, 70)
    found = series.read(told.paths)
    loss = found["loss"]
    assert loss.step.tolist() == list(range(1, 71))
    assert loss.session.tolist() == [1] * 50 + [2] * 20
    assert (loss.value[:50] > 8).all()
    assert (loss.value[50:] < 3).all()
    assert [(p.session, p.begin, p.end, p.undone) for p in found.parts] == [
        (1, 0, 50, 10), (2, 50, 70, 0),
    ]  # fmt: skip
    assert found["eval_loss"].step.tolist() == [25, 50]


def test_steps_trained_in_vain_by_the_newest_session_still_count_until_they_are_undone(told):
    told.begin()
    told.train(1, 60)
    assert series.read(told.paths)["loss"].step[-1] == 60


def test_it_agrees_with_the_metrics_that_everything_else_reads(told):
    told.begin()
    told.train(1, 60)
    told.begin(25)
    told.train(26, 40)
    told.begin(25)
    told.train(26, 33)
    lines = [m for m in runs.metrics(told.paths) if "loss" in m]
    found = series.read(told.paths)["loss"]
    assert found.step.tolist() == [m["step"] for m in lines]
    assert found.value.tolist() == [m["loss"] for m in lines]


def test_the_pace_is_without_evaluations_saves_and_waiting(told):
    told.begin()
    for step in range(1, 31):
        told.clock += 2.0
        if step == 20:  # a hot GPU: at the end of the step, before its log line
            told.clock += 500.0
            told.event("waited", step=20, wait_s=500.0)
        told.metrics(step, loss=1.0, **{"tokens/total": 1000 * step})
        if step == 10:
            told.evaluate(10, 1.0, seconds=40.0)
            told.save(10, seconds=7.0)
    found = series.read(told.paths)
    assert found["step_s"].value == pytest.approx([2.0] * 29)
    assert found["tok_s"].value == pytest.approx([500.0] * 29)


def test_no_pace_is_made_across_sessions(told):
    told.begin()
    told.train(1, 10)
    told.clock += 50_000
    told.begin(10)
    told.train(11, 20)
    step_s = series.read(told.paths)["step_s"]
    assert step_s.step.tolist() == [*range(2, 11), *range(12, 21)]
    assert step_s.value.max() < 100


def test_the_recent_curves_are_the_end_of_the_whole_ones_and_all_evaluations(told, monkeypatch):
    told.begin()
    told.train(1, 200)
    whole = series.read(told.paths)
    monkeypatch.setattr(tidings, "_METRICS_BYTES", 10_000)
    monkeypatch.setattr(tidings, "_EVENTS_BYTES", 300)
    recent = tidings.read(told.paths)
    found = series.recent(recent)
    count = len(found["loss"])
    assert 10 < count < 50
    assert found["loss"].value.tolist() == whole["loss"].value[-count:].tolist()
    assert found["eval_loss"].value.tolist() == whole["eval_loss"].value.tolist()
    kinds = [e["event"] for e in recent.events]
    assert kinds[:2] == ["start", "train_begin"]
    assert kinds.count("save") < 3


def test_recent_curves_of_a_short_run_are_all_of_it(told):
    told.begin()
    told.train(1, 30)
    whole, found = series.read(told.paths), series.recent(tidings.read(told.paths))
    assert whole.curves.keys() == found.curves.keys()
    for name, expected in whole.curves.items():
        assert found[name].value.tolist() == expected.value.tolist(), name


# --- damage -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"\xff\xfe", b"[1]", b"null", b"[" * 100_000, b'{"step": 7}',
        b'{"step": "7", "session": 1}', b'{"step": true, "session": 1}',
        b'{"step": -3, "session": 1, "loss": 1.0}', b'{"step": 1e30, "session": 1}',
        b'{"step": 99999999999999999999, "session": 1, "loss": 2}',
    ],
)  # fmt: skip
def test_damaged_lines_are_passed_over_and_counted(told, line):
    told.begin()
    told.train(1, 10)
    with told.paths.metrics.open("ab") as out:
        out.write(line + b"\n")
    told.train(11, 12)
    found = series.read(told.paths)
    assert found["loss"].step.tolist() == list(range(1, 13))
    assert (found.lines, found.unread) == (12, bool(line))


@pytest.mark.parametrize("value", ["nan", "inf", [], {}, True, None, "low", 10**400])
def test_values_that_are_no_numbers_are_not_in_a_curve(told, value):
    told.begin()
    told.train(1, 5)
    told.metrics(6, loss=value, learning_rate=1e-4)
    told.train(7, 9)
    found = series.read(told.paths)
    assert 6 not in found["loss"].step.tolist()
    assert np.isfinite(found["loss"].value).all()
    assert len(found["loss"]) == 8


def test_fields_of_versions_to_come_are_passed_over(told):
    told.begin()
    told.metrics(1, loss=1.5, **{"deep": {"er": [1, {"x": None}]}, "loss2": "?"})
    told.event("a_kind_to_come", step={"of": "another shape"})
    assert series.read(told.paths)["loss"].value.tolist() == [1.5]


def test_nothing_there_is_no_curve_and_no_error(tmp_path):
    found = series.read(runs.RunPaths(tmp_path))
    assert (found.curves, found.parts, found.lines) == ({}, (), 0)
    assert len(found["loss"]) == 0
    assert len(found["loss"].thinned(10)) == 0


LINES = st.lists(
    st.dictionaries(
        st.sampled_from(["step", "session", "time", "loss", "eval_loss", "eval_s", "tokens/total"]),
        st.integers(-2, 9) | st.floats() | st.none() | st.text(max_size=2) | st.just([]),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(lines=LINES, events=LINES)
def test_no_lines_of_any_shape_raise(tmp_path_factory, lines, events):
    directory = tmp_path_factory.mktemp("r")
    paths = runs.RunPaths(directory)
    paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    kinds = ("start", "resume", "save", "eval", "waited")
    told = (json.dumps({**e, "event": kinds[n % 5]}) + "\n" for n, e in enumerate(events))
    paths.events.write_text("".join(told))
    for found in (series.read(paths), series.recent(tidings.read(paths))):
        for one in found.curves.values():
            assert np.isfinite(one.value).all()
            assert (np.diff(one.step) >= 0).all() or len({*one.session.tolist()}) > 1


# --- thinning ---------------------------------------------------------------------


def test_a_peak_of_one_step_among_a_million_stays(tmp_path):
    values = np.random.default_rng(1).normal(1.0, 0.05, 1_000_000)
    values[123_456], values[654_321] = 9.0, -9.0
    thin = curve(values).thinned(400)
    assert len(thin) <= 4 * 400
    assert {9.0, -9.0} <= set(thin.value.tolist())
    assert thin.step.tolist() == sorted(thin.step.tolist())
    assert (thin.step[0], thin.step[-1]) == (1, 1_000_000)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(1, 20))
def test_every_pixel_column_keeps_its_first_last_lowest_and_highest(values, columns):
    whole = curve(values)
    thin = whole.thinned(columns)
    if len(whole) <= 4 * columns:
        assert len(thin) == len(whole)
        return
    span = int(whole.step[-1] - whole.step[0])
    of = lambda c: (c.step - whole.step[0]) * columns // (span + 1)  # noqa: E731
    for column in range(columns):
        all_of, kept = whole.value[of(whole) == column], thin.value[of(thin) == column]
        if len(all_of):
            assert (kept[0], kept[-1]) == (all_of[0], all_of[-1])
            assert (kept.min(), kept.max()) == (all_of.min(), all_of.max())


def test_sessions_are_not_joined_by_thinning():
    values = [*range(500), *range(500)]
    thin = curve(values, session=[1] * 500 + [2] * 500).thinned(3)
    assert 499.0 in thin.of(1).value
    assert 0.0 in thin.of(2).value


# --- readers and the writer -------------------------------------------------------


def test_a_reader_meets_half_a_line_and_the_writer_goes_on(told):
    told.begin()
    told.train(1, 5)
    whole = told.paths.metrics.read_bytes()
    for cut in range(len(whole) - 400, len(whole)):
        told.paths.metrics.write_bytes(whole[:cut])
        assert series.read(told.paths)["loss"].step[-1] >= 3
    told.paths.metrics.write_bytes(whole[:-7])
    files.append_json(told.paths.metrics, {"step": 6, "session": 1, "loss": 1.0, "time": 1.0})
    assert series.read(told.paths)["loss"].step.tolist() == [1, 2, 3, 4, 6]


def test_reading_changes_nothing(told):
    told.begin()
    told.train(1, 30)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in told.paths.directory.rglob("*")}
    series.read(told.paths)
    series.recent(tidings.read(told.paths))
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in told.paths.directory.rglob("*")}
    assert before == after
    assert not math.isnan(series.read(told.paths)["loss"].value.sum())
