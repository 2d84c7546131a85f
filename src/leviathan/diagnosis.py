"""Owns reading a failure: what a log says went wrong.

Pure but for reading the log. Does not decide what to do about it.
"""

from pathlib import Path

_LOG_TAIL_BYTES = 64 << 10


def tail(log: Path) -> str:
    """The end of a log as text, at most 64 KiB."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return stream.read().decode(errors="replace")


def last_error(log: Path) -> str:
    """The line of a log that says best what went wrong.

    The last line that starts with an exception's name, as tracebacks end; else the
    last line that is not empty.
    """
    lines = [line.strip() for line in tail(log).splitlines() if line.strip()]
    for line in reversed(lines):
        name, separator, _ = line.partition(": ")
        # accelerate's own report that its child failed hides the child's reason.
        is_error = name.endswith(("Error", "Exception", "Interrupt", "Exit"))
        if separator and is_error and " " not in name and "CalledProcess" not in name:
            return line
    return lines[-1] if lines else "the log is empty"
