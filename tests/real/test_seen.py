"""A real run with a stop, a resume and an out-of-memory, as people see it."""

import json

import pytest
from project import RUN

pytestmark = pytest.mark.real


def test_the_story_is_the_one_that_was_meant(storied):
    record = json.loads((storied.path(RUN) / "run.json").read_text())
    assert [s["outcome"] for s in record["sessions"]] == ["stopped", "failed", "done"]
    (rung,) = storied.events(RUN, "ladder")
    assert rung["step"] == 69
    assert "out of memory" in rung["why"]
