"""What a live view knows: the same figures as elsewhere, without what resumes undid, bounded."""

import math

import numpy as np
import pytest

from fakes.fake_run import FakeRun
from leviathan import pulse, runs, series, status, trends
from leviathan.machine import process_identity


@pytest.fixture
def run(tmp_path):
    """Two sessions: 70 steps, and 60 from checkpoint-50 on."""
    run = FakeRun(tmp_path / "r", 1000.0)
    run.begin()
    run.train(70)
    run.event("ladder", session=None, why="memory ran out", reason="next rung")
    run.begin(50)
    run.train(60)
    run.sample()
    return run


def fed(run):
    """A pulse that was there from the beginning."""
    found = pulse.Pulse("r")
    lines = [("event", e) for e in runs.events(run.paths)]
    lines += [("metrics", m) for m in runs.files.read_json_lines(run.paths.metrics)]
    for kind, line in sorted(lines, key=lambda told: told[1]["time"]):
        if line.get("event") in {"start", "resume"}:
            found.take(line["event"], {"session": line["session"], "step": line["step"]})
        found.take(kind, line)
    return found


@pytest.mark.parametrize("of", [fed, lambda run: pulse.of(run.paths)], ids=["live", "files"])
def test_curves_are_those_of_series(run, of):
    found, whole = of(run), series.read(run.paths)
    for name in pulse.CURVES:
        mine = list(found.curves[name])
        theirs = list(zip(whole[name].step, whole[name].value, strict=True))
        assert [step for step, _ in mine] == [step for step, _ in theirs], name
        assert [value for _, value in mine] == pytest.approx([v for _, v in theirs]), name
    assert list(found.resumes) == [50]


def test_of_a_run_is_what_status_says(run):
    found, told = pulse.of(run.paths), status.summarize(run.paths)
    assert (found.step, found.max_steps, found.session) == (told.step, told.max_steps, 2)
    assert (found.figure("loss"), found.eval_loss) == (told.loss, told.eval_loss)
    assert found.eta().mid_s == pytest.approx(told.eta_s)
    assert (found.tok_s, found.trend()) == (pytest.approx(told.tok_s), told.loss_trend.direction)
    assert (found.last_save, found.best) == (told.last_checkpoint, told.best_checkpoint)
    assert found.state == "running"
    assert found.sample.gpus[0].temperature_c == 71.0
    assert [t.text for t in found.told if t.grade == "warn"] == ["memory ran out; next rung"]


def test_the_best_is_known_without_looking_at_checkpoints(run):
    """``train`` looks at them once, when it begins."""
    found, told = fed(run), status.summarize(run.paths)
    assert found.best == told.best_checkpoint
    for step, loss in ((300, 9.0), (301, 0.1), (302, float("nan"))):
        moment = {"session": 2, "step": step, "time": 9e9 + step}
        found.take("event", {**moment, "event": "eval", "eval_loss": loss})
        found.take("event", {**moment, "event": "save"})
    assert (found.best, found.last_save) == ("checkpoint-301", "checkpoint-302")


def test_a_resume_takes_back_what_is_trained_again(run):
    found = fed(run)
    assert found.step == 110
    found.take("resume", {"session": 3, "step": 100})
    assert (found.step, found.state, found.max_steps) == (100, "starting", 1000)
    assert all(curve[-1][0] <= 100 for curve in found.curves.values())
    assert list(found.resumes) == [50, 100]
    found.take("resume", {"session": 4, "step": 50})
    assert list(found.resumes) == [50]


def test_evaluations_saves_and_waits_are_not_in_the_pace():
    found = pulse.Pulse()
    line = {"session": 1, "max_steps": 9, "loss": 1.0}
    found.take("metrics", {**line, "step": 1, "monotonic_s": 10.0, "tokens/total": 100})
    found.take("metrics", {"session": 1, "step": 1, "eval_loss": 1.0, "eval_s": 5.0})
    found.take("event", {"event": "save", "session": 1, "step": 1, "save_s": 2.0})
    found.take("event", {"event": "waited", "session": 1, "step": 2, "wait_s": 1.0})
    found.take("metrics", {**line, "step": 2, "monotonic_s": 20.0, "tokens/total": 300})
    assert found.tok_s == pytest.approx(200 / 2)


