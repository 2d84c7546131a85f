"""Owns a run kept a second time, in a directory that outlives the machine: a mounted bucket.

A bucket knows no rename and no append, and what its mount calls written may not be. So a run is
trained on a real disk, and only what is committed is copied: a checkpoint's files first, its
commit record last, nothing ever moved. What comes back is read in full before it counts.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from leviathan import checkpoints, files, runs, slimming
from leviathan.checkpoints import COMMIT, Checkpoint
from leviathan.errors import BadInput, LeviathanError, Refused
from leviathan.signals import taken

Tell = Callable[[str], None]
"""Called with one line for the person who waits."""

_POLL_S = 2.0
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RESTORING = ".restoring"
_SECOND_RECORD = "run.copy.json"
_RECORDS = ("run.json", _SECOND_RECORD)


def run(paths: runs.RunPaths, place: Path, command: Sequence[str], tell: Tell) -> int:
    """Take the run from ``place``, run ``command``, keep in ``place`` whatever is committed.

    Signals reach the command, which is to save and end; what it saved is kept before we end.

    Returns:
        The command's exit code, negative for a signal's number.

    Raises:
        BadInput: there is no such place or command.
        LeviathanError: it ended, and what it saved could not be kept.
    """
    if not place.parent.is_dir() or (place.exists() and not place.is_dir()):
        raise BadInput(f"{place} is no directory, and cannot be one", "mount its bucket first")
    place.mkdir(exist_ok=True)
    restore(paths, place, tell)
    keeper, asked = Keeper(paths, place), list[int]()
    with taken(lambda number, _: asked.append(number), *_FORWARDED):
        try:
            child = subprocess.Popen(list(command), start_new_session=True)
        except OSError as error:
            raise BadInput(f"cannot run {command[0]}: {error.strerror}") from error
        trouble = ""
        while child.poll() is None:
            trouble = _attempt(keeper, tell, trouble)
            _wait(child, asked)
        failure = _attempt(keeper, tell, "") if paths.directory.is_dir() else ""
    if failure:
        raise LeviathanError(
            f"the run ended, and {place} does not hold all of it: {failure}",
            f"what it saved is in {paths.directory}",
        )
    return child.returncode


def _wait(child: subprocess.Popen[bytes], asked: list[int]) -> None:
    """Until it is time to look again; signals are passed on at once."""
    end = time.monotonic() + _POLL_S
    while time.monotonic() < end and child.poll() is None:
        while asked:
            child.send_signal(asked.pop(0))
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.1)


def _attempt(keeper: "Keeper", tell: Tell, before: str) -> str:
    """Keep what is new; a bucket that does not answer is told of once, and tried again."""
    try:
        for kept in keeper.keep():
            tell(f"kept {kept} in {keeper.place}")
    except OSError as error:
        trouble = f"{error.filename or keeper.place}: {error.strerror or error}"
        if trouble != before:
            tell(f"not kept yet ({trouble}); trying again")
        return trouble
    return ""


class Keeper:
    """What of one run is kept, copied as it comes."""

    def __init__(self, paths: runs.RunPaths, place: Path) -> None:
        self.paths, self.place = paths, place
        self._seen: dict[str, bytes | None] = {}
        """Commit records by checkpoint: a step that is trained anew has another."""
        self._newest = 0

    def keep(self) -> list[str]:
        """Copy what is new: the run's own files, then checkpoints; names of those.

        Raises:
            OSError: the place does not take it.
        """
        run = self.paths.directory
        if not self.paths.record.exists():
            return []
        here = {c.path.name: c for c in checkpoints.scan(run) if c.committed and c.sound}
        records = {name: _read(c.path / COMMIT) for name, c in here.items()}
        new = [c for name, c in here.items() if self._seen.get(name) != records[name]]
        modified = self.paths.record.stat().st_mtime_ns  # another one: a session ended
        if modified != self._newest or new:
            _copy_run(run, self.place)
            # One after the other: of a copy that is cut off, the other is whole.
            _copy(self.paths.record, self.place / "run.json")
            _copy(self.paths.record, self.place / _SECOND_RECORD)
            self._newest = modified
        kept = [c.path.name for c in new if _keep_checkpoint(c, self.place)]
        self._seen |= records
        self._drop_what_retention_let_go(max((c.step for c in here.values()), default=0))
        return kept

    def _drop_what_retention_let_go(self, newest: int) -> None:
        """Older ones that are gone here, and those that a resume from before them set aside.

        What is damaged here may be whole there.
        """
        run = self.paths.directory
        rejected = {
            c.path.name.partition(".")[0] for c in checkpoints.aside(run) if c.where == "set-aside"
        }
        for name in sorted(self._seen.keys() | rejected):
            older = (checkpoints.step_of(Path(name)) or 0) < newest
            if not (run / name).exists() and (older or name in rejected):
                _drop(self.place / name)
                self._seen.pop(name, None)


def _copy_run(run: Path, place: Path) -> None:
    """The run's own files; not its record, checkpoints, marks of living processes, rows."""
    for path in sorted([*run.iterdir(), *(run / "logs").glob("*")]):
        if path.is_file() and not path.name.startswith(".") and path.name not in _RECORDS:
            _copy(path, place / path.relative_to(run))


