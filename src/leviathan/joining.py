"""Owns training along on a host that is not the head: as many sessions as the head decides.

Writes nothing to the run directory but its own log: record, lock, events and checkpoints are
the head's (``sessions``). What the hosts say to each other is ``hosts``'s.
"""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import (
    agreement,
    corpus,
    diagnosis,
    files,
    hosts,
    launch,
    launched,
    machine,
    runs,
    train,
)
from leviathan.errors import LeviathanError
from leviathan.hosts import Seat
from leviathan.render import PLUGIN
from leviathan.rendezvous import Meeting
from leviathan.sessions import Ending
from leviathan.supervise import Listener, Outcome, Requests, signals_to
from leviathan.train import Decision

_POLL_S = 0.2
_HEAD_ENDS_WITHIN_S = 600.0
"""After the end here: the head may still be hashing a checkpoint of some ten GB."""


def run(
    decision: Decision,
    decide: Callable[[], Decision],
    meeting: Meeting,
    listener: Listener,
    progress: corpus.Progress | None = None,
) -> Ending:
    """Train along until the head says how it ended.

    Args:
        decision: what this host's files and command line make of the run.
        decide: makes it anew, for each further session.
        meeting: where the head is.
        listener: told what happens here, and the metrics that the head writes.
        progress: told of reading the corpus.

    Raises:
        Refused: this host has something else than the head, or cannot see its run directory.
        LeviathanError: there is no head, or it ended before training began.
    """
    requests = Requests()
    with signals_to(requests):
        while True:
            if decision.action == "nothing":
                return Ending(decision, Outcome("done", 0, None))
            try:
                outcome, again = _session(decision, meeting, requests, listener, progress)
            except hosts.InterruptedWait as why:
                reason = requests.first and f"{requests.first}, before training began"
                return Ending(decision, Outcome("stopped", 0, None, reason or str(why)))
            if not again:
                return Ending(decision, outcome)
            listener("notice", {"text": f"the head goes on after: {outcome.reason or 'a failure'}"})
            decision = decide()


def _session(
    decision: Decision, meeting: Meeting, requests: Requests, listener: Listener,
    progress: corpus.Progress | None,
) -> tuple[Outcome, bool]:  # fmt: skip
    """One session, and whether the head begins another."""
    facts = agreement.facts(decision, train.base_digest(decision.config.tree["base_model"]))

    def tell(text: str) -> None:
        listener("notice", {"text": text})

    seat = hosts.join(meeting, decision.paths, facts, requests=requests, tell=tell)
    try:
        sample = train.draw(decision, progress)  # the head has drawn it: here it is only found
        seat.link.send("ready", digest=sample.digest)
        go = hosts.answer(seat.link, "go", requests)
        meeting = replace(meeting, rank=seat.rank)
        tell(f"training along as host {seat.rank} of {meeting.nodes}; "
             f"{seat.link.name} is the head and keeps {decision.paths.directory.name}")  # fmt: skip
        step = decision.resume_from.step if decision.resume_from else 0
        listener("resume" if decision.resume_from else "start",
                 {"step": step, "session": int(go["session"]),
                  "run": str(decision.paths.directory)})  # fmt: skip
        joined = _Joined(decision, meeting, seat, int(go["session"]), requests, listener)
        return joined.watch()
    except (LeviathanError, OSError) as error:
        seat.link.send("refuse", why=f"host {seat.rank}: {error}")
        raise
    finally:
        seat.link.close()


@dataclass
class _End:
    """What the head said at the end."""

    outcome: Outcome
    again: bool


