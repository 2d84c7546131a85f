"""Where ``train`` goes on from, decided on real files without launching anything."""

import json

import pytest

from fakes import fake_files
from leviathan import checkpoints, layers, runs, train
from leviathan.errors import Refused

RUN = "tiny_full_tiny"


@pytest.fixture
def run(project, crashed_project):
    """A run directory with a record and events, but without checkpoints."""
    paths = runs.RunPaths(project / runs.TRAINING / RUN)
    paths.directory.mkdir(parents=True)
    old = crashed_project / runs.TRAINING / RUN
    record = json.loads((old / "run.json").read_text())
    record["base"] = None
    paths.record.write_text(json.dumps(record))
    runs.event(paths, "start", session=1, step=0)
    return paths


def decide():
    return train.decide(layers.build("tiny", "tiny", "full", []))


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_killed_in_its_first_save_begins_anew_without_a_human(run, whole):
    path = fake_files.write_checkpoint(run.directory, 5)
    if not whole:
        (path / "trainer_state.json").unlink()
    decision = decide()
    assert (decision.action, decision.resume_from) == ("start", None)
    assert [c.path.name for c in decision.aside] == ["checkpoint-5"]
    assert not decision.aside[0].sound


@pytest.mark.parametrize("event", ["save", "resume"])
def test_once_a_save_was_finished_nothing_begins_anew_by_itself(run, event):
    path = fake_files.write_checkpoint(run.directory, 5)
    runs.event(run, event, session=1, step=5)
    assert decide().resume_from.step == 5
    (path / "trainer_state.json").unlink()
    with pytest.raises(Refused, match="no checkpoint of tiny_full_tiny is sound"):
        decide()


def test_a_committed_checkpoint_proves_a_finished_save_without_its_event(run):
    path = fake_files.write_checkpoint(run.directory, 5)
    checkpoints.commit(path, {"step": 5})
    (path / "trainer_state.json").unlink()
    with pytest.raises(Refused, match="no checkpoint of tiny_full_tiny is sound"):
        decide()
