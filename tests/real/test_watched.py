"""`watch` on real trainings, in a real terminal: what it shows, and its keys save and stop."""

import re
import time

from project import LEVIATHAN, RUN, TINY, Project, environment

from fakes.processes import wait_for
from fakes.terminal import Terminal
from leviathan import checkpoints

SLOW = ("--set", "num_epochs=20", "--set", "save_steps=100000")


def watch(project: Project, size: str = "80x24") -> Terminal:
    return Terminal([LEVIATHAN, "watch", RUN], project.directory, size, environment())


def test_the_keys_save_and_stop_a_real_training(forked_project):
    running = forked_project.start(*TINY, *SLOW)
    wait_for((forked_project.path(RUN) / "metrics.jsonl").exists, 120)
    with watch(forked_project) as terminal:
        terminal.until("running", "no checkpoint yet", "tok/s", seconds=60)
        terminal.press("w")
        terminal.until("saved checkpoint-", seconds=60)
        (asked,) = forked_project.events(RUN, "save_asked")
        (saved,) = checkpoints.scan(forked_project.path(RUN))
        assert checkpoints.verify(saved).sound
        assert saved.step == asked["step"]
        step = forked_project.metrics(RUN)[-1]["step"]
        wait_for(lambda: forked_project.metrics(RUN)[-1]["step"] > step)
        terminal.press("s")
        terminal.until("save a checkpoint and stop?")
        terminal.press("y")
        running.communicate(timeout=60)
        assert running.returncode == 4
        shown = terminal.until(f"{RUN}  stopped", seconds=30)
        assert re.search(r" ┤.*[⠁-⣿]", shown)
        terminal.press("q")
        wait_for(lambda: terminal.ended)
    newest = checkpoints.scan(forked_project.path(RUN))[-1]
    assert newest.step > saved.step
    assert newest.step == forked_project.events(RUN, "train_end")[-1]["step"]


def test_the_story_of_a_run_is_on_its_screens(storied):
    """A stop, a resume, memory that ran out and the rung below: all of it, at any size."""
    with watch(storied, "120x40") as terminal:
        shown = terminal.until(f"{RUN}  done", "tokens per second", "q leave")
        assert shown.count("╀") >= 2  # where it resumed, on the axes
        assert len(re.findall(r" ┤.*[⠁-⣿]", shown)) >= 8
        assert re.search(r"checkpoint-\d+ .* eval [\d.]+  best", shown)
        terminal.press("v")  # events alone
        shown = terminal.until("events ─", "session 1 starts", "asked to stop (SIGINT)")
        assert len(re.findall(r"session [23] resumes from checkpoint-\d+\n", shown)) == 2
        assert "session ended, done" in shown
        for size in ("60x20", "80x24"):
            terminal.resize(size)
            time.sleep(1.5)
            lines = terminal.screen.splitlines()
            assert lines[-1].startswith(" q leave")
            assert max(map(len, lines)) <= terminal.width
        assert "out of memory" in terminal.screen
        terminal.press("q")
        wait_for(lambda: terminal.ended)
