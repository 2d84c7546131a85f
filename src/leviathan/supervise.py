"""Owns the living training process: signals in, metrics and events out, how it ended.

Does not build its command (``launch``) nor show anything (``ui``): it tells a listener.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from leviathan import diagnosis, files, launch, machine, runs
from leviathan.config import Profile
from leviathan.render import PLUGIN

Listener = Callable[[str, dict[str, Any]], None]
"""Called with a kind (metrics, event, notice, tick) and its facts."""

_POLL_S = 0.2
_DEBOUNCE_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How one session ended."""

    kind: str
    """done, stopped, failed, or killed (second Ctrl+C)."""
    step: int
    max_steps: int | None
    reason: str = ""
    log: Path | None = None


def supervise(paths: runs.RunPaths, profile: Profile, session: int, listener: Listener) -> Outcome:
    """Launch the rendered run and stay with it until no process of it is left.

    The child gets a session of its own, so a Ctrl+C in the terminal reaches only us:
    the first SIGINT, SIGTERM or SIGHUP asks for a checkpoint and a stop through the
    stop file, a second SIGINT kills everything at once.
    """
    paths.logs.mkdir(exist_ok=True)
    log = paths.logs / f"training_{time.strftime('%Y%m%dT%H%M%S')}_{session}.log"
    requests = Requests()
    # Handlers first: a Ctrl+C in the moment of the launch must not leave an orphan.
    with _signals(requests.on_signal):
        with log.open("ab") as stream:
            child = subprocess.Popen(
                launch.command(paths, profile),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=launch.environment(paths, profile, session),
                start_new_session=True,
            )
        files.write_json(paths.launcher, machine.process_identity(child.pid))
        watcher = _Watcher(paths, session, child, log, requests, listener)
        watcher.watch()
    return watcher.outcome()


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # Under nohup a hang-up is ignored on purpose, and stays so.
    taken = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN or n == signal.SIGINT]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Requests:
    """What signals asked for: only flags, the watch loop acts on them."""

    def __init__(self) -> None:
        self.stop = False
        self.kill = False
        self.first = ""
        """Name of the first signal."""
        self._last = 0.0

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """The handler of SIGINT, SIGTERM and SIGHUP."""
        now = time.monotonic()
        # Wrappers such as timeout(1) deliver one Ctrl+C twice within a moment.
        if number == signal.SIGINT and self.stop and now - self._last > _DEBOUNCE_S:
            self.kill = True
        self._last = now
        if number == signal.SIGHUP:
            _forget_terminal()
        self.stop = True
        self.first = self.first or signal.Signals(number).name


