"""A clock set back a day between two sessions: what is newest goes by step."""

import json
import os
from pathlib import Path

import pytest
from project import RUN, TINY

from leviathan import checkpoints

pytestmark = pytest.mark.real

# For the supervisor (as sitecustomize) and for the training process (as FORK_HOOK): the
# time of day and, in the training process, the times of the files it saves.
SET_BACK = """\
import os, sys, time
now = time.time
time.time = lambda: now() - 86400
if "FORK_SERVER" in os.environ and "leviathan.checkpoints" in sys.modules:
    from leviathan import checkpoints
    commit = checkpoints.commit
    def commit_in_the_past(path, facts):
        for file in [*path.rglob("*"), path]:
            os.utime(file, (time.time(), time.time()))
        commit(path, facts)
        os.utime(path, (time.time(), time.time()))
    checkpoints.commit = commit_in_the_past
"""


@pytest.fixture
def set_back(tmp_path, fork_server) -> dict[str, str]:
    """An environment whose clock is a day behind."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SET_BACK)
    path = os.pathsep.join([str(hook), fork_server.environment()["PYTHONPATH"]])
    return {"FORK_HOOK": str(hook / "sitecustomize.py"), "PYTHONPATH": path}


def test_after_the_clock_was_set_back_the_newest_checkpoints_stay_and_are_resumed_from(
    stopped_copy, reference, set_back
):
    run = stopped_copy.path(RUN)
    before = checkpoints.scan(run)[-1]
    profile = stopped_copy.directory / "configs/profiles/tiny.yaml"
    profile.write_text(profile.read_text().replace("keep: 5", "keep: 2"))
    done = stopped_copy.run(*TINY, **set_back)
    assert done.code == 0, done.err
    assert f"resuming from checkpoint-{before.step}" in done.err
    left = checkpoints.scan(run)
    assert [c.step for c in left][-2:] == [80, 98]
    assert left[-1].modified < before.modified  # the clock really was set back
    assert Path(left[-1].path).stat().st_mtime < before.modified
    assert {c.step for c in left if not c.best} <= {80, 98}
    assert stopped_copy.adapter(RUN) == reference.adapter(RUN)


def test_a_resume_with_the_newest_checkpoint_a_day_older_takes_it(
    stopped_copy, reference, set_back
):
    run = stopped_copy.path(RUN)
    *_, before, newest = checkpoints.scan(run)
    record = newest.path / "leviathan-commit.json"
    written = json.loads(record.read_bytes())
    record.write_text(json.dumps({**written, "time": before.modified - 86400}))
    for file in [*newest.path.iterdir(), newest.path]:
        os.utime(file, (before.modified - 86400, before.modified - 86400))
    done = stopped_copy.run(*TINY, **set_back)
    assert done.code == 0, done.err
    assert f"resuming from checkpoint-{newest.step}" in done.err
    assert stopped_copy.adapter(RUN) == reference.adapter(RUN)
