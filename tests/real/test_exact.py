"""Packed training reshuffles each epoch, and a resumed run still equals the uninterrupted one."""

import shutil

import pytest
from project import PACKED, Project

pytestmark = pytest.mark.real

RUN = "two-epochs_full_long"
COMMAND = ("train", "--profile", "long", "--recipe", "two-epochs", "--sample", "full", *PACKED)


@pytest.fixture(scope="session")
def whole(make_project, fork_server) -> Project:
    """Two packed epochs, never interrupted; every checkpoint is kept."""
    project = make_project("packed")
    project.server = fork_server
    done = project.run(*COMMAND)
    assert done.code == 0, done.err
    return project


def test_every_epoch_has_the_same_steps_and_another_order(whole):
    assert whole.reshuffled(RUN)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_resumed_within_an_epoch_equals_the_uninterrupted_one(
    whole, epoch, tmp_path, fork_server
):
    shutil.copytree(whole.directory, tmp_path / "project")
    resumed = Project(tmp_path / "project", fork_server)
    steps = whole.steps_per_epoch(RUN)
    step = next(s for s in whole.saved(RUN) if (epoch - 1) * steps < s < epoch * steps)
    done = resumed.run(*COMMAND, "--resume", f"checkpoint-{step}")
    assert done.code == 0, done.err
    assert f"resuming from checkpoint-{step}" in done.err
    assert {m["session"] for m in resumed.metrics(RUN) if m["step"] > step} == {2}
    assert resumed.exact(RUN) == whole.exact(RUN)
    assert resumed.adapter(RUN) == whole.adapter(RUN)
