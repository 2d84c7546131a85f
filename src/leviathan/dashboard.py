"""Owns the process of TensorBoard: where it reads, that only this machine reaches it, its end.

Does not write what it shows (``trackers``, ``reporters``) nor print (``cli_dash``).
"""

import getpass
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leviathan import runs, trackers
from leviathan.errors import BadInput, LeviathanError

HOST = "127.0.0.1"
PORT = 6006
_PORTS_TRIED = 20
_START_S = 60.0
_END_S = 5.0


def folder(run: runs.RunPaths | None) -> Path:
    """What to show: one run's event files, or every run's.

    Raises:
        BadInput: there are none.
    """
    if run:
        if not _has_events(run):
            raise BadInput(
                f"{run.directory.name} has no TensorBoard data",
                "train it with --track tensorboard; its own files: leviathan watch",
            )
        return run.directory / trackers.FOLDER
    if not any(map(_has_events, runs.known_runs())):
        raise BadInput(
            f"no run in {runs.TRAINING} has TensorBoard data", "train with --track tensorboard"
        )
    return runs.TRAINING


def _has_events(run: runs.RunPaths) -> bool:
    return any((run.directory / trackers.FOLDER).glob("events.out.tfevents.*"))


def free_port(wanted: int | None) -> int:
    """``wanted``, or the first free port from TensorBoard's usual one on.

    Raises:
        BadInput: it is taken.
    """
    if wanted is not None:
        if _is_free(wanted):
            return wanted
        raise BadInput(f"port {wanted} is in use", "leave --port out to get a free one")
    for port in range(PORT, PORT + _PORTS_TRIED):
        if _is_free(port):
            return port
    with socket.socket() as any_port:
        any_port.bind((HOST, 0))
        return int(any_port.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError:
            return False
    return True


def tunnel(port: int) -> str:
    """What to type on one's own machine to reach the dashboard from there."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "USER"
    return f"ssh -N -L {port}:{HOST}:{port} {user}@{socket.gethostname()}"


@contextmanager
def serving(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """TensorBoard over ``directory``, answering, until the block ends.

    Raises:
        BadInput: it is not installed.
        LeviathanError: it did not start.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise BadInput("tensorboard is not installed", "pip install tensorboard")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(directory),
               "--host", HOST, "--port", str(port)]  # fmt: skip
    with tempfile.TemporaryFile() as told:
        # A session of its own: Ctrl+C is ours, and its data server ends with it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told,
            start_new_session=True,
        )  # fmt: skip
        try:
            if not _answers(process, port):
                told.seek(0)
                lines = told.read().decode(errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "no answer")
                raise LeviathanError(f"TensorBoard did not start: {last.strip()}")
            yield process
        finally:
            _end(process)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as attempt:
            if attempt.connect_ex((HOST, port)) == 0:
                return True
        time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            continue
