"""``cloud keep``: a run kept in a bucket, lost with its machine, and brought back."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from fakes import fake_files
from fakes.processes import LEVIATHAN, listing, wait_for
from leviathan import checkpoints, keeping, runs, slimming
from leviathan.errors import Refused

RUN = "tiny_full_tiny"
TRAIN = [LEVIATHAN, "train", "-p", "tiny", "-r", "tiny", "-s", "full"]


@pytest.fixture
def place(tmp_path):
    """The bucket's folder of this run; the bucket itself is there."""
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket/run"


def keep(trainings, place, *command, **fake):
    words = command or TRAIN
    return trainings.command("cloud", "keep", RUN, "--in", str(place), "--", *words, **fake)


def steps(directory):
    return [c.step for c in checkpoints.scan(directory) if c.committed and c.sound]


def test_a_run_is_kept_as_it_is_saved_and_goes_on_elsewhere(trainings, place):
    first = keep(trainings, place, steps=500, step_s=0.03)
    wait_for(lambda: place.is_dir() and steps(place), 30)
    assert first.process.poll() is None  # while it trains
    first.signal(signal.SIGTERM)
    assert first.end() == 4
    assert f"stopped (SIGTERM): saved checkpoint-{steps(trainings.run_dir)[-1]}" in first.stdout
    assert steps(place) == steps(trainings.run_dir)
    left_off = steps(place)[-1]
    shutil.rmtree(trainings.project / "work")  # the machine was taken away

    second = keep(trainings, place, steps=left_off + 10)
    assert second.end() == 0, second
    assert f"brought back from {place}: checkpoint-" in second.stderr
    record = json.loads((place / "run.json").read_text())
    assert [s["outcome"] for s in record["sessions"]] == ["stopped", "done"]
    assert record["sessions"][1]["resumed_from"] == left_off
    assert record["state"] == "done"


@pytest.mark.parametrize(
    ("command", "code"),
    [(["false"], 1), (["sh", "-c", "exit 4"], 4), (["sh", "-c", "kill -KILL $$"], 137)],
)
def test_it_ends_as_the_command_ends(trainings, place, command, code):
    assert keep(trainings, place, *command).end() == code


@pytest.mark.parametrize(
    ("place", "command", "line"),
    [
        ("nowhere/there", ["true"], "nowhere/there is no directory, and cannot be one"),
        ("rows.jsonl", ["true"], "rows.jsonl is no directory"),
        ("kept", ["no-such-program"], "cannot run no-such-program"),
    ],
)
def test_bad_input(run_cli, project, place, command, line):
    done = run_cli("cloud", "keep", RUN, "--in", place, "--", *command)
    assert done.exit_code == 2
    assert line in done.stderr


# --- in process ---------------------------------------------------------------------------


def write_run(directory: Path, *at: int) -> runs.RunPaths:
    directory.mkdir(parents=True, exist_ok=True)
    for step in at:
        if not (directory / f"checkpoint-{step}").exists():
            checkpoints.commit(fake_files.write_checkpoint(directory, step), {"step": step})
    paths = runs.RunPaths(directory)
    runs.write(paths, runs.RunRecord(
        "r", "tiny", "tiny", "full", [], {}, {}, 1, {}, None, {}, 0.0, state="stopped"))  # fmt: skip
    (directory / "metrics.jsonl").write_text('{"step": 1}\n')
    (directory / "logs").mkdir(exist_ok=True)
    (directory / "logs/training.log").write_text("log\n")
    (directory / "prepared").mkdir(exist_ok=True)
    (directory / "prepared/rows").write_text("large\n")
    (directory / ".lock").touch()
    return paths


def restored(place: Path, into: Path) -> list[str]:
    told: list[str] = []
    keeping.restore(runs.RunPaths(into), place, told.append)
    return told


def test_what_is_kept_and_what_is_not(tmp_path, place):
    place.mkdir()
    keeper = keeping.Keeper(write_run(tmp_path / "run", 5, 10), place)
    assert keeper.keep() == ["checkpoint-5", "checkpoint-10"]
    names = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert {"run.json", "metrics.jsonl", "logs/training.log"} <= names
    assert not [name for name in names if name.startswith((".", "prepared"))]
    before = listing(place)
    assert keeper.keep() == []
    assert listing(place) == before


