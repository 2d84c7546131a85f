"""A training in stages by the real Axolotl: stopped, killed, handed on, to the last bit."""

import signal

import pytest
from project import Project

pytestmark = pytest.mark.real

WALK = ("train", "--profile", "tiny", "--recipe", "staged", "--name", "two", "--no-smoke",
        "--set", "save_steps=10", "--set", "eval_steps=10")  # fmt: skip
STAGES = """
sample: "160"
stages:
  - name: mid
    train: full
    axolotl: {learning_rate: 2e-3}
  - name: sft
    axolotl: {learning_rate: 5e-3}
"""


def staged(project: Project) -> Project:
    recipes = project.directory / "configs/recipes"
    (recipes / "staged.yaml").write_text((recipes / "tiny.yaml").read_text() + STAGES)
    return project


def result(project: Project, run: str) -> bytes:
    name = "model.safetensors" if run.endswith(".mid") else "adapter_model.safetensors"
    return (project.path(run) / name).read_bytes()


def handed(project: Project) -> bytes:
    """The weights that the second stage begins with."""
    (file,) = (project.path("two.sft") / "base").glob("*.safetensors")
    return file.read_bytes()


@pytest.fixture(scope="module")
def walked(make_project, fork_server) -> Project:
    """Both stages, undisturbed."""
    project = make_project("walked")
    project.server = fork_server
    done = staged(project).run(*WALK)
    assert done.code == 0, done.err
    return project


def test_a_stage_goes_on_where_the_one_before_ended(walked):
    last = [m["eval_loss"] for m in walked.metrics("two.mid") if "eval_loss" in m]
    first = [m["eval_loss"] for m in walked.metrics("two.sft") if "eval_loss" in m]
    assert first[0] == pytest.approx(min(last), abs=1e-4)
    assert first[-1] < first[0] < last[0]
    assert handed(walked) == result(walked, "two.mid")


def test_the_whole_is_shown_tested_and_finished(walked):
    import json

    document = json.loads(walked.run("status", "two", "--json").out)
    assert document["whole"] == "two"
    assert [(s["stage"], s["state"]) for s in document["stages"]] == [
        ("mid", "done"), ("sft", "done"),
    ]  # fmt: skip
    assert "2 of 2 stages done" in walked.run("status").out
    report = json.loads(walked.run("report", "two", "--json").out)
    assert (report["whole"], report["stages"]) == ("two", document["stages"])
    assert "## Stages" in walked.run("report", "two", "--markdown").out
    again = walked.run(*WALK)
    assert (again.code, "nothing to do" in again.out) == (0, True)


def test_stopped_in_one_stage_and_killed_in_the_next_it_ends_the_same(walked, forked_project):
    project = staged(forked_project)
    stopped = project.signal_at("two.mid", 12, signal.SIGINT, arguments=WALK)
    assert stopped.code == 4, stopped.err
    assert "--name two" in stopped.out
    assert not project.path("two.sft").exists()
    killed = project.start(*WALK)
    _wait_for_step(project, killed, "two.sft", 12)
    killed.kill()
    killed.communicate(timeout=60)
    done = project.run(*WALK)
    assert done.code == 0, done.err
    for run in ("two.mid", "two.sft"):
        assert result(project, run) == result(walked, run), run
        assert project.curve(run) == walked.curve(run)
    assert handed(project) == handed(walked)


def _wait_for_step(project: Project, process, run: str, step: int) -> None:
    import time

    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if (project.path(run) / "metrics.jsonl").exists() and any(
            m["step"] >= step for m in project.metrics(run)
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"{run} never came to step {step}")
