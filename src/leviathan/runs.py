"""Owns the run directory: its record, sessions, events, metrics, lock and the truth of its state.

Does not start processes (``launch``) nor judge checkpoints (``checkpoints``).
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from leviathan import files, machine
from leviathan.errors import BadInput, Refused

SCHEMA = 1
TRAINING = Path("work/training")


@dataclass
class Session:
    """One launch of a run."""

    number: int
    started: float
    supervisor: dict[str, Any]
    resumed_from: int | None = None
    ended: float | None = None
    outcome: str | None = None
    """done, stopped, failed or killed; None while running or when the supervisor died."""


@dataclass
class RunRecord:
    """``run.json``: what the run is, and every session it took."""

    name: str
    recipe: str
    profile: str
    sample: str
    overrides: list[str]
    settings: dict[str, Any]
    """The recipe's own keys, so that merge and test need no recipe file."""
    tree: dict[str, Any]
    """The Axolotl keys of the first launch, before run paths were put in."""
    processes: int
    """Processes trained on; the effective batch grows with them."""
    corpus: dict[str, Any]
    base: str | None
    """Digest of a local base model's files; None for a name on the hub."""
    versions: dict[str, str]
    created: float
    state: str = "new"
    """new, running, stopped, done or failed, as last written; see ``true_state``."""
    sessions: list[Session] = field(default_factory=list)
    adjustments: list[dict[str, Any]] = field(default_factory=list)
    """Rungs of the out-of-memory ladder taken: {before, after, why}, in order."""
    successor: dict[str, Any] | None = None
    """{name, overrides} of the smaller run begun instead (``train --shrink``): its overrides
    come on top of the command's."""
    schema: int = SCHEMA


@dataclass(frozen=True)
class RunPaths:
    """Names inside a run directory."""

    directory: Path

    @property
    def record(self) -> Path:
        return self.directory / "run.json"

    @property
    def config(self) -> Path:
        return self.directory / "axolotl.yaml"

    @property
    def accelerate(self) -> Path:
        return self.directory / "accelerate.yaml"

    @property
    def events(self) -> Path:
        return self.directory / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def prepared(self) -> Path:
        return self.directory / "prepared"

    @property
    def prepared_mark(self) -> Path:
        """Exists once the tokenised dataset in ``prepared`` is whole."""
        return self.directory / ".prepared"

    @property
    def heartbeat(self) -> Path:
        """Written by the plugin; proof that it runs inside the training process."""
        return self.directory / ".plugin.json"

    @property
    def launcher(self) -> Path:
        """Identity of the launched process, so that an orphan of a killed supervisor is known."""
        return self.directory / ".launcher.json"

    @property
    def phase(self) -> Path:
        """What the training process is at; its file time is the sign of life."""
        return self.directory / ".phase.json"

    @property
    def pause(self) -> Path:
        """Its existence makes training wait between two steps."""
        return self.directory / ".pause"

    @property
    def stop(self) -> Path:
        """Its existence asks the training process to save and stop; it holds the reason."""
        return self.directory / ".stop"

    @property
    def lock(self) -> Path:
        return self.directory / ".lock"


def read(paths: RunPaths) -> RunRecord:
    """The run's record.

    Raises:
        BadInput: no run here, a damaged record, or one of a newer Leviathan.
    """
    try:
        document = json.loads(paths.record.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"{paths.directory} is not a run (it has no run.json)") from error
    except ValueError as error:
        raise BadInput(
            f"{paths.record} is damaged: {error}", "restore it, or move the run away"
        ) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else None
        raise BadInput(
            f"{paths.record} has schema {found}; this Leviathan reads {SCHEMA}",
            "use the Leviathan version that wrote it",
        )
    try:
        sessions = [Session(**session) for session in document.pop("sessions")]
        return RunRecord(**document, sessions=sessions)
    except (KeyError, TypeError) as error:
        raise BadInput(f"{paths.record} is damaged: {error}") from error


def write(paths: RunPaths, record: RunRecord) -> None:
    """Replace the run's record durably."""
    files.write_json(paths.record, asdict(record))


