"""nanochat's demo mode from raw text to rewards, killed or stopped in every stage on its way."""

import json
import signal
import time

import pytest
from project import Project

from leviathan import config

pytestmark = pytest.mark.real

WHOLE = "nanochat_full_cpu_demo"
WALK = ("train", "--recipe", "nanochat", "--profile", "cpu", "--mode", "demo")
# The recipe's demo takes four minutes of a core, and passes four of five questions.
SHORTER = {
    "total_tokens: 160_000": "total_tokens: 88_000",
    "max_steps: 150\n          save_steps: 50\n          eval_steps: 50": (
        "max_steps: 50\n          save_steps: 25\n          eval_steps: 25"
    ),
    "max_steps: 160\n          save_steps: 80\n          eval_steps: 80": (
        "max_steps: 90\n          save_steps: 45\n          eval_steps: 45"
    ),
    "max_steps: 8\n          save_steps: 4": "max_steps: 4\n          save_steps: 2",
}


@pytest.fixture(scope="module")
def walked(tmp_path_factory, fork_server) -> Project:
    """All four stages: base and rl are killed in the middle, mid is stopped."""
    directory = tmp_path_factory.mktemp("nanochat")
    text = (config.shipped_directory() / "recipes/nanochat.yaml").read_text()
    for old, new in SHORTER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (directory / "configs/recipes").mkdir(parents=True)
    (directory / "configs/recipes/nanochat.yaml").write_text(text)
    project = Project(directory, fork_server)
    interrupt(project, "base", signal.SIGKILL, 40)
    interrupt(project, "mid", signal.SIGINT, 25)
    interrupt(project, "rl", signal.SIGKILL, 2)
    done = project.run(*WALK)
    assert done.code == 0, done.err
    return project


def interrupt(project: Project, stage: str, number: int, step: int) -> None:
    """Train until a checkpoint of this stage is saved, and send the signal."""
    process = project.start(*WALK)
    saved, end = project.path(f"{WHOLE}.{stage}"), time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        if (saved / "events.jsonl").exists() and project.events(saved.name, "save"):
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (4 if number == signal.SIGINT else -number)
    assert project.saved(saved.name), f"{stage} has no checkpoint at step {step}"


def test_every_stage_ends_and_goes_on_from_its_checkpoint(walked):
    document = json.loads(walked.run("status", WHOLE, "--json").out)
    assert [(s["stage"], s["state"]) for s in document["stages"]] == [
        (name, "done") for name in ("base", "mid", "sft", "rl")
    ]  # fmt: skip
    for stage in ("base", "mid", "rl"):
        (resumed,) = walked.events(f"{WHOLE}.{stage}", "resume")
        assert resumed["step"] > 0, stage
    rewards = [m["reward"] for m in walked.metrics(f"{WHOLE}.rl") if "reward" in m]
    assert rewards


def test_it_answers_its_suite_better_than_guessing(walked):
    done = walked.run("test", WHOLE, "--min-pass", "30%", "--json")
    document = json.loads(done.out)
    assert document["interval_pct"][0] > 25, document["pass_pct"]  # of four choices one is right
    assert done.code == 0, done.err
