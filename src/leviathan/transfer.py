"""Owns bringing a run or a model to another place and back: forecast, copy, verification.

What arrives lies hidden until every byte was compared; then it gets its names (``landing``). Does
not choose the checkpoint (``parcel``) nor speak ssh (``remote``).
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from leviathan import evidence, files, landing, layers, luggage, parcel, remote, runs
from leviathan.checkpoints import COMMIT
from leviathan.errors import BadInput, LeviathanError, Refused
from leviathan.landing import STAGE
from leviathan.luggage import Luggage
from leviathan.parcel import Parcel
from leviathan.remote import Place

PURPOSES = ("resume", "serve")
_MARGIN_BYTES = 1 << 20


@dataclass(frozen=True)
class Wishes:
    """How something is to travel."""

    purpose: str = "resume"
    checkpoint: str = ""
    """latest, best or N; empty: latest to resume, best to serve."""
    bwlimit: str = ""
    force: bool = False
    """Also what is not proven."""
    dry_run: bool = False

    @property
    def which(self) -> str:
        """The checkpoint asked for."""
        return self.checkpoint or ("best" if self.purpose == "serve" else "latest")


@dataclass(frozen=True)
class Told:
    """Who is told meanwhile."""

    tell: Callable[[str], None] = lambda _: None
    progress: remote.Progress = lambda _: None


@dataclass
class Report:
    """What travelled, or would."""

    what: str
    """run, adapter or model."""
    source: str
    target: str
    checkpoint: int | None = None
    files: dict[str, int] = field(default_factory=dict)
    """Bytes by name."""
    there_already: bool = False
    """Whether the checkpoint, or the model, was there and whole."""
    free_bytes: int | None = None
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What has to be there."""
        return sum(self.files.values())

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "bytes": self.bytes}


# --- there -------------------------------------------------------------------------------


def push_run(
    paths: runs.RunPaths, project: Place, wishes: Wishes, more: Luggage, told: Told
) -> Report:
    """Bring a run to a project's directory in another place.

    Args:
        paths: the run; it may be in training, what is committed counts.
        project: where ``leviathan train`` would be called; it need not exist.
        wishes: for what, which checkpoint.
        more: files of this project that training reads.
        told: who hears of it.

    Raises:
        BadInput: no such checkpoint.
        Refused: the run there is being trained, is another, or knows more; it does not fit.
        LeviathanError: the place cannot be reached, or what arrived is not what was sent.
    """
    record = runs.read(paths)
    served = wishes.purpose == "serve"
    with parcel.snapshot(paths, wishes.which, served=served) as (snapshot, chosen, damaged):
        report = Report("run", str(paths.directory), "", chosen.step, dry_run=wishes.dry_run)
        report.notes += damaged
        if served:
            target = project / "models" / f"{record.name}-{chosen.name}-adapter"
            source = remote.here(snapshot / chosen.name)
            report.what = "adapter"
            _directory(
                source, target, chosen.key, _sizes(snapshot / chosen.name), report, wishes, told
            )
            return report
        target = project / "work" / "training" / paths.directory.name
        report.target = str(target)
        stage = f"{STAGE}{chosen.key}"
        state = landing.look(target, target / stage)
        rejected = None
        if state.is_run:
            with _copied(target, ["/run.json"]) as there:
                theirs = runs.read(runs.RunPaths(there))
            ours = _size(snapshot / "run/metrics.jsonl")
            parcel.demand_behind(theirs, record, target, more_told=state.metrics_bytes > ours)
            rejected = parcel.gone_back_to(theirs, record)
        is_anew = rejected is not None and chosen.step > rejected
        damaged_there = (
            state.there and not is_anew
            and _drop_what_is_there(snapshot, chosen, target, report)
        )  # fmt: skip
        report.files = _sizes(snapshot)
        fresh = luggage.pack(more, project, report.files, report.notes)
        _demand_room(report, state, target, luggage.staged_bytes(more, project, fresh))
        if wishes.dry_run:
            return report
        luggage.send(more, fresh, project, wishes.bwlimit, told.tell, told.progress)
        _send(remote.here(snapshot), landing.prepare(target, stage), wishes, told)
        landing.publish_run(target, stage, state.record, replace=damaged_there, rejected=rejected)
        return report


