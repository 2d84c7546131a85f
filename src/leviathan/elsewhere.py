"""Owns whether a run is trained on another host, which shares its directory with this one.

Known by files alone: pids mean nothing across hosts. Says nothing of a process here
(``runs.true_state``) nor of hosts that train together (``hosts``).
"""

import socket
import time
from dataclasses import dataclass

import psutil

from leviathan import machine, runs

SILENT_S = 600.0
"""A supervisor writes what its machine does every ten seconds (``telemetry``), paused or not."""


@dataclass(frozen=True)
class Trainer:
    """The host that trains a run, as its files tell."""

    host: str
    """Its name; "another host" where an older Leviathan wrote none."""
    silent_s: float
    """Seconds since it was last heard of, by this host's clock."""

    @property
    def lives(self) -> bool:
        """Whether it was heard of lately."""
        return self.silent_s < SILENT_S


def trainer(paths: runs.RunPaths, record: runs.RunRecord) -> Trainer | None:
    """Who trains the run on another host, or did when it was last heard of.

    None: it is no running run, or it is this host's: alive, or dead here.
    """
    if record.state != "running" or not record.sessions:
        return None
    supervisor = record.sessions[-1].supervisor
    if machine.is_alive(supervisor):
        return None
    host, here = supervisor.get("host"), socket.gethostname()
    written = max(_written(paths), record.sessions[-1].started)
    # Not of this boot: this machine was rebooted, unless something was written since.
    rebooted = supervisor.get("boot") != machine.boot_id() and written > psutil.boot_time()
    if host in (None, here) and not rebooted:
        return None
    return Trainer(str(host or "another host"), max(time.time() - written, 0.0))


def living(paths: runs.RunPaths) -> Trainer | None:
    """The host that trains the run and is heard of; None: there is none but this one."""
    found = trainer(paths, runs.read(paths))
    return found if found and found.lives else None


def _written(paths: runs.RunPaths) -> float:
    """When one who trains last wrote; what others write too, such as events, does not count."""
    found = 0.0
    for path in (paths.phase, paths.metrics, paths.telemetry):
        try:
            found = max(found, path.stat().st_mtime)
        except OSError:
            continue
    return found
