"""Owns finding, and ending, every process that a launch started here.

Does not decide when: that is the supervisor's (``supervise``, ``joining``).
"""

import os
import subprocess
from collections.abc import Sequence
from typing import Any

import psutil

from leviathan import runs


def living(
    child: subprocess.Popen[bytes], us: dict[str, Any], more_roots: Sequence[int] = ()
) -> list[psutil.Process]:
    """Everything we launched that still runs: by descent, session, environment.

    torchrun gives its workers sessions of their own, hence descent; a launcher that died
    leaves children of init, hence the session, what more is known of the training, and our
    identity in the environment that all were given.

    Args:
        child: the launcher.
        us: identity of this process.
        more_roots: pids of this training that are known from elsewhere.
    """
    found: dict[int, psutil.Process] = {}
    for pid in [*([child.pid] if child.poll() is None else []), *more_roots]:
        try:
            root = psutil.Process(pid)
            found |= {p.pid: p for p in [root, *root.children(recursive=True)]}
        except psutil.Error:
            continue
    for process in psutil.process_iter():
        try:
            ours = os.getsid(process.pid) == child.pid or runs.is_of(process, [us])
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
        except (OSError, psutil.Error):
            continue
    return list(found.values())


def kill(processes: Sequence[psutil.Process]) -> None:
    """End them at once."""
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue
