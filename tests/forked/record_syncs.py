"""Records what a power cut could leave: the run directory at every sync of this process.

Run first thing in a training process (``FORK_HOOK``) and, as ``sitecustomize``, in the
supervisor. Before each ``os.fsync`` and ``os.sync`` one line is written to
``$RECORD_TO/syncs.jsonl``: what is being synced, and every directory entry and file of
``$RECORD_ROOT`` at that moment, by inode; contents go to ``$RECORD_TO/blobs``. Both
processes write one log, in turn. ``RECORD_KILL_AT``, a part of a path, ends the
process, once, instead of syncing that file.
"""

import atexit
import fcntl
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import xxhash

ROOT, TO = Path(os.environ["RECORD_ROOT"]), Path(os.environ["RECORD_TO"])
KILL_AT = os.environ.get("RECORD_KILL_AT")
# They only grow, nobody reads them to resume, and they would double every state.
IGNORED = {"logs", "debug.log"}
_known: dict[tuple, str] = {}
_fsync, _sync = os.fsync, os.sync


def _blob(path: Path, stat: os.stat_result) -> str:
    key = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _known:
        data = path.read_bytes()
        name = _known[key] = xxhash.xxh3_64_hexdigest(data)
        (TO / "blobs" / name).write_bytes(data)
    return _known[key]


def _look(directory: Path, dirs: dict, files: dict) -> None:
    entries = dirs[str(directory.stat().st_ino)] = {}
    for path in directory.iterdir():
        if path.name in IGNORED:
            continue
        with suppress(FileNotFoundError):  # the other process may be at work
            stat = path.stat()
            if path.is_dir():
                _look(path, dirs, files)
            else:
                files[str(stat.st_ino)] = [_blob(path, stat), stat.st_mtime_ns]
            entries[path.name] = str(stat.st_ino)


def record(what: str, inode: int | None = None) -> None:
    """One line: ``what`` (file, dir, all or end) is being synced."""
    if not ROOT.is_dir():
        return
    with (TO / "lock").open("w") as lock, (TO / "syncs.jsonl").open("a") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dirs: dict = {}
        files: dict = {}
        _look(ROOT, dirs, files)
        line = {"what": what, "inode": str(inode), "root": str(ROOT.stat().st_ino)}
        log.write(json.dumps({**line, "dirs": dirs, "files": files}) + "\n")


def fsync(fd) -> None:
    number = fd if isinstance(fd, int) else fd.fileno()
    path = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
    if path.startswith(str(ROOT)):
        record("dir" if Path(path).is_dir() else "file", os.fstat(number).st_ino)
        killed = TO / "killed"
        if KILL_AT and KILL_AT in path and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    _fsync(fd)


def sync() -> None:
    record("all")
    _sync()


(TO / "blobs").mkdir(parents=True, exist_ok=True)
os.fsync, os.sync = fsync, sync
atexit.register(record, "end")
