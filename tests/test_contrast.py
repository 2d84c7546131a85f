"""Runs side by side."""

import json
from pathlib import Path

import pytest

from leviathan import contrast, runs
from telling import Telling

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.fixture
def two(project):
    """The same but for learning rate, rank and corpus; the second got less far and is better."""
    found = []
    for name, last, floor in (("first", 140, 1.0), ("second", 90, 0.9)):
        told = Telling(runs.TRAINING / name, began=1_000_000.0)
        told.record.tree = {"learning_rate": 2e-4 if name == "first" else 1e-4, "lora_alpha": 64,
                            "datasets": [{"type": "alpaca"}]}  # fmt: skip
        if name == "second":
            told.record.tree["lora_r"] = 64
            told.record.corpus = {"digest": "other"}
        told.begin()
        told.train(1, last, floor=floor)
        told.end()
        found.append(told.paths)
    return found


def test_what_was_set_otherwise(two):
    found = dict(contrast.of(two).differences)
    assert found == {
        "corpus": (None, "other"), "learning_rate": (2e-4, 1e-4), "lora_r": (None, 64),
    }  # fmt: skip


def test_losses_are_compared_around_the_same_steps(two):
    found = contrast.of(two)
    assert found.steps == (40, 100)
    (_, at_40), (_, at_100) = found.losses
    assert at_40[0] - at_40[1] == pytest.approx(0.1, abs=0.02)
    assert at_100[1] is None


def test_the_screen(two, run_cli):
    shown = run_cli("runs", "compare", "first", "second")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout == (SNAPSHOTS / "runs-compare.txt").read_text()


def test_the_document(two, run_cli):
    found = json.loads(run_cli("runs", "compare", "first", "second", "--json").stdout)
    assert [run["name"] for run in found["runs"]] == ["first", "second"]
    assert found["differences"]["lora_r"] == [None, 64]
    assert len(found["curves"][0]["loss"]["step"]) == 140


def test_equal_runs_say_so(two, run_cli):
    (runs.TRAINING / "copy").mkdir()
    for path in two[0].directory.glob("*.json*"):
        (runs.TRAINING / "copy" / path.name).write_bytes(path.read_bytes())
    shown = run_cli("runs", "compare", "first", "copy").stdout
    assert "nothing: the same settings, corpus, base model and versions" in shown


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["first"], "comparing takes two runs"),
        (["first", "first"], "comparing takes two runs"),
        (["first", "nope"], "no run 'nope'"),
    ],
)
def test_wrong_runs_are_one_line(two, run_cli, names, told):
    done = run_cli("runs", "compare", *names)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_has_told_nothing_yet_is_compared_too(two, run_cli):
    Telling(runs.TRAINING / "new").begin()
    shown = run_cli("runs", "compare", "first", "new")
    assert shown.exit_code == 0, shown.output


def test_a_row_has_gaps_where_a_run_was_not(two):
    found = contrast.of(two)
    row = contrast.row(found.sides[1].series["loss"], 140, 14)
    assert [value is None for value in row] == [False] * 9 + [True] * 5
