"""What follows a failure: it always ends, and never gives up a run that makes progress."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leviathan.diagnosis import Diagnosis
from leviathan.recovery import History, next_action


def failure(kind="unknown", phase="train", retry="usual"):
    return Diagnosis(kind, phase, "line", "cause", "fix", retry)


def act(diagnosis, history=None, *, restarts=3, backoff_s=10.0, ladder=False, resumed=True):
    history = history or History()
    history.note(diagnosis.kind, None)
    return next_action(
        diagnosis, history, restarts=restarts, backoff_s=backoff_s, ladder=ladder, resumed=resumed
    )


@pytest.mark.parametrize(
    ("diagnosis", "options", "kind", "reason"),
    [
        (failure(), {}, "restart", "restart 1 of 3"),
        (failure(), {"restarts": 0}, "give_up", "restarts are turned off"),
        (failure("package", retry="never"), {}, "give_up", "it would fail the same way again"),
        (failure("nan", retry="once"), {}, "restart", "restart 1 of 1"),
        (failure("disk"), {}, "wait_for_disk", "waiting for free space"),
        (failure("disk"), {"restarts": 0}, "give_up", "restarts are turned off"),
        (failure("memory"), {"ladder": True}, "ladder", "cause (line)"),
        (failure("memory"), {"ladder": True, "restarts": 0}, "ladder", "cause (line)"),
        (failure("memory", "load"), {"ladder": True, "resumed": False}, "give_up",
         "no rung makes the base model smaller"),
        (failure("memory", "load"), {"ladder": True}, "restart", "restart 1 of 3"),
        (failure("host_memory"), {}, "restart", "restart 1 of 3"),
    ],
)  # fmt: skip
def test_the_first_failure(diagnosis, options, kind, reason):
    action = act(diagnosis, **options)
    assert (action.kind, action.reason) == (kind, reason)


def test_pauses_double_up_to_five_minutes():
    history = History()
    delays = [act(failure(), history, restarts=9).delay_s for _ in range(8)]
    assert delays == [10, 20, 40, 80, 160, 300, 300, 300]


def test_giving_up_tells_how_often_it_failed():
    history = History()
    actions = [act(failure(), history, restarts=2) for _ in range(3)]
    assert [a.kind for a in actions] == ["restart", "restart", "give_up"]
    assert actions[-1].reason == "it failed 3 times without progress"


def test_a_failure_allowed_once_counts_among_others():
    history = History()
    act(failure(), history)
    assert act(failure("nan", retry="once"), history).reason == "restart 2 of 2"
    assert act(failure("nan", retry="once"), history).kind == "give_up"


FAILURES = st.builds(
    failure,
    kind=st.sampled_from(["unknown", "nan", "disk", "gpu", "hub", "killed", "stall"]),
    phase=st.sampled_from(["start", "load", "train", "eval", "save"]),
    retry=st.sampled_from(["never", "once", "usual"]),
)


@given(st.lists(FAILURES, min_size=12, max_size=12), st.integers(0, 5), st.booleans())
def test_without_progress_any_mix_of_failures_ends(failures, restarts, resumed):
    history = History(newest_step=5)
    for number, diagnosis in enumerate(failures, start=1):
        action = act(diagnosis, history, restarts=restarts, resumed=resumed)
        if action.kind == "give_up":
            assert number <= restarts + 1
            return
    raise AssertionError("it never gave up")


def test_a_checkpoint_lost_and_made_again_is_no_progress():
    """A bad disk may damage what was saved, each time anew."""
    history, kinds = History(newest_step=10), []
    for step in (5, 10, 5, 10):
        history.note("unknown", step)
        action = next_action(
            failure(), history, restarts=3, backoff_s=0, ladder=False, resumed=True
        )
        kinds.append(action.kind)
    assert kinds == ["restart"] * 3 + ["give_up"]


@given(st.integers(1, 4), st.integers(1, 40))
def test_a_run_that_makes_progress_is_never_given_up(restarts, sessions):
    history = History()
    for number in range(sessions):
        history.note("unknown", 5 * (number + 1))
        action = next_action(
            failure(), history, restarts=restarts, backoff_s=0, ladder=False, resumed=True
        )
        assert action.kind == "restart"
