"""Judgements on numbers: losses, temperatures, standstill."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leviathan.config import Guards, validated
from leviathan.errors import BadInput
from leviathan.guards import Heat, LossWatch, stalled, usual_step_s

LIMITS = Guards()


def findings(watch, losses):
    return [(n, kind) for n, loss in enumerate(losses, 1) for kind, _ in watch.feed(loss)]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ([1.0] * 30, [1.6] * 5, [(5, "jump")]),
        ([1.0] * 30, [1.4] * 9, []),
        ([1.0] * 30, [1.4] * 5 + [1.7] * 5, []),
        ([1.0] * 30, [9.0, 0.5, 0.5, 0.5, 0.5], [(5, "jump")]),
        ([1.0] * 30, [0.2] * 9, []),
        ([], [9.0] * 9, []),
        ([1.0], [1.6] * 5, [(5, "jump")]),
        ([math.nan] * 3 + [1.0] * 3, [1.6] * 5, [(5, "jump")]),
        ([math.nan] * 3 + [1.0] * 3, [1.2] * 5, []),
    ],
)
def test_a_jump_after_a_resume(before, after, found):
    assert findings(LossWatch(LIMITS, before), after) == found


def test_divergence_is_told_once_and_against_the_lowest_of_the_run():
    losses = [3.0] * 20 + [1.0] * 20 + [2.1] * 18
    watch = LossWatch(LIMITS)
    assert findings(watch, losses) == []
    assert findings(watch, [2.1] * 5) == [(1, "divergence")]
    resumed = LossWatch(LIMITS, losses)
    assert findings(resumed, [2.1] * 30) == [(1, "divergence")]


def test_a_high_loss_that_falls_is_no_divergence():
    assert findings(LossWatch(LIMITS), [12.0 - n / 10 for n in range(100)]) == []


def test_single_spikes_are_no_divergence():
    assert findings(LossWatch(LIMITS), [1.0] * 30 + [9.0] + [1.0] * 30) == []


@given(st.lists(st.floats(0, 20) | st.just(math.nan) | st.just(math.inf), max_size=120))
def test_each_kind_is_found_at_most_once_whatever_the_losses(losses):
    kinds = [kind for _, kind in findings(LossWatch(LIMITS, losses[:40]), losses[40:])]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize(
    ("limits", "celsius", "actions"),
    [
        ({}, [84, 85, 90, 99], [None, "warn", None, None]),
        ({}, [85, 82, 86], ["warn", None, None]),
        ({}, [85, 79, 86], ["warn", None, "warn"]),
        ({"pause_above_c": 88}, [86, 88, 89, 95, 76, 75, 74], ["warn", None, "pause", None, None, "unpause", None]),
        ({"pause_above_c": 88}, [99, 70, 99, 70], ["pause", "unpause"] * 2),
        ({"pause_above_c": 80, "hot_c": 90}, [81, 75], ["pause", "unpause"]),
    ],
)  # fmt: skip
def test_heat(limits, celsius, actions):
    heat = Heat(Guards(**limits))
    assert [heat.feed(c) for c in celsius] == actions


def test_a_pause_that_could_not_end_cooler_is_refused():
    """Below resume_below_c it would begin and end at every look."""
    with pytest.raises(BadInput, match="pause_above_c must be above resume_below_c"):
        validated(Guards, {"pause_above_c": 75}, lambda _: "here")


@pytest.mark.parametrize(
    ("idle_s", "step_s", "found"),
    [(1e9, None, False), (900, 1.0, False), (901, 1.0, True), (999, 100.0, False), (1001, 100.0, True)],
)  # fmt: skip
def test_a_stall_is_far_beyond_a_usual_step(idle_s, step_s, found):
    assert stalled(idle_s, step_s, LIMITS) is found


@pytest.mark.parametrize(
    ("marks", "step_s"),
    [
        ([], None),
        ([(0, 5)], None),
        ([(0, 5), (10, 10)], 2),
        ([(0, 1), (1, 2), (2, 3), (60, 4), (61, 5)], 1),
        ([(0, 5), (9, 5)], None),
        ([(0, 5), (9, 5), (11, 6)], 2),
    ],
)
def test_a_usual_step_passes_over_evaluations(marks, step_s):
    assert usual_step_s(marks) == step_s
