"""Owns the living training process: signals in, metrics and events out, how it ended.

Does not build its command (``launch``), judge what it sees (``watchdog``, ``diagnosis``)
nor show anything (``ui``): it tells a listener.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from leviathan import (
    checkpoints,
    diagnosis,
    files,
    launch,
    launched,
    machine,
    runs,
    signals,
    telemetry,
)
from leviathan.config import Profile
from leviathan.diagnosis import Evidence
from leviathan.hosts import Guest, Party
from leviathan.render import PLUGIN
from leviathan.watchdog import Finding, Watchdog

Listener = Callable[[str, dict[str, Any]], None]
"""Called with a kind (metrics, event, notice, warning, start, resume, tick) and its facts. What
follows a failed session has its ``cause``, a diagnosis's kind, among them."""

_POLL_S = 0.2
_DEBOUNCE_S = 0.1
_SMALLEST_SAVE = 1 << 20
_LAST_WORDS_S = 3.0
"""Of other hosts, after the end here: who failed first is the cause."""


@dataclass(frozen=True)
class Outcome:
    """How one session ended."""

    kind: str
    """done, stopped, failed, or killed (second Ctrl+C)."""
    step: int
    max_steps: int | None
    reason: str = ""
    log: Path | None = None
    evidence: Evidence | None = None
    """What a failed session left, for its diagnosis."""


class Requests:
    """What signals asked for: only flags, the loops that see them act."""

    def __init__(self, *, patient: bool = True) -> None:
        self.patient = patient
        """Whether there is anything worth saving: else the first signal kills."""
        self.stop = False
        self.kill = False
        self.first = ""
        """Who asked first: a signal's name, or a watchdog's reason."""
        self._last = 0.0

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """The handler of SIGINT, SIGTERM and SIGHUP."""
        now = time.monotonic()
        # Wrappers such as timeout(1) deliver one Ctrl+C twice within a moment.
        again = self._last and now - self._last > _DEBOUNCE_S
        if not self.patient or (number == signal.SIGINT and again):
            self.kill = True
        self._last = now
        if number == signal.SIGHUP:
            _forget_terminal()
        self.ask(signal.Signals(number).name)

    def ask(self, reason: str) -> None:
        """Ask for a checkpoint and a stop."""
        self.stop = True
        self.first = self.first or reason

    def wait(self, seconds: float) -> bool:
        """Sleep, unless asked to stop: then False at once."""
        end = time.monotonic() + seconds
        while not self.stop and time.monotonic() < end:
            time.sleep(min(_POLL_S, max(end - time.monotonic(), 0)))
        return not self.stop


