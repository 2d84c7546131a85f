"""Having a run save now: the checkpoint is committed, the run goes on."""

import json
import signal

from leviathan import checkpoints, runs

LONG = ("--set", "save_steps=1000")


def test_save_waits_for_the_commit_and_the_run_goes_on(trainings):
    running = trainings.start(*LONG, step_s=0.2, steps=900).reached(2)
    saving = trainings.command("save", "--json")
    assert saving.end() == 0
    told = json.loads(saving.stdout)
    (saved,) = checkpoints.scan(trainings.run_dir)
    assert saved.committed
    assert (told["step"], told["path"]) == (
        saved.step,
        f"work/training/tiny_full_tiny/{saved.path.name}",
    )
    assert "asked to save: the step it is in ends first\n" in saving.stderr
    assert not (trainings.run_dir / ".save").exists()
    running.reached(saved.step + 2)
    assert running.signal(signal.SIGTERM).end() == 4


def test_what_does_not_run_cannot_save(crashed):
    saving = crashed.command("save")
    assert saving.end() == 3
    assert saving.stderr == (
        "leviathan: tiny_full_tiny is not running, so there is nothing new to save\n"
    )
    assert not (crashed.run_dir / ".save").exists()


def test_a_run_that_ends_instead_says_so(trainings):
    running = trainings.start(*LONG, mode="deaf", step_s=0.1, steps=900).reached(2)
    saving = trainings.command("save")
    wait = runs.RunPaths(trainings.run_dir).save
    while not wait.exists():
        assert saving.process.poll() is None
    running.signal(signal.SIGINT)
    trainings.command("stop", "--now").end()
    assert saving.end() == 1
    assert "leviathan: tiny_full_tiny ended before it saved; see leviathan status" in saving.stderr
    assert not wait.exists()


def test_a_request_that_an_earlier_session_left_is_forgotten(crashed):
    (crashed.run_dir / ".save").touch()
    assert crashed.run("--set", "save_steps=5", steps=12).code == 0
    kinds = [e["event"] for e in runs.events(runs.RunPaths(crashed.run_dir))]
    assert "save_asked" not in kinds
