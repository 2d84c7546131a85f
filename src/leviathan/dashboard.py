"""Owns the process of TensorBoard: where it reads, that only this machine reaches it, its end.

Does not write what it shows (``trackers``, ``reporters``) nor print (``cli_dash``).
"""

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leviathan import leash, runs, trackers
from leviathan.errors import BadInput, LeviathanError
from leviathan.loopback import HOST

PORT = 6006
_START_S = 60.0


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
        process = leash.start(command, told.fileno(), dict(os.environ))
        try:
            if not _answers(process, port):
                told.seek(0)
                lines = told.read().decode(errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "no answer")
                raise LeviathanError(f"TensorBoard did not start: {last.strip()}")
            yield process
        finally:
            leash.end(process)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as attempt:
            if attempt.connect_ex((HOST, port)) == 0:
                return True
        time.sleep(0.1)
    return False
