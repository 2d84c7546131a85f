"""The supervisor's watch: the budget on a clock of our own; standstill with short limits."""

import json
import os
import time

import pytest

from leviathan import runs
from leviathan.config import Guards
from leviathan.watchdog import Watchdog


@pytest.fixture
def paths(tmp_path):
    return runs.RunPaths(tmp_path)


def marked(watchdog, step_s, steps=5):
    for number in range(steps):
        watchdog.metrics({"time": 1000.0 + number * step_s, "step": number})
    return watchdog


def found(watchdog, training=True):
    return [(finding.action, finding.kind) for finding in watchdog.look(training)]


LINE, LOOK = {"event": "line"}, {"event": "look"}
BEGIN, PAUSE, UNPAUSE = ({"event": e, "kind": "heat"} for e in ("train_begin", "pause", "unpause"))
FULL, ROOM = ({"event": e, "kind": "disk"} for e in ("pause", "unpause"))


@pytest.mark.parametrize(
    ("left_s", "story", "asks"),
    [
        (None, [(0, LINE), (900, LINE)], False),
        (0, [], True),
        (5, [], True),
        (6, [], False),
        (60, [(9, LINE), (1, LINE)], False),  # before the first line lie imports and loading
        (60, [(0, LINE), (1, LINE), (1, LINE)], False),
        (60, [(0, LINE), (20, LINE)], True),  # an evaluation, or a save
        (60, [(0, BEGIN), (20, LINE)], True),  # the evaluation before the first step
        (60, [(0, BEGIN), (20, LOOK)], True),  # what is under way may take as long again
        (60, [(0, BEGIN), (15, LINE)], False),
        (60, [(0, LINE), (1, PAUSE), (20, UNPAUSE), (1, LINE)], False),
        (60, [(0, LINE), (1, PAUSE), (20, LOOK)], False),
        (60, [(0, LINE), (1, PAUSE), (0, LINE), (20, UNPAUSE), (1, LINE)], False),
        (60, [(0, LINE), (1, PAUSE), (0, FULL), (0, UNPAUSE), (0, LINE), (20, ROOM)], False),
        (60, [(0, LINE), (1, PAUSE), (5, UNPAUSE), (1, LINE), (18, LINE)], True),
    ],
)
def test_the_budget_leaves_time_for_what_may_be_under_way(paths, left_s, story, asks):
    """Twice the longest gap between two log lines, and five seconds."""
    now = [1000.0]
    watchdog = Watchdog(paths, Guards(), left_s, lambda: now[0])
    for seconds, what in story:
        assert found(watchdog) == []
        now[0] += seconds
        if what is LINE:
            watchdog.metrics({"time": 7.0, "step": 1})  # the wall clock stands still
        elif what is not LOOK:
            watchdog.event(what)
    assert found(watchdog) == ([("stop", "budget")] if asks else [])
    assert found(watchdog) == []  # asked once


def test_a_standstill_is_a_kill_and_a_sign_of_life_prevents_it(paths):
    watchdog = marked(Watchdog(paths, Guards(stall_factor=2, stall_min_s=0.2), None), 0.01)
    assert found(watchdog) == []  # no phase file: nothing has begun to be watched
    paths.phase.write_text(json.dumps({"phase": "eval", "step": 3}))
    for _ in range(4):
        time.sleep(0.08)
        paths.phase.touch()
        assert found(watchdog) == []
    time.sleep(0.25)
    assert found(watchdog, training=False) == []
    assert found(watchdog) == [("kill", "stall")]


def test_a_clock_set_back_is_no_standstill_and_no_sign_of_life_either(paths):
    watchdog = marked(Watchdog(paths, Guards(stall_factor=2, stall_min_s=0.2), None), 0.01)
    paths.phase.write_text("{}")
    os.utime(paths.phase, (0, 0))
    assert found(watchdog) == []
    time.sleep(0.25)
    assert found(watchdog) == [("kill", "stall")]


def test_the_pace_is_that_of_the_logged_steps(paths):
    watchdog = Watchdog(paths, Guards(), None)
    assert watchdog.step_s is None
    watchdog.metrics({"time": 1.0, "step": 1})
    watchdog.metrics({"eval_loss": 1.0})
    watchdog.metrics({"time": 21.0, "step": 11})
    assert watchdog.step_s == 2.0
