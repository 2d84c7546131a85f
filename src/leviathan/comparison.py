"""Owns the decision matrix: plans side by side, which one to take, and why.

Pure. Does not make the plans (``plan``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from leviathan.plan import Plan

# Above this the middle of the estimate is called long: a workstation is seldom left alone
# for more than three days (a judgement, not a measurement).
_LONG_HOURS = 72.0
# Of two ways the faster one is taken when it costs at most this much more.
_WORTH = 1.25


@dataclass(frozen=True)
class Option:
    """One plan as a way to get the training done."""

    name: str
    plan: Plan
    usd: float | None
    """Money at the middle of the estimate; None where no price is known."""
    paid_to: str
    """The cheapest provider, ``yours``, or ``electricity``."""
    owned: bool
    """No provider's price: the machine is there anyway."""
    risks: tuple[str, ...]

    @property
    def possible(self) -> bool:
        """It fits, and how long it takes is known."""
        return self.plan.verdict != "does_not_fit" and self.plan.hours is not None

    @property
    def hours(self) -> float:
        """The middle of the estimate; infinite where it is unknown."""
        return self.plan.hours.mid if self.plan.hours else float("inf")


@dataclass(frozen=True)
class Choice:
    """The recommendation: the option's name (None where none is possible), and the reason."""

    name: str | None
    reason: str


def option(plan: Plan) -> Option:
    """What ``plan`` costs and risks."""
    owned = not plan.usd
    if owned:
        usd, paid_to = plan.energy_usd.mid if plan.energy_usd else None, "electricity"
    else:
        paid_to = min(plan.usd, key=lambda name: plan.usd[name].mid)
        usd = plan.usd[paid_to].mid
    return Option(plan.config.profile_name, plan, usd, paid_to, owned, tuple(_risks(plan)))


def _risks(plan: Plan) -> list[str]:
    found = []
    if plan.verdict == "does_not_fit":
        known = plan.card_gib and plan.memory.verdict_for(plan.card_gib) == "does_not_fit"
        needs = f"needs {plan.memory.total_gib:.1f} GiB of {plan.card_gib or 0:.4g}"
        found.append(needs if known else plan.evidence["memory"])
    elif plan.verdict == "tight":
        found.append("memory is tight: the out-of-memory ladder may be needed")
    if plan.hours is None:
        found.append("how long is unknown: nothing was measured on this machine")
        return found
    if plan.hours.mid > _LONG_HOURS:
        found.append(f"{plan.hours.mid / 24:.0f} days without a break")
    if plan.save_minutes and plan.save_minutes > 60:
        found.append(f"a power cut costs up to {plan.save_minutes / 60:.1f} h of work")
    if plan.speed and plan.speed.source == "formula":
        found.append("time by formula: bench it first")
    return found


def choose(
    options: Sequence[Option], limit_hours: float | None = None, limit_usd: float | None = None
) -> Choice:
    """The option to take: what is owned if it is quick enough, else the cheapest that is.

    Of two that cost about the same (within a quarter) the faster one. None that is known to
    cost more than ``limit_usd``, nor one whose price is unknown where there is such a limit.
    """
    limit = limit_hours or _LONG_HOURS
    possible = [o for o in options if o.possible]
    if not possible:
        return Choice(None, "none of them fits, or how long they take is unknown")
    if limit_usd is not None:
        priced = [o for o in possible if o.usd is not None]
        possible = [o for o in priced if o.usd is not None and o.usd <= limit_usd]
        if not possible:
            return Choice(None, _too_dear(priced, limit_usd))
    quick = [o for o in possible if o.hours <= limit]
    if not quick:
        money = "" if limit_usd is None else f" for ${limit_usd:g} or less"
        fastest = min(possible, key=lambda o: o.hours)
        return Choice(
            fastest.name,
            f"none{money} is done within {limit:g} h; this is the fastest, {fastest.hours:.0f} h",
        )
    owned = [o for o in quick if o.owned]
    if owned:
        best = min(owned, key=lambda o: o.hours)
        return Choice(best.name, f"it is yours and done in {best.hours:.0f} h")
    priced = [o for o in quick if o.usd is not None]
    if not priced:
        fastest = min(quick, key=lambda o: o.hours)
        return Choice(fastest.name, f"the fastest, {fastest.hours:.0f} h; no price is known")
    return _cheapest(priced, options, limit)


def _too_dear(priced: Sequence[Option], limit_usd: float) -> str:
    if not priced:
        return "none has a price that is known"
    least = min(priced, key=lambda o: o.usd or 0.0)
    return f"none costs ${limit_usd:g} or less; the cheapest is {least.name}, ${least.usd:,.0f}"


def _cheapest(priced: Sequence[Option], options: Sequence[Option], limit: float) -> Choice:
    least = min(o.usd or 0.0 for o in priced)
    near = [o for o in priced if (o.usd or 0.0) <= least * _WORTH]
    best = min(near, key=lambda o: o.hours)
    slow = [o for o in options if o.possible and o.owned and o.hours > limit]
    why = f"${best.usd:.0f} and {best.hours:.0f} h"
    if slow:
        why += f", where {slow[0].name} would take {slow[0].hours / 24:.0f} days"
    if dearer := [o for o in priced if o.name != best.name]:
        other = min(dearer, key=lambda o: o.usd or 0.0)
        why += f"; {other.name}: ${other.usd:.0f} and {other.hours:.0f} h"
    return Choice(best.name, why)
