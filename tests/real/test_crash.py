"""kill -9 at random moments: benchmarks/crash.py, twenty trials of it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import crash

pytestmark = pytest.mark.real


def test_twenty_kills_lose_at_most_one_save_interval_and_change_nothing(fork_server, tmp_path):
    project = crash.undisturbed(tmp_path / "project", fork_server)
    told = []
    report = crash.crash(project, trials=20, seed=7, tell=told.append)
    found = crash.document(report)
    assert found["failed"] == [], "\n".join(told)
    assert found["trials"] == found["resumed"] == 20
    assert found["steps_lost_max"] <= crash.SAVE_STEPS
    assert found["moments"].get("save", 0) >= 5, "saves are to dominate"
