"""``train --detach``: all checks first, then a training that needs no terminal."""

import json
import os
import pty
import re
import signal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fakes.processes import listing, wait_for
from leviathan import background, checkpoints, cli, runs


@pytest.fixture
def background_trainings(trainings):
    """``trainings`` whose background is ended with the test."""
    yield trainings
    trainings.command("stop", "--now").end()
    assert trainings.left() == []


def sessions(trainings):
    return json.loads((trainings.run_dir / "run.json").read_text())["sessions"]


def test_detached_training_is_announced_when_it_is_under_way(background_trainings):
    trainings = background_trainings
    told = trainings.run("--detach", steps=500, step_s=0.05)
    assert told.code == 0
    (session,) = sessions(trainings)
    pid = session["supervisor"]["pid"]
    assert told.stdout.splitlines() == [
        f"tiny_full_tiny is running as process {pid}; closing this terminal is fine",
        "  leviathan status tiny_full_tiny",
        "  leviathan watch tiny_full_tiny",
        "  leviathan logs tiny_full_tiny -f",
        "  leviathan stop tiny_full_tiny",
    ]
    (log,) = trainings.run_dir.glob("logs/supervisor_*.log")
    assert told.stderr.splitlines()[-1] == f"what it tells: {log.relative_to(trainings.project)}"
    assert os.getsid(pid) == pid
    assert [str(Path(f"/proc/{pid}/fd/{n}").readlink()) for n in (0, 1, 2)] == [
        "/dev/null", str(log), str(log),
    ]  # fmt: skip
    trainings.reached(3)

    stop = trainings.command("stop")
    assert stop.end() == 0
    newest = checkpoints.scan(trainings.run_dir)[-1]
    assert newest.committed
    assert f"stopped: saved {newest.path.name}" in stop.stdout
    assert f"stopped (SIGTERM): saved {newest.path.name}" in log.read_text()


def test_detach_as_json(background_trainings):
    told = background_trainings.run("--detach", "--json", steps=500)
    found = json.loads(told.stdout)
    assert found["run"] == "work/training/tiny_full_tiny"
    assert found["pid"] == sessions(background_trainings)[0]["supervisor"]["pid"]
    assert (background_trainings.project / found["log"]).exists()


def test_a_warning_of_the_checks_is_told_once(background_trainings):
    told = background_trainings.run("--detach", "--force", "--set", "hardware.device=cuda")
    assert told.code == 0
    assert told.stderr.count("warning: gpu: the profile wants 1 x CUDA GPU") == 1
    assert "session 1, starting from the base model" in told.stderr


def test_a_terminal_that_is_closed_and_a_hangup_leave_it_alone(background_trainings):
    trainings = background_trainings
    master, slave = pty.openpty()

    def take_terminal():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    streams = {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": take_terminal}
    shell = trainings.start("--detach", popen=streams, steps=1000, step_s=0.05)
    os.close(slave)
    assert shell.end() == 0
    os.close(master)
    (session,) = sessions(trainings)
    trainings.reached(1)
    os.kill(session["supervisor"]["pid"], signal.SIGHUP)
    at = runs.metrics(runs.RunPaths(trainings.run_dir))[-1]["step"]
    trainings.reached(at + 20)
    status = trainings.command("status", "--json")
    assert status.end() == 0
    assert json.loads(status.stdout)["state"] == "running"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--set", "zzz=1"], 2, "--set zzz=1: zzz is not a key"),
        (["--profile", "nobody"], 2, "no profile called 'nobody'"),
        (["--resume", "checkpoint-7"], 2, "has no checkpoints"),
        (["--set", "hardware.device=cuda"], 3, "the profile wants 1 x CUDA GPU"),
    ],
)
def test_what_the_checks_find_starts_nothing(trainings, arguments, code, line):
    before = listing(trainings.project)
    refused = trainings.run("--detach", *arguments)
    assert refused.code == code
    assert line in refused.stderr
    assert listing(trainings.project) == before


