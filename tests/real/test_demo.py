"""The embedded default, as a new user runs it: it must visibly learn."""

import json

import pytest
from project import Project

pytestmark = pytest.mark.real


def test_the_demo_learns_merges_and_answers(tmp_path):
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
    tested = project.run("test", str(merged), "--suite", "demo", "--json")
    assert tested.code == 0, tested.err
    assert json.loads(tested.out)["pass_pct"] == suite["after"]
    again = project.run("demo", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["suite_pass_pct"] == suite