def _drop_what_is_there(snapshot: Path, chosen: Parcel, target: Place, report: Report) -> bool:
    """Take the checkpoint out of the snapshot where the other end has it; whether it is damaged."""
    record = f"/{chosen.name}/{COMMIT}"
    with _copied(target, [f"/{chosen.name}/", record]) as there:
        copy = there / record[1:]
        if not copy.is_file():
            return False
        if copy.read_bytes() != (snapshot / record[1:]).read_bytes():
            raise Refused(f"{target} has another {chosen.name}, of another training",
                          "move it away there, or give this run another name")  # fmt: skip
    if remote.differing(remote.here(snapshot / chosen.name), target / chosen.name):
        report.notes.append(f"{chosen.name} is damaged there: it goes into quarantine")
        return True
    shutil.rmtree(snapshot / chosen.name)
    report.there_already = True
    return False


def push_model(directory: Path, project: Place, wishes: Wishes, told: Told) -> Report:
    """Bring a merged model to another place, with its proof.

    Raises:
        BadInput: it is no model.
        Refused: it is not proven, or has changed since (unless forced); it does not fit.
        LeviathanError: see ``push_run``.
    """
    found = evidence.demand(directory, force=wishes.force)
    report = Report("model", str(directory), "", dry_run=wishes.dry_run)
    if found.verdict != "equal":
        report.notes.append(f"not proven: {found.reason}")
    inside = bool(directory.name) and not directory.is_absolute() and ".." not in directory.parts
    name = directory.as_posix() if inside else f"models/{directory.resolve().name}"
    sizes = _sizes(directory)
    key = _key(directory, sizes)
    _directory(remote.here(directory), project / name, key, sizes, report, wishes, told)
    return report


def _directory(
    source: Place, target: Place, key: str, sizes: dict[str, int], report: Report,
    wishes: Wishes, told: Told,
) -> None:  # fmt: skip
    """Send a directory as one that is there whole or not at all."""
    up, _, name = target.directory.rpartition("/")
    parent, stage = replace(target, directory=up or "/"), f"{STAGE}{key}"
    report.target, report.files = str(target), sizes
    state = landing.look(target, parent / stage)
    if state.there:
        if remote.differing(source, target):
            raise Refused(f"{target} is there, and is another", "move it away, or choose another")
        report.there_already = True
        return
    _demand_room(report, state, target)
    if wishes.dry_run:
        return
    _send(source, landing.prepare(parent, stage), wishes, told)
    landing.publish_directory(parent, stage, name)


def _send(source: Place, stage: Place, wishes: Wishes, told: Told) -> None:
    """Copy, compare every byte, copy again what differs, once."""
    remote.copy(source, stage, bwlimit=wishes.bwlimit, progress=told.progress)
    wrong = remote.differing(source, stage)
    if wrong:
        told.tell(f"arrived otherwise than sent, sent again: {', '.join(wrong)}")
        remote.copy(source, stage, bwlimit=wishes.bwlimit, more=["--checksum"])
        wrong = remote.differing(source, stage)
    if wrong:
        raise LeviathanError(f"{stage} does not hold what was sent: {', '.join(wrong)}",
                             "nothing was changed there; look at its disk and memory")  # fmt: skip


def _demand_room(
    report: Report, state: landing.State, target: Place, staged_bytes: int = 0
) -> None:
    """``staged_bytes`` of an earlier attempt lie elsewhere than the run's own."""
    report.free_bytes = state.free_bytes
    needed = report.bytes - min(state.staged_bytes + staged_bytes, report.bytes)
    if state.free_bytes is not None and needed + needed // 100 + _MARGIN_BYTES > state.free_bytes:
        raise Refused(
            f"{needed / 2**20:,.1f} MiB do not fit: {target} has "
            f"{state.free_bytes / 2**20:,.1f} MiB free",
            "make room there; --for serve sends the adapter only",
        )


# --- back --------------------------------------------------------------------------------