class _Watcher:
    """Follows one child: its metrics and events out, stop requests in."""

    def __init__(
        self,
        paths: runs.RunPaths,
        session: int,
        child: subprocess.Popen[bytes],
        log: Path,
        requests: Requests,
        listener: Listener,
    ) -> None:
        self.paths, self.session, self.child, self.log = paths, session, child, log
        self.requests, self.listener = requests, listener
        self.plugin_missing = False
        self._mark = f"{launch.RUN_VARIABLE}={launch.run_mark(paths, session)}".encode()
        self._abandoned = False
        """Killed before training began: nothing of it may survive."""
        self._metrics = _Tail(paths.metrics)
        self._events = _Tail(paths.events)
        self._began = False
        self._ended: dict[str, Any] | None = None
        self._step = 0
        self._max_steps: int | None = None

    def watch(self) -> None:
        """Until the launcher and every process it started are gone."""
        announced = False
        while True:
            ended = self.child.poll() is not None
            self._read()
            if self.requests.kill or self._abandoned:
                self._kill()  # at each turn: a process may have forked meanwhile
            elif self.requests.stop and not announced:
                announced = True
                self._ask_to_stop()
            elif not ended and self._has_no_plugin():
                self.plugin_missing = True
                self._kill()
            if ended and self._is_over():
                self._read()
                return
            self.listener("tick", {})
            time.sleep(_POLL_S)

    def _is_over(self) -> bool:
        """After the launcher's end: let a living training save itself, end anything else.

        A launcher killed from outside leaves the training process; a crashed training
        can leave hung data loaders, which nobody would ever wait for.
        """
        if not self._processes():
            return True
        trainer = runs.identity_in(self.paths.heartbeat)
        if trainer and self._heartbeat() and machine.is_alive(trainer):
            self.paths.stop.touch()
        else:
            self._kill()
        return False

    def outcome(self) -> Outcome:
        """What the evidence says: events of this session, exit code, log."""
        facts = (self._step, self._max_steps)
        if self.requests.kill:
            return Outcome("killed", *facts, "killed by a second Ctrl+C", self.log)
        if self.plugin_missing:
            reason = f"the plugin {PLUGIN} is not running inside the training process"
            return Outcome(
                "failed", *facts, f"{reason}: {diagnosis.last_error(self.log)}", self.log
            )
        if self._ended and self._ended.get("stopped"):
            return Outcome("stopped", *facts, self._why_stopped(), self.log)
        if self._ended and self.child.returncode == 0:
            return Outcome("done", *facts, "", self.log)
        if self.requests.stop and not self._began:
            return Outcome("stopped", *facts, f"{self._why_stopped()}, before training began",
                           self.log)  # fmt: skip
        code = self.child.returncode
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome("failed", *facts, f"{reason}: {diagnosis.last_error(self.log)}", self.log)

    def _why_stopped(self) -> str:
        return self.requests.first or "stop file"

    def _read(self) -> None:
        for line in self._events.lines():
            if line.get("session") != self.session:
                continue
            self._began |= line["event"] == "train_begin"
            if line["event"] == "train_end":
                self._ended = line
            self._follow(line)
            self.listener("event", line)
        for line in self._metrics.lines():
            self._follow(line)
            self.listener("metrics", line)

    def _follow(self, line: dict[str, Any]) -> None:
        self._step = max(self._step, int(line.get("step") or 0))
        self._max_steps = line.get("max_steps") or self._max_steps

    def _ask_to_stop(self) -> None:
        runs.event(self.paths, "stop_asked", session=self.session, by=self.requests.first)
        self.paths.stop.touch()
        if self._began:
            self.listener("notice", {"text": "stopping: this step ends, then a checkpoint is "
                                             "saved; Ctrl+C again kills at once"})  # fmt: skip
        else:
            # Nothing is trained yet, so there is nothing to save or to wait for; a
            # half-tokenised dataset is thrown away by the next launch.
            self._abandoned = True

    def _has_no_plugin(self) -> bool:
        """Axolotl trains on without a plugin that fails to import; we do not."""
        if self._began or self._heartbeat():
            return False
        text = diagnosis.tail(self.log)
        return f"Failed to load plugin: {PLUGIN}" in text or "Starting trainer..." in text

    def _heartbeat(self) -> bool:
        beat = runs.identity_in(self.paths.heartbeat)
        return bool(beat and beat.get("session") == self.session)

    def _kill(self) -> None:
        for process in self._processes():
            try:
                process.kill()
            except psutil.Error:
                continue

    def _processes(self) -> list[psutil.Process]:
        """Everything the launch started that still runs: by descent, session, heartbeat, mark.

        torchrun gives its workers sessions of their own, hence descent; a launcher
        that died leaves children of init, hence the session and the heartbeat's pid, which
        is rank 0's, and for other ranks the mark in the environment they were given.
        """
        found: dict[int, psutil.Process] = {}
        trainer = runs.identity_in(self.paths.heartbeat) if self._heartbeat() else None
        roots = [self.child.pid] if self.child.poll() is None else []
        roots += [int(trainer["pid"])] if trainer and machine.is_alive(trainer) else []
        for pid in roots:
            try:
                root = psutil.Process(pid)
                found |= {p.pid: p for p in [root, *root.children(recursive=True)]}
            except psutil.Error:
                continue
        for process in psutil.process_iter():
            try:
                ours = os.getsid(process.pid) == self.child.pid or self._is_marked(process)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process
            except (OSError, psutil.Error):
                continue
        return list(found.values())

    def _is_marked(self, process: psutil.Process) -> bool:
        environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        return self._mark in environ.split(b"\0")


class _Tail:
    """New whole JSON lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self._half = b""

    def lines(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                data = self._half + stream.read()
                self.offset = stream.tell()
        except FileNotFoundError:
            return []
        *whole, self._half = data.split(b"\n")
        return [document for line in whole if (document := _object(line)) is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _forget_terminal() -> None:
    """After SIGHUP the terminal is gone: writing to it would fail and end us."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
