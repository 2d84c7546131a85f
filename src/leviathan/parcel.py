"""Owns what of a run travels: which checkpoint, which files, a snapshot that retention spares.

Does not send it (``transfer``). A snapshot is made of hard links, in the run's own directory: it
takes no room, and what is removed meanwhile stays in it.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import xxhash

from leviathan import checkpoints, files, runs
from leviathan.checkpoints import COMMIT, Checkpoint
from leviathan.errors import BadInput, LeviathanError, Refused

RUN_FILES = (
    "run.json", "axolotl.yaml", "accelerate.yaml", "events.jsonl", "metrics.jsonl", "gpu.jsonl",
    "plan.json", "provenance.json", "tests.json",
)  # fmt: skip
"""What a run is beside its checkpoints; tokenised rows and marks of processes stay."""
NOT_SERVED = (
    "/optimizer*", "/scheduler.pt", "/rng_state*", "/scaler.pt", "/trainer_state.json",
    "/training_args.bin", "/global_step*", "/latest", "/zero_to_fp32.py", "/pytorch_model_fsdp*",
    f"/{COMMIT}", f"/{checkpoints.PIN}",
)  # fmt: skip
"""rsync's patterns of what only resuming reads."""
SERVED = "transfer.json"
"""Beside a model's files that came out of a checkpoint: which, and their digests."""
_OUTGOING = ".outgoing-"
_ATTEMPTS = 5


@dataclass(frozen=True)
class Parcel:
    """A checkpoint that is to travel, and the files of it that do."""

    step: int
    key: str
    """Tells one checkpoint's content from another's."""
    entries: dict[str, dict[str, Any]]
    """bytes and xxh3_64 by name, as committed."""

    @property
    def name(self) -> str:
        return f"checkpoint-{self.step}"

    def problem(self, directory: Path) -> str | None:
        """What in ``directory`` is not as committed; reads every byte."""
        for name, entry in self.entries.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or _digest(path) != entry["xxh3_64"]:
                return f"{name} is not what was committed"
        return None


def parcel(step: int, record: bytes, *, served: bool) -> Parcel:
    """What travels of a checkpoint with this commit record.

    Raises:
        LeviathanError: the record is damaged, or names files outside its directory.
    """
    try:
        entries = dict(json.loads(record)["files"])
        whole = all({"bytes", "xxh3_64"} <= entry.keys() for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        whole, entries = False, {}
    if not whole or any(name.startswith("/") or ".." in name.split("/") for name in entries):
        raise LeviathanError(f"the commit record of checkpoint-{step} is damaged")
    if served:
        entries = {name: entry for name, entry in entries.items() if is_served(name)}
    key = xxhash.xxh3_64_hexdigest(record + b"served" * served)
    return Parcel(step, key, entries)


def is_served(name: str) -> bool:
    """Whether merging and serving read this file of a checkpoint."""
    first = f"/{name.split('/', 1)[0]}"
    return not any(re.fullmatch(re.escape(p).replace(r"\*", ".*"), first) for p in NOT_SERVED)


def wanted(
    found: Iterable[Checkpoint], which: str, where: object, *, served: bool = True
) -> list[Checkpoint]:
    """Those called ``latest``, ``best`` or N, the first choice first.

    ``served``: to be merged and served only, for which one without its optimizer does.

    Raises:
        BadInput: there is none.
    """
    committed = sorted((c for c in found if c.committed), key=lambda c: -c.step)
    if which not in {"latest", "best"}:
        number = which.removeprefix("checkpoint-")
        chosen = [c for c in committed if str(c.step) == number]
        if not chosen:
            raise BadInput(f"{where} has no committed checkpoint {which!r}")
        if chosen[0].slim and not served:
            raise BadInput(
                f"{chosen[0].path.name} of {where} cannot be resumed from: {checkpoints.SLIMMED}",
                "name another, or take the model alone with --for serve",
            )
        return chosen
    committed = [c for c in committed if served or not c.slim]
    if not committed:
        raise BadInput(f"{where} has no committed checkpoint yet", "a run saves every save_steps")
    if which == "latest":
        return committed
    scored = [c for c in committed if c.score is not None]
    return sorted(scored, key=lambda c: (c.score or 0.0, c.step)) or committed


# --- the snapshot ------------------------------------------------------------------------


@contextmanager
def snapshot(
    paths: runs.RunPaths, which: str, *, served: bool
) -> Iterator[tuple[Path, Parcel, list[str]]]:
    """A directory with a checkpoint, every byte of it read, and the run's own files below ``run``.

    Yields the directory, what is in it, and a line for each newer checkpoint that is damaged.

    Raises:
        BadInput: there is no such checkpoint.
        LeviathanError: none of them is sound.
    """
    _remove_leftovers(paths.directory)
    directory = paths.directory / f"{_OUTGOING}{os.getpid()}"
    try:
        directory.mkdir()
        chosen, damaged = _linked(paths, which, directory, served=served)
        if served:
            _describe(paths, chosen, directory / chosen.name)
        else:
            (directory / "run").mkdir()
            for name in RUN_FILES:  # after the checkpoint: nothing of what led to it lacks
                if (paths.directory / name).is_file():
                    shutil.copy2(paths.directory / name, directory / "run" / name)
        yield directory, chosen, damaged
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _linked(
    paths: runs.RunPaths, which: str, directory: Path, *, served: bool
) -> tuple[Parcel, list[str]]:
    damaged: dict[int, str] = {}
    for _ in range(_ATTEMPTS):
        found = wanted(checkpoints.scan(paths.directory), which, paths.directory, served=served)
        for checkpoint in (c for c in found if c.step not in damaged):
            copied = directory / checkpoint.path.name
            try:
                record = (checkpoint.path / COMMIT).read_bytes()
                chosen = parcel(checkpoint.step, record, served=served)
                _link(checkpoint.path, copied, served=served)
            except FileNotFoundError:  # retention took it: what is newer now?
                shutil.rmtree(copied, ignore_errors=True)
                break
            problem = chosen.problem(copied)
            if problem is None:
                lines = [f"checkpoint-{step} is damaged: {why}" for step, why in damaged.items()]
                return chosen, lines
            shutil.rmtree(copied)
            if checkpoint.path.exists():
                damaged[checkpoint.step] = problem
        else:
            break
    told = "; ".join(f"checkpoint-{step}: {why}" for step, why in damaged.items())
    raise LeviathanError(f"no checkpoint of {paths.directory} is sound ({told or 'all are gone'})",
                         "leviathan checkpoints verify tells about each")  # fmt: skip


def _link(source: Path, target: Path, *, served: bool) -> None:
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        left_out = path.name == checkpoints.PIN or (served and not is_served(name))
        if left_out or not path.is_file():
            continue
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), place)
        except OSError:
            if not path.exists():
                raise FileNotFoundError(path) from None
            shutil.copy2(path, place)  # another disk, or one without hard links


