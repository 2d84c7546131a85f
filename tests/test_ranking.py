"""The best checkpoint by a suite, what is kept of each, and what `checkpoints best` says of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from leviathan import grades, harness, ranking, runs, scores
from leviathan.checkpoints import Checkpoint
from leviathan.errors import BadInput


def entry(step, passed, loss, total=4):
    path = Path(f"checkpoint-{step}")
    checkpoint = Checkpoint(step, path, None, None, loss, 1, 0.0, True, None)
    cases = [{"name": str(at), "passed": at < passed} for at in range(total)]
    rate = {"passed": passed, "total": total, "pass_pct": 100 * passed / total,
            "pass_share": passed / total}  # fmt: skip
    more = {"interval_pct": [0.0, 100.0], "versus_base": None, "base_pass_pct": None}
    return checkpoint, {**rate, **more, "cases": cases}


@pytest.mark.parametrize(
    ("entries", "best", "by_loss"),
    [
        ([entry(5, 3, 1.0), entry(10, 4, 2.0), entry(15, 2, 3.0)], 10, 5),
        ([entry(5, 3, 2.0), entry(10, 3, 1.0)], 10, 10),
        ([entry(5, 3, 1.0), entry(10, 3, 1.0)], 5, 5),
        ([entry(5, 3, None), entry(10, 3, None)], 5, 10),
        ([entry(5, 3, None), entry(10, 3, 9.0)], 10, 10),
        ([entry(5, 3, float("nan")), entry(10, 3, 9.0)], 10, 10),
    ],
)
def test_the_best_and_how_equal_ones_are_told_apart(entries, best, by_loss):
    found = ranking.Ranking("s", tuple(entries), ())
    assert (found.best[0].step, found.by_loss[0].step) == (best, by_loss)
    told = json.loads(json.dumps(found.to_json()))
    assert told["checkpoint"] == f"checkpoint-{best}"
    assert [c["step"] for c in told["checkpoints"]] == [c.step for c, _ in entries]


def test_the_best_is_compared_with_the_best_by_loss_case_by_case():
    found = ranking.Ranking("s", (entry(5, 1, 1.0, 9), entry(10, 9, 2.0, 9)), ())
    told = found.to_json()["versus_best_by_eval_loss"]
    assert (told["gained"], told["lost"], told["verdict"]) == (8, 0, "better")
    assert told["p_value"] == pytest.approx(2 / 2**8, rel=1e-2)


def note(paths, suite, name, passed):
    grades.note(paths, suite, name, {**entry(1, passed, None)[1], "interval_pct": [1.0, 2.0]})


def test_the_newest_of_each_suite_and_checkpoint_is_kept(tmp_path):
    paths = runs.RunPaths(tmp_path)
    for suite, name, passed in [("a", "checkpoint-5", 1), ("a", "checkpoint-10", 2),
                                ("b", "checkpoint-5", 3), ("a", "checkpoint-5", 4)]:  # fmt: skip
        note(paths, suite, name, passed)
    assert [(g.suite, g.checkpoint, g.passed) for g in grades.every(paths)] == [
        ("a", "checkpoint-10", 2), ("b", "checkpoint-5", 3), ("a", "checkpoint-5", 4),
    ]  # fmt: skip
    assert grades.read(paths) == grades.every(paths)[-1]


def test_a_file_of_one_grade_and_damaged_entries_are_read(tmp_path):
    paths = runs.RunPaths(tmp_path)
    note(paths, "a", "checkpoint-5", 1)
    told = json.loads(paths.tests.read_text())
    one = {name: value for name, value in told.items() if name not in {"all", "lm_eval"}}
    paths.tests.write_text(json.dumps(one))
    assert [g.checkpoint for g in grades.every(paths)] == ["checkpoint-5"]
    for broken in ([3], [None, {}], {}, "x"):
        paths.tests.write_text(json.dumps({**one, "all": broken}))
        assert len(grades.every(paths)) == (0 if isinstance(broken, list) else 1)
    for text in ("[]", "3", "null", "{"):
        paths.tests.write_text(text)
        assert grades.every(paths) == []
        assert grades.read(paths) is None


def test_where_the_suite_disagrees_it_is_said(tmp_path):
    paths = runs.RunPaths(tmp_path)
    written = {"checkpoint-5": 0.0, "checkpoint-10": 0.0}
    assert grades.dissent([], "checkpoint-5", written) is None
    note(paths, "s", "checkpoint-5", 1)
    assert grades.dissent(grades.every(paths), "checkpoint-5", written) is None
    note(paths, "s", "checkpoint-10", 3)
    found = grades.every(paths)
    text = grades.dissent(found, "checkpoint-5", written)
    assert text == (
        "the suite s puts checkpoint-10 first: 75 % passed, 25 % of this one; "
        "merge --checkpoint checkpoint-10 takes it"
    )
    assert grades.dissent(found, "checkpoint-10", written) is None
    assert grades.dissent(found, "checkpoint-5", {"checkpoint-5": 0.0}) is None  # gone
    newer = {**written, "checkpoint-10": found[-1].time_s + 1}  # trained again since
    assert grades.dissent(found, "checkpoint-5", newer) is None
    other = [*found, replace(found[0], suite="t")]
    assert grades.dissent(other, "checkpoint-5", written) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no list of tasks"), ("a,,b", "is no list of tasks"), ("a:", "is no list of tasks"),
        ("a:x", "is no list of tasks"), ("a:-1", "is no list of tasks"), ("a,a:5", "has a twice"),
    ],
)  # fmt: skip
def test_a_list_of_tasks_that_is_none(text, problem):
    with pytest.raises(BadInput, match=problem):
        harness.parse(text)


def test_a_list_of_tasks():
    assert harness.parse("arc_easy, piqa:5") == [("arc_easy", None), ("piqa", 5)]


def test_cases_won_and_lost():
    pairs = [(True, False), (True, False), (False, True), (True, True), (False, False)]
    told = scores.versus(pairs)
    assert (told["gained"], told["lost"], told["verdict"]) == (2, 1, "not beyond chance")
