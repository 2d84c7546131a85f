"""Owns the run directory: its record, sessions, events, metrics, and the truth of its state.

Does not start processes (``launch``), judge checkpoints (``checkpoints``), nor lock (``writer``).
"""

import glob
import json
import math
import os
import time
import types
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin, get_type_hints

import psutil

from leviathan import files, machine
from leviathan.errors import BadInput

SCHEMA = 1
TRAINING = Path("work/training")
SUPERVISOR_VARIABLE = "LEVIATHAN_SUPERVISOR"
"""Holds the supervisor's identity in the environment of every process of a run."""


@dataclass
class Session:
    """One launch of a run."""

    number: int
    started: float
    supervisor: dict[str, Any]
    resumed_from: int | None = None
    ended: float | None = None
    """Of one whose supervisor died: when it was last heard of, once the next session begins."""
    outcome: str | None = None
    """done, stopped, failed or killed; None while running or when the supervisor died."""
    seconds: float | None = None
    """How long it took, whatever was done to the clock meanwhile; known once it has ended."""


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
    again: str = ""
    """The command that goes on with the run."""
    state: str = "new"
    """new, running, stopped, done or failed, as last written; see ``true_state``."""
    sessions: list[Session] = field(default_factory=list)
    adjustments: list[dict[str, Any]] = field(default_factory=list)
    """Rungs of the out-of-memory ladder taken: {before, after, why}, in order."""
    successor: dict[str, Any] | None = None
    """{name, overrides} of the smaller run begun instead (``train --shrink``): its overrides
    come on top of the command's."""
    budget: dict[str, Any] = field(default_factory=dict)
    """{max_hours, budget_usd, usd_hour} of the newest session; null where there is no limit."""
    stage: str = ""
    """Which stage of a recipe with several this run is; its name is ``<whole>.<stage>``."""
    stages: list[str] = field(default_factory=list)
    """All of them, in order."""
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
    def base(self) -> Path:
        """The base model where Leviathan makes it: the stage before, or a model from nothing."""
        return self.directory / "base"

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
    def telemetry(self) -> Path:
        """What the machine did meanwhile (``telemetry``)."""
        return self.directory / "gpu.jsonl"

    @property
    def plan(self) -> Path:
        """What was expected of the run when it began (``expected``)."""
        return self.directory / "plan.json"

    @property
    def provenance(self) -> Path:
        """Where each setting of the newest launch came from (``provenance``)."""
        return self.directory / "provenance.json"

    @property
    def tests(self) -> Path:
        """How its model did in the prompt suite (``grades``)."""
        return self.directory / "tests.json"

    @property
    def report(self) -> Path:
        """The report, where no other place was asked for."""
        return self.directory / "report.html"

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
    def store(self) -> Path:
        """Through it the processes of a CPU run meet."""
        return self.directory / ".store"

    @property
    def launcher_store(self) -> Path:
        """torchrun's own, which it shares with no one."""
        return self.directory / ".launcher_store"

    @property
    def hosts(self) -> Path:
        """The head's mark, by which other hosts know that this directory is the head's, too."""
        return self.directory / ".hosts.json"

    @property
    def stop(self) -> Path:
        """Its existence asks the training process to save and stop; it holds the reason."""
        return self.directory / ".stop"

    @property
    def save(self) -> Path:
        """Its existence asks the training process for a checkpoint after the step it is in."""
        return self.directory / ".save"

    @property
    def lock(self) -> Path:
        return self.directory / ".lock"

    @property
    def holder(self) -> Path:
        """Identity of the process that holds ``lock``."""
        return self.directory / ".lock.json"


