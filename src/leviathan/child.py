"""Owns running a module of ours as a process of its own, so that a model's memory goes back.

The specification goes in as JSON on standard input; out come lines of JSON: what to tell the
user, then a result or a refusal. Does not know what is worked on.

    parent:  result = child.run("leviathan.proof", specification, tell, "the proof")
    child:   if __name__ == "__main__": child.serve(work)
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leviathan import files
from leviathan.diagnosis import last_error
from leviathan.errors import LeviathanError, Refused

Tell = Callable[[str], None]
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of linux/prctl.h


class DiskFull(LeviathanError):  # noqa: N818
    """The process ran out of disk space."""


def run(module: str, specification: dict[str, Any], tell: Tell, what: str) -> dict[str, Any]:
    """Have ``python -m module`` do it; its result.

    Raises:
        Refused: the module refused.
        DiskFull: it ran out of disk space.
        LeviathanError: it failed otherwise; the message ends with its last words.
    """
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    with tempfile.NamedTemporaryFile(prefix="leviathan-", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
        )  # fmt: skip
        try:
            return _conversation(process, {**specification, "parent": os.getpid()}, tell)
        except _Silent:
            code = process.wait()
            said = last_error(Path(log.name))
            raise LeviathanError(f"{what} failed (exit code {code}): {said}") from None
        finally:  # a signal too: what is in the middle of a shard must not go on
            process.kill()
            process.wait()


class _Silent(Exception):  # noqa: N818 - no result, and no error that is told
    """The process ended without a result."""


def _conversation(
    process: "subprocess.Popen[bytes]", specification: dict[str, Any], tell: Tell
) -> dict[str, Any]:
    if process.stdin is None or process.stdout is None:
        raise AssertionError
    try:
        with process.stdin as stream:
            stream.write(json.dumps(specification, default=str).encode())
    except BrokenPipeError as error:
        raise _Silent from error
    with process.stdout as lines:
        for line in lines:
            said = json.loads(line)
            if "tell" in said:
                tell(said["tell"])
            elif "refused" in said:
                raise Refused(said["refused"], said["hint"])
            elif "full" in said:
                raise DiskFull(f"no space is left: {said['full']}", "make room")
            else:
                return dict(said["result"])
    raise _Silent


def serve(work: Callable[[dict[str, Any], Tell], dict[str, Any]]) -> None:
    """Do ``work`` on the specification that comes in, and end with the parent, however it ends.

    Libraries print what they like; it goes to standard error.
    """
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**document: Any) -> None:
        lines.write(json.dumps(document) + "\n")
        lines.flush()

    specification = json.loads(sys.stdin.buffer.read())
    _end_with(specification["parent"])
    try:
        say(result=work(specification, lambda text: say(tell=text)))
    except LeviathanError as error:
        say(refused=error.message, hint=error.hint)
    except OSError as error:
        if error.errno not in files.FULL:
            raise
        say(full=str(error))


def _end_with(parent: int) -> None:
    """A parent that is killed leaves no writer behind; where there is no prctl, it may."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
