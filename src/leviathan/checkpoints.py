"""Owns checkpoints: their commit records, soundness, choice, retention.

Does not write checkpoints (the Trainer does) and never unpickles one: everything here
works on names, sizes and hashes; without a commit record ``structure`` looks.
"""

import json
import math
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from leviathan import files, structure
from leviathan.errors import BadInput, Refused

COMMIT = "leviathan-commit.json"
PIN = "leviathan-pin"
ASIDE = ("quarantine", "set-aside")
_COMMIT_SCHEMA = 1
SLIM_SCHEMA = 2
"""Of the record of a slimmed checkpoint (``slimming``): an older Leviathan, which would resume
from it without its optimizer, does not take it for committed."""
# Neither resuming nor merging reads these; damage to them is none to the checkpoint.
_NOT_NEEDED = {COMMIT, PIN, "README.md", "training_args.bin"}
UNFINISHED = "its save was interrupted before the commit record"
SLIMMED = "its optimizer was slimmed away"


@dataclass(frozen=True)
class Checkpoint:
    """One ``checkpoint-N`` directory as far as it was looked at."""

    step: int
    path: Path
    epoch: float | None
    loss: float | None
    eval_loss: float | None
    bytes: int
    modified: float
    committed: bool
    problem: str | None
    """Why it is not sound; None when sound as far as was checked."""
    best: bool = False
    pinned: bool = False
    where: str = "run"
    """run, quarantine or set-aside."""
    fingerprint: str = ""
    """Of the settings it was trained with (``compatibility``); empty where unknown."""
    slim: bool = False
    """Whether its optimizer was slimmed away (``slimming``): good for all but resuming."""
    eval_reward: float | None = None
    """Of a training by rewards, whose evaluation loss says nothing."""

    @property
    def score(self) -> float | None:
        """The lower, the better: the evaluation loss, or minus the reward; None without one."""
        loss = self.eval_loss if self.eval_reward is None else -self.eval_reward
        return loss if loss is not None and math.isfinite(loss) else None

    @property
    def sound(self) -> bool:
        """Whether nothing was found wrong."""
        return self.problem is None

    @property
    def obstacle(self) -> str | None:
        """Why training cannot go on from it; None when it can, as far as was checked."""
        return self.problem or (SLIMMED if self.slim else None)

    def to_json(self) -> dict[str, Any]:
        """The document of ``checkpoints list --json``."""
        return {
            "step": self.step, "epoch": self.epoch, "loss": self.loss,
            "eval_loss": self.eval_loss, "eval_reward": self.eval_reward,
            "bytes": self.bytes, "sound": self.sound,
            "best": self.best, "pinned": self.pinned, "committed": self.committed,
            "problem": self.problem, "modified": self.modified, "path": str(self.path),
            "where": self.where, "slim": self.slim,
        }  # fmt: skip


def step_of(path: Path) -> int | None:
    """N of ``checkpoint-N``; None for any other name."""
    name, _, number = path.name.rpartition("-")
    return int(number) if name == "checkpoint" and number.isdecimal() else None


