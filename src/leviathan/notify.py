"""Owns telling somebody who is not looking, without harm to the run: queues, threads, limits.

Every hook has a thread of its own, so that none waits for another, nor the run for any. Does
not know what is worth telling (``news``) nor how it is handed over (``delivery``).
"""

import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from leviathan import delivery, hooks, signals
from leviathan.delivery import Message
from leviathan.hooks import Hook, Target

PATIENCE_S = 10.0
"""How long the end of a run waits for its last message at most."""
_MOST_WAITING = 32
_AGAIN_S = 2.0
_TOLD_EVERY_S = 3600.0
_SAY_AFTER_S = 0.5
_POLL_S = 0.05


class Pace:
    """At most one message of a kind in a time; the newest that came too soon follows later."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._sent: dict[str, float] = {}
        self._held: dict[str, Message] = {}
        self._count: dict[str, int] = {}

    def offer(self, message: Message, now: float) -> Message | None:
        """``message`` if it may go now; else it is held back."""
        sent = self._sent.get(message.kind)
        if message.kind in self._held or (sent is not None and now - sent < self.every_s):
            self.hold(message)
            return None
        self._sent[message.kind] = now
        return message

    def hold(self, message: Message) -> None:
        """Keep the newest of its kind; those before it are counted."""
        self._count[message.kind] = self._count.get(message.kind, 0) + 1
        self._held[message.kind] = message

    def due(self, now: float) -> Message | None:
        """One that was held back and may go now."""
        for kind in self._held:
            if now - self._sent.get(kind, now - self.every_s) >= self.every_s:
                self._sent[kind] = now
                return self._let_go(kind)
        return None

    def wait_s(self, now: float) -> float | None:
        """Seconds until one is due; None while none is held back."""
        waits = [self._sent.get(kind, now) + self.every_s - now for kind in self._held]
        return max(min(waits), 0.0) if waits else None

    def rest(self) -> list[Message]:
        """All that is held back, whatever the time."""
        return [self._let_go(kind) for kind in list(self._held)]

    @property
    def held(self) -> int:
        """How many messages were held back and not sent since."""
        return sum(self._count.values())

    def _let_go(self, kind: str) -> Message:
        return replace(self._held.pop(kind), held_back=self._count.pop(kind) - 1)


class _Courier(threading.Thread):
    """One hook's messages, in their order."""

    def __init__(self, hook: Hook, target: Target, tell: Callable[[str], None]) -> None:
        super().__init__(name=f"notify {target.label}", daemon=True)
        self.target = target
        self.gone = threading.Event()
        """Nothing more is to be sent, and what is being sent is to end."""
        self._hook, self._tell = hook, tell
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._closing = False
        self._pace = Pace(hook.every_min * 60)
        self._told: float | None = None

    def take(self, message: Message) -> None:
        """Queue it if this hook wants it; where too many wait, it is lost."""
        kind = next((k for k in message.kinds if k in self._hook.when), None)
        if kind and (message.last or self._inbox.qsize() < _MOST_WAITING):
            self._inbox.put(message.of(kind))

    def close(self, last: Message | None) -> None:
        """Send ``last``, or what was held back where it is not wanted, and end."""
        self._closing = True
        if last:
            self.take(last)
        self._inbox.put(None)

    def run(self) -> None:
        """The thread."""
        try:
            while message := self._next():
                self._deliver(message)
            for message in self._pace.rest():
                self._deliver(message)
        except Exception as error:  # a bug here must not look like one of the run
            self._tell(f"{self.target.label}: {type(error).__name__}")

    def _next(self) -> Message | None:
        while True:
            now = time.monotonic()
            if not self._closing and (due := self._pace.due(now)):
                return due
            try:
                message = self._inbox.get(timeout=self._pace.wait_s(now))
            except queue.Empty:
                continue
            if message is None:
                return None
            if message.last:
                held = self._pace.held
                self._pace.rest()
                return replace(message, held_back=held)
            if self._closing:  # there is little time, and the last one says more
                self._pace.hold(message)
            elif ready := self._pace.offer(message, now):
                return ready

    def _deliver(self, message: Message) -> None:
        failure = delivery.send(self._hook, self.target, message, self.gone)
        worth_it = message.last or not self._closing
        if failure and failure.passing and worth_it and not self.gone.wait(_AGAIN_S):
            failure = delivery.send(self._hook, self.target, message, self.gone)
        if failure is None or self.gone.is_set():
            return
        now = time.monotonic()
        if message.last or self._told is None or now - self._told >= _TOLD_EVERY_S:
            self._told = now
            self._tell(f"{self.target.label} was not told ({message.kind}): {failure.text}")


class Notifier:
    """The hooks of a profile, while something runs. Nothing here raises or blocks but ``close``."""

    def __init__(self, hooked: Sequence[Hook], environment: Mapping[str, str]) -> None:
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._couriers: list[_Courier] = []
        for hook in hooked:
            target = hooks.target(hook, environment)
            if target.problem:  # the checks before the launch have said so
                continue
            courier = _Courier(hook, target, self._problems.put)
            try:
                courier.start()
            except RuntimeError:  # no more threads
                self._problems.put(f"{target.label} is told nothing: no thread could be started")
                continue
            self._couriers.append(courier)

    def tell(self, message: Message) -> None:
        """Have everybody told who wants to hear of it."""
        for courier in self._couriers:
            courier.take(message)

    def problems(self) -> list[str]:
        """What went wrong since this was asked last, for whoever looks at the run."""
        found: list[str] = []
        with suppress(queue.Empty):
            while True:
                found.append(self._problems.get_nowait())
        return found

    def close(
        self, last: Message | None, patience_s: float = PATIENCE_S,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Send the last message and end; a signal or ``patience_s`` ends the waiting for it.

        Args:
            last: of how the run ended.
            patience_s: the longest wait.
            waiting: called once where it is not done at once.
        """
        hurry: list[int] = []
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with signals.taken(lambda number, _: hurry.append(number), *wanted):
            for courier in self._couriers:
                courier.close(last)
            began, said = time.monotonic(), False
            while self._living() and not hurry and time.monotonic() - began < patience_s:
                if not said and time.monotonic() - began > _SAY_AFTER_S:
                    said = True
                    waiting()
                time.sleep(_POLL_S)
            for courier in self._living():
                courier.gone.set()
                self._problems.put(f"{courier.target.label} did not answer in time: given up")
            for courier in self._living():
                courier.join(1.0)  # its command is killed meanwhile

    def _living(self) -> list[_Courier]:
        return [courier for courier in self._couriers if courier.is_alive()]
