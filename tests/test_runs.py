"""The run directory: record, sessions, metrics, lock, and the truth of a state."""

import json
import os
import subprocess
import sys
import threading

import filelock
import pytest

from leviathan import files, machine, runs, writer
from leviathan.errors import BadInput, Refused


def make_record(**changes) -> runs.RunRecord:
    values = {
        "name": "r", "recipe": "tiny", "profile": "tiny", "sample": "full", "overrides": ["a=1"],
        "settings": {"base_model": "b"}, "tree": {"lora_r": 8, "learning_rate": 1e-4},
        "processes": 1, "corpus": {"rows": 3}, "base": None, "versions": {"python": "3"}, "created": 1.5, **changes,
    }  # fmt: skip
    return runs.RunRecord(**values)


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "run").mkdir()
    return runs.RunPaths(tmp_path / "run")


def test_record_round_trip(paths):
    sessions = [
        runs.Session(1, 1.0, machine.process_identity(), None, 2.0, "stopped"),
        runs.Session(2, 3.0, {"pid": 1}, 50),
    ]
    record = make_record(state="running", sessions=sessions)
    runs.write(paths, record)
    assert runs.read(paths) == record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "name": "r", "sess', "is damaged"),
        ("", "is damaged"),
        ("\0" * 300, "is damaged"),
        ("\xff", "is damaged"),
        ('{"schema": 2, "name": "r"}', "has schema 2; this Leviathan reads 1"),
        ('{"name": "r"}', "has schema None"),
        ("[]", "has schema None"),
        ('{"schema": 1, "name": "r"}', "is damaged"),
        ('{"schema": 1, "sessions": [{"x": 1}]}', "is damaged"),
        ('{"schema": 1, "sessions": 5}', "is damaged"),
        ('{"schema": 1, "sessions": [], "name": "r"}', "is damaged"),
    ],
)
def test_unreadable_record_is_one_clear_line(paths, content, message):
    paths.record.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput) as caught:
        runs.read(paths)
    assert str(paths.record) in caught.value.message
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_record_that_cannot_be_read_is_bad_input(paths):
    paths.record.mkdir()
    with pytest.raises(BadInput, match=r"run\.json cannot be read: Is a directory"):
        runs.read(paths)


def test_directory_without_a_record_is_not_a_run(paths):
    with pytest.raises(BadInput, match="is not a run"):
        runs.read(paths)


def test_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="which run") as caught:
        runs.find(None)
    assert caught.value.hint.endswith("none")
    for name in ("one", "two"):
        runs.write(runs.RunPaths(runs.TRAINING / name), make_record(name=name))
        if name == "one":
            assert runs.find(None).directory == runs.TRAINING / "one"
    with pytest.raises(BadInput, match="which run") as caught:
        runs.find(None)
    assert caught.value.hint.endswith("one, two")
    assert runs.find("two").directory == runs.TRAINING / "two"
    assert runs.find("work/training/two").directory.name == "two"
    assert runs.find(str(tmp_path / "work/training/two/")).directory.name == "two"
    for wrong in ("three", "", "..", "/etc"):
        with pytest.raises(BadInput, match="no run") as caught:
            runs.find(wrong)
        assert "one, two" in caught.value.hint


def log(paths, session, *steps, **facts):
    for step in steps:
        files.append_json(paths.metrics, {"session": session, "step": step, **facts})


def shown(paths):
    return [(line["session"], line["step"]) for line in runs.metrics(paths)]


def test_metrics_of_a_resumed_run_have_each_step_once(paths):
    log(paths, 1, 1, 2, 3, 4, 5, 6, 7)
    log(paths, 2, 6, 7, 8)
    log(paths, 3, 8, 9)
    assert shown(paths) == [*((1, s) for s in range(1, 6)), (2, 6), (2, 7), (3, 8), (3, 9)]


def test_metrics_keep_training_and_evaluation_of_one_step(paths):
    log(paths, 1, 5, loss=1.0)
    log(paths, 1, 5, eval_loss=2.0)
    assert len(runs.metrics(paths)) == 2
    log(paths, 2, 5, loss=1.0)
    assert shown(paths) == [(2, 5)]


