"""Owns what follows a session that failed: restart, a rung of the ladder, waiting, giving up.

Pure: a diagnosis and what happened before in, an action out. ``sessions`` carries it out.
"""

from dataclasses import dataclass

from leviathan.diagnosis import Diagnosis

_LONGEST_BACKOFF_S = 300.0


@dataclass(frozen=True)
class Action:
    """What to do next."""

    kind: str
    """restart, ladder, wait_for_disk or give_up."""
    reason: str
    delay_s: float = 0.0


@dataclass
class History:
    """Failures since the run last made progress, that is a checkpoint of a later step."""

    newest_step: int | None = None
    """The furthest checkpoint so far."""
    failures: int = 0
    kinds: tuple[str, ...] = ()

    def note(self, kind: str, newest_step: int | None) -> None:
        """Count one failure; progress since the one before starts the count anew."""
        # A step reached before and lost again, to a damaged checkpoint, is no progress.
        if (newest_step or 0) > (self.newest_step or 0):
            self.newest_step = newest_step
            self.begin_anew()
        self.failures += 1
        self.kinds = (*self.kinds, kind)

    def begin_anew(self) -> None:
        """Forget the failures: what comes now is another attempt."""
        self.failures, self.kinds = 0, ()


def next_action(
    diagnosis: Diagnosis,
    history: History,
    *,
    restarts: int,
    backoff_s: float,
    ladder: bool,
    resumed: bool,
) -> Action:
    """What to do after a failure that is already noted in ``history``.

    Out of memory is the ladder's business and counts no restart: after each rung the
    caller begins the history anew. Everything else is retried at most ``restarts`` times
    without progress.

    Args:
        diagnosis: of the session that failed.
        history: failures since the last progress.
        restarts: how many are allowed without progress.
        backoff_s: seconds before the first.
        ladder: whether it is the memory that the ladder's rungs save.
        resumed: whether the session went on from a checkpoint.
    """
    loading = diagnosis.phase in {"start", "load"}
    if ladder and loading and not resumed:
        return Action("give_up", "no rung makes the base model smaller")
    # What trained before fits: something else took the memory, and may give it back.
    if ladder and not loading:
        return Action("ladder", diagnosis.text)
    if restarts == 0:
        return Action("give_up", "restarts are turned off")
    if diagnosis.kind == "host":  # whoever starts it again starts this one, too
        return Action("give_up", "all hosts have to be started again")
    if diagnosis.retry == "never":
        return Action("give_up", "it would fail the same way again")
    allowed = 1 if diagnosis.retry == "once" else restarts
    same = sum(kind == diagnosis.kind for kind in history.kinds)
    if same > allowed or history.failures > restarts:
        times = min(history.failures, restarts + 1)
        return Action("give_up", f"it failed {times} times without progress")
    delay = min(backoff_s * 2 ** (history.failures - 1), _LONGEST_BACKOFF_S)
    # Counted like the others: it may be another file system, a cache or /tmp, that is full.
    if diagnosis.kind == "disk":
        return Action("wait_for_disk", "waiting for free space", delay)
    last = min(restarts, history.failures - same + allowed)
    return Action("restart", f"restart {history.failures} of {last}", delay)
