"""Owns durable files: atomic replacement, fsync, append-only JSON lines.

Does not own what is in them: run records are ``runs``, commit records ``checkpoints``.
"""

import errno
import glob
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

LARGEST = 1e150
"""No figure of a run is larger (``number``)."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk or an exhausted quota says."""


@contextmanager
def unless_full() -> Iterator[None]:
    """Do without what the block writes when the disk is full; other errors stay errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


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
            fsync_file(entry)
    fsync_directory(path)


def fsync_file(path: Path) -> None:
    """Make what was written to ``path``, by whomever, survive a power cut."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes ``path`` only if the block succeeds.

    Write, fsync, rename, fsync the directory: a reader, and a machine that loses
    power, sees the old file or the new one, never a half. What is no file (a pipe, a device)
    is written into, and a link followed: root would make files of ``/dev/null``, ``/dev/stdout``.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
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
        data = ("\n" * half + line).encode()
        if os.write(fd, data) < len(data):  # the half that was written is passed over
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole JSON object in ``path``; half-written and foreign lines are passed over.

    A process killed while appending leaves half a line: that is normal, not an error.
    """
    try:
        return objects(path.read_bytes().split(b"\n"))
    except FileNotFoundError:
        return []


def objects(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The JSON objects among lines."""
    return [found for line in lines if line and (found := _object(line)) is not None]


def last_lines(path: Path, size: int) -> tuple[list[bytes], bool]:
    """The lines in the last ``size`` bytes of ``path`` but for a cut one, and if that is all."""
    try:
        with path.open("rb") as stream:
            begin = max(os.fstat(stream.fileno()).st_size - size, 0)
            stream.seek(begin)
            data = stream.read()
    except FileNotFoundError:
        return [], True
    return data.split(b"\n")[begin > 0 :], not begin


_BLOCK = 1 << 22


def line_blocks(path: Path) -> Iterator[list[bytes]]:
    """The whole lines of ``path`` in blocks of some MB; nothing where it does not exist."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        half = b""
        while data := stream.read(_BLOCK):
            *whole, half = (half + data).split(b"\n")
            yield whole
        if half:
            yield [half]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        document = msgspec.json.decode(line)
    except RecursionError:
        return None
    except (msgspec.MsgspecError, ValueError):
        document = _lenient(line)
    return document if isinstance(document, dict) else None


def _lenient(line: bytes) -> Any:
    """As Python reads JSON: NaN and Infinity are numbers, and numbers have no bounds."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


class Tail:
    """New whole JSON lines of a growing file, from its present end or from its beginning."""

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() and not whole else 0
        self._half = b""

    def lines(self) -> list[dict[str, Any]]:
        """What was appended since the last call."""
        try:
            with self.path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < self.offset:  # removed or cut: begun anew
                    self.offset, self._half = 0, b""
                stream.seek(self.offset)
                data = self._half + stream.read()
                self.offset = stream.tell()
        except FileNotFoundError:
            return []
        *whole, self._half = data.split(b"\n")
        return objects(whole)


def number(value: Any) -> float | None:
    """A number read from a file others may have damaged; None for anything else.

    Metrics hold NaN and infinity as text, which every JSON reader accepts. A finite number
    whose square is none is no figure of a training: it would only make sums overflow.
    """
    if type(value) is float:  # nearly always
        return None if LARGEST < abs(value) < math.inf else value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and value not in {"nan", "inf", "-inf"}:
        return None
    try:
        return number(float(value))
    except OverflowError:
        return None


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


def has_content(path: Path) -> bool:
    """Whether there is such a file with something in it."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def directory_bytes(path: Path) -> int:
    """Total size in bytes of the files below ``path``."""
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