class _Joined:
    """Follows this host's processes of one session, and the head's word."""

    def __init__(
        self, decision: Decision, meeting: Meeting, seat: Seat, session: int, requests: Requests,
        listener: Listener,
    ) -> None:  # fmt: skip
        self.paths, self.seat, self.requests = decision.paths, seat, requests
        self.listener = listener
        self.silent_s = decision.config.profile.recovery.silent_s
        self._us = machine.process_identity()
        self._said_stop = False
        self._lost = ""
        self._step = 0
        self._max_steps: int | None = None
        self._metrics = files.Tail(self.paths.metrics)
        self.log = _log(self.paths, seat.rank, session)
        profile = decision.config.profile
        with self.log.open("ab") as stream:
            self.child = subprocess.Popen(
                launch.command(self.paths, profile, meeting),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=launch.environment(self.paths, profile, meeting=meeting),
                start_new_session=True,
            )

    def watch(self) -> tuple[Outcome, bool]:
        """Until the head has said how it ended and nothing of ours is left; or it is lost."""
        end: _End | None = None
        ended_at = 0.0
        while True:
            code = self.child.poll()
            over = code is not None and not self._living()
            end = end or self._heard()
            if over and not ended_at:
                ended_at = time.monotonic()
                self._say_ended(int(code or 0))
            self._ask_head()
            self._look_for_head(end)
            if (end or self._lost or self.requests.kill) and not over:
                launched.kill(self._living())
            if over and (end or self._lost or self.requests.kill):
                break
            if over and time.monotonic() - ended_at > _HEAD_ENDS_WITHIN_S:
                self._lost = f"the head ({self.seat.link.name}) did not say how it ended"
            self._follow_metrics()
            time.sleep(_POLL_S)
        self._follow_metrics()
        return self._outcome(end), bool(end and end.again)

    def _outcome(self, end: _End | None) -> Outcome:
        if self.requests.kill:
            return Outcome("killed", self._step, self._max_steps, "a second Ctrl+C", self.log)
        if end:
            return replace(end.outcome, log=self.log)
        return Outcome("failed", self._step, self._max_steps, self._lost, self.log)

    def _heard(self) -> _End | None:
        while message := self.seat.link.take():
            if message["kind"] == "end":
                outcome = Outcome(
                    str(message.get("outcome", "failed")), int(message.get("step") or 0),
                    message.get("max_steps"), str(message.get("reason", "")), self.log,
                )  # fmt: skip
                return _End(outcome, bool(message.get("again")))
        return None

    def _say_ended(self, code: int) -> None:
        self.seat.link.send("ended", code=code, log=str(self.log.resolve()))

    def _ask_head(self) -> None:
        """The head alone asks the training to stop, so that all agree on who did."""
        if self.requests.kill:
            self.seat.link.send("kill")
        elif self.requests.stop and not self._said_stop:
            self._said_stop = True
            self.seat.link.send("stop", why=self.requests.first)
            text = "asked the head to stop: the step it is in ends, then a checkpoint is saved"
            self.listener("notice", {"text": text})

    def _look_for_head(self, end: _End | None) -> None:
        """A head that hung up may still save: its training stops by itself, ours with it."""
        lost = "" if end else self.seat.lost(self.silent_s)
        hung_up = self.seat.link.closed
        over = self.child.poll() is not None
        if lost and (not hung_up or over or runs.still_s(self.paths) > self.silent_s):
            self._lost = lost
        elif not self._lost and self._has_no_plugin():
            self._lost = f"the plugin is not running here: {diagnosis.last_error(self.log)}"

    def _has_no_plugin(self) -> bool:
        if self._step:  # every rank loads its plugins before the first step
            return False
        return f"Failed to load plugin: {PLUGIN}" in diagnosis.tail(self.log)

    def _follow_metrics(self) -> None:
        for line in self._metrics.lines():
            self._step = max(self._step, int(line.get("step") or 0))
            self._max_steps = line.get("max_steps") or self._max_steps
            self.listener("metrics", line)
        self.listener("tick", {})

    def _living(self) -> list[Any]:
        return launched.living(self.child, self._us)


def _log(paths: runs.RunPaths, rank: int, session: int) -> Path:
    """Beside the head's, under a name that is not taken for the run's log."""
    paths.logs.mkdir(exist_ok=True)
    return paths.logs / f"node{rank}_{time.strftime('%Y%m%dT%H%M%S')}_{session}.log"
