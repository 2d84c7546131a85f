"""Signals taken for a block: who gets them inside it, and who after it."""

import os
import signal
from contextlib import suppress

import pytest

from leviathan import signals


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request):
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


def test_a_handler_has_a_signal_inside_the_block_only(number):
    inside, outside = [], []
    signal.signal(number, lambda *_: outside.append(number))
    with suppress(KeyError), signals.taken(lambda *_: inside.append(number), number):
        os.kill(os.getpid(), number)
        raise KeyError
    os.kill(os.getpid(), number)
    assert (inside, outside) == ([number], [number])


def test_what_is_ignored_stays_so_but_ctrl_c(number):
    """Under nohup a hang-up is ignored on purpose; shells ignore SIGINT for every ``&``."""
    told = []
    signal.signal(number, signal.SIG_IGN)
    with signals.taken(lambda *_: told.append(number), number):
        os.kill(os.getpid(), number)
    assert told == [number] * (number == signal.SIGINT)
    assert signal.getsignal(number) == signal.SIG_IGN
