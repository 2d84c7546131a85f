"""The full-screen view in a real terminal (tmux), beside a training by the fake accelerate."""

import re
import signal

import pytest

from fakes.processes import LEVIATHAN, wait_for
from fakes.terminal import Terminal
from leviathan import checkpoints, runs


@pytest.fixture
def watching(trainings):
    """`leviathan watch` in an 80x24 pane."""
    terminals = []

    def watch(*arguments, size="80x24", **env):
        env = {**trainings.environment({}), **env}
        terminals.append(Terminal([LEVIATHAN, "watch", *arguments], trainings.project, size, env))
        return terminals[-1]

    yield watch
    for terminal in terminals:
        terminal.__exit__()


def fits(terminal):
    """Whether the keys are in the last line, and no line is longer than the screen."""
    lines = terminal.screen.splitlines()
    return (
        len(lines) == terminal.height
        and lines[-1].startswith(" q leave")
        and max(map(len, lines)) <= terminal.width
    )


def step_of(terminal):
    """The step that is shown."""
    return int(re.search(r"step (\d+) of", terminal.screen)[1])


def test_it_shows_the_run_survives_resizes_and_leaves_it_alone(trainings, watching):
    running = trainings.start(step_s=0.1, steps=900).reached(8)
    terminal = watching()
    shown = terminal.until("tiny_full_tiny  running", "step ", "loss 0.", "saved checkpoint-")
    assert re.search(r"step \d+ of 900 ", shown)
    assert re.search(r"saved checkpoint-\d+ just now", shown)
    assert "⠒⠒ smoothed" in shown
    assert re.search(r" ┤.*[⠁-⣿]", shown)  # there is a curve
    assert fits(terminal)
    assert "learning rate" not in shown
    terminal.resize("120x40")
    shown = terminal.until("learning rate", "tokens per second", "checkpoints ─", "log ─")
    assert "Starting trainer..." in shown
    assert fits(terminal)
    terminal.resize("60x20")
    wait_for(lambda: fits(terminal) and "learning rate" not in terminal.screen)
    step = step_of(terminal)
    wait_for(lambda: step_of(terminal) > step)  # and it goes on
    terminal.press("q")
    wait_for(lambda: terminal.ended)
    assert "the run goes on; leviathan stop tiny_full_tiny saves" in terminal.printed
    assert not (trainings.run_dir / ".stop").exists()
    running.reached(len(runs.metrics(runs.RunPaths(trainings.run_dir))) + 5)
    assert running.signal(signal.SIGTERM).end() == 4


def test_the_keys_save_stop_and_show_the_end(trainings, watching):
    running = trainings.start("--set", "save_steps=1000", step_s=0.2, steps=900).reached(2)
    terminal = watching()
    terminal.until("running", "no checkpoint yet")
    terminal.press("w")
    terminal.until("saved checkpoint-")
    (saved,) = checkpoints.scan(trainings.run_dir)
    assert saved.committed
    assert running.process.poll() is None
    terminal.press("s")
    terminal.until("save a checkpoint and stop?")
    terminal.press("n")
    wait_for(lambda: "save a checkpoint and stop?" not in terminal.screen)
    assert running.process.poll() is None
    terminal.press("s")
    terminal.until("save a checkpoint and stop?")
    terminal.press("y")
    assert running.end() == 4
    assert len(checkpoints.scan(trainings.run_dir)) == 2
    shown = terminal.until("tiny_full_tiny  stopped", "stopped; q leaves")
    assert "w save" not in shown  # nothing is left to save
    assert not terminal.ended
    terminal.press("q")
    wait_for(lambda: terminal.ended)
    assert "tiny_full_tiny  stopped" in terminal.printed


def test_a_dead_run_is_shown_with_what_there_is(crashed, watching):
    terminal = watching()
    shown = terminal.until("tiny_full_tiny  failed", "exit code 1", "saved checkpoint-10")
    assert "session ended, failed" in shown
    assert "s stop" not in shown
    terminal.press("w")
    terminal.press("s")
    assert fits(terminal)
    assert "save a checkpoint and stop?" not in terminal.screen
    terminal.press("C-c")
    wait_for(lambda: terminal.ended)


@pytest.mark.parametrize(
    ("env", "there", "not_there"),
    [
        ({}, "\x1b[36m", "\x1b[34m"),
        ({"LEVIATHAN_THEME": "light"}, "\x1b[34m", "\x1b[36m"),
        ({"NO_COLOR": "1"}, "━", "\x1b[3"),
    ],
)
def test_colours_are_the_terminals_own(crashed, watching, env, there, not_there):
    """Cyan on dark, blue on light, none where none are wanted; never a background."""
    command = ["env", *(f"{name}={value}" for name, value in env.items()), LEVIATHAN, "watch"]
    with Terminal(command, crashed.project, env=crashed.environment({})) as terminal:
        terminal.until("saved checkpoint-10", "q leave")
        shown = re.sub(r"\x1b\[39m", "", terminal.coloured)  # the default colour
        assert there in shown
        assert not_there not in shown
        assert not re.search(r"\x1b\[(?:\d+;)*4[0-8]", shown)


def test_train_shows_the_same_heart_and_ctrl_c_saves(trainings):
    command = [LEVIATHAN, "train", "-p", "tiny", "-r", "tiny", "-s", "full"]
    env = trainings.environment({"step_s": 0.1, "steps": 900})
    with Terminal(command, trainings.project, env=env) as terminal:
        shown = terminal.until("tiny_full_tiny  running", "saved checkpoint-", "⠒⠒ smoothed")
        assert re.search(r"step \d+ of 900 ", shown)
        assert "Ctrl+C saves and stops" in shown
        terminal.resize("100x30")
        terminal.until(" of 900 ")
        terminal.press("C-c")
        terminal.until("stopped (SIGINT): saved checkpoint-")
        wait_for(lambda: terminal.ended)
    assert trainings.left() == []
