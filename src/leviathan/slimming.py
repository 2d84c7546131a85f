"""Owns slimming: taking out of old checkpoints what only a resume reads, above all the optimizer.

A slimmed checkpoint is merged, tested, served and handed on like any other; training does not go
on from it. Does not choose what is deleted whole (``checkpoints``).

The new commit record, without the files that go, is durable before the first of them is removed.
So whatever a power cut leaves is the whole checkpoint, or a slimmed one, perhaps with some of its
optimizer still lying there, which the next slimming removes.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from leviathan import checkpoints, files
from leviathan.checkpoints import COMMIT, PIN, SLIM_SCHEMA, Checkpoint

_RESUMED_FROM = ("optimizer*", "scheduler.pt", "rng_state*", "scaler.pt", "latest",
                 "global_step*", "zero_to_fp32.py", "pytorch_model_fsdp*")  # fmt: skip
"""Names, in a checkpoint, of what only a resume reads; FSDP's and DeepSpeed's own weights too."""
_WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors")
_OTHER_WEIGHTS = ("pytorch_model_fsdp*", "global_step*")


@dataclass(frozen=True)
class Slimming:
    """What became of the checkpoints that are to be slim."""

    slimmed: tuple[tuple[int, int], ...]
    """Step, and bytes that were freed."""
    problem: str = ""
    """Why some that should be slim are not; empty where none is."""


def names(entries: Iterable[str]) -> list[str]:
    """Those of a checkpoint's files that go; weights that lie nowhere else stay.

    ``entries`` are paths below the checkpoint, as in its commit record.
    """
    every = list(entries)
    is_served = any(_is_one_of(name, _WEIGHTS) for name in every)
    going = [name for name in every if _is_one_of(name, _RESUMED_FROM)]
    if is_served:
        return going
    if any(_is_one_of(name, ("global_step*",)) for name in every):
        return []  # DeepSpeed's parts hold weights and optimizer together
    return [name for name in going if not _is_one_of(name, _OTHER_WEIGHTS)]


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    first = name.split("/", 1)[0]
    return any(fnmatchcase(first, pattern) for pattern in patterns)


def candidates(found: Sequence[Checkpoint], keep_optimizer: int) -> list[Checkpoint]:
    """Which of a run's checkpoints are to be slim, by step.

    Not the newest ``keep_optimizer`` of those that training can go on from, nor pinned ones, nor
    what is newer than those; nothing where training can go on from none. Damaged ones, and those
    without a commit record, are left alone.
    """
    whole = [c for c in found if c.obstacle is None]
    kept = {c.step for c in whole[-max(keep_optimizer, 1) :]}
    if not kept:
        return []
    return [
        c for c in found
        if c.sound and c.committed and not c.pinned and c.step < min(kept) and freed(c)
    ]  # fmt: skip


def freed(checkpoint: Checkpoint) -> int:
    """Bytes that slimming it would free; of a slimmed one, what a kill left of its optimizer."""
    record = checkpoints.read_record(checkpoint.path)
    return sum(_size(checkpoint.path / name) for name in _going(record)) if record else 0


def _going(record: dict[str, Any]) -> list[str]:
    if record["schema"] == SLIM_SCHEMA:
        named = (name for name in record.get("slimmed", []) if isinstance(name, str))
        return [name for name in named if _is_one_of(name, _RESUMED_FROM)
                and ".." not in name.split("/")]  # fmt: skip
    return names(record["files"])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def slim(checkpoint: Checkpoint) -> int:
    """Take out of one checkpoint what only a resume reads, durably; bytes that were freed.

    Raises:
        OSError: the disk does not take the new record, or does not let go of a file.
    """
    path = checkpoint.path
    record = checkpoints.read_record(path)
    if record is None or (path / PIN).exists():  # gone, or pinned since it was chosen
        return 0
    going = _going(record)
    if record["schema"] != SLIM_SCHEMA and going:
        kept = {name: entry for name, entry in record["files"].items() if name not in going}
        changed = {"schema": SLIM_SCHEMA, "slimmed": sorted(going), "files": kept}
        files.write_json(path / COMMIT, {**record, **changed})
    return _remove(path, going)


def _remove(path: Path, going: Sequence[str]) -> int:
    freed_bytes, folders = 0, set[Path]()
    for name in going:
        file = path / name
        size = _size(file)
        with suppress(FileNotFoundError):
            file.unlink()
            freed_bytes += size
        folders |= {folder for folder in file.parents if path in folder.parents}
    for folder in sorted(folders, reverse=True):  # the deepest first
        with suppress(OSError):  # one that holds more, or is gone
            folder.rmdir()
    files.fsync_directory(path)
    return freed_bytes


def is_slimmed_from(whole: dict[str, Any] | None, slimmed: dict[str, Any]) -> bool:
    """Whether one commit record is of the same checkpoint as another before its slimming."""
    if whole is None or slimmed.get("schema") != SLIM_SCHEMA:
        return False
    return all(whole["files"].get(name) == entry for name, entry in slimmed["files"].items())


def verified(run_dir: Path) -> list[Checkpoint]:
    """Every checkpoint of a run, every byte read: what is relied on later must be sound now."""
    return [checkpoints.verify(c) for c in checkpoints.scan(run_dir)]


def apply(going: Sequence[Checkpoint]) -> Slimming:
    """Slim these now; one that cannot be slimmed is told, not raised."""
    done, problems = [], []
    for checkpoint in going:
        try:
            if size := slim(checkpoint):
                done.append((checkpoint.step, size))
        except OSError as error:
            problems.append(f"{checkpoint.path.name} could not be slimmed: {error}")
    return Slimming(tuple(done), "; ".join(problems))


def retain(run_dir: Path, whole: int | None) -> Slimming:
    """Slim what is older than the newest ``whole``, as a policy says; None: nothing.

    Where one alone keeps its optimizer, its bytes are read first: sizes do not prove it sound.
    """
    if whole is None:
        return Slimming(())
    found = checkpoints.scan(run_dir)
    going = candidates(found, whole)
    if going and whole == 1:
        newest = next(c for c in reversed(found) if c.obstacle is None)
        if not checkpoints.verify(newest).sound:
            return Slimming(())
    return apply(going)
