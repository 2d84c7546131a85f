"""Owns taking signals for the length of a block, and giving them back.

Does not say what they lead to: that is the handler's.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextmanager
def taken(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    """These signals reach ``handler`` inside the block.

    Under nohup a hang-up is ignored on purpose, and stays so; but a shell's ``&`` has
    SIGINT ignored without anybody's asking, so that one is always taken.
    """
    wanted = [n for n in numbers if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupting() -> AbstractContextManager[None]:
    """Inside the block each of them is a KeyboardInterrupt; further ones cannot disturb its end.

    For commands that hold a server: a second Ctrl+C must not leave it behind.
    """

    def end(*_: object) -> None:
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    return taken(end, *_ENDINGS)