def test_what_is_slimmed_here_is_slimmed_there_and_nothing_is_copied_twice(tmp_path, place):
    place.mkdir()
    run = tmp_path / "run"
    keeper = keeping.Keeper(write_run(run, 5, 10), place)
    keeper.keep()
    weights = place / "checkpoint-5" / fake_files.ADAPTER
    inode = weights.stat().st_ino
    copied = weights.stat().st_mtime_ns
    assert slimming.retain(run, 1).slimmed
    assert keeper.keep() == ["checkpoint-5"]
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (inode, copied)
    assert not (place / "checkpoint-5/optimizer.pt").exists()
    assert [(c.slim, checkpoints.verify(c).sound) for c in checkpoints.scan(place)] == [
        (True, True), (False, True)]  # fmt: skip
    assert keeper.keep() == []
    # A bucket that holds another checkpoint of this step gets all of it.
    write_run(tmp_path / "other", 5)
    shutil.rmtree(place / "checkpoint-5")
    shutil.copytree(tmp_path / "other/checkpoint-5", place / "checkpoint-5")
    weights.write_bytes(b"another's")
    checkpoints.commit(place / "checkpoint-5", {"step": 5})
    assert keeping.Keeper(keeper.paths, place).keep() == ["checkpoint-5"]
    assert checkpoints.verify(checkpoints.scan(place)[0]).sound
    assert weights.read_bytes() == (run / "checkpoint-5" / fake_files.ADAPTER).read_bytes()


def test_retention_is_followed_and_damage_here_is_not(tmp_path, place):
    place.mkdir()
    run = tmp_path / "run"
    keeper = keeping.Keeper(write_run(run, 5, 10, 15), place)
    keeper.keep()
    shutil.rmtree(run / "checkpoint-5")  # retention
    (run / "checkpoint-10/optimizer.pt").write_bytes(b"half")
    (run / "checkpoint-15").rename(run / "quarantined")
    keeper.keep()
    assert steps(place) == [5, 10, 15]  # here is nothing sound to go by
    write_run(run, 12)
    keeper.keep()
    assert steps(place) == [10, 12, 15]
    write_run(run, 20)
    keeper.keep()
    assert steps(place) == [10, 12, 20]


def test_a_copy_that_was_cut_off_does_not_come_back_and_an_older_does(tmp_path, place):
    place.mkdir()
    keeping.Keeper(write_run(tmp_path / "run", 5, 10), place).keep()
    file = place / "checkpoint-10/optimizer.pt"
    file.write_bytes(b"\0" * file.stat().st_size)
    told = restored(place, tmp_path / "new")
    assert "checkpoint-10 is not whole (optimizer.pt is not what was committed" in told[0]
    assert steps(tmp_path / "new") == [5]
    assert checkpoints.verify(checkpoints.scan(tmp_path / "new")[0]).sound


def test_what_is_newer_here_stays(tmp_path, place):
    place.mkdir()
    keeping.Keeper(write_run(tmp_path / "run", 5), place).keep()
    run = write_run(tmp_path / "run", 10).directory
    before = listing(run)
    assert restored(place, run) == []
    assert listing(run) == before


def test_a_checkpoint_of_a_run_begun_anew_replaces_the_old_one(tmp_path, place, watched):
    place.mkdir()
    keeping.Keeper(write_run(tmp_path / "run", 5), place).keep()
    again = tmp_path / "again"
    write_run(again)
    checkpoints.commit(fake_files.write_checkpoint(again, 5, loss=9.0), {"step": 5, "loss": 9.0})
    assert observe(watched, runs.RunPaths(again), place)
    changed = [(name, Path(path).name) for name, path, _ in watched.events if "point-5/" in path]
    # Not for a moment does the old record stand beside new files.
    assert changed[0] == ("os.remove", checkpoints.COMMIT)
    assert changed[-1] == ("open", checkpoints.COMMIT)
    assert checkpoints.verify(checkpoints.scan(place)[0]).loss == 9.0


class Watched:
    """What Python does to the file system below a directory; it may fail at one of these."""

    def __init__(self) -> None:
        self.below, self.fail_at = "", 0
        self.events: list[tuple] = []
        sys.addaudithook(self)

    def __call__(self, name: str, arguments: tuple) -> None:
        if not self.below or name not in _CHANGES or self.below not in str(arguments[0]):
            return
        if name == "open" and not set("wax+") & set(str(arguments[1])):
            return
        self.events.append((name, *arguments[:2]))
        if len(self.events) == self.fail_at:
            raise KeyboardInterrupt


_CHANGES = {"open", "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink",
            "os.truncate", "shutil.rmtree"}  # fmt: skip


@pytest.fixture(scope="module")
def watched():
    watched = Watched()
    yield watched
    watched.below = ""


def observe(watched, paths, place, fail_at=0):
    """Keep twice: a second checkpoint and a new version of the first, and retention."""
    watched.events, watched.fail_at, watched.below = [], fail_at, str(place)
    try:
        keeping.Keeper(paths, place).keep()
        return True
    except KeyboardInterrupt:
        return False
    finally:
        watched.below = ""