def find(name: str | None, root: Path = TRAINING) -> RunPaths:
    """The run called ``name`` (a name or a directory); the only run when None.

    Raises:
        BadInput: no such run, or several to choose from.
    """
    if name is None:
        known = sorted(path.parent for path in root.glob("*/run.json"))
        if len(known) == 1:
            return RunPaths(known[0])
        listed = ", ".join(path.name for path in known) or "none"
        raise BadInput("which run? name it", f"runs in {root}: {listed}")
    for directory in (root / name, Path(name)):
        if (directory / "run.json").is_file():
            return RunPaths(directory)
    listed = ", ".join(sorted(path.parent.name for path in root.glob("*/run.json"))) or "none"
    raise BadInput(f"no run {name!r}", f"runs in {root}: {listed}")


@contextmanager
def locked(paths: RunPaths) -> Iterator[None]:
    """Be the run's one writer, by a kernel lock that dies with this process.

    Raises:
        Refused: another process holds it; the message says which.
    """
    lock = filelock.FileLock(paths.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        holder = paths.lock.with_name(".lock.json")
        raise Refused(
            f"{paths.directory.name} is already being trained by {_holder(holder)}",
            "wait for it or stop it; two writers would ruin the run",
        ) from error
    try:
        files.write_json(paths.lock.with_name(".lock.json"), machine.process_identity())
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return f"process {json.loads(path.read_bytes())['pid']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def orphan(paths: RunPaths) -> int | None:
    """Pid of a training process that outlived its supervisor; None if there is none."""
    holder = identity_in(paths.lock.with_name(".lock.json"))
    if holder and holder["pid"] != os.getpid() and machine.is_alive(holder):
        return None
    for path in (paths.heartbeat, paths.launcher):
        identity = identity_in(path)
        if identity and machine.is_alive(identity):
            return int(str(identity["pid"]))
    return None


def identity_in(path: Path) -> dict[str, Any] | None:
    """The process identity written to ``path``, if it is whole."""
    try:
        identity = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return identity if isinstance(identity, dict) and "pid" in identity else None


def event(paths: RunPaths, kind: str, /, **facts: Any) -> None:
    """Append one event; ``kind`` is start, resume, save, stop, quarantine, ...

    Events tell a story and decide nothing: one that a full disk refuses is left out.
    """
    with files.unless_full():
        files.append_json(paths.events, {"time": time.time(), "event": kind, **facts})


def events(paths: RunPaths, session: int | None = None) -> list[dict[str, Any]]:
    """Events in the order written, of one session or of all."""
    found = files.read_json_lines(paths.events)
    return [e for e in found if "event" in e and session in (None, e.get("session"))]


_BEGINNINGS = {"start", "resume"}


def metrics(paths: RunPaths) -> list[dict[str, Any]]:
    """Log lines by step. What was trained after the checkpoint a session began from is lost."""
    kept: list[dict[str, Any]] = []
    began = {e.get("session"): e.get("step") for e in events(paths) if e["event"] in _BEGINNINGS}
    session = None
    for line in files.read_json_lines(paths.metrics):
        step = line.get("step")
        if not isinstance(step, int):
            continue
        if line.get("session") != session:
            session = line.get("session")
            last = began.get(session, step - 1)
            while kept and kept[-1]["step"] > last:
                kept.pop()
        kept.append(line)
    return kept


def session_seconds(paths: RunPaths, record: RunRecord) -> float:
    """Wall-clock seconds of all sessions that ended, well or not.

    A session whose supervisor was killed has no end: its last event or log line counts.
    """
    last: dict[Any, float] = {}
    for line in (*events(paths), *files.read_json_lines(paths.metrics)):
        if isinstance(line.get("time"), int | float):
            last[line.get("session")] = max(last.get(line.get("session"), 0.0), line["time"])
    ends = ((s.ended or last.get(s.number, s.started), s.started) for s in record.sessions)
    return sum(max(ended - started, 0.0) for ended, started in ends)


def true_state(record: RunRecord) -> str:
    """The run's state, checked against the process table: a dead run says crashed."""
    if record.state != "running" or not record.sessions:
        return record.state
    return "running" if machine.is_alive(record.sessions[-1].supervisor) else "crashed"
