"""What a real training tells of its time is what the time left is made of."""

import signal

import pytest
from project import RUN, TINY

from leviathan import files, runs
from leviathan.eta import History

pytestmark = pytest.mark.real

EVAL_S, SAVE_S = 1000.0, 1.0


def on_a_clock_of_its_own(project) -> tuple[list[dict], float]:
    """All lines in order, as if steps took no time, and evaluations and saves as much as that."""
    paths = runs.RunPaths(project.path(RUN))
    told = [line for path in (paths.events, paths.metrics) for line in files.read_json_lines(path)]
    timed = (t for t in told if "monotonic_s" in t and t.get("event") != "eval")  # that is both
    lines = sorted(timed, key=lambda line: line["monotonic_s"])
    now = 0.0
    for line in lines:
        for name, seconds in (("eval_s", EVAL_S), ("save_s", SAVE_S)):
            if name in line:
                assert line[name] > 0
                now, line[name] = now + seconds, seconds
        now += 1e-6 * ("loss" in line)
        line["monotonic_s"] = now
    return lines, now


def test_at_every_step_as_many_saves_and_evaluations_were_left_as_came(forked_project):
    """Over a stop between two saves, and a resume with other intervals."""
    done = forked_project.signal_at(RUN, 50, signal.SIGINT, arguments=TINY)
    assert done.code == 4, done.err
    done = forked_project.run(*TINY, "--set", "save_steps=15", "--set", "eval_steps=35")
    assert done.code == 0, done.err
    lines, end = on_a_clock_of_its_own(forked_project)
    begin = next(
        i for i, n in enumerate(lines) if (n.get("event"), n["session"]) == ("train_begin", 2)
    )
    assert {line["eval_s"] for line in lines if "eval_loss" in line} == {EVAL_S}
    assert {line["save_s"] for line in lines if line.get("event") == "save"} == {SAVE_S}
    history, checked = History(), 0
    for number, line in enumerate(lines):
        (history.event if "event" in line else history.metrics)(line)
        if number > begin and "loss" in line:
            left = history.eta(line["step"], line["max_steps"]).mid_s
            assert left == pytest.approx(end - line["monotonic_s"], abs=0.1), line
            checked += 1
    assert checked == 98 - lines[begin]["step"]
