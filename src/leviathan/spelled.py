"""Owns figures and texts as people read them: durations, sizes, counts, money, moments.

Does not lay them out (``page``, ``ui``).
"""

import math
import time

# C0 and C1 but for line feed and tab, and DEL: what a terminal would obey.
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "?")


def plain(text: str) -> str:
    """Text out of a file that anybody may have written, harmless to a terminal."""
    return text.translate(_CONTROLS)


def duration(seconds: float) -> str:
    """The two largest units: 4 d 3 h, 12 m 5 s; below ten seconds one decimal."""
    if not math.isfinite(seconds):
        return "?"
    if abs(seconds) < 9.95:
        return f"{seconds:.1f} s"
    left = round(seconds)
    found: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if found and not count:
            break
        if count:
            found.append(f"{count} {unit}")
    return " ".join(found[:2])


def size(count: float) -> str:
    """Bytes: 1.3 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def count(value: float) -> str:
    """Whole numbers with their thousands apart; of millions on, three digits and a letter."""
    if abs(value) < 1e6:
        return f"{value:,.0f}".replace(",", "\u202f")
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {letter}"
    return str(value)


def figure(value: float) -> str:
    """Four digits, without an exponent where that is shorter."""
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3g}"
    return f"{value:.4g}" if abs(value) < 1000 else count(value)


def usd(amount: float) -> str:
    """$0.42, $1 230."""
    return f"${amount:.2f}" if abs(amount) < 100 else f"${count(amount)}"


def moment(seconds: float) -> str:
    """The wall clock in UTC, to the minute."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):  # out of a damaged file
        return "?"


def times(number: int) -> str:
    """once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def counted(number: int, noun: str) -> str:
    """1 session, 2 sessions."""
    return f"{count(number)} {noun}{'s' * (number != 1)}"
