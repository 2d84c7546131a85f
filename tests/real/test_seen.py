"""A real run with a stop, a resume and an out-of-memory, as people see it."""

import json
import re

import pytest
from project import RUN

pytestmark = pytest.mark.real

SUITE = """
description: one question
cases:
  - name: repeats
    prompt: "Repeat: alpha beta"
    max_new_tokens: 4
    checks: [{contains: alpha}]
"""


def test_the_story_is_the_one_that_was_meant(storied):
    record = json.loads((storied.path(RUN) / "run.json").read_text())
    assert [s["outcome"] for s in record["sessions"]] == ["stopped", "failed", "done"]
    (rung,) = storied.events(RUN, "ladder")
    assert rung["step"] == 69
    assert "out of memory" in rung["why"]


def test_the_report_tells_the_story(storied, browser, tmp_path):
    asked = storied.directory / "suite.yaml"
    asked.write_text(SUITE)
    tested = storied.run("test", RUN, "--suite", str(asked), "--min-pass", "0")
    assert tested.code == 0, tested.err
    shown = json.loads(storied.run("report", "--json").out)
    criteria = {c["name"]: c for c in shown["criteria"]}
    assert criteria["out of memory"]["verdict"] == "fail"
    assert criteria["checkpoints"]["verdict"] == "pass"
    assert "of suite, checkpoint-" in criteria["prompts"]["evidence"]
    (incident,) = shown["incidents"]
    assert (incident["kind"], incident["step"], incident["steps_lost"]) == ("oom", 69, 9)
    assert 0 < incident["lost_s"] < 120
    assert [(s["begin"], s["end"], s["undone"]) for s in shown["sessions"]][1:] == [
        (shown["sessions"][0]["end"], 60, 9), (60, 98, 0),
    ]  # fmt: skip
    assert shown["curves"]["loss"]["step"] == list(range(1, 99))
    settings = {s["key"]: s for s in shown["settings"]}
    assert settings["micro_batch_size"]["value"] == 2
    assert settings["micro_batch_size"]["where"].startswith("out of memory: ")
    assert re.fullmatch(r".*recipes/tiny.yaml:\d+", settings["learning_rate"]["where"])

    done = storied.run("report")
    assert (done.code, done.err) == (0, "")
    page = storied.directory / done.out.strip()
    browser.console.clear()
    picture = browser.screenshot(page, tmp_path / "report.png", height=2400)
    assert browser.console == []
    assert picture.colours() > 50
    drawn = "[...doc.querySelectorAll('svg text.oom')].map(t => t.textContent).join()"
    assert set(browser.ask(page, drawn).split(",")) == {"OOM"}
