"""Following a run from another shell: it ends when the run does and never disturbs it."""

import signal
import threading

import pytest

from fakes.processes import wait_for
from leviathan import runs, watch, writer


def test_watch_tells_the_steps_and_ends_with_the_run(trainings):
    running = trainings.start(step_s=0.2, steps=20).reached(3)
    watching = trainings.command("watch")
    assert watching.end() == 0
    assert running.end() == 0
    assert "step 20/20  loss 0.1  eta 0 s\n" in watching.stderr
    assert "saved checkpoint-20\n" in watching.stderr
    assert watching.stdout.startswith("tiny_full_tiny  done\nstep         20 of 20, 100.0 %\n")


def test_watch_tells_warnings_as_train_does_and_bears_a_strange_one(trainings):
    paths = runs.RunPaths(trainings.run_dir)
    running = trainings.start(step_s=0.1, steps=500).reached(1)
    watching = trainings.command("watch")
    wait_for(lambda: "step" in watching.stderr)
    runs.event(paths, "guard", session=None, step=7)
    runs.event(paths, "warning", session=None, step=7, text="the loss diverges")
    wait_for(lambda: "diverges" in watching.stderr)
    told = [line for line in watching.stderr.splitlines() if line.startswith("warning: ")]
    assert told == ["warning: ", "warning: the loss diverges"]
    assert running.signal(signal.SIGTERM).end() == 4
    assert watching.end() == 0


def test_watch_of_a_run_that_is_over_shows_how_it_ended(crashed):
    watching = crashed.command("watch")
    assert watching.end() == 0
    assert watching.stdout.startswith("tiny_full_tiny  failed  exit code 1: ValueError: made up\n")


def test_leaving_the_watch_leaves_the_run_alone(trainings):
    running = trainings.start(step_s=0.1, steps=500).reached(3)
    watching = trainings.command("watch")
    wait_for(lambda: "step" in watching.stderr)
    assert watching.signal(signal.SIGINT).end() == 0
    assert watching.stderr.endswith(
        "the run goes on; leviathan stop tiny_full_tiny saves and stops\n"
    )
    assert not (trainings.run_dir / ".stop").exists()
    at = runs.metrics(runs.RunPaths(trainings.run_dir))[-1]["step"]
    running.reached(at + 3)
    assert running.signal(signal.SIGTERM).end() == 4


# --- logs -------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path):
    paths = runs.RunPaths(tmp_path / "r")
    paths.logs.mkdir(parents=True)
    record = runs.RunRecord("r", "tiny", "tiny", "full", [], {}, {}, 1, {}, None, {}, 1.0,
                            state="stopped")  # fmt: skip
    runs.write(paths, record)
    return paths


def test_the_newest_log_is_of_the_newest_session_whatever_the_clock_said(paths):
    for name in ("training_20261121T080000_9.log", "training_20251121T080000_10.log",
                 "supervisor_20271121T080000_1.log", "training_notes.log"):  # fmt: skip
        (paths.logs / name).write_text(name)
    assert watch.newest_log(paths).name == "training_20251121T080000_10.log"


@pytest.mark.parametrize(
    ("content", "count", "text"),
    [
        (b"", 5, ""),
        (b"a\nb\nc\n", 2, "b\nc\n"),
        (b"a\nb\nhalf", 2, "b\nhalf"),
        (b"a\nb\n", 0, ""),
        (b"a\n", 99, "a\n"),
        (b"\xff\n\xfe\n", 1, "�\n"),
        (b"x" * 200_000 + b"\n" + b"y" * 100_000 + b"\nz\n", 2, "y" * 100_000 + "\nz\n"),
    ],
)
def test_last_lines(paths, content, count, text):
    log = paths.logs / "training_x_1.log"
    log.write_bytes(content)
    assert watch.last_lines(log, count) == (text, len(content))


def test_the_tail_of_a_log_is_what_a_terminal_would_show(paths):
    tail = watch.LogTail(paths, 3)
    assert not tail.poll() or tail.lines == []
    log = paths.logs / "training_a_1.log"
    log.write_bytes(
        b"old\n\x1b[32mgreen\x1b[0m\tend\n\n 10%|#\r 20%|##\r 30%|###\r\n" + b" " * 90 + b"x\n"
    )
    assert tail.poll()
    assert tail.lines == ["green  end", " 30%|###", "x"]
    assert not tail.poll()  # nothing new
    (paths.logs / "training_b_2.log").write_bytes(b"next \xff\x07\n")
    assert tail.poll()
    assert tail.lines == ["next \ufffd"]


def test_a_followed_log_goes_on_in_the_next_session_and_ends_with_the_run(paths):
    """Held by a living process, as between two sessions of a run that restarts."""
    first = paths.logs / "training_a_1.log"
    first.write_text("one\n")
    heard = []
    with writer.locked(paths):
        follower = threading.Thread(
            target=lambda: heard.extend(watch.follow_log(paths, first, len("one\n")))
        )
        follower.start()
        with first.open("ab") as out:
            out.write("two ü\n".encode()[:-2])  # half a character
            out.flush()
            wait_for(lambda: heard)
            out.write("two ü\n".encode()[-2:])
        wait_for(lambda: "".join(heard) == "two ü\n")
        (paths.logs / "training_b_2.log").write_text("three\n")
        wait_for(lambda: "".join(heard).endswith("three\n"))
        assert follower.is_alive()
    follower.join(20)
    assert not follower.is_alive()
    assert "".join(heard) == "two ü\nthree\n"


def test_logs_shows_the_training_log_and_follows_it_to_the_end(trainings):
    trainings.start(step_s=0.1, steps=20).reached(2)
    followed = trainings.command("logs", "-f")
    wait_for(lambda: "Starting trainer..." in followed.stdout)
    (log,) = trainings.run_dir.glob("logs/training_*.log")
    with log.open("a") as out:
        out.write("a line of axolotl\n")
    assert followed.end() == 0
    assert followed.stdout == "Starting trainer...\na line of axolotl\n"
    assert followed.stderr == f"{log.relative_to(trainings.project)}\n"


def test_a_run_without_a_log_says_so(run_cli):
    paths = runs.RunPaths(runs.TRAINING / "r")
    record = runs.RunRecord("r", "tiny", "tiny", "full", [], {}, {}, 1, {}, None, {}, 1.0)
    runs.write(paths, record)
    done = run_cli("logs")
    assert (done.exit_code, done.stderr) == (2, "leviathan: r has no training log yet\n")


def test_the_end_of_a_session_is_not_told_as_a_new_one(crashed):
    """It is in run.json a moment before its supervisor lets go of the run."""
    paths = runs.RunPaths(crashed.run_dir)
    told, ticks = [], []

    def listener(kind, facts):
        told.append(kind)
        if kind != "tick":
            return
        ticks.append(1)
        record = runs.read(paths)
        record.sessions[-1].outcome = "stopped"
        runs.write(paths, record)
        if len(ticks) == 3:
            paths.holder.unlink()

    with writer.locked(paths):
        watch.follow(paths, listener)
    assert set(told) == {"tick"}