def signals_to(requests: Requests) -> AbstractContextManager[None]:
    """SIGINT, SIGTERM and SIGHUP become requests inside the block."""
    return signals.taken(requests.on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def supervise(
    paths: runs.RunPaths,
    profile: Profile,
    session: int,
    listener: Listener,
    requests: Requests,
    left_s: float | None = None,
    environment: Mapping[str, str] | None = None,
    party: Party | None = None,
) -> Outcome:
    """Launch the rendered run and stay with it until no process of it is left.

    The child gets a session of its own, so a Ctrl+C in the terminal reaches only us:
    the first SIGINT, SIGTERM or SIGHUP asks for a checkpoint and a stop through the
    stop file, a second SIGINT kills everything at once.

    Args:
        paths: the run; its inputs are written (``launch.write_inputs``).
        profile: hardware and limits.
        session: number of this launch.
        listener: told everything that happens.
        requests: what signals ask for; the caller has installed ``signals_to``.
        left_s: seconds of the budget that are left; None without one.
        environment: more variables for the child, which the user's own override.
        party: the other hosts, which have been told to begin; None for a single one.
    """
    paths.logs.mkdir(exist_ok=True)
    log = paths.logs / f"training_{time.strftime('%Y%m%dT%H%M%S')}_{session}.log"
    meeting = party.meeting if party else None
    with log.open("ab") as stream:
        child = subprocess.Popen(
            launch.command(paths, profile, meeting),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=launch.environment(paths, profile, environment, meeting),
            start_new_session=True,
        )
    watchdog = Watchdog(paths, profile.guards, left_s)
    watcher = _Watcher(paths, session, child, log, requests, listener, watchdog, party)
    with telemetry.Recorder(paths, session, child.pid):
        watcher.watch()
    return watcher.outcome()


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
        watchdog: Watchdog,
        party: Party | None = None,
    ) -> None:
        self.paths, self.session, self.child, self.log = paths, session, child, log
        self.requests, self.listener, self.watchdog = requests, listener, watchdog
        self.party = party
        self.plugin_missing = False
        self._us = machine.process_identity()
        self._abandoned = False
        """Killed before training began: nothing of it may survive."""
        self._announced = False
        self._launcher_died = False
        """Before its training: that was asked to save itself, which nobody else wanted."""
        self._metrics = files.Tail(paths.metrics)
        self._events = files.Tail(paths.events)
        self._began = False
        self._ended: dict[str, Any] | None = None
        self._step = 0
        self._max_steps: int | None = None
        self._guard = ""
        self._guard_text = ""
        self._kernel_kills = machine.kernel_kills()
        with files.unless_full():
            files.write_json(paths.launcher, machine.process_identity(child.pid))

    def watch(self) -> None:
        """Until the launcher and every process it started are gone."""
        while True:
            ended = self.child.poll() is not None
            self._read()
            self._act(ended)
            if ended and self._is_over():
                self._read()
                return
            self.listener("tick", {})
            time.sleep(_POLL_S)

    def _act(self, ended: bool) -> None:
        if self.party:
            self._follow_party(self.party)
        if self.requests.kill or self._abandoned or self._guard in {"stall", "host", "rank"}:
            self._kill()  # at each turn: a process may have forked meanwhile
            return
        if self.requests.stop and not self._announced:
            self._announced = True
            self._ask_to_stop()
        elif not ended and self._has_no_plugin():
            self.plugin_missing = True
            self._kill()
        for finding in self.watchdog.look(self._began and not ended):
            self._follow_finding(finding)

    def _follow_party(self, party: Party) -> None:
        """What other hosts ask for; without one of them training here cannot go on.

        One whose supervisor alone died saves itself with us (``callbacks``), so as long as
        there are signs of life it may; of one that is silent nothing can come any more.
        """
        why, killed = party.asked()
        if why:
            self.requests.ask(why)
            self.requests.kill |= killed
        lost = party.silent()
        if not lost and runs.still_s(self.paths) > party.silent_s:
            lost = party.gone()
            if not lost and (failed := party.failed()) and not self._guard:
                self._guard, self._guard_text = "rank", f"training failed on {failed.called}"
        if lost and not self._guard:
            self._guard, self._guard_text = "host", lost

    def _hear_last_words(self) -> None:
        """A rank that fails takes the others' connections with it: whose fault was it?"""
        party, end = self.party, time.monotonic() + _LAST_WORDS_S
        while party and time.monotonic() < end:
            party.asked()
            if all(g.code is not None or g.link.closed for g in party.guests):
                break
            time.sleep(_POLL_S)
        if party and not self._guard and (text := party.gone() or party.silent()):
            self._guard, self._guard_text = "host", text

    def _follow_finding(self, finding: Finding) -> None:
        kind = {"warn": "warning"}.get(finding.action, finding.action)
        runs.event(self.paths, kind, session=self.session, kind=finding.kind, step=self._step,
                   text=finding.text)  # fmt: skip
        if finding.action == "stop":
            self.requests.ask(finding.text)
        elif finding.action == "kill":
            self._guard, self._guard_text = finding.kind, finding.text
        elif finding.action == "pause":
            with files.unless_full():
                self.paths.pause.touch()
        elif finding.action == "unpause":
            self.paths.pause.unlink(missing_ok=True)

    def _is_over(self) -> bool:
        """After the launcher's end: let a living training save itself, end anything else.

        A launcher killed from outside leaves the training process; a crashed training
        can leave hung data loaders, which nobody would ever wait for.
        """
        if not self._processes():
            return True
        trainer = runs.identity_in(self.paths.heartbeat)
        if trainer and self._heartbeat() and machine.is_alive(trainer) and not self._guard:
            self._launcher_died = True
            self._want_stop()
        else:
            self._kill()
        return False

    def outcome(self) -> Outcome:
        """What the evidence says: events of this session, exit code, log."""
        if self.requests.kill:
            by = "a second Ctrl+C" if self.requests.patient else self.requests.first
            return self._outcome("killed", f"killed by {by}")
        if self.plugin_missing:
            reason = f"the plugin {PLUGIN} is not running inside the training process"
            return self._failed(f"{reason}: {diagnosis.last_error(self.log)}")
        if self._ended and self._ended.get("stopped"):
            if self._launcher_died and not (self.requests.stop or self._ended.get("why")):
                return self._failed("the launcher died; training saved itself")
            return self._outcome("stopped", self._why_stopped())
        if self._ended and self.child.returncode == 0:
            return self._outcome("done")
        if self.requests.stop and not self._began:
            return self._outcome("stopped", f"{self._why_stopped()}, before training began")
        self._hear_last_words()
        if self._guard:
            return self._failed(self._guard_text)
        code = self.child.returncode
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        line = diagnosis.short(diagnosis.last_error(self.log))
        return self._failed(f"{reason}: {line}")

    def _outcome(self, kind: str, reason: str = "", evidence: Evidence | None = None) -> Outcome:
        return Outcome(kind, self._step, self._max_steps, reason, self.log, evidence)

    def _failed(self, reason: str) -> Outcome:
        blamed = self._blamed()
        if blamed and self._guard != "host":
            line = diagnosis.short(diagnosis.last_error(Path(blamed.log)))
            reason = f"on {blamed.called}: {line}"
        evidence = Evidence(
            exit_code=blamed.code if blamed else self.child.returncode,
            log=diagnosis.tail(Path(blamed.log) if blamed else self.log),
            phase=self._phase(),
            kernel_killed=machine.kernel_kills() > self._kernel_kills,
            disk_short=self._disk_is_short(),
            guard="plugin" if self.plugin_missing else self._guard,
        )
        return self._outcome("failed", reason, evidence)

    def _blamed(self) -> Guest | None:
        """The host whose training failed first, where here it was only a broken connection.

        Or nothing at all: a rank that waited for the failed one, until we killed it.
        """
        guest = self.party.failed() if self.party else None
        ours = self._guard != "rank" and not diagnosis.is_echo(diagnosis.last_error(self.log))
        if guest is None or ours:
            return None
        return None if diagnosis.is_echo(diagnosis.last_error(Path(guest.log))) else guest

    def _phase(self) -> str:
        try:
            return str(json.loads(self.paths.phase.read_bytes())["phase"])
        except (OSError, ValueError, KeyError, TypeError):
            return "train" if self._began else "start"

    def _disk_is_short(self) -> bool:
        """Whether the next save may not fit: what a failed save looks like from outside."""
        known = checkpoints.newest_bytes(checkpoints.scan(self.paths.directory))
        return machine.free_bytes(self.paths.directory) < max(_SMALLEST_SAVE, known or 0)

    def _why_stopped(self) -> str:
        if self.requests.first:
            return self.requests.first
        if self._ended and self._ended.get("why"):
            return f"{self._ended['why']} to the training process"
        try:
            return self.paths.stop.read_text().strip() or "stop file"
        except OSError:
            return "a signal to a training process"

    def _read(self) -> None:
        for line in self._events.lines():
            if line.get("session") != self.session or "event" not in line:
                continue
            self._began |= line["event"] == "train_begin"
            if line["event"] == "train_end":
                self._ended = line
            if line["event"] == "guard":
                self._guard, self._guard_text = str(line.get("kind")), str(line.get("text"))
            self._follow(line)
            self.watchdog.event(line)
            self.listener("event", line)
        for line in self._metrics.lines():
            self._follow(line)
            self.watchdog.metrics(line)
            self.listener("metrics", line)

    def _follow(self, line: dict[str, Any]) -> None:
        self._step = max(self._step, int(line.get("step") or 0))
        self._max_steps = line.get("max_steps") or self._max_steps

    def _ask_to_stop(self) -> None:
        runs.event(self.paths, "stop_asked", session=self.session, by=self.requests.first)
        self._want_stop()
        if self._began:
            by_signal = self.requests.first.startswith("SIG")
            why = "" if by_signal else f" ({self.requests.first})"
            text = (
                f"stopping{why}: this step ends, then a checkpoint is saved; Ctrl+C "
                f"{'again' if by_signal else 'twice'} kills at once"
            )
            self.listener("notice", {"text": text})
        else:
            # Nothing is trained yet, so there is nothing to save or to wait for; a
            # half-tokenised dataset is thrown away by the next launch.
            self._abandoned = True

    def _want_stop(self) -> None:
        try:
            self.paths.stop.touch()
        except OSError:
            # A full disk may refuse even an empty file; the plugin understands signals, too.
            trainer = runs.identity_in(self.paths.heartbeat)
            if trainer and self._heartbeat() and machine.is_alive(trainer):
                os.kill(int(trainer["pid"]), signal.SIGTERM)

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
        launched.kill(self._processes())

    def _processes(self) -> list[psutil.Process]:
        """Everything we launched that still runs; the heartbeat's pid is rank 0's."""
        trainer = runs.identity_in(self.paths.heartbeat) if self._heartbeat() else None
        roots = [int(trainer["pid"])] if trainer and machine.is_alive(trainer) else []
        return launched.living(self.child, self._us, roots)


def _forget_terminal() -> None:
    """After SIGHUP the terminal is gone: writing to it would fail and end us."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