def pull(source: Place, project: Path, wishes: Wishes, told: Told) -> Report:
    """Bring a run's or a model's directory from another place into this project.

    A run may be in training there: what is committed counts.

    Raises:
        BadInput: there is no such run, model or checkpoint.
        Refused: the run here is being trained, is another, or knows more; it does not fit.
        LeviathanError: the place cannot be reached, or what arrived is not sound.
    """
    state = landing.look(source)
    if not state.there:
        raise BadInput(f"there is no {source}")
    if not state.is_run:
        return _pull_model(source, project, wishes, told)
    refused: dict[int, str] = {}
    while True:
        report = _pull_run(source, state, project, wishes, told, refused)
        if report is not None:
            report.notes += [
                f"checkpoint-{step} is damaged there: {w}" for step, w in refused.items()
            ]
            return report


@dataclass(frozen=True)
class _Offer:
    """What a run in another place has to give."""

    record: runs.RunRecord
    parcel: Parcel
    commit: bytes
    metrics_bytes: int


def _offer(source: Place, seen: landing.State, wishes: Wishes, refused: dict[int, str]) -> _Offer:
    patterns = ["/run.json", "/checkpoint-*/", f"/checkpoint-*/{COMMIT}"]
    with _copied(source, patterns) as there:
        record = runs.read(runs.RunPaths(there))
        found = [c for c in parcel.listed(there) if c.step not in refused]
        if refused and not found:
            raise LeviathanError(f"no checkpoint of {source} is sound", _told(refused))
        served = wishes.purpose == "serve"
        first = parcel.wanted(found, wishes.which, source, served=served)[0]
        commit = (first.path / COMMIT).read_bytes()
    chosen = parcel.parcel(first.step, commit, served=served)
    return _Offer(record, chosen, commit, seen.metrics_bytes)


def _pull_run(
    source: Place, seen: landing.State, project: Path, wishes: Wishes, told: Told,
    refused: dict[int, str],
) -> Report | None:  # fmt: skip
    """One attempt; None where the checkpoint went away or is damaged there, which is noted."""
    offer = _offer(source, seen, wishes, refused)
    chosen = offer.parcel
    report = Report("run", str(source), "", chosen.step, dry_run=wishes.dry_run)
    report.files = {f"{chosen.name}/{n}": int(e["bytes"]) for n, e in chosen.entries.items()}
    name = layers.checked_name(offer.record.name, "the run's name")
    bring = _bring_adapter if wishes.purpose == "serve" else _bring_run
    problem = bring(source, offer, project, name, report, wishes, told)
    if problem is None:
        return report
    if problem != _GONE:
        refused[chosen.step] = problem
    return None


_GONE = "gone"


def _bring_run(
    source: Place, offer: _Offer, project: Path, name: str, report: Report, wishes: Wishes,
    told: Told,
) -> str | None:  # fmt: skip
    chosen, mine = offer.parcel, project / runs.TRAINING / name
    place, stage = remote.here(mine), f"{STAGE}{offer.parcel.key}"
    report.target = str(mine)
    state = landing.look(place, place / stage)
    rejected = None
    if state.is_run:
        more_told = state.metrics_bytes > offer.metrics_bytes
        old = runs.read(runs.RunPaths(mine))
        parcel.demand_behind(old, offer.record, mine, more_told=more_told)
        rejected = parcel.gone_back_to(old, offer.record)
    held, is_anew = mine / chosen.name, rejected is not None and chosen.step > rejected
    is_held = not is_anew and _bytes(held / COMMIT) == offer.commit
    report.there_already = is_held and chosen.problem(held) is None
    if not report.there_already:
        _demand_room(report, state, place)
    if wishes.dry_run:
        return None
    landing.prepare(place, stage)
    made = mine / stage
    if not report.there_already:
        problem = _fetch(source / chosen.name, made / chosen.name, chosen, wishes, told, [])
        if problem:
            shutil.rmtree(made)
            return problem
    (made / "run").mkdir(exist_ok=True)
    remote.fetch(source, remote.here(made / "run"), [f"/{name}" for name in parcel.RUN_FILES])
    runs.read(runs.RunPaths(made / "run"))  # whole, or it is not taken
    landing.publish_run(
        place, stage, state.record, replace=not report.there_already, rejected=rejected
    )
    return None


