"""Owns putting a command into the background, and hearing that it came up.

Does not know what the command does: it says itself when it is under way.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import signals
from leviathan.errors import LeviathanError

_READY_FD = "LEVIATHAN_READY_FD"


@dataclass(frozen=True)
class Started:
    """A command that is under way in the background."""

    pid: int
    log: Path
    facts: dict[str, Any]
    """What it told when it was."""


def start(arguments: list[str], logs: Path, tell: Callable[[str], None]) -> Started:
    """Run ``leviathan`` with these arguments in a session of its own; wait until it is under way.

    Without a terminal, deaf to hang-ups, its output appended to a log: it survives the
    shell, the terminal and the connection. What it prints while it comes up is told.

    Raises:
        LeviathanError: it ended instead; with its exit code and its own last line.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"supervisor_{time.strftime('%Y%m%dT%H%M%S')}_{os.getpid()}.log"
    interrupts: list[int] = []
    # A flag, not an exception: it must not fall between the start and our knowing of it.
    with signals.taken(lambda number, _: interrupts.append(number), signal.SIGINT):
        child, read = _spawn(arguments, log)
        facts = _heard(read, log, tell, interrupts)
    if facts is not None:
        return Started(child.pid, log, facts)
    if interrupts:
        child.terminate()
        child.wait()
        raise KeyboardInterrupt
    raise _ended(child.wait(), log)


def _spawn(arguments: list[str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The command in a session of its own, and the pipe it announces itself through."""
    # -P: a folder called leviathan in the working directory is not what is meant.
    command = [sys.executable, "-P", "-m", "leviathan.cli", *arguments]
    read, write = os.pipe()
    try:
        # Deafness to hang-ups is inherited, as under nohup.
        with log.open("ab") as out, signals.taken(signal.SIG_IGN, signal.SIGHUP):
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                pass_fds=[write], env={**os.environ, _READY_FD: str(write)},
            )  # fmt: skip
    finally:
        os.close(write)
    return child, read


def announce(**facts: Any) -> None:
    """In the background: tell whoever started us that we are under way; else do nothing."""
    fd = os.environ.pop(_READY_FD, "")
    if not fd.isdecimal():
        return
    try:
        os.write(int(fd), json.dumps(facts).encode())
        os.close(int(fd))
    except OSError:
        return  # it did not wait for us, or its terminal died: we go on


def _heard(
    read: int, log: Path, tell: Callable[[str], None], interrupts: list[int]
) -> dict[str, Any] | None:
    """What it announced; None when it ended without, which closes the pipe, or on Ctrl+C."""
    from selectors import EVENT_READ, DefaultSelector

    told = 0
    with DefaultSelector() as selector, os.fdopen(read, "rb") as pipe:
        selector.register(pipe, EVENT_READ)
        while not selector.select(timeout=0.2):
            told = _relay(log, told, tell)
            if interrupts:
                return None
        message = pipe.read()
    _relay(log, told, tell)
    return dict(json.loads(message)) if message else None


def _relay(log: Path, told: int, tell: Callable[[str], None]) -> int:
    """Tell the whole lines after byte ``told``, but for errors, which are raised; the new end."""
    with log.open("rb") as stream:
        stream.seek(told)
        whole, newline, _ = stream.read().rpartition(b"\n")
    for line in whole.decode(errors="replace").splitlines():
        if line.strip() and not line.startswith(_ERROR):
            tell(line)
    return told + len(whole) + len(newline)


_ERROR = "leviathan: "


def _ended(code: int, log: Path) -> LeviathanError:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    last = (errors or lines or ["it printed nothing"])[-1]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    error = LeviathanError(last, f"so the background process ended ({how}); its log: {log}")
    error.exit_code = code if code > 0 else 1
    return error
