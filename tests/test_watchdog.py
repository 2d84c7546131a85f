"""The supervisor's watch: budget, heat, standstill; with short limits instead of a fake clock."""

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


@pytest.mark.parametrize(
    ("left_s", "step_s", "save_s", "asks"),
    [
        (None, 1.0, 1.0, False),
        (60, 1.0, 1.0, False),
        (4, 0.1, 0.1, True),
        (60, 30.0, 0.0, True),
        (60, 0.0, 30.0, True),
        (0, 0.0, 0.0, True),
    ],
)
def test_the_budget_leaves_time_for_a_step_and_a_save(paths, left_s, step_s, save_s, asks):
    watchdog = marked(Watchdog(paths, Guards(), left_s), step_s)
    watchdog.event({"event": "save", "seconds": save_s})
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
