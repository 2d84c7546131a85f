"""Owns what is told of a run to those who are not looking: which happenings, in which words.

Does not send it (``notify``), nor carry the run out (``sessions``): it listens. Smoke tests
and benches do not come by here, so nobody is told of them.
"""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from leviathan import corpus, runs, sessions, train
from leviathan.budget import USED_UP, Budget
from leviathan.delivery import Message
from leviathan.diagnosis import short
from leviathan.errors import LeviathanError
from leviathan.notify import PATIENCE_S, Notifier
from leviathan.sessions import Ending
from leviathan.supervise import Listener
from leviathan.train import Decision

_HURRIED_S = 2.0
# A cause (diagnosis.Diagnosis.kind) that has a kind of its own.
_CAUSES = {"memory": "oom", "host_memory": "oom", "stall": "stalled", "disk": "disk",
           "nan": "diverged"}  # fmt: skip
# What the training process and its watchdog say (the events' own kinds).
_TOLD = {"disk": "disk", "heat": "heat", "divergence": "diverged", "jump": "diverged"}
_TELLING = {"warning", "pause", "unpause"}


def run(
    decision: Decision,
    listener: Listener,
    progress: corpus.Progress | None = None,
    *,
    budget: Budget,
    shrink: bool = False,
    repeat: Sequence[str] = (),
) -> Ending:
    """``sessions.run``, with everybody told whom the profile's ``notify`` names.

    Raises:
        Refused: as ``sessions.run``; told, too, if training had begun.
    """
    notifier = Notifier(decision.config.profile.notify, os.environ)
    reporter = _Reporter(decision, listener, notifier)
    try:
        ending = sessions.run(
            decision, reporter, progress, budget=budget, shrink=shrink, repeat=repeat
        )
    except Exception as error:
        reporter.close(reporter.broken(error))
        raise
    except BaseException:  # Ctrl+C where nothing was trained: no command may outlive us
        reporter.close(None, _HURRIED_S)
        raise
    again = train.resume_command(ending.decision, repeat)
    hurried = ending.outcome.kind == "killed"  # who presses Ctrl+C twice does not want to wait
    reporter.close(reporter.ended(ending, again), _HURRIED_S if hurried else PATIENCE_S)
    return ending


class _Reporter:
    """A listener that passes everything on, and tells what is news."""

    def __init__(self, decision: Decision, listener: Listener, notifier: Notifier) -> None:
        self.paths, self.listener, self.notifier = decision.paths, listener, notifier
        self._host = socket.gethostname()
        self._begun = False
        self._step = decision.resume_from.step if decision.resume_from else None
        self._max_steps: int | None = None
        self._loss: float | None = None

    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        """Take one message of the launch."""
        self.listener(kind, facts)
        if kind == "metrics":
            self._note(facts)
        elif kind in {"start", "resume"}:
            self._begun = True
        elif kind == "event":
            told = _TOLD.get(str(facts.get("kind")))
            if told and facts["event"] in _TELLING:
                self._tell((told,), str(facts.get("text", "")))
        elif "cause" in facts:
            self._between_sessions(facts)
        self._pass_on()

    def _note(self, line: dict[str, Any]) -> None:
        self._step = line.get("step", self._step)
        self._max_steps = line.get("max_steps") or self._max_steps
        loss = line.get("loss")
        self._loss = loss if isinstance(loss, float) else self._loss

    def _between_sessions(self, facts: dict[str, Any]) -> None:
        """A session failed, and it goes on: from a checkpoint, or with a smaller run."""
        cause = _CAUSES.get(facts["cause"])
        self._tell((cause, "restarted") if cause else ("restarted",), facts["text"])
        self.paths = facts.get("paths", self.paths)

    def _tell(self, kinds: tuple[str, ...], text: str) -> None:
        self.notifier.tell(self._message(kinds, text))

    def _message(self, kinds: tuple[str, ...], text: str, again: str = "") -> Message:
        return Message(
            kinds, self.paths.directory.name, text, self._host, time.time(),
            self._step, self._max_steps, self._loss, again,
        )  # fmt: skip

    def _last(self, kinds: tuple[str, ...], text: str, again: str = "") -> Message:
        return replace(self._message(kinds, text, again), last=True)

    def _pass_on(self) -> None:
        """What went wrong with telling is told here, and remembered by the run."""
        for problem in self.notifier.problems():
            # Without a session: what has one is read back and would be told twice.
            with suppress(OSError):
                runs.event(self.paths, "warning", session=None, kind="notify", text=problem)
            self.listener("warning", {"text": problem})

    def ended(self, ending: Ending, again: str) -> Message:
        """How it ended, and what to type next."""
        outcome, found = ending.outcome, ending.diagnosis
        self.paths = ending.decision.paths
        self._step, self._max_steps = outcome.step, outcome.max_steps or self._max_steps
        if outcome.kind == "done":
            name = self.paths.directory.name
            return self._last(("finished",), "trained to its end", f"leviathan merge {name}")
        if outcome.kind != "failed":
            kinds = ("budget", "stopped") if outcome.reason == USED_UP else ("stopped",)
            return self._last(kinds, outcome.reason, again)
        cause = _CAUSES.get(found.kind) if found else None
        why = found.text if found else short(outcome.reason)
        gave_up = f"; not tried again: {ending.gave_up}" if ending.gave_up else ""
        return self._last(("crashed", cause) if cause else ("crashed",), why + gave_up, again)

    def broken(self, error: Exception) -> Message | None:
        """What ended the run from within; None where it had not begun."""
        line = error.line if isinstance(error, LeviathanError) else type(error).__name__
        return self._last(("crashed",), line) if self._begun else None

    def close(self, last: Message | None, patience_s: float = PATIENCE_S) -> None:
        """Have the last message sent, and say what could not be."""
        text = "telling others how it ended; Ctrl+C ends the waiting"
        self.notifier.close(last, patience_s, lambda: self.listener("notice", {"text": text}))
        self._pass_on()
