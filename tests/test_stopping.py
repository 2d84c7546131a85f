"""Ending a run from another shell: gracefully, at once, orphaned, and never the wrong process."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fakes.processes import wait_for
from leviathan import checkpoints, files, machine, runs, stopping
from leviathan.errors import Refused


def saved(trainings):
    return checkpoints.scan(trainings.run_dir)[-1]


def record(trainings):
    return json.loads((trainings.run_dir / "run.json").read_text())


def test_stop_waits_for_the_checkpoint_and_says_how_to_go_on(trainings):
    running = trainings.start(step_s=0.3, steps=200).reached(2)
    stop = trainings.command("stop")
    assert stop.end() == 0
    assert running.end() == 4
    assert saved(trainings).committed
    name = saved(trainings).path.name
    assert stop.stdout == (
        f"stopped: saved {name}, next: leviathan train --profile tiny --recipe tiny --sample full\n"
    )
    assert "asked to stop: the step it is in ends" in stop.stderr
    assert f"saved {name}\n" in stop.stderr
    assert trainings.left() == []


def test_stop_of_what_does_not_run_says_so_and_is_no_error(crashed):
    for now in ((), ("--now",)):
        stop = crashed.command("stop", "tiny_full_tiny", *now)
        assert stop.end() == 0
        assert stop.stdout.startswith(
            "tiny_full_tiny is not running: failed (exit code 1: ValueError: made up); "
            "next: leviathan train "
        )


def test_stop_now_kills_what_no_signal_reaches(trainings):
    deaf = trainings.start(mode="grandchild", steps=500).reached(6)
    stop = trainings.command("stop", "--now")
    assert stop.end() == 0
    assert stop.stdout.startswith("killed: saved checkpoint-")
    assert deaf.end() == 130
    assert trainings.left() == []
    assert record(trainings)["sessions"][0]["outcome"] == "killed"


def test_stop_now_kills_a_supervisor_that_does_not_answer(trainings, monkeypatch):
    """And with it what has left the launcher's session, as torchrun's workers have."""
    running = trainings.start(mode="own-session", steps=5000, step_s=0.05).reached(2)
    running.signal(signal.SIGSTOP)
    monkeypatch.setattr(stopping, "_DIES_WITHIN_S", 1.0)
    assert stopping.kill(runs.RunPaths(trainings.run_dir))
    assert running.end() == -signal.SIGKILL
    assert trainings.left() == []
    status = trainings.command("status", "--json")
    assert status.end() == 0
    assert json.loads(status.stdout)["state"] == "crashed"


def kill_supervisor(training):
    training.signal(signal.SIGKILL).end()


def test_an_orphan_is_asked_through_the_stop_file(trainings):
    running = trainings.start(step_s=1.0, steps=200).reached(1)
    kill_supervisor(running)
    stop = trainings.command("stop")
    assert stop.end() == 0
    assert "its supervisor is gone; asked process" in stop.stderr
    assert stop.stdout.startswith(f"crashed: saved {saved(trainings).path.name}, next: ")
    assert saved(trainings).committed
    assert trainings.left() == []


def test_an_orphan_that_hears_nothing_is_killed_with_its_children(trainings):
    running = trainings.start(mode="grandchild", steps=5000, step_s=0.05).reached(6)
    kill_supervisor(running)
    assert trainings.left()
    stop = trainings.command("stop", "--now")
    assert stop.end() == 0
    assert trainings.left() == []


@pytest.mark.parametrize("now", [[], ["--now"]])
def test_what_a_dead_training_left_behind_is_found_without_any_parent(trainings, now):
    """A hung data loader: no heartbeat names it and nobody it descends from is left."""
    running = trainings.start(mode="grandchild", steps=5000, step_s=0.05).reached(6)
    paths = runs.RunPaths(trainings.run_dir)
    kill_supervisor(running)
    for path in (paths.launcher, paths.heartbeat):
        psutil.Process(runs.identity_in(path)["pid"]).kill()
    wait_for(lambda: len(trainings.left()) == 1)
    stop = trainings.command("stop", *now)
    assert stop.end() == 0
    assert trainings.left() == []


def test_a_supervisor_between_two_sessions_is_stopped_by_its_lock(project, innocent):
    """Its last session has failed, and it waits before it begins the next."""
    identity = machine.process_identity(innocent.pid)
    paths = make_run(identity, state="failed")
    assert not stopping.ask(paths, print)
    files.write_json(paths.holder, identity)
    assert stopping.ask(paths, print)
    assert innocent.wait(10) == -signal.SIGTERM


def test_a_second_stop_is_as_good_as_one(trainings):
    running = trainings.start(step_s=0.5, steps=200).reached(1)
    stops = [trainings.command("stop", "tiny_full_tiny") for _ in range(3)]
    assert [stop.end() for stop in stops] == [0, 0, 0]
    assert running.end() == 4
    assert saved(trainings).committed


def test_stop_before_training_began_says_there_is_no_checkpoint(trainings):
    slow = trainings.start(start_s=60)
    wait_for((trainings.run_dir / ".plugin.json").exists)
    stop = trainings.command("stop")
    assert stop.end() == 0
    assert stop.stdout.startswith("stopped: no checkpoint yet, next: leviathan train ")
    assert slow.end() == 4
    assert trainings.left() == []


# --- never the wrong process ------------------------------------------------------


@pytest.fixture
def innocent():
    """A process that has nothing to do with any run."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def make_run(supervisor, state="running"):
    paths = runs.RunPaths(runs.TRAINING / "r")
    session = runs.Session(1, 1.0, supervisor)
    record = runs.RunRecord("r", "tiny", "tiny", "full", [], {}, {}, 1, {}, None, {}, 1.0,
                            state=state, sessions=[session])  # fmt: skip
    runs.write(paths, record)
    return paths


@pytest.mark.parametrize("change", [{"started": 1.0}, {"boot": "another"}])
@pytest.mark.parametrize("now", [[], ["--now"]])
def test_a_recycled_pid_is_left_alone(run_cli, innocent, change, now):
    recycled = {**machine.process_identity(innocent.pid), **change}
    paths = make_run(recycled)
    for path in (paths.launcher, paths.heartbeat, paths.holder):
        files.write_json(path, recycled)
    stop = run_cli("stop", "r", *now)
    assert stop.exit_code == 0
    assert stop.stdout.startswith("r is not running: crashed")
    assert innocent.poll() is None


def test_a_clock_that_was_set_does_not_make_a_living_process_another(innocent, monkeypatch):
    """psutil reckons start times from the wall clock, which NTP and dead batteries change."""
    identity = machine.process_identity(innocent.pid)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() - 1e6)
    assert machine.is_alive(identity)


def ask_as_nobody(paths, now, answers):
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)
    try:
        answers.put(stopping.kill(paths) if now else stopping.ask(paths, print))
    except Refused as error:
        answers.put(error.line)


@pytest.mark.parametrize("now", [False, True])
def test_another_users_run_is_one_clear_line(project, innocent, now):
    project.chmod(0o755)
    # Root asks as nobody about its own process; everybody else about root's first one.
    pid = innocent.pid if os.geteuid() == 0 else 1
    paths = make_run(machine.process_identity(pid))
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=ask_as_nobody, args=(paths, now, answers))
    child.start()
    assert answers.get(timeout=20) == (
        f"process {pid} of this run belongs to {psutil.Process(pid).username()}; "
        "only they can stop it"
    )
    child.join(20)
    assert psutil.pid_exists(pid)
