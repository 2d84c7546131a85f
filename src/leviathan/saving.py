"""Owns asking a living training for a checkpoint now, from another process.

Does not save (the Trainer does, when ``callbacks`` tells it) nor end anything (``stopping``).
"""

import time
from collections.abc import Callable

from leviathan import elsewhere, files, runs, watch
from leviathan.errors import LeviathanError, Refused

_POLL_S = 0.2
_SAY_AGAIN_S = 30.0


def ask(paths: runs.RunPaths, tell: Callable[[str], None]) -> int:
    """Have the run save after the step it is in, wait until that is committed; its step.

    Raises:
        Refused: it does not run, or it is another user's.
        LeviathanError: it ended without that save.
    """
    name = paths.directory.resolve().name
    if not watch.lives(paths):
        raise Refused(f"{name} is not running, so there is nothing new to save")
    events = files.Tail(paths.events)
    if away := elsewhere.living(paths):
        tell(f"it trains on {away.host}, which is asked through the run's directory")
    _touch(paths)
    tell("asked to save: the step it is in ends first")
    asked_at: int | None = None
    asked = said = time.monotonic()
    while True:
        over = not watch.lives(paths)  # before reading: what was written until then counts
        for event in events.lines():
            kind, step = event.get("event"), event.get("step")
            if kind in {"start", "resume"}:  # the launch of a session clears old requests
                asked_at = None
                _touch(paths)
            elif kind == "save_asked" and runs.is_whole(step):
                asked_at = step
            elif kind == "save" and runs.is_whole(step) and step >= (asked_at or step + 1):
                return step
        if over:
            paths.save.unlink(missing_ok=True)
            raise LeviathanError(f"{name} ended before it saved", f"see leviathan status {name}")
        if time.monotonic() - said > _SAY_AGAIN_S:
            said = time.monotonic()
            tell(f"still waiting ({said - asked:.0f} s)")
        time.sleep(_POLL_S)


def _touch(paths: runs.RunPaths) -> None:
    try:
        paths.save.touch()
    except PermissionError as error:
        raise Refused(
            f"{paths.directory} is another user's", "only they can have it save"
        ) from error