def read(paths: RunPaths) -> RunRecord:
    """The run's record.

    Raises:
        BadInput: no run here, a damaged record, or one of a newer Leviathan.
    """
    try:
        document = json.loads(paths.record.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(f"{paths.directory} is not a run (it has no run.json)") from error
    except OSError as error:  # one such run must not hide the others from runs list
        raise BadInput(f"{paths.record} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
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
        sessions = [Session(**_known(Session, told)) for told in document.pop("sessions")]
        record = RunRecord(**_known(RunRecord, document), sessions=sessions)
        _refuse_wrong_types(record)
        for session in sessions:
            _refuse_wrong_types(session)
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"{paths.record} is damaged: {error}", "restore it, or move the run away"
        ) from error
    return record


def _known(kind: type[RunRecord] | type[Session], told: Any) -> dict[str, Any]:
    """What this version knows of what a later one has written; its schema says it may."""
    names = {known.name for known in fields(kind)}
    if not isinstance(told, dict):
        raise TypeError(f"a {kind.__name__.lower()} is {told!r:.40}")
    return {name: value for name, value in told.items() if name in names}


def _refuse_wrong_types(part: RunRecord | Session) -> None:
    for name, hint in get_type_hints(type(part)).items():
        if not _fits(getattr(part, name), hint):
            raise TypeError(f"{name} is {getattr(part, name)!r:.40}")


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint is Any:
        return True
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is list:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if kind is dict and parts[1] is str:
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    if isinstance(value, bool):  # to isinstance it is a number
        return False
    return isinstance(value, int | float if kind is float else kind)


def write(paths: RunPaths, record: RunRecord) -> None:
    """Replace the run's record durably."""
    files.write_json(paths.record, asdict(record))


def find(name: str | None, root: Path = TRAINING, *, living: bool = False) -> RunPaths:
    """The run called ``name`` (a name or a directory); the only run when None.

    Of a training in stages its name means the stage that trains, else the last one begun.
    With ``living``, the only one that runs is found among several that do not.

    Raises:
        BadInput: no such run, or several to choose from.
    """
    if name is None:
        known = known_runs(root)
        chosen = known
        if living and len(known) > 1:
            chosen = [paths for paths in known if _lives(paths)]
        if len(chosen) == 1:
            return chosen[0]
        wholes = {whole_of(paths) for paths in known}
        if len(wholes) == 1 and (whole := wholes.pop()):
            return find(whole, root)
        listed = ", ".join(paths.directory.name for paths in known) or "none"
        raise BadInput("which run? name it", f"runs in {root}: {listed}")
    for directory in (root / name, Path(name)):
        if (directory / "run.json").is_file():
            return RunPaths(directory)
    stages = of_stages(name, root)
    if stages:
        return next((paths for paths in stages if _lives(paths)), stages[-1])
    listed = ", ".join(sorted(path.parent.name for path in root.glob("*/run.json"))) or "none"
    raise BadInput(f"no run {name!r}", f"runs in {root}: {listed}")


def known_runs(root: Path = TRAINING) -> list[RunPaths]:
    """Every run below ``root``, damaged ones among them, by name."""
    return [RunPaths(path.parent) for path in sorted(root.glob("*/run.json"))]


def of_stages(whole: str, root: Path = TRAINING) -> list[RunPaths]:
    """The runs begun of a training in stages, in the order of its stages."""
    if "/" in whole:  # a directory, not a name
        return []
    found = [RunPaths(path.parent) for path in root.glob(f"{glob.escape(whole)}.*/run.json")]
    places = {}
    for paths in found:
        with suppress(BadInput):
            record = read(paths)
            if paths.directory.name == f"{whole}.{record.stage}" and record.stage in record.stages:
                places[paths] = record.stages.index(record.stage)
    return sorted(places, key=places.__getitem__)


def whole_of(paths: RunPaths) -> str:
    """What all stages together are called, where this run is a stage; else ""."""
    try:
        stage = read(paths).stage
    except BadInput:
        return ""
    name = paths.directory.name
    return name.removesuffix(f".{stage}") if stage and name.endswith(f".{stage}") else ""


def _lives(paths: RunPaths) -> bool:
    try:
        return true_state(read(paths)) == "running" or orphan(paths) is not None
    except BadInput:
        return False


def still_s(paths: RunPaths) -> float:
    """Seconds since the training process, rank 0 of it, gave its last sign of life."""
    try:
        return time.time() - paths.phase.stat().st_mtime
    except OSError:
        return math.inf


def orphan(paths: RunPaths) -> int | None:
    """Pid of a training process that outlived its supervisor; None if there is none."""
    holder = identity_in(paths.holder)
    if holder and holder["pid"] != os.getpid() and machine.is_alive(holder):
        return None
    for path in (paths.heartbeat, paths.launcher):
        identity = identity_in(path)
        if identity and machine.is_alive(identity):
            return int(str(identity["pid"]))
    return None


def is_of(process: psutil.Process, supervisors: Collection[dict[str, Any]]) -> bool:
    """Whether one of these launched the process, whatever its parent, group and session became.

    Raises:
        psutil.Error, OSError: it has ended, or is another user's.
    """
    told = process.environ().get(SUPERVISOR_VARIABLE)
    try:
        return told is not None and json.loads(told) in supervisors
    except (ValueError, RecursionError):
        return False


def identity_in(path: Path) -> dict[str, Any] | None:
    """The process identity written to ``path``, if it is whole."""
    try:
        identity = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
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
    kinds = (e for e in found if isinstance(e.get("event"), str))
    return [e for e in kinds if session in (None, e.get("session"))]


_BEGINNINGS = {"start", "resume"}


def metrics(paths: RunPaths) -> list[dict[str, Any]]:
    """Log lines by step. What was trained after the checkpoint a session began from is lost."""
    told = events(paths)
    return undisputed(files.read_json_lines(paths.metrics), beginnings(told))


def beginnings(told: Iterable[dict[str, Any]]) -> dict[int, int]:
    """The step each session began from, as events tell it."""
    return {
        e["session"]: e["step"]
        for e in told
        if e["event"] in _BEGINNINGS and is_whole(e.get("session")) and is_whole(e.get("step"))
    }


def undisputed(lines: Iterable[dict[str, Any]], began: dict[int, int]) -> list[dict[str, Any]]:
    """Log lines without what a later session went back behind (``beginnings``)."""
    kept: list[dict[str, Any]] = []
    session = None
    for line in lines:
        if not is_whole(line.get("step")) or not is_whole(line.get("session")):
            continue
        if line["session"] != session:
            session = line["session"]
            last = began.get(session, line["step"] - 1)
            while kept and kept[-1]["step"] > last:
                kept.pop()
        kept.append(line)
    return kept


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value read from a file is a whole number, and of a size to compute with."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def last_heard(record: RunRecord, lines: Iterable[dict[str, Any]]) -> dict[int, float]:
    """When each session was last heard of: its end, or its last event or log line.

    A session whose supervisor was killed has no end of its own.
    """
    heard = {s.number: max(s.started, s.ended or 0.0) for s in record.sessions}
    for line in lines:
        session, moment = line.get("session"), files.number(line.get("time"))
        if is_whole(session) and session in heard and moment is not None:
            heard[session] = max(heard[session], moment)
    return heard


def seconds(record: RunRecord, heard: dict[int, float], now: float | None = None) -> float:
    """Wall-clock seconds of all sessions; the last one lasts until ``now`` where it is given."""
    total = 0.0
    for session in record.sessions:
        if session.seconds is not None:
            total += max(session.seconds, 0.0)
            continue
        ended = heard[session.number] if session.ended is None else session.ended
        if now is not None and session is record.sessions[-1]:
            ended = now
        total += max(ended - session.started, 0.0)
    return total


def true_state(record: RunRecord) -> str:
    """The run's state, checked against the process table: a dead run says crashed."""
    if record.state != "running" or not record.sessions:
        return record.state
    return "running" if machine.is_alive(record.sessions[-1].supervisor) else "crashed"
