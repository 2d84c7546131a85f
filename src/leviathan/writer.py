"""Owns being a run's one writer: its lock, and who holds it.

Does not know what is written (``runs``).
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from leviathan import files, machine, runs
from leviathan.errors import Refused
from leviathan.runs import RunPaths


@contextmanager
def locked(paths: RunPaths) -> Iterator[None]:
    """Be the run's one writer, by a kernel lock that dies with this process.

    Raises:
        Refused: another process holds it; the message says which.
    """
    import filelock  # readers, who are to answer in a moment, take no lock

    lock = filelock.FileLock(paths.lock)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise _taken(paths, _holder(paths)) from error
    holder = runs.identity_in(paths.holder)
    if holder and holder["pid"] != os.getpid() and machine.is_alive(holder):
        lock.release()  # somebody deleted the lock file: its holder locks a nameless one
        raise _taken(paths, f"process {holder['pid']}")
    try:
        files.write_json(paths.holder, machine.process_identity())
        yield
    finally:
        # Before the release: what a process left here that still lives is the holder's.
        with suppress(OSError):  # a disk that went read-only must not hide what happened
            paths.holder.unlink(missing_ok=True)
        lock.release()


def _taken(paths: RunPaths, holder: str) -> Refused:
    return Refused(
        f"{paths.directory.name} is already being trained by {holder}",
        "wait for it or stop it; two writers would ruin the run",
    )


_HOLDER_WAIT_S = 3.0


def _holder(paths: RunPaths) -> str:
    """Who holds the lock; a moment after it was taken, the file may still name a dead one."""
    end = time.monotonic() + _HOLDER_WAIT_S
    while time.monotonic() < end:
        identity = runs.identity_in(paths.holder)
        if identity and machine.is_alive(identity):
            return f"process {identity['pid']}"
        time.sleep(0.05)
    return "another process"
