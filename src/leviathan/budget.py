"""Owns budgets: hours and money a run may take over all its sessions.

Pure arithmetic on what ``runs`` recorded; the clock is the caller's.
"""

import math
from dataclasses import dataclass

from leviathan.errors import BadInput
from leviathan.eta import Eta

USED_UP = "the budget is used up"
"""Why a run stopped whose budget is spent."""


@dataclass(frozen=True)
class Budget:
    """Limits over all sessions of a run; None where there is no limit."""

    max_hours: float | None = None
    budget_usd: float | None = None
    usd_hour: float | None = None

    def __post_init__(self) -> None:
        given = (self.max_hours, self.budget_usd, self.usd_hour)
        if any(value is not None and math.isnan(value) for value in given):
            raise BadInput("a budget is a number", "example: --max-hours 12")
        if self.budget_usd is not None and not self.usd_hour:
            raise BadInput(
                "--budget-usd needs the price of an hour",
                "say --usd-hour, or put price_usd_hour into the profile",
            )

    @property
    def hours(self) -> float | None:
        """The nearer of both limits, in hours of wall-clock time."""
        limits = [self.max_hours] if self.max_hours is not None else []
        if self.budget_usd is not None and self.usd_hour:
            limits.append(self.budget_usd / self.usd_hour)
        return min(limits, default=None)

    def left_s(self, spent_s: float) -> float | None:
        """Seconds left after ``spent_s``; None without a limit, never negative."""
        return None if self.hours is None else max(self.hours * 3600 - spent_s, 0.0)

    @property
    def text(self) -> str:
        """The limits as the user gave them."""
        parts = [] if self.max_hours is None else [f"{self.max_hours:g} h"]
        if self.budget_usd is not None:
            parts.append(f"${self.budget_usd:g} at ${self.usd_hour:g}/h")
        return ", ".join(parts)


def to_finish(steps_left: int, left: Eta, usd_hour: float | None) -> str:
    """What the rest of a run takes, as its own history tells."""
    if left.mid_s is None:
        return f"{steps_left} steps to go"
    hours = left.mid_s / 3600
    money = f", ${hours * usd_hour:.2f}" if usd_hour else ""
    shown = f"{hours:.1f} h" if hours >= 1 else f"{math.ceil(hours * 60)} min"
    return f"{steps_left} steps to go, about {shown}{money}, by {left.source}"
