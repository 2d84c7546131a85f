"""A signal to the supervisor in every phase of a real training, and of a real merge."""

import os
import pty
import shutil
import signal
import threading
import time
from contextlib import suppress

import pytest
from project import LEVIATHAN, RUN, TINY, Project, environment

from fakes.processes import wait_for
from leviathan import checkpoints, diagnosis, runs, train

pytestmark = pytest.mark.real

# Stretch one phase, so that a signal surely falls into it.
SLOW = """
import time
from leviathan.plugin import LeviathanPlugin
from transformers import Trainer

def stretched(owner, name, before):
    real = getattr(owner, name)
    def slow(*arguments, **keywords):
        if before:
            time.sleep({seconds})
        result = real(*arguments, **keywords)
        if not before:
            time.sleep({seconds})
        return result
    setattr(owner, name, slow)

stretched(*{{
    "start": (LeviathanPlugin, "pre_model_load", True),
    "load": (LeviathanPlugin, "post_model_load", False),
    "train": (Trainer, "training_step", True),
    "eval": (Trainer, "evaluate", True),  # Axolotl rewrites evaluation_loop from its source
    "save": (Trainer, "_save_optimizer_and_scheduler", True),
}}["{phase}"])
"""
SECONDS = {"start": 20, "load": 20, "train": 0.2, "eval": 2, "save": 2}
QUICK = (*TINY, "--set", "save_steps=2", "--set", "eval_steps=3")
BEFORE_TRAINING = ("start", "load")
SIGNALS = {
    "SIGINT": (signal.SIGINT,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGHUP": (signal.SIGHUP,),
    "twice": (signal.SIGINT, signal.SIGINT),
}


def phase_of(project: Project) -> str:
    text = diagnosis.tail(project.path(RUN) / ".phase.json")
    return text.partition('"phase": "')[2].partition('"')[0]


def in_phase(project: Project, phase: str) -> bool:
    # The evaluation before the first step is no different; the one after it has steps to save.
    begun = phase in BEFORE_TRAINING or any("loss" in m for m in project.metrics(RUN))
    return begun and phase_of(project) == phase


@pytest.mark.parametrize("signals", SIGNALS)
@pytest.mark.parametrize("phase", SECONDS)
def test_a_signal_in_every_phase(forked_project, reference, phase, signals, tmp_path):
    project = forked_project
    hook = tmp_path / "hook.py"
    hook.write_text(SLOW.format(phase=phase, seconds=SECONDS[phase]))
    process = project.start(*QUICK, FORK_HOOK=str(hook))
    deadline = time.monotonic() + 120
    while not in_phase(project, phase):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for number in SIGNALS[signals]:
        process.send_signal(number)
        time.sleep(0.3)
    out, err = process.communicate(timeout=120)
    assert process.returncode == (130 if signals == "twice" else 4), err
    if phase in BEFORE_TRAINING:
        # A forked training is not in its launcher's session: the server ends it a moment later.
        wait_for(lambda: not project.processes(), 10)
    assert project.processes() == []
    run = runs.RunPaths(project.path(RUN))
    newest, damaged = checkpoints.newest_sound(run.directory)
    if signals == "twice":
        assert all(not c.committed for c in damaged)
    elif phase in BEFORE_TRAINING:
        assert newest is None
    else:
        assert newest.step == project.events(RUN, "train_end")[-1]["step"]
        assert newest.committed
        assert not damaged
        if signals != "SIGHUP":  # its terminal is gone
            assert f"saved checkpoint-{newest.step}, resume with: leviathan train" in out
    if signals in {"SIGINT", "twice"}:
        done = project.run(*QUICK)
        assert done.code == 0, done.err
        assert project.adapter(RUN) == reference.adapter(RUN)


def test_a_terminal_that_goes_away_leaves_a_checkpoint_and_no_process(forked_project):
    """What tmux kill-session and a lost SSH do: the terminal hangs up, for all at once."""
    project = forked_project
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.directory)
        variables = environment(**project.server.environment())
        os.execvpe(LEVIATHAN, [LEVIATHAN, *QUICK], variables)  # noqa: S606
    reader = threading.Thread(target=drain, args=(terminal,), daemon=True)
    reader.start()
    wait_for(lambda: any("loss" in m for m in project.metrics(RUN)), 120)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 4
    assert project.processes() == []
    newest, damaged = checkpoints.newest_sound(project.path(RUN))
    assert newest.committed
    assert newest.step == project.events(RUN, "train_end")[-1]["step"]
    assert not damaged


def drain(terminal: int) -> None:
    """Read what the program draws, as a terminal does, until it is closed."""
    with suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_merging_leaves_nothing_half(reference, tmp_path, number):
    shutil.copytree(reference.directory, tmp_path / "project")
    project = Project(tmp_path / "project")
    process = project.start("merge")
    models = project.directory / "models"
    deadline = time.monotonic() + 60
    # Killed outright it is when the weights are there, and their proof is not.
    begun = ".*.partial/progress.json" if number == signal.SIGKILL else ".*.partial"
    while not list(models.glob(begun)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in {130, 143, 128 + number, -number}
    wait_for(lambda: not project.processes(), 10)
    assert [path.name for path in models.iterdir() if not path.name.startswith(".")] == []
    done = project.run("merge")
    assert done.code == 0, done.err
    assert "proof: equal" in done.out
    assert ("going on behind 1 of 1 shards" in done.err) == (number == signal.SIGKILL)
    assert not list(models.glob(".*.partial"))


def test_what_was_decided_before_writing_anything_is_what_happens(stopped_copy, monkeypatch):
    """``train --dry-run`` and ``train`` choose the same checkpoint."""
    from leviathan import layers

    monkeypatch.chdir(stopped_copy.directory)
    decision = train.decide(
        layers.build("tiny", "tiny", "full", ["save_steps=20", "eval_steps=20"])
    )
    done = stopped_copy.run(*TINY)
    assert f"resuming from {decision.resume_from.path.name}" in done.err
