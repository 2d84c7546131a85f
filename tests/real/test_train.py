"""Training and resuming through the real Axolotl: exact, or not at all.

Tests whose subject is the launch go through the genuine accelerate (``project``,
``reference``, ``stopped``), the others through the fork server.
"""

import json
import os
import shutil
import signal
import time

import pytest
from project import RUN, TINY, Project

from leviathan import expected, runs, series, telemetry

pytestmark = pytest.mark.real


def test_trains_to_the_end_and_then_has_nothing_to_do(reference):
    record = json.loads((reference.path(RUN) / "run.json").read_text())
    assert record["state"] == "done"
    steps = [m["step"] for m in reference.metrics(RUN) if "loss" in m]
    assert steps == list(range(1, 99))  # 400 rows less 8 held out, 4 a step
    again = reference.run(*TINY)
    assert again.code == 0
    assert "is finished; nothing to do" in again.out
    assert len(json.loads((reference.path(RUN) / "run.json").read_text())["sessions"]) == 1


def test_the_loss_falls(reference):
    curve = reference.curve(RUN)
    first, last = curve[0][1], sum(loss for _, loss, _, _ in curve[-10:]) / 10
    assert last < first - 0.2


def test_a_run_tells_what_it_does_and_what_was_expected_of_it(reference):
    paths = runs.RunPaths(reference.path(RUN))
    told = series.read(paths)
    assert len(told["loss"]) == len(told["data_s"]) == 98
    assert (told["data_s"].value < 1).all()  # rows of a tokenised file wait for nothing
    evaluations = [(e["step"], e["eval_loss"]) for e in runs.events(paths) if e["event"] == "eval"]
    assert evaluations == list(zip(told["eval_loss"].step, told["eval_loss"].value, strict=True))
    assert [step for step, _ in evaluations] == [0, 20, 40, 60, 80, 98]
    plan = expected.read(paths)
    assert plan.steps == 98
    assert plan.memory_gib[0] <= plan.memory_gib[1] <= plan.memory_gib[2]
    samples = telemetry.read(paths)
    assert samples
    assert samples[-1].session == 1
    # The launcher and what it started, of which torch alone takes more than this; the newest
    # sample may be of the moment when they had ended.
    assert max(sample.resident_gib or 0.0 for sample in samples) > 0.1


def test_one_ctrl_c_saves_this_very_step_and_says_how_to_go_on(stopped):
    assert "stopped (SIGINT): saved checkpoint-" in stopped.last.out
    assert "resume with: leviathan train --profile tiny" in stopped.last.out
    end = stopped.events(RUN, "train_end")[-1]
    assert end["stopped"]
    assert f"saved checkpoint-{end['step']}," in stopped.last.out
    assert (stopped.path(RUN) / f"checkpoint-{end['step']}" / "optimizer.pt").exists()
    assert stopped.processes() == []


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stopped_copy, reference):
    done = stopped_copy.run(*TINY)
    assert done.code == 0, done.err
    assert "resuming from checkpoint-" in done.err
    assert stopped_copy.curve(RUN) == reference.curve(RUN)
    assert stopped_copy.adapter(RUN) == reference.adapter(RUN)


def test_a_moved_project_still_resumes_exactly(stopped_copy, reference, tmp_path):
    moved = Project(tmp_path / "elsewhere" / "moved", stopped_copy.server)
    moved.directory.parent.mkdir()
    shutil.move(stopped_copy.directory, moved.directory)
    shutil.move(moved.path(RUN), moved.path("renamed"))
    done = moved.run(*TINY, "--name", "renamed")
    assert done.code == 0, done.err
    assert "resuming from checkpoint-" in done.err
    assert moved.adapter("renamed") == reference.adapter(RUN)
    assert not stopped_copy.directory.exists()  # nothing was written to the old place


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_go_saves_like_ctrl_c(forked_project, number):
    done = forked_project.signal_at(RUN, 15, number, arguments=TINY)
    assert done.code == 4, done.err
    step = forked_project.events(RUN, "train_end")[-1]["step"]
    assert (forked_project.path(RUN) / f"checkpoint-{step}" / "leviathan-commit.json").exists()
    assert forked_project.processes() == []


def test_sigterm_to_every_process_at_once_saves_like_ctrl_c(project):
    """What a shutdown does: launcher, training and supervisor all get it."""
    process = project.start(*TINY)
    metrics = project.path(RUN) / "metrics.jsonl"
    while not (metrics.exists() and any(m["step"] >= 10 for m in project.metrics(RUN))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    for pid in project.processes():
        os.kill(pid, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    step = project.events(RUN, "train_end")[-1]["step"]
    assert f"saved checkpoint-{step}," in out
    assert project.processes() == []


def test_a_changed_learning_rate_counts_on_resume_and_keeps_the_schedule(stopped_copy, reference):
    done = stopped_copy.run(*TINY, "--set", "learning_rate=2e-2")
    assert done.code == 0, done.err
    began = stopped_copy.events(RUN, "resume")[-1]["step"]
    old = {step: rate for step, _, _, rate in reference.curve(RUN)}
    new = {step: rate for step, _, _, rate in stopped_copy.curve(RUN)}
    assert new[began] == old[began]
    # A line's rate is the one its step was made with: set when the step before it ended.
    for step in range(began + 2, 99):
        assert new[step] == pytest.approx(2 * old[step], rel=1e-6)


def test_two_ctrl_c_end_everything_at_once(forked_project):
    slow = (*TINY, "--set", "gradient_accumulation_steps=40")  # a step takes a while
    done = forked_project.signal_at(RUN, 1, signal.SIGINT, signal.SIGINT, arguments=slow)
    assert done.code == 130, done.err
    assert "resume with: leviathan train" in done.out
    assert forked_project.processes() == []


def test_ctrl_c_before_training_leaves_nothing_behind(forked_project):
    process = forked_project.start(*TINY)
    while not (forked_project.path(RUN) / ".plugin.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "before training began" in out
    assert forked_project.processes() == []
    assert forked_project.run(*TINY).code == 0


def test_a_run_whose_supervisor_is_killed_saves_itself_and_resumes(project, reference):
    process = project.start(*TINY)
    metrics = project.path(RUN) / "metrics.jsonl"
    while not (metrics.exists() and any(m["step"] >= 5 for m in project.metrics(RUN))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while project.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert project.processes() == []
    done = project.run(*TINY)
    assert done.code == 0, done.err
    assert project.adapter(RUN) == reference.adapter(RUN)


def test_training_without_our_plugin_is_not_allowed(project, tmp_path):
    """Axolotl 0.19 prints a plugin's ImportError and trains on without it; 0.21 ends there."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'leviathan.plugin':\n"
        "            raise ImportError('broken on purpose')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    done = project.run(*TINY, PYTHONPATH=str(hook))
    assert done.code == 1
    assert "broken on purpose" in done.err
    assert project.processes() == []
    assert not list(project.path(RUN).glob("checkpoint-*"))