def _describe(paths: runs.RunPaths, chosen: Parcel, directory: Path) -> None:
    files.write_json(directory / SERVED, description(runs.read(paths), chosen))


def description(record: runs.RunRecord, chosen: Parcel) -> dict[str, Any]:
    """What SERVED says."""
    return {
        "schema": 1, "run": record.name, "checkpoint": chosen.step,
        "base_model": record.tree.get("base_model"), "base": record.base, "files": chosen.entries,
    }  # fmt: skip


def _remove_leftovers(run: Path) -> None:
    """Snapshots of pushes that were killed."""
    for left in run.glob(f"{_OUTGOING}*"):
        pid = left.name.removeprefix(_OUTGOING)
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- one run, in two places --------------------------------------------------------------


def demand_behind(
    old: runs.RunRecord, new: runs.RunRecord, where: object, *, more_told: bool
) -> None:
    """See that ``old`` is an earlier state of ``new``, which may take its place.

    Args:
        old: the record that would be replaced.
        new: the record that comes.
        where: the place of ``old``, for the message.
        more_told: whether there are more metrics beside ``old``.

    Raises:
        Refused: it is another run, or was trained further than ``new``.
    """
    if old.created != new.created:
        raise Refused(f"{where} is another run of the same name",
                      "move it away, or give this one another name")  # fmt: skip
    before = [(s.number, s.started) for s in old.sessions]
    after = [(s.number, s.started) for s in new.sessions]
    if before != after[: len(before)] or (before == after and more_told):
        raise Refused(f"{where} was trained further than what would replace it",
                      "bring it over from there instead")  # fmt: skip


def gone_back_to(old: runs.RunRecord, new: runs.RunRecord) -> int | None:
    """The step behind which ``new`` trained anew what ``old`` has; None: nothing is rejected."""
    later = new.sessions[len(old.sessions) :]
    return min((session.resumed_from or 0 for session in later), default=None)


def listed(directory: Path) -> list[Checkpoint]:
    """Checkpoints of which only the commit records are at hand."""
    return [replace(c, problem=None) for c in checkpoints.scan(directory) if c.committed]