@pytest.mark.parametrize("loss", ["nan", "inf", None, "high", [1]])
def test_what_cannot_be_drawn_is_not(loss):
    found = pulse.Pulse()
    found.take("metrics", {"session": 1, "step": 1, "loss": loss})
    assert not found.curves["loss"]
    assert found.step == 1


def test_what_is_kept_is_bounded():
    found = pulse.Pulse()
    for step in range(1, 6001):
        found.take("metrics", {"session": 1, "step": step, "loss": 1.0, "learning_rate": 1e-4})
        found.take("event", {"event": "save", "session": 1, "step": step, "time": 1.0})
    assert (len(found.curves["loss"]), len(found.routine)) == (2048, 200)
    assert found.curves["loss"][-1] == (6000, 1.0)


@pytest.mark.parametrize(
    "loss",
    [lambda n: 2 - n / 100, lambda n: 2 + n / 100, lambda n: 2 + math.sin(7 * n), lambda n: 2],
    ids=["falling", "rising", "noise", "level"],
)
def test_the_trend_is_that_of_status(loss):
    found, told = pulse.Pulse(), []
    for step in range(60):
        theirs = trends.of(curve_of(told))
        assert found.trend() == (theirs.direction if theirs else "")
        told.append(float(loss(step)))
        found.take("metrics", {"session": 1, "step": step, "loss": told[-1]})


def curve_of(values):
    steps = np.arange(len(values))
    return series.Curve(steps, np.array(values), steps * 0 + 1, steps * 1.0)


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ([], "starting"),
        (["train_begin"], "running"),
        (["train_begin", "pause"], "paused"),
        (["train_begin", "pause", "unpause"], "running"),
        (["train_begin", "save_asked"], "saving"),
        (["train_begin", "save_asked", "save"], "running"),
        (["train_begin", "stop_asked", "save"], "stopping"),
        (["train_begin", "ladder"], "restarting"),
    ],
)
def test_state(kinds, state):
    found = pulse.Pulse()
    found.take("start", {"session": 1, "step": 0})
    for kind in kinds:
        found.take("event", {"event": kind, "session": 1, "step": 3, "text": "hot", "why": "x"})
    assert found.state == state


def test_what_is_rare_is_not_buried_by_what_is_routine():
    found = pulse.Pulse()
    for step in range(0, 100, 10):
        found.take("event", {"event": "save", "session": 1, "step": step, "time": 1000.0 - step})
        if step in (20, 50):
            found.take(
                "event", {"event": "warning", "session": 1, "step": step, "text": f"at {step}"}
            )
    texts = [told.text for told in found.news(5)]
    assert texts == ["at 20", "at 50", *(f"saved checkpoint-{n}" for n in (70, 80, 90))]
    assert [told.text for told in found.news(3)] == ["at 50", *texts[-2:]]
    assert [told.text for told in found.news(1)] == texts[-1:]
    assert found.news(0) == []
    assert len(found.news(50)) == 12


def test_messages_of_a_later_version_change_nothing():
    found = pulse.Pulse()
    before = vars(found).copy()
    for kind in ("tick", "begin", "add", "pace", "notice", "__init__"):
        found.take(kind, {})
    assert vars(found) == before


def test_a_run_that_has_told_nothing_yet(tmp_path):
    run = FakeRun(tmp_path / "r", 1000.0)
    run.begin(supervisor=process_identity())
    run.paths.events.unlink()
    found = pulse.of(run.paths)
    assert (found.state, found.step, found.max_steps, found.share) == ("starting", 0, None, 0.0)
    assert found.eta().mid_s is None