def test_metrics_pass_over_half_lines_and_lines_without_a_step(paths):
    log(paths, 1, 1, 2)
    with paths.metrics.open("ab") as out:
        out.write(b'{"note": 1}\n{"session": 1, "st')
    assert shown(paths) == [(1, 1), (1, 2)]


def test_first_event_after_a_killed_writer_is_not_lost(paths):
    runs.event(paths, "start", session=1)
    with paths.events.open("ab") as out:
        out.write(b'{"event": "sa')
    runs.event(paths, "resume", session=2)
    assert [e["event"] for e in runs.events(paths)] == ["start", "resume"]
    assert [e["event"] for e in runs.events(paths, session=2)] == ["resume"]


HOLD = """
import sys
from pathlib import Path
from leviathan import runs, writer
with writer.locked(runs.RunPaths(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused_and_told_who_holds_the_lock(paths):
    command = [sys.executable, "-c", HOLD, str(paths.directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        holder.stdout.readline()
        with pytest.raises(Refused, match=f"by process {holder.pid}"), writer.locked(paths):
            pass
        holder.kill()
    with writer.locked(paths):  # the kernel released it with its holder
        assert json.loads((paths.directory / ".lock.json").read_text())["pid"] == os.getpid()
    with writer.locked(paths):
        pass


@pytest.mark.parametrize("holder", [None, "", "{}"])
def test_unknown_holder_is_still_refused(paths, holder):
    with writer.locked(paths):
        mark = paths.directory / ".lock.json"
        mark.unlink()
        if holder is not None:
            mark.write_text(holder)
        with pytest.raises(Refused, match="another process"), writer.locked(paths):
            pass


def dead_identity():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return machine.process_identity(process.pid)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "running"),
        ({"boot": "another boot"}, "crashed"),
        ({"started": 1.0}, "crashed"),
        ({"pid": 2**22 + 1}, "crashed"),
        ({"pid": "nonsense"}, "crashed"),
    ],
)
def test_running_is_believed_only_of_this_very_process(change, state):
    supervisor = {**machine.process_identity(), **change}
    record = make_record(state="running", sessions=[runs.Session(1, 0.0, supervisor)])
    assert runs.true_state(record) == state


def test_state_of_a_run_whose_supervisor_died_is_crashed():
    record = make_record(state="running", sessions=[runs.Session(1, 0.0, dead_identity())])
    assert runs.true_state(record) == "crashed"


@pytest.mark.parametrize("state", ["new", "done", "stopped", "failed"])
def test_ended_states_are_believed(state):
    record = make_record(state=state, sessions=[runs.Session(1, 0.0, {})])
    assert runs.true_state(record) == state


def test_a_loser_waits_for_the_holders_name_rather_than_telling_a_dead_ones(paths):
    """The holder writes its identity a moment after it took the lock."""
    files.write_json(paths.holder, dead_identity())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lock = filelock.FileLock(paths.lock)
        with lock:
            late = threading.Timer(
                0.5, files.write_json, (paths.holder, machine.process_identity(process.pid))
            )
            late.start()
            with pytest.raises(Refused, match=f"by process {process.pid};?"), writer.locked(paths):
                pass
        late.join()


def test_a_released_lock_names_nobody(paths):
    """Else a loser could name a living process that trains no longer."""
    with writer.locked(paths):
        assert runs.identity_in(paths.holder)["pid"] == os.getpid()
    assert not paths.holder.exists()


def test_a_deleted_lock_file_does_not_let_a_second_writer_in(paths):
    """Between two sessions, too, when no training process would give the first one away."""
    command = [sys.executable, "-c", HOLD, str(paths.directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        holder.stdout.readline()
        paths.lock.unlink()
        for _ in range(2):  # the one refused leaves the holder's name where it is
            with pytest.raises(Refused, match=f"by process {holder.pid}"), writer.locked(paths):
                pass
        holder.stdin.close()
    with writer.locked(paths):
        pass