def _keep_checkpoint(checkpoint: Checkpoint, place: Path) -> bool:
    """Copy it unless it is there; its record goes away first and comes back last."""
    source, target = checkpoint.path, place / checkpoint.path.name
    try:
        record = (source / COMMIT).read_bytes()
        if _read(target / COMMIT) == record:
            return False
        if slimming.is_slimmed_from(checkpoints.read_record(target), json.loads(record)):
            _slim_copy(source, target)
            return True
        (target / COMMIT).unlink(missing_ok=True)
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.name != COMMIT:
                _copy(path, target / path.relative_to(source))
        _copy(source / COMMIT, target / COMMIT)
    except FileNotFoundError:
        if source.exists():
            raise
        return False  # retention let it go meanwhile
    return True


def _slim_copy(source: Path, target: Path) -> None:
    """The copy is of the same checkpoint before its slimming: nothing is copied twice."""
    _copy(source / COMMIT, target / COMMIT)
    for copy in checkpoints.scan(target.parent):
        if copy.path.name == target.name and copy.slim:
            slimming.slim(copy)


def _drop(target: Path) -> None:
    (target / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _copy(source: Path, target: Path) -> None:
    """In one go from beginning to end, which is all that some mounts can do."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 22)
        writing.flush()
        with suppress(OSError):  # not every mount has it; closing is what uploads
            os.fsync(writing.fileno())


def restore(paths: runs.RunPaths, place: Path, tell: Tell) -> list[str]:
    """Bring back what ``place`` keeps where this machine has no newer; names of checkpoints.

    Every byte is read: one whose upload was cut off is left where it is, and an older serves.
    The record comes last: of a restore that is cut off, the next one does the rest.

    Raises:
        Refused: what is kept is another run of the name.
    """
    record = _whole_record(place)
    if record is None or not _is_behind(paths, record, place):
        return []
    run = paths.directory
    local, _ = checkpoints.newest_sound(run) if run.is_dir() else (None, [])
    kept = [c for c in checkpoints.scan(place) if c.committed]
    if local and all(c.step <= local.step for c in kept):
        return []
    run.mkdir(parents=True, exist_ok=True)
    _copy_run(place, run)
    shutil.rmtree(run / _RESTORING, ignore_errors=True)
    back = []
    for checkpoint in kept:
        if not (run / checkpoint.path.name).exists() and _bring_back(checkpoint, run, tell):
            back.append(checkpoint.path.name)
    shutil.rmtree(run / _RESTORING, ignore_errors=True)
    files.write_text(paths.record, record)
    files.fsync_directory(run)
    if back:
        tell(f"brought back from {place}: {', '.join(back)}")
    return back


def _is_behind(paths: runs.RunPaths, record: str, place: Path) -> bool:
    """Whether the run here has fewer sessions than the one that is kept.

    Steps tell nothing: a run resumed from before its newest checkpoint has fewer, rightly.
    """
    if not paths.record.exists():
        return True
    here, there = runs.read(paths), json.loads(record)
    if here.created != there.get("created"):
        raise Refused(f"{place} keeps another run of this name", "name another --in, or --name")
    return len(here.sessions) < len(there.get("sessions", []))


def _whole_record(place: Path) -> str | None:
    for name in _RECORDS:
        with suppress(OSError, ValueError):
            text = (place / name).read_text(encoding="utf-8")
            json.loads(text)
            return text
    return None


def _bring_back(checkpoint: Checkpoint, run: Path, tell: Tell) -> bool:
    making = run / _RESTORING / checkpoint.path.name
    shutil.copytree(checkpoint.path, making)
    (copy,) = checkpoints.scan(making.parent)
    problem = checkpoints.verify(copy).problem
    if problem:
        tell(f"{checkpoint.path} is not whole ({problem}); left there")
        shutil.rmtree(making)
        return False
    files.fsync_tree(making)
    making.rename(run / making.name)
    return True