def test_nothing_is_done_that_a_bucket_cannot(tmp_path, place, watched):
    """Mounts of buckets know no rename, no links, no appending and no writing in the middle."""
    place.mkdir()
    assert observe(watched, write_run(tmp_path / "run", 5, 10), place)
    kinds = {(name, mode if name == "open" else "") for name, _, mode in watched.events}
    assert kinds <= {("open", "w"), ("os.mkdir", ""), ("os.remove", "")}
    opened = [Path(path) for name, path, _ in watched.events if name == "open"]
    for step in (5, 10):  # the record comes last
        of_this = [path.name for path in opened if path.parent.name == f"checkpoint-{step}"]
        assert of_this[-1] == checkpoints.COMMIT
        assert of_this.count(checkpoints.COMMIT) == 1


def test_killed_anywhere_it_leaves_something_sound(tmp_path, watched):
    """At every single change, and with the file that was being written cut in half."""
    first = tmp_path / "first"
    first.mkdir()
    run = write_run(tmp_path / "run", 5)
    keeping.Keeper(run, first).keep()
    write_run(run.directory, 10)
    assert observe(watched, run, shutil.copytree(first, tmp_path / "whole"))
    changes = len(watched.events)
    assert changes > 10
    for fail_at in range(1, changes + 1):
        place = shutil.copytree(first, tmp_path / f"place-{fail_at}")
        assert not observe(watched, run, place, fail_at)
        name, path, _ = watched.events[max(fail_at - 2, 0)]  # the last that was carried out
        if name == "open":
            half = Path(path).read_bytes()
            Path(path).write_bytes(half[: len(half) // 2])
        new = tmp_path / f"new-{fail_at}"
        restored(place, new)
        assert steps(new) in ([5], [5, 10]), fail_at
        assert all(checkpoints.verify(c).sound for c in checkpoints.scan(new)), fail_at
        assert keeping.Keeper(run, place).keep() in ([], ["checkpoint-10"])
        assert steps(place) == [5, 10]


def session(number):
    return runs.Session(number=number, started=float(number), supervisor={}, resumed_from=None)


def with_sessions(paths, count, created=0.0):
    record = runs.read(paths)
    record.sessions, record.created = [session(n + 1) for n in range(count)], created
    runs.write(paths, record)


def test_what_a_resume_set_aside_is_not_brought_back(tmp_path):
    """Trained to 100, resumed from 50, stopped at 60: the rejected 100 must not come again."""
    paths, place = write_run(tmp_path / "run", 50, 100), tmp_path / "place"
    place.mkdir()
    keeper = keeping.Keeper(paths, place)
    keeper.keep()
    (rejected,) = [c for c in checkpoints.scan(paths.directory) if c.step == 100]
    checkpoints.set_aside(rejected, "set-aside")
    write_run(paths.directory, 60)
    assert keeping.restore(paths, place, print) == []  # the machine is the same
    assert keeping.Keeper(paths, place).keep() == ["checkpoint-60"]
    assert steps(place) == [50, 60]


def test_a_step_trained_anew_is_kept_by_the_same_keeper(tmp_path):
    paths, place = write_run(tmp_path / "run", 50), tmp_path / "place"
    place.mkdir()
    keeper = keeping.Keeper(paths, place)
    assert keeper.keep() == ["checkpoint-50"]
    shutil.rmtree(paths.directory / "checkpoint-50")
    checkpoints.commit(fake_files.write_checkpoint(paths.directory, 50), {"step": 50, "loss": 9.0})
    assert keeper.keep() == ["checkpoint-50"]
    record = paths.directory / "checkpoint-50" / checkpoints.COMMIT
    assert (place / "checkpoint-50" / checkpoints.COMMIT).read_bytes() == record.read_bytes()


def test_a_record_that_could_not_be_written_is_tried_again(tmp_path, monkeypatch):
    paths, place = write_run(tmp_path / "run", 50), tmp_path / "place"
    place.mkdir()
    keeper = keeping.Keeper(paths, place)
    keeper.keep()
    with_sessions(paths, 2)
    copy = keeping._copy

    def failing(source, target):
        if source.name == "run.json":
            raise OSError(5, "Input/output error")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "_copy", failing)
        with pytest.raises(OSError, match="Input/output"):
            keeper.keep()
    keeper.keep()
    assert (place / "run.json").read_bytes() == paths.record.read_bytes()


def test_only_an_earlier_state_of_the_same_run_takes_what_is_kept(tmp_path):
    kept = write_run(tmp_path / "place", 50, 100)
    with_sessions(kept, 2)
    here = write_run(tmp_path / "run", 50)
    with_sessions(here, 1)
    assert keeping.restore(here, tmp_path / "place", print) == ["checkpoint-100"]
    assert here.record.read_bytes() == kept.record.read_bytes()
    other = write_run(tmp_path / "other", 50)
    with_sessions(other, 1, created=7.0)
    before = other.record.read_bytes()
    with pytest.raises(Refused, match="keeps another run of this name"):
        keeping.restore(other, tmp_path / "place", print)
    assert other.record.read_bytes() == before