def _bring_adapter(
    source: Place, offer: _Offer, project: Path, name: str, report: Report, wishes: Wishes,
    told: Told,
) -> str | None:  # fmt: skip
    chosen, stage = offer.parcel, f"{STAGE}{offer.parcel.key}"
    parent, name = remote.here(project / "models"), f"{name}-{chosen.name}-adapter"
    report.what, report.target = "adapter", str(project / "models" / name)
    state = landing.look(parent / name, parent / stage)
    if state.there:
        problem = chosen.problem(Path(report.target))
        if problem:
            raise Refused(f"{report.target} is there, and is another: {problem}", "move it away")
        report.there_already = True
        return None
    _demand_room(report, state, parent)
    if wishes.dry_run:
        return None
    landing.prepare(parent, stage)
    made = project / "models" / stage
    more = [f"--exclude={pattern}" for pattern in parcel.NOT_SERVED]
    problem = _fetch(source / chosen.name, made, chosen, wishes, told, more)
    if problem:
        shutil.rmtree(made)
        return problem
    files.write_json(made / parcel.SERVED, parcel.description(offer.record, chosen))
    landing.publish_directory(parent, stage, name)
    return None


def _fetch(
    source: Place, body: Path, chosen: Parcel, wishes: Wishes, told: Told, more: list[str]
) -> str | None:
    """Copy a checkpoint here; what is wrong with it then: ``gone``, or a damage at its source."""
    body.mkdir(exist_ok=True)
    target = remote.here(body)
    for attempt in (more, [*more, "--checksum"]):
        try:
            remote.copy(
                source, target, bwlimit=wishes.bwlimit, progress=told.progress, more=attempt
            )
        except remote.Vanished:
            return _GONE
        problem = chosen.problem(body)
        if problem is None:
            return None
    with _copied(source, [f"/{COMMIT}"]) as there:
        return problem if (there / COMMIT).is_file() else _GONE


def _pull_model(source: Place, project: Path, wishes: Wishes, told: Told) -> Report:
    """Proven here, by the hashes in its proof, before it gets its name."""
    name = source.directory.rstrip("/").rpartition("/")[2]
    if name in {"", ".", ".."}:
        raise BadInput(f"{source} does not say what the model is called", "name its directory")
    with _copied(source, [f"/{evidence.PROOF}", f"/{parcel.SERVED}", "/config.json"]) as there:
        kept = sorted(there.iterdir())
        key = xxhash.xxh3_64_hexdigest(b"".join(path.read_bytes() for path in kept))
    if not kept:
        raise BadInput(f"{source} is neither a run nor a model", "name the directory of one")
    report = Report("model", str(source), str(project / "models" / name), dry_run=wishes.dry_run)
    parent, stage = remote.here(project / "models"), f"{STAGE}{key}"
    state = landing.look(parent / name, parent / stage)
    report.files = remote.listing(source)
    if state.there:
        if remote.differing(source, parent / name):
            raise Refused(f"{report.target} is there, and is another", "move it away")
        report.there_already = True
        return report
    _demand_room(report, state, parent)
    if wishes.dry_run:
        return report
    _send(source, landing.prepare(parent, stage), wishes, told)
    evidence.demand(Path(parent.directory) / stage, force=wishes.force)
    landing.publish_directory(parent, stage, name)
    return report


# --- small things ------------------------------------------------------------------------


@contextmanager
def _copied(source: Place, patterns: list[str]) -> Iterator[Path]:
    """Small files of a place, here for a moment."""
    with tempfile.TemporaryDirectory() as directory:
        remote.fetch(source, remote.here(Path(directory)), patterns)
        yield Path(directory)


def _sizes(directory: Path) -> dict[str, int]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}


def _key(directory: Path, sizes: dict[str, int]) -> str:
    proof = _bytes(directory / evidence.PROOF) or b""
    return xxhash.xxh3_64_hexdigest(proof + repr(sorted(sizes.items())).encode())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _told(refused: dict[int, str]) -> str:
    return "; ".join(f"checkpoint-{step}: {why}" for step, why in refused.items())
