"""Owns durable files: atomic replacement, fsync, append-only JSON lines.

Does not own what is in them: run records are ``runs``, commit records ``checkpoints``.
"""

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def fsync_directory(path: Path) -> None:
    """Make renames and new names inside ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(path: Path) -> None:
    """Make everything below ``path`` survive a power cut, whoever wrote it."""
    for entry in sorted(path.rglob("*"), reverse=True):
        if entry.is_dir():
            fsync_directory(entry)
        elif entry.is_file():
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())
    fsync_directory(path)


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes ``path`` only if the block succeeds.

    Write, fsync, rename, fsync the directory: a reader, and a machine that loses
    power, sees the old file or the new one, never a half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_leftovers(path: Path) -> None:
    """Temporary files of writers of ``path`` that were killed; a sample's can be large."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` with ``text`` atomically and durably."""
    with replaced(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, document: Any) -> None:
    """Replace ``path`` with ``document`` as indented JSON, atomically and durably."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def append_json(path: Path, document: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that lines of two writers never mix.

    After a writer that was killed in the middle of a line, a new line is begun first.
    """
    line = json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(fd).st_size
        half = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, ("\n" * half + line).encode())
    finally:
        os.close(fd)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole JSON object in ``path``; half-written and foreign lines are passed over.

    A process killed while appending leaves half a line: that is normal, not an error.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    documents = []
    for line in data.split(b"\n"):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            documents.append(document)
    return documents


@contextmanager
def new_directories_kept_on_success(path: Path) -> Iterator[None]:
    """Let the block create ``path``; if it fails, directories it left empty go again."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        yield
    except BaseException:
        for directory in missing:
            with suppress(OSError):
                directory.rmdir()
        raise


def directory_bytes(path: Path) -> int:
    """Total size in bytes of the files below ``path``."""
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
