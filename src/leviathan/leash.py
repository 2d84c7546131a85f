"""Owns that a server never outlives who started it, however that one ends.

Runs as ``python -m leviathan.leash COMMAND...``, the leader of a session of its own, with a pipe
as standard input: when the pipe closes, the whole process group is ended. Servers start
workers, and a killed parent can tell nobody. Standard library only: it stays in memory.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 15.0
"""From SIGTERM to SIGKILL."""


def start(command: list[str], log: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """The command on a leash; close its ``stdin`` to end it and all it started.

    ``log`` is a file descriptor for its output.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "leviathan.leash", *command],
        stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True,
    )  # fmt: skip


def end(process: "subprocess.Popen[bytes]") -> None:
    """End what is on the leash; returns when all of it is gone."""
    if process.stdin:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S + 5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Run the command; end with it, or end it when standard input closes."""
    try:
        child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")
    # The group's SIGTERM is ours, sent below, and must not end us before the others; what is
    # ignored is inherited, so only now.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        ended = os.pidfd_open(child.pid)
        selector.register(ended, selectors.EVENT_READ)
        selector.select()
    code = child.poll()
    os.killpg(0, signal.SIGTERM)  # its workers, where it has ended by itself
    deadline = time.monotonic() + PATIENCE_S
    # A worker may outlive the server it worked for, and deaf to SIGTERM too.
    while (child.poll() is None or _others()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in _others():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    sys.exit(1 if code is None or code < 0 else code)


def _others() -> list[int]:
    """The group's other living processes (proc(5): state and group follow the name)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            pid = int(stat.parent.name)
            if int(group) == os.getpid() != pid and state not in "ZX":
                found.append(pid)
    return found


if __name__ == "__main__":
    main()
