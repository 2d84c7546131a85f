"""Owns commands in another place: a directory here or behind ssh, sh scripts and rsync there.

Does not know what is copied or why (``transfer``). No word of a user's passes through a shell
that would read it: scripts go in by stdin with their words quoted, rsync hides its own (-s).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from leviathan.errors import BadInput, LeviathanError

Progress = Callable[[float], None]
"""Called with the share that is there already."""

_RSYNC_FLAGS = (
    "--recursive", "--times", "--copy-links", "-s", "--no-whole-file",
    "--partial-dir=.leviathan-partial",
)  # fmt: skip
_REMOTE = re.compile(
    r"(?P<host>(?:[^@/:\s]+@)?(?:\[[0-9A-Fa-f:.%\w]+\]|[^/:\s\[\]]+)):(?P<dir>.*)", re.DOTALL
)
CONNECT_S = 20


@dataclass(frozen=True)
class Place:
    """A directory here, or on a host that ssh knows."""

    host: str
    """USER@HOST; empty for this machine."""
    directory: str
    """Absolute; or relative, there to the login directory."""
    ssh: tuple[str, ...] = ("ssh",)
    """The command that reaches the host."""

    def __str__(self) -> str:
        return f"{self.host}:{self.directory}" if self.host else self.directory

    def __truediv__(self, name: str) -> "Place":
        return replace(self, directory=f"{self.directory.rstrip('/') or ''}/{name}")

    @property
    def rsync(self) -> str:
        """What rsync calls it: no path that could be an option or a host."""
        path = self.directory if self.directory.startswith("/") else f"./{self.directory}"
        return f"{self.host}:{path}/" if self.host else f"{path}/"


def here(directory: Path) -> Place:
    """A directory of this machine."""
    return Place("", str(directory.absolute()))


def place(
    text: str, *, port: int | None = None, key: str = "", options: Sequence[str] = ()
) -> Place:
    """The place called ``USER@HOST:DIR``, or a directory here.

    Args:
        text: what the user named; a colon after a slash belongs to a directory's name.
        port: of ssh.
        key: file of the private key.
        options: of ssh, each ``Name=value``.

    Raises:
        BadInput: no name of either, or options for ssh where there is none.
    """
    found = _REMOTE.fullmatch(text)
    if "\0" in text or "\n" in text or not text:
        raise BadInput(f"{text!r} is no place", "give USER@HOST:DIR, or a directory")
    if found is None:
        if port or key or options:
            raise BadInput(f"{text} is on this machine: ssh's options say nothing of it",
                           "give USER@HOST:DIR")  # fmt: skip
        return Place("", str(Path(text).expanduser().absolute()))
    if text.startswith("-"):
        raise BadInput(f"{text!r} is no host: it would be an option of ssh")
    words = ["ssh", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "ServerAliveInterval=15"]
    if not sys.stdin.isatty():  # nobody could answer
        words += ["-o", "BatchMode=yes"]
    words += ["-p", str(port)] * bool(port) + ["-i", key] * bool(key)
    for option in options:
        if not re.match(r"[A-Za-z]+=", option):
            raise BadInput(f"--ssh-option {option!r} is none", "example: ProxyJump=bastion")
        words += ["-o", option]
    directory = found["dir"].removeprefix("~/") or "."
    return Place(found["host"], "." if directory == "~" else directory, tuple(words))


def script(at: Place, text: str, *words: str) -> str:
    """Run the sh function ``main`` that ``text`` defines, with these words; what it printed.

    It runs in a session of its own: what it began, it ends, whatever becomes of us.

    Raises:
        ScriptFailed: it ended with another code than 0.
        LeviathanError: the host cannot be reached.
    """
    command = [*at.ssh, "-T", "--", _host(at), "sh -s"] if at.host else ["sh", "-s"]
    called = f"{text}\nmain {shlex.join(words)} </dev/null\nexit $?\n"
    done = subprocess.run(
        command, input=called.encode(errors="surrogateescape"), capture_output=True, check=False,
        start_new_session=not sys.stdin.isatty() or not at.host,
    )  # fmt: skip
    said = done.stdout.decode(errors="surrogateescape")
    told = done.stderr.decode(errors="replace").strip()
    if at.host and done.returncode == 255:
        raise unreachable(at, told)
    if done.returncode:
        raise ScriptFailed(at, done.returncode, said.strip(), told)
    return said


class ScriptFailed(LeviathanError):  # noqa: N818
    """A script ended with a code that is not 0."""

    def __init__(self, at: Place, code: int, said: str, told: str) -> None:
        super().__init__(f"{at}: {_last(told) or said or f'exit code {code}'}")
        self.code, self.said = code, said


def copy(
    source: Place, target: Place, *, bwlimit: str = "", progress: Progress | None = None,
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    """Make ``target`` what ``source`` is, as far as it is not yet; a cut-off file goes on.

    Raises:
        BadInput: rsync is missing here, or ``bwlimit`` is none.
        LeviathanError: one line of what went wrong, and what to do.
    """
    words = ["--delete", "--info=progress2", "--no-inc-recursive", *more]
    words += [f"--bwlimit={bwlimit}"] * bool(bwlimit)
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            _rsync(source, target, words), stdin=subprocess.DEVNULL if _quiet() else None,
            stdout=subprocess.PIPE, stderr=errors, env=_environment(),
        ) as child:  # fmt: skip
            for share in shares(child.stdout) if child.stdout else ():
                if progress:
                    progress(share)
        errors.seek(0)
        told = errors.read().decode(errors="replace")
    if child.returncode:
        raise _failed(child.returncode, told, source, target)


def fetch(source: Place, target: Place, patterns: Sequence[str]) -> None:
    """Bring only what matches rsync's ``patterns``; small files, at once.

    Raises:
        LeviathanError: see ``copy``.
    """
    words = [*(f"--include={pattern}" for pattern in patterns), "--exclude=*"]
    _run(source, target, words)


def differing(source: Place, target: Place) -> list[str]:
    """Names of files of ``source`` that are not byte for byte in ``target``; reads all of both.

    By rsync's whole-file checksum (128 bits; xxh128 where both ends have it, else MD5): what
    differs by chance is found but for one case in 2^128. It is no protection against a forger.

    Raises:
        LeviathanError: see ``copy``.
    """
    format_ = "--out-format=%i %n"
    said = _run(source, target, ["--checksum", "--dry-run", "--no-times", format_])
    lines = (line.partition(" ") for line in said.splitlines())
    return [unescaped(name) for code, _, name in lines if code[:2] in {"<f", ">f", "cL", "hf"}]


def listing(source: Place) -> dict[str, int]:
    """Bytes of every file of a directory by name.

    Raises:
        LeviathanError: see ``copy``.
    """
    with tempfile.TemporaryDirectory() as empty:
        said = _run(source, here(Path(empty)), ["--dry-run", "--out-format=%i %l %n"])
    found = (line.split(" ", 2) for line in said.splitlines())
    return {unescaped(n): int(size) for code, size, n in found if code[1:2] == "f"}


def unescaped(name: str) -> str:
    r"""A name as rsync prints it: bytes that are no text come as ``\#ooo``."""
    raw = re.sub(
        rb"\\#([0-7]{3})", lambda m: bytes([int(m[1], 8)]), name.encode(errors="surrogateescape")
    )
    return os.fsdecode(raw)


