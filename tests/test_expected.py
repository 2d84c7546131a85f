"""What was expected of a run is kept when it begins, and read back whatever became of it."""

import json

import pytest

from leviathan import expected, runs
from telling import PLAN


@pytest.fixture
def paths(tmp_path):
    return runs.RunPaths(tmp_path)


def test_a_run_that_cannot_be_planned_is_trained_all_the_same(trainings):
    """The fast tier's base model is a name only: no shape is known."""
    stale = runs.RunPaths(trainings.run_dir).plan
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps(PLAN))
    assert trainings.run(steps=4).code == 0
    assert not stale.exists()


def test_the_figures(paths):
    paths.plan.write_text(json.dumps(PLAN))
    found = expected.read(paths)
    assert (found.steps, found.hours, found.tok_s) == (
        400,
        (8.0, 10.0, 14.0),
        (575.0, 685.0, 810.0),
    )
    assert (found.memory_gib, found.card_gib) == ((7.7, 9.0, 10.1), 16.0)
    assert found.checkpoint_bytes == 300_000_000
    assert found.mfu_pct(685.0) == pytest.approx(28.5, abs=0.1)
    assert found.mfu_pct(None) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"steps": "many", "hours": 5, "memory_gib": [], "disk_bytes": 1}']
)  # fmt: skip
def test_a_damaged_plan_expects_nothing(paths, content):
    paths.plan.write_text(content)
    found = expected.read(paths)
    assert found is None or (found.steps, found.hours, found.memory_gib) == (None, None, None)
    assert found is None or found.mfu_pct(700.0) is None


def test_no_plan_is_none(paths):
    assert expected.read(paths) is None