def commit(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Declare a checkpoint complete: fsync its files, then write its commit record.

    The record (names, sizes, xxh3 of every file, and ``facts``) is replaced atomically
    after everything it names is durable, so a record proves the files were whole.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name not in _NOT_NEEDED:
            digest = _digest_and_sync(path)
            entries[str(path.relative_to(checkpoint))] = {
                "bytes": path.stat().st_size,
                "xxh3_64": digest,
            }
    # FSDP and DeepSpeed write subdirectories: each holds names that must last, too.
    for directory in (*filter(Path.is_dir, checkpoint.rglob("*")), checkpoint, checkpoint.parent):
        files.fsync_directory(directory)
    record = {"schema": _COMMIT_SCHEMA, **facts, "files": entries, "time": time.time()}
    files.write_json(checkpoint / COMMIT, record)


def _digest_and_sync(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("r+b") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def scan(run_dir: Path) -> list[Checkpoint]:
    """Every checkpoint of a run by step, checked quickly: names and sizes, no hashes."""
    found = []
    for path in run_dir.iterdir():
        step = step_of(path)
        if step is not None and path.is_dir():
            with suppress(FileNotFoundError):  # removed by retention while we looked
                found.append(_look(path, step))
    found = _doubted(sorted(found, key=lambda c: c.step))
    best = min(
        (c for c in found if c.sound and c.score is not None),
        key=lambda c: (c.score or 0.0, c.step),
        default=None,
    )
    return [replace(c, best=best is not None and c.step == best.step) for c in found]


def _doubted(found: list[Checkpoint]) -> list[Checkpoint]:
    """No bare checkpoint newer than a committed one is trusted: its save did not end.

    It may look whole, yet nothing in it was made durable: after a power cut its weights
    can be zeros of the right length.
    """
    newest = max((c.step for c in found if c.committed), default=None)
    if newest is None:
        return found
    return [replace(c, problem=c.problem or UNFINISHED) if c.step > newest else c for c in found]


def verify(checkpoint: Checkpoint) -> Checkpoint:
    """``checkpoint`` with every byte read: hashes where committed, else structure."""
    record = read_record(checkpoint.path)
    problem = checkpoint.problem or (
        _hash_problem(checkpoint.path, record)
        if record
        else structure.problem(checkpoint.path, checkpoint.step)
    )
    return replace(checkpoint, problem=problem)


def newest_sound(run_dir: Path) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The newest checkpoint that verifies and can be resumed from, and the newer ones.

    Those are damaged or, which a policy never leads to, slimmed.
    """
    newer: list[Checkpoint] = []
    for candidate in reversed(scan(run_dir)):
        checked = candidate if candidate.slim else verify(candidate)
        if checked.obstacle is None:
            return checked, newer
        newer.append(checked)
    return None, newer


def choose(run_dir: Path, which: str) -> Checkpoint:
    """The checkpoint called ``best``, ``latest``, ``N`` or ``checkpoint-N``, verified.

    ``best`` has the lowest evaluation loss of those that verify; without evaluations it
    is the latest, which is the newest that verifies.

    Raises:
        BadInput: there is no such checkpoint.
        Refused: it is not sound.
    """
    found = scan(run_dir) if run_dir.is_dir() else []
    if not found:
        raise BadInput(f"{run_dir} has no checkpoints", "train first; a run saves every save_steps")
    if which in {"best", "latest"}:
        return _first_sound(found, which, run_dir)
    chosen = _numbered(found, which)
    if chosen is None:
        steps = ", ".join(str(c.step) for c in found[-8:])
        raise BadInput(f"no checkpoint {which!r} in {run_dir}", f"there are: {steps}")
    checked = verify(chosen)
    if not checked.sound:
        raise Refused(
            f"{checked.path.name} is damaged: {checked.problem}",
            "latest is the newest that is sound",
        )
    return checked


def named(run_dir: Path, which: str) -> Checkpoint:
    """As ``choose``, but one asked for by its number need not be sound.

    Raises:
        BadInput: there is no such checkpoint.
    """
    if which in {"best", "latest"}:
        return choose(run_dir, which)
    chosen = _numbered(scan(run_dir), which)
    if chosen is None:
        raise BadInput(f"no checkpoint {which!r} in {run_dir}")
    return chosen


def _first_sound(found: list[Checkpoint], which: str, run_dir: Path) -> Checkpoint:
    candidates = found[::-1]
    if which == "best":
        scored = [c for c in found if c.score is not None]
        candidates = sorted(scored, key=lambda c: (c.score or 0.0, c.step)) or candidates
    for candidate in candidates:
        checked = verify(candidate)
        if checked.sound:
            return checked
    raise Refused(
        f"no checkpoint of {run_dir} is sound; the newest: {verify(found[-1]).problem}",
        "leviathan checkpoints verify tells about each",
    )


def _numbered(found: list[Checkpoint], which: str) -> Checkpoint | None:
    number = which.removeprefix("checkpoint-")
    if not number.isdecimal():
        raise BadInput(f"{which!r} names no checkpoint", "use best, latest, N or checkpoint-N")
    return next((c for c in found if c.step == int(number)), None)


def newest_bytes(found: list[Checkpoint]) -> int | None:
    """Bytes of the newest whole checkpoint, which the next will take too; None without one."""
    return next((c.bytes for c in reversed(found) if c.obstacle is None), None)


def removable(found: list[Checkpoint], keep: int, *, drop_best: bool = False) -> list[Checkpoint]:
    """What retention lets go: sound ones older than the newest ``keep``, by step.

    Never the best (unless ``drop_best``), never a pinned one, never the last sound
    one nor the last that can be resumed from; damaged ones are left alone for a person to look at.
    """
    sound = [c for c in found if c.sound]
    kept = {c.step for c in sound[-max(keep, 1) :]}
    kept |= {c.step for c in [c for c in sound if not c.slim][-1:]}
    return [c for c in sound if c.step not in kept and not c.pinned and (drop_best or not c.best)]


@dataclass(frozen=True)
class Retention:
    """What became of the checkpoints that retention lets go."""

    removed: tuple[int, ...]
    """Their steps."""
    problem: str = ""
    """Why some that should be gone are still there; empty where none is."""


def retain(run_dir: Path, keep: int) -> Retention:
    """Let go what retention lets go, now; an old checkpoint that stays is told, not raised.

    Where only one would be left, its bytes are read first: sizes do not prove it sound.
    """
    removed, problems = [], []
    for checkpoint in _going(run_dir, keep):
        try:
            remove(checkpoint)
            removed.append(checkpoint.step)
        except OSError as error:  # the newer ones are safe; this one only takes room
            problems.append(f"{checkpoint.path.name} could not be removed: {error}")
    return Retention(tuple(removed), "; ".join(problems))


def _going(run_dir: Path, keep: int) -> list[Checkpoint]:
    found = scan(run_dir)
    going = removable(found, keep)
    newest = next((c for c in reversed(found) if c.sound), None)
    doubtful = keep == 1 and going and newest and not verify(newest).sound
    return [] if doubtful else going


def remove(checkpoint: Checkpoint) -> None:
    """Delete a checkpoint; its commit record goes first, so a half-deleted one is unsound."""
    if checkpoint.where == "run" and (checkpoint.path / PIN).exists():
        return  # pinned since it was chosen to go
    if checkpoint.path.is_symlink():  # its owner moved it elsewhere: only the name is the run's
        checkpoint.path.unlink()
        return
    (checkpoint.path / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(checkpoint.path)


def set_aside(checkpoint: Checkpoint, folder: str) -> Path:
    """Move a checkpoint out of the run's line into ``<run>/<folder>/``; nothing is deleted."""
    directory = checkpoint.path.parent / folder
    directory.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%S")
    target = directory / f"{checkpoint.path.name}.{stamp}"
    number = 1
    while target.exists():
        number += 1
        target = directory / f"{checkpoint.path.name}.{stamp}.{number}"
    checkpoint.path.rename(target)
    # The new name first: a power cut may leave two names, but not none.
    files.fsync_directory(directory)
    files.fsync_directory(checkpoint.path.parent)
    return target


def aside(run_dir: Path) -> list[Checkpoint]:
    """What lies in ``quarantine/`` and ``set-aside/``, by step; looked at as by ``scan``."""
    found = []
    for where in ASIDE:
        for path in (run_dir / where).glob("checkpoint-*"):
            step = step_of(path.with_name(path.name.partition(".")[0]))
            if step is not None and path.is_dir():
                found.append(replace(_look(path, step), where=where))
    return sorted(found, key=lambda c: (c.step, c.path.name))


def pin(checkpoint: Checkpoint) -> bool:
    """Keep a checkpoint from retention and cleanup, durably; False if it was pinned already.

    Raises:
        Refused: it is damaged, or retention took it at this very moment.
    """
    if not checkpoint.sound:
        raise Refused(f"{checkpoint.path.name} is damaged: {checkpoint.problem}")
    mark = checkpoint.path / PIN
    if mark.exists():
        return False
    try:
        with mark.open("wb") as stream:  # not files.write_text, which makes missing directories
            os.fsync(stream.fileno())
        files.fsync_directory(checkpoint.path)
        problem = _look(checkpoint.path, checkpoint.step).problem
    except FileNotFoundError:
        problem = "it is gone"
    if problem:
        raise Refused(f"{checkpoint.path.name} was deleted while it was being pinned")
    return True


def unpin(checkpoint: Checkpoint) -> bool:
    """Let retention and cleanup have a checkpoint again; False if it was not pinned."""
    mark = checkpoint.path / PIN
    if not mark.exists():
        return False
    mark.unlink(missing_ok=True)
    files.fsync_directory(checkpoint.path)
    return True


_YEAR_5138_S = 1e11


def _look(path: Path, step: int) -> Checkpoint:
    record = read_record(path)
    facts = record or _facts_from_state(path)
    if record:
        problem, size = _size_problem(path, record)
    else:
        problem, size = structure.quick_problem(path), files.directory_bytes(path)
    epoch, loss, eval_loss, eval_reward, saved = (
        files.number(facts.get(name))
        for name in ("epoch", "loss", "eval_loss", "eval_reward", "time")
    )
    if saved is None or not 0 < saved < _YEAR_5138_S:  # what no calendar has is damage
        saved = path.stat().st_mtime
    return Checkpoint(
        step, path, epoch, loss, eval_loss, size, saved,
        record is not None, problem, pinned=(path / PIN).exists(),
        fingerprint=str(facts.get("fingerprint") or ""), eval_reward=eval_reward,
        slim=record is not None and record["schema"] == SLIM_SCHEMA,
    )  # fmt: skip


def read_record(path: Path) -> dict[str, Any] | None:
    """The commit record of a checkpoint; None where there is none that can be read."""
    try:
        record = json.loads((path / COMMIT).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("schema") not in (_COMMIT_SCHEMA, SLIM_SCHEMA):
        return None
    entries = record.get("files")
    whole = isinstance(entries, dict) and all(
        isinstance(e, dict) and {"bytes", "xxh3_64"} <= e.keys() for e in entries.values()
    )
    return record if whole else None


def facts_from_history(state: dict[str, Any]) -> dict[str, Any]:
    """Step, epoch, last loss and the evaluation at this step, from trainer_state.

    Raises:
        TypeError, AttributeError: ``state`` is JSON of another shape.
    """
    step, history = state.get("global_step"), state.get("log_history") or []
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evals = [e for e in history if "eval_loss" in e and e.get("step") == step]
    rewards = [e["eval_reward"] for e in evals if "eval_reward" in e]
    return {
        "step": step,
        "epoch": state.get("epoch"),
        "loss": losses[-1] if losses else None,
        "eval_loss": evals[-1]["eval_loss"] if evals else None,
        **({"eval_reward": rewards[-1]} if rewards else {}),
    }


def _facts_from_state(path: Path) -> dict[str, Any]:
    try:
        return facts_from_history(json.loads((path / "trainer_state.json").read_bytes()))
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _size_problem(path: Path, record: dict[str, Any]) -> tuple[str | None, int]:
    total = 0
    for name, entry in record["files"].items():
        try:
            size = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing", total
        if size != entry["bytes"]:
            return f"{name} has {size} bytes, {entry['bytes']} were committed", total
        total += size
    return None, total


def _hash_problem(path: Path, record: dict[str, Any]) -> str | None:
    for name, entry in record["files"].items():
        digest = xxhash.xxh3_64()
        try:
            with (path / name).open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if digest.hexdigest() != entry["xxh3_64"]:
            return f"{name} is not what was committed (xxh3 differs)"
    return None
