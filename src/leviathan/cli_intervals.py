"""Owns how estimates with their intervals are shown by ``plan``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leviathan.plan import Range


def time_text(hours: "Range") -> str:
    """In the unit that suits the middle."""
    if hours.mid >= 48:
        days, digits = hours.scaled(1 / 24), 1 if hours.mid < 2400 else 0
        return f"{days.mid:,.{digits}f} days ({days.low:,.{digits}f} to {days.high:,.{digits}f})"
    if hours.mid >= 1:
        return f"{hours.mid:.1f} h ({hours.low:.1f} to {hours.high:.1f})"
    return f"{hours.mid * 60:.0f} min ({hours.low * 60:.0f} to {hours.high * 60:.0f})"


def usd_text(cost: "Range") -> str:
    """Dollars, whole ones from ten on."""
    digits = 0 if cost.mid >= 10 else 2
    return f"${cost.mid:,.{digits}f} (${cost.low:,.{digits}f} to {cost.high:,.{digits}f})"


def count(number: float) -> str:
    """A large number in G, M or k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
