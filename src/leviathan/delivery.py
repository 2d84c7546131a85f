"""Owns handing one message over: a POST to a webhook, a command run without a shell.

Whatever goes wrong comes back as a value that shows no secret. Does not queue, limit or
repeat (``notify``).
"""

import json
import math
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from leviathan import __version__, runs
from leviathan.hooks import Hook, Target

WEBHOOK_S = 10.0
COMMAND_S = 30.0
_LONGEST = 1500  # Discord takes 2,000 characters


@dataclass(frozen=True)
class Message:
    """One thing to tell."""

    kinds: tuple[str, ...]
    """What it is, the most telling first."""
    run: str
    text: str
    host: str
    time: float
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    next: str = ""
    """What to type."""
    last: bool = False
    """Nothing follows it, so it is never held back."""
    held_back: int = 0
    """Messages not sent since the one before, for there were too many."""

    @property
    def kind(self) -> str:
        return self.kinds[0]

    def of(self, kind: str) -> "Message":
        """The same for somebody who wants to hear of ``kind``."""
        return replace(self, kinds=(kind,))

    @property
    def line(self) -> str:
        """All of it, for people."""
        parts = [f"{self.run} {self.kind}: {self.text}", self._progress, f"on {self.host}"]
        if self.held_back:
            parts.append(f"{self.held_back} more held back")
        if self.next:
            parts.append(f"next: {self.next}")
        return _clean("; ".join(part for part in parts if part))

    @property
    def _progress(self) -> str:
        if self.step is None:
            return ""
        of = f" of {self.max_steps}" if self.max_steps else ""
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return f"step {self.step}{of}{loss}"

    def document(self) -> dict[str, Any]:
        """All of it, for programs; ``text`` is what Slack shows, ``content`` what Discord does."""
        loss = self.loss if self.loss is not None and math.isfinite(self.loss) else None
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time))
        return {
            "text": self.line, "content": self.line, "run": self.run, "kind": self.kind,
            "step": self.step, "max_steps": self.max_steps, "loss": loss, "host": self.host,
            "time": moment, "next": self.next, "held_back": self.held_back,
        }  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """Why a message did not arrive."""

    text: str
    passing: bool = False
    """Whether another try may succeed."""


def send(
    hook: Hook, target: Target, message: Message, gone: threading.Event | None = None,
    command_s: float = COMMAND_S,
) -> Failure | None:  # fmt: skip
    """Hand ``message`` over; None when it arrived. Raises nothing.

    Args:
        hook: how.
        target: of ``hooks.target``.
        message: what.
        gone: once set, a command is killed at once.
        command_s: seconds a command has.
    """
    if target.problem:
        return Failure(target.problem)
    try:
        if hook.command:
            return _run(hook.command, message, gone or threading.Event(), command_s)
        return _post(target.url, hook.body, message)
    except Exception as error:  # nobody may be harmed by it; some show the URL in their text
        return Failure(type(error).__name__)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected would become a GET, and may lead anywhere."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: HTTPMessage, newurl: str,
    ) -> None:  # fmt: skip
        """Follow none."""
        return


def _post(url: str, body: str, message: Message) -> Failure | None:
    plain = body == "text"
    data = message.line if plain else json.dumps(message.document(), allow_nan=False)
    request = urllib.request.Request(  # noqa: S310 - hooks lets http and https through only
        url, data.encode(), method="POST",
        headers={
            "Content-Type": "text/plain; charset=utf-8" if plain else "application/json",
            "User-Agent": f"leviathan/{__version__}",  # Discord refuses urllib's own
        },
    )  # fmt: skip
    opener = urllib.request.build_opener(_StayHere)
    try:
        with opener.open(request, timeout=WEBHOOK_S):
            return None
    except urllib.error.HTTPError as error:
        with error:
            code = error.code
        more = ": it leads elsewhere; give the address it leads to" if code < 400 else ""
        return Failure(f"HTTP {code}{more}", passing=code == 429 or code >= 500)
    except TimeoutError:
        return Failure(f"no answer within {WEBHOOK_S:g} s", passing=True)
    except (OSError, HTTPException) as error:
        why = getattr(error, "reason", error)
        if isinstance(why, TimeoutError):
            return Failure(f"no answer within {WEBHOOK_S:g} s", passing=True)
        return Failure(getattr(why, "strerror", None) or type(why).__name__, passing=True)


def _run(
    command: list[str], message: Message, gone: threading.Event, seconds: float
) -> Failure | None:
    try:
        child = subprocess.Popen(
            [_filled(word, message) for word in command], env=_environment(message),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Failure(error.strerror or type(error).__name__)
    end = time.monotonic() + seconds
    while True:
        try:
            code = child.wait(0.1)
        except subprocess.TimeoutExpired:
            if time.monotonic() < end and not gone.is_set():
                continue
            with suppress(OSError):  # not reaped yet: the group is still its own
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            why = "the run has ended" if gone.is_set() else f"it took longer than {seconds:g} s"
            return Failure(f"killed: {why}")
        if code == 0:
            return None
        return Failure(f"exit code {code}" if code > 0 else f"signal {-code}")


def _filled(word: str, message: Message) -> str:
    """``word`` with its placeholders filled, in one pass; other braces stay."""
    step = "" if message.step is None else str(message.step)
    values = {"run": message.run, "kind": message.kind, "text": message.line, "step": step,
              "host": message.host}  # fmt: skip
    pieces = word.split("{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, brace, rest = piece.partition("}")
        filled.append(values[name] + rest if brace and name in values else "{" + piece)
    return "".join(filled)


def _environment(message: Message) -> dict[str, str]:
    step = "" if message.step is None else str(message.step)
    # A process that names our supervisor would be taken for the training's and killed.
    ours = {k: v for k, v in os.environ.items() if k != runs.SUPERVISOR_VARIABLE}
    return {
        **ours, "LEVIATHAN_EVENT": message.kind, "LEVIATHAN_RUN": message.run,
        "LEVIATHAN_TEXT": message.line, "LEVIATHAN_STEP": step, "LEVIATHAN_HOST": message.host,
        "LEVIATHAN_NEXT": _clean(message.next),
    }  # fmt: skip


def _clean(text: str) -> str:
    """One line that every receiver can hold: log lines may have anything in them."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    return kept if len(kept) <= _LONGEST else f"{kept[: _LONGEST - 3]}..."
