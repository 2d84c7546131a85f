"""Owns ending a run from outside: asking it to save and stop, or killing all of it.

Does not stay with a training (``supervise``); it signals the process that does.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from leviathan import files, machine, runs, writer
from leviathan.errors import LeviathanError, Refused

Tell = Callable[[str], None]
"""Called with one line for the person who waits."""

_POLL_S = 0.2
_SAY_AGAIN_S = 30.0
# Longer than the moment in which supervise takes two interrupts for one.
_BETWEEN_INTERRUPTS_S = 0.3
_DIES_WITHIN_S = 10.0


def ask(paths: runs.RunPaths, tell: Tell) -> bool:
    """Have the run save a checkpoint and stop, and wait until no process of it is left.

    A training process without its supervisor is asked through the stop file.
    Returns whether anything ran.

    Raises:
        Refused: it is another user's.
    """
    supervisor = _supervisor(paths)
    if supervisor:
        _send(supervisor, signal.SIGTERM)
        tell("asked to stop: the step it is in ends, then a checkpoint is saved")
    elif pid := runs.orphan(paths):
        _touch_stop(paths, pid)
        tell(f"its supervisor is gone; asked process {pid} to save after its step and end")
    else:
        return _clear(paths)
    _wait(paths, supervisor, tell)
    _clear(paths)
    return True


def _clear(paths: runs.RunPaths) -> bool:
    """Kill what a dead training left behind, hung data loaders; whether there was any."""
    if not processes(paths):
        return False
    try:
        with writer.locked(paths):  # so that it is not what a new train has just started
            left = processes(paths)
            _kill_all(left)
    except Refused:
        return False
    psutil.wait_procs(left, timeout=_DIES_WITHIN_S)
    return bool(left)


def kill(paths: runs.RunPaths) -> bool:
    """End every process of the run at once; what was trained since the last save is lost.

    Returns whether anything ran.

    Raises:
        Refused: it is another user's.
        LeviathanError: something of it would not die.
    """
    supervisor = _supervisor(paths)
    found = processes(paths)
    if not supervisor and not found:
        return False
    if supervisor:
        _interrupt_twice(supervisor)
    end = time.monotonic() + _DIES_WITHIN_S
    while found := processes(paths):  # at each turn: a process may have forked meanwhile
        if time.monotonic() > end:
            pids = ", ".join(str(p.pid) for p in found)
            raise LeviathanError(f"these processes do not die: {pids}", "look at them with ps")
        _kill_all(found)
        time.sleep(_POLL_S)
    return True


def _interrupt_twice(supervisor: dict[str, Any]) -> None:
    """What two Ctrl+C do; the supervisor ends its processes and writes how it ended."""
    _send(supervisor, signal.SIGINT)
    time.sleep(_BETWEEN_INTERRUPTS_S)
    _send(supervisor, signal.SIGINT)
    end = time.monotonic() + _DIES_WITHIN_S
    while machine.is_alive(supervisor) and time.monotonic() < end:
        time.sleep(_POLL_S)


def processes(paths: runs.RunPaths) -> list[psutil.Process]:
    """Every living process of the run: supervisor, launcher, training, and all below.

    Known by the supervisor's identity, which the launch puts into their environment and
    which no death of a parent takes away; by descent from those; and by heartbeat.
    """
    found: dict[int, psutil.Process] = {}
    roots = {int(i["pid"]) for i in _identities(paths) if machine.is_alive(i)}
    supervisors = [session.supervisor for session in runs.read(paths).sessions]
    for process in psutil.process_iter():
        try:
            ours = process.pid in roots or runs.is_of(process, supervisors)
            family = [process, *process.children(recursive=True)] if ours else []
            found |= {p.pid: p for p in family if p.status() != psutil.STATUS_ZOMBIE}
        except (psutil.Error, OSError):
            continue
    found.pop(os.getpid(), None)
    return list(found.values())


def _identities(paths: runs.RunPaths) -> list[dict[str, Any]]:
    known = [_supervisor(paths)]
    known += [runs.identity_in(path) for path in (paths.launcher, paths.heartbeat)]
    return [identity for identity in known if identity]


def _supervisor(paths: runs.RunPaths) -> dict[str, Any] | None:
    """The living supervisor of a session, or between two; not a process that trained once.

    (The demo goes on to merge after its training: that is not ours to stop.)
    """
    record = runs.read(paths)
    if not record.sessions:
        return None
    supervisor = record.sessions[-1].supervisor
    trains = record.state == "running" or runs.identity_in(paths.holder) == supervisor
    return supervisor if trains and machine.is_alive(supervisor) else None


def _send(identity: dict[str, Any], number: signal.Signals) -> None:
    if not machine.is_alive(identity):
        return
    try:
        psutil.Process(int(identity["pid"])).send_signal(number)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise _not_ours(int(identity["pid"])) from error


def _kill_all(found: list[psutil.Process]) -> None:
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise _not_ours(process.pid) from error


def _touch_stop(paths: runs.RunPaths, pid: int) -> None:
    try:
        paths.stop.touch()
    except PermissionError as error:
        raise _not_ours(pid) from error


def _not_ours(pid: int) -> Refused:
    try:
        owner = psutil.Process(pid).username()
    except psutil.Error:
        owner = "another user"
    return Refused(f"process {pid} of this run belongs to {owner}", "only they can stop it")


def _wait(paths: runs.RunPaths, supervisor: dict[str, Any] | None, tell: Tell) -> None:
    events, metrics = files.Tail(paths.events), files.Tail(paths.metrics)
    asked = said = time.monotonic()
    where = ""
    while (supervisor and machine.is_alive(supervisor)) or runs.orphan(paths):
        if supervisor and not machine.is_alive(supervisor):
            paths.stop.touch()  # it was killed meanwhile; its training may not know yet
        for line in metrics.lines():
            where = f", step {line.get('step')} has ended"
        for event in events.lines():
            if event.get("event") == "save":
                tell(f"saved checkpoint-{event.get('step')}")
        if time.monotonic() - said > _SAY_AGAIN_S:
            said = time.monotonic()
            tell(f"still waiting ({said - asked:.0f} s{where})")
        time.sleep(_POLL_S)
