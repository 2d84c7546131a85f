"""A run that another host trains over a shared directory: told so, and reached by its files."""

import json
import os
import socket
import time

import pytest

from leviathan import checkpoints, elsewhere, files, machine, runs, status, watch
from test_status import make_run

FAR = {"pid": 4_000_000, "started": 1.0, "boot": "another", "host": "trainer-7"}


def running(tmp_path, supervisor, *, heard_s=5.0):
    """A run that its supervisor's host wrote of so many seconds ago."""
    paths = make_run(tmp_path / "r", state="running", supervisor=supervisor)
    files.append_json(paths.telemetry, {"time": time.time()})
    moment = time.time() - heard_s
    os.utime(paths.telemetry, (moment, moment))
    return paths


def test_a_living_run_of_another_host_is_running_and_where(tmp_path):
    paths = running(tmp_path, FAR)
    found = status.summarize(paths)
    assert (found.state, found.host) == ("running", "trainer-7")
    assert found.why.startswith("on trainer-7, last heard of ")
    assert found.next == f"leviathan watch {paths.directory}"
    assert watch.lives(paths)
    paths.stop.touch()
    assert status.summarize(paths).why.endswith("ago; asked to stop: it saves after its step")


def test_one_that_fell_silent_is_not_called_running(tmp_path):
    paths = running(tmp_path, FAR, heard_s=2 * elsewhere.SILENT_S)
    found = status.summarize(paths)
    assert (found.state, found.host) == ("crashed", "trainer-7")
    assert "on trainer-7, last heard of 20 min" in found.why
    assert "dead there, or cut off from this directory" in found.why
    assert not watch.lives(paths)


@pytest.mark.parametrize(
    ("change", "host"),
    [
        ({"host": "trainer-7"}, "trainer-7"),  # a container beside: one boot, other pids
        ({}, None),  # dead here
        ({"boot": "another"}, socket.gethostname()),  # written since this boot: not by us
        ({"boot": "another", "host": None}, "another host"),  # as an older Leviathan wrote it
        ({"host": None}, None),
    ],
)
def test_whose_it_is(tmp_path, change, host):
    gone = {**machine.process_identity(), "pid": 4_000_000, **change}
    found = elsewhere.trainer(running(tmp_path, gone), runs.read(runs.RunPaths(tmp_path / "r")))
    assert (found and found.host) == host


def test_our_own_and_one_that_ended_are_nobody_elses(tmp_path):
    paths = running(tmp_path, machine.process_identity())
    assert elsewhere.trainer(paths, runs.read(paths)) is None
    record = runs.read(paths)
    record.state, record.sessions[-1].supervisor = "stopped", FAR
    assert elsewhere.trainer(paths, record) is None


def moved_away(trainings):
    """Make the files of a living training say that it lives on another host."""
    paths = runs.RunPaths(trainings.run_dir)
    record = json.loads(paths.record.read_text())
    record["sessions"][-1]["supervisor"] = FAR
    files.write_json(paths.record, record)
    for path in (paths.holder, paths.launcher, paths.heartbeat):
        told = json.loads(path.read_text())
        files.write_json(path, {**told, **FAR})
    assert elsewhere.living(paths).host == "trainer-7"


def test_save_and_stop_go_through_the_files(trainings):
    training = trainings.start("--set", "save_steps=1000", step_s=0.3, steps=900).reached(2)
    moved_away(trainings)
    saving = trainings.command("save", "--json")
    assert saving.end() == 0
    assert "it trains on trainer-7, which is asked through the run's directory" in saving.stderr
    (saved,) = checkpoints.scan(trainings.run_dir)
    assert json.loads(saving.stdout)["step"] == saved.step
    at_once = trainings.command("stop", "--now")
    assert at_once.end() == 3
    assert "tiny_full_tiny trains on trainer-7; only there can it be killed" in at_once.stderr
    stop = trainings.command("stop")
    assert stop.end() == 0
    assert "it trains on trainer-7: asked through the run's directory" in stop.stderr
    newest = checkpoints.scan(trainings.run_dir)[-1]
    assert (newest.committed, newest.step > saved.step) == (True, True)
    assert stop.stdout.startswith(f"stopped: saved {newest.path.name}, next: leviathan train ")
    assert training.end() == 4
