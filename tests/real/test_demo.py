"""The embedded default, as a new user runs it: it must visibly learn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from project import Project

from leviathan import checkpoints, parity, proving, runs

pytestmark = pytest.mark.real


def check(project: Project, merged: Path, **more) -> dict[str, str]:
    """The state of every check of what servers read, as the merge makes them."""
    run = runs.RunPaths(next((project.directory / "work/training").iterdir()))
    job = proving.prepare(run, checkpoints.choose(run.directory, "best"))
    subject = parity.subject_of(proving.subject(job, merged, "merged"))
    return {one.check: one.state for one in parity.check(replace(subject, **more))}


def test_the_demo_learns_merges_and_answers(tmp_path, monkeypatch):
    project = Project(tmp_path)
    done = project.run("demo", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    loss, suite = result["held_out_loss"], result["suite_pass_pct"]
    assert loss["after"] <= 0.75 * loss["before"]
    assert suite["before"] <= 25
    assert suite["after"] >= 75
    assert result["merge"]["verdict"] == "equal"
    merged = tmp_path / result["model"]
    # The base has no chat template; what is served must bring the one trained with.
    assert "<|im_start|>" in (merged / "chat_template.jinja").read_text()
    assert not (tmp_path / "work/demo/base/chat_template.jinja").exists()
    # Rows that Axolotl put through it have the same tokens as those a server makes.
    findings = {one["check"]: one for one in result["merge"]["serving_parity"]}
    assert len(findings) == 9
    assert {one["state"] for one in findings.values()} <= {"ok", "fixed"}, findings
    assert findings["rendered tokens"]["evidence"].endswith("equal to those trained on")
    monkeypatch.chdir(tmp_path)  # the run names its base from here
    broken = tmp_path / "broken"
    shutil.copytree(merged, broken)
    assert set(check(project, broken, repair=False).values()) == {"ok"}
    (broken / "chat_template.jinja").unlink()
    wrong = json.loads((broken / "generation_config.json").read_text()) | {"eos_token_id": 0}
    (broken / "generation_config.json").write_text(json.dumps(wrong))
    states = check(project, broken, repair=False)
    failed = {name for name, state in states.items() if state == "fail"}
    assert failed == {"stop ids", "chat template", "rendered tokens"}
    states = check(project, broken)
    fixed = {name for name, state in states.items() if state == "fixed"}
    assert fixed == {"stop ids", "chat template"}
    assert set(check(project, broken, repair=False).values()) == {"ok"}
    assert (broken / "chat_template.jinja").read_text() == (
        merged / "chat_template.jinja").read_text()  # fmt: skip
    tested = project.run("test", str(merged), "--suite", "demo", "--json")
    assert tested.code == 0, tested.err
    assert json.loads(tested.out)["pass_pct"] == suite["after"]
    again = project.run("demo", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["suite_pass_pct"] == suite