def test_what_only_the_background_finds_is_told_with_its_exit_code(trainings):
    """The rows are read while the sample is drawn."""
    rows = (trainings.project / "rows.jsonl").read_text()
    (trainings.project / "rows.jsonl").write_text(rows * 100 + "not a row\n")
    refused = trainings.run("--detach")
    assert refused.code == 2
    (line,) = [text for text in refused.stderr.splitlines() if text.startswith("leviathan: ")]
    assert "rows.jsonl:7201: not JSON" in line
    assert "so the background process ended (exit code 2); its log: work/training/" in line
    assert trainings.left() == []


def test_a_background_that_is_killed_before_it_is_under_way_is_told(project, monkeypatch):
    monkeypatch.setattr(background.sys, "executable", "/bin/false")
    with pytest.raises(Exception, match="it printed nothing") as caught:
        background.start(["train"], project / "logs", print)
    assert caught.value.exit_code == 1


def test_detach_of_a_run_that_is_trained_says_by_whom(trainings):
    first = trainings.start(steps=5000, step_s=0.05).reached(2)
    second = trainings.run("--detach")
    assert second.code == 3
    assert f"already being trained by process {first.process.pid}" in second.stderr
    assert len(sessions(trainings)) == 1
    assert first.signal(signal.SIGTERM).end() == 4


def test_detach_of_a_finished_run_starts_nothing(trainings):
    assert trainings.run().code == 0
    before = listing(trainings.project)
    again = trainings.run("--detach")
    assert (again.code, again.stdout) == (
        0, "work/training/tiny_full_tiny is finished; nothing to do\n",
    )  # fmt: skip
    assert listing(trainings.project) == before


def test_ctrl_c_while_it_comes_up_ends_the_background_too(trainings):
    rows = (trainings.project / "rows.jsonl").read_text()
    with (trainings.project / "rows.jsonl").open("a") as out:
        out.writelines(rows for _ in range(40_000))  # seconds to read
    starting = trainings.start("--detach", popen={"process_group": 0})
    wait_for(lambda: list(trainings.run_dir.glob("logs/supervisor_*.log")))
    wait_for(lambda: len(trainings.left()) == 2)
    os.killpg(starting.process.pid, signal.SIGINT)
    assert starting.end() == 130
    assert trainings.left() == []
    assert not (trainings.run_dir / "run.json").exists()


# --- the command line is passed on ------------------------------------------------


def passed_on(*words):
    """What the background would be given, by the real parser."""
    command = typer.main.get_command(cli.app)
    root = command.make_context("leviathan", list(words))
    train = command.get_command(root, "train")
    context = train.make_context("train", list(words[words.index("train") + 1 :]), parent=root)
    from leviathan.cli_train import arguments

    return arguments(context)


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("train --detach", "train"),
        ("-v train --detach --json", "--verbose train"),
        ("train -p x -r y -s 5 --detach --force", "train --profile x --recipe y --sample 5 --force"),
        ("train --set a=1 --detach --set b=-2 --resume best --name n",
         "train --name n --set a=1 --set b=-2 --resume best"),
    ],
)  # fmt: skip
def test_the_background_is_given_the_same_options(given, passed):
    assert " ".join(passed_on(*given.split())) == passed


def test_no_option_is_forgotten():
    """Every option of train but those of telling reaches the background."""
    help_text = CliRunner().invoke(cli.app, ["train", "--help"]).stdout
    declared = set(re.findall(r"^\s+(?:-\w, )?(--[\w-]+)", help_text, re.MULTILINE))
    command = typer.main.get_command(cli.app).commands["train"]
    words = ["train"]
    for option in command.params:
        flag = option.type.name == "boolean"
        words += [option.opts[0]] if flag else [option.opts[0], "7"]
    passed = {word for word in passed_on(*words) if word.startswith("--")}
    assert declared - passed == {"--detach", "--json", "--help"}
