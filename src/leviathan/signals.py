"""Owns taking signals for the length of a block, and giving them back.

Does not say what they lead to: that is the handler's.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