_SHARE = re.compile(rb"(\d{1,3})%")


def shares(stream: IO[bytes]) -> Iterator[float]:
    """0..1 for each line of rsync's progress2, which ends lines with a carriage return."""
    rest = b""
    while block := os.read(stream.fileno(), 1 << 14):
        *lines, rest = re.split(rb"[\r\n]", rest + block)
        for line in lines:
            if found := _SHARE.search(line):
                yield min(int(found[1]) / 100, 1.0)


def _run(source: Place, target: Place, words: Sequence[str]) -> str:
    done = subprocess.run(
        _rsync(source, target, words), stdin=subprocess.DEVNULL if _quiet() else None,
        capture_output=True, check=False, env=_environment(),
    )  # fmt: skip
    if done.returncode:
        raise _failed(done.returncode, done.stderr.decode(errors="replace"), source, target)
    return done.stdout.decode(errors="surrogateescape")


def _rsync(source: Place, target: Place, words: Sequence[str]) -> list[str]:
    if not shutil.which("rsync"):
        raise BadInput("rsync is not installed here", "install it: apt-get install rsync")
    far = source if source.host else target
    shell = [f"--rsh={' '.join(map(rsh_word, far.ssh))}"] if far.host else []
    return ["rsync", *_RSYNC_FLAGS, *shell, *words, "--", source.rsync, target.rsync]


def rsh_word(word: str) -> str:
    """A word of rsync's --rsh: quotes keep spaces, and a doubled quote is a quote (rsync(1))."""
    return "'" + word.replace("'", "''") + "'"


def _host(at: Place) -> str:
    """ssh wants no brackets around an IPv6 address; rsync does."""
    return at.host.replace("[", "").replace("]", "")


def _quiet() -> bool:
    return not sys.stdin.isatty()


def _environment() -> dict[str, str]:
    """rsync's messages are read, and its defaults are not the user's to change here."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("RSYNC_")}
    return {**ours, "LC_ALL": "C.UTF-8"}


_CONNECTION = (
    ("Permission denied", "name the key with --key FILE, or put it there with ssh-copy-id"),
    ("Host key verification failed", "connect once with ssh, and compare the key it shows"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "find out why before you go on: ssh-keygen -R HOST"),
    ("Could not resolve", "look at the host's name"),
    ("Connection refused", "no sshd answers there; is it another --port?"),
    ("timed out", "is the machine up, and the port open?"),
    ("No route to host", "is the machine up?"),
    ("unreachable", "is the machine up?"),
)


def unreachable(at: Place, told: str) -> LeviathanError:
    """ssh's failure as one line."""
    for mark, hint in _CONNECTION:
        line = next((line for line in told.splitlines() if mark in line), None)
        if line:
            return LeviathanError(f"{at.host}: {line.strip()}", hint)
    return LeviathanError(f"{at.host} cannot be reached: {_last(told) or 'ssh failed'}",
                          f"try: ssh {at.host}")  # fmt: skip


_FULL = ("No space left on device", "Disk quota exceeded")
_VANISHED = 24


class Vanished(LeviathanError):  # noqa: N818
    """Files went away while they were copied."""


def _failed(code: int, told: str, source: Place, target: Place) -> LeviathanError:
    far = source if source.host else target
    if code == 255 and far.host:
        return unreachable(far, told)
    if code == 127 or "command not found" in told or "rsync: not found" in told:
        return LeviathanError(f"rsync is missing at {far.host}", "install it there, then run again")
    if any(mark in told for mark in _FULL):
        return LeviathanError(
            f"the disk of {target} is full",
            "nothing there was changed; make room and run the same again: it goes on",
        )
    if code == _VANISHED or (code == 23 and "No such file or directory" in told):
        return Vanished(f"{source} changed while it was copied", "run the same again")
    if code == 1 and "bwlimit" in told:
        return BadInput(_last(told), "example: --bwlimit 20m")
    line = next((x for x in told.splitlines() if x.startswith("rsync: ")), _last(told))
    return LeviathanError(
        f"rsync to {target} failed ({code}): {line}", "run the same again: it goes on"
    )


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
