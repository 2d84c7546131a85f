"""Owns making a model's directory aside, alone, and giving it its name when it is finished.

Does not know what is made in it (``merge``, ``exports``, ``scratch``).
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from leviathan import child, evidence, files, fusion, signals
from leviathan.errors import BadInput, Refused


def demand_name(directory: Path, *, replace: bool) -> None:
    """See that a model may be given this name; only reads.

    Raises:
        BadInput: it is taken by anything but an earlier model of ours that may be replaced.
    """
    taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if taken and not (directory / evidence.PROOF).is_file():
        raise BadInput(f"{directory} exists and is no merged model", "choose another --output")
    if taken and not replace:
        raise BadInput(
            f"{directory} exists already", "choose another with --output, or --force to replace it"
        )


@contextmanager
def aside(
    directory: Path, tell: Callable[[str], None], doing: str = "merging into"
) -> Iterator[Path]:
    """A hidden directory beside ``directory`` to make it in; nobody else is at it meanwhile.

    A power cut leaves no half model under the real name.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    # SIGTERM and SIGHUP unwind like Ctrl+C, so that the child at work is ended too.
    with (
        _alone(directory, doing),
        signals.interrupting(),
        _partial(directory, tell) as partial,
    ):
        _give_back(directory)
        yield partial


def _old(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def _give_back(directory: Path) -> None:
    """An earlier model that a kill in the middle of its replacement left without its name."""
    if _old(directory).is_dir() and not directory.exists():
        _old(directory).rename(directory)


@contextmanager
def _alone(directory: Path, doing: str) -> Iterator[None]:
    """Be the only one that makes ``directory``."""
    lock = filelock.FileLock(directory.with_name(f".{directory.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise Refused(f"another process is {doing} {directory}", "wait for it") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _partial(directory: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """The hidden directory that all is made in. Signals and failures leave it to go on from.

    Not so a merge that was refused or found the disk full: what cannot go on takes no room.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    partial.mkdir(exist_ok=True)
    try:
        yield partial
    except (Refused, BadInput, child.DiskFull, OSError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except BaseException:
        if not (partial / fusion.PROGRESS).exists():
            shutil.rmtree(partial, ignore_errors=True)
            raise
        kept = files.directory_bytes(partial) / 1e9
        tell(f"{kept:.2f} GB are kept in {partial}: the same command goes on from there")
        raise
    shutil.rmtree(partial, ignore_errors=True)


def put_in_place(made: Path, directory: Path, verdict: str) -> Path:
    """Give what was made its name; returns the name it got.

    An earlier model is replaced only by one that is proven; an unproven one goes to
    ``<directory>.unverified`` then.
    """
    files.fsync_tree(made)
    aside = _old(directory)
    taken = directory.exists() and any(directory.iterdir())
    if taken and verdict != "equal":
        directory = directory.with_name(f"{directory.name}.unverified")
        demand_name(directory, replace=True)
        shutil.rmtree(directory, ignore_errors=True)
    elif directory.exists():
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
    made.rename(directory)
    files.fsync_directory(directory.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return directory
