"""Owns what is told beside a plan: how to make it fit, how far it goes, what is done in time.

Gathers the answers of ``fit`` and ``offers``; finds none itself.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from leviathan import fit, offers, plan
from leviathan.fit import Change, Reach
from leviathan.offers import Limit, Share
from leviathan.plan import Plan
from leviathan.survey import Survey


@dataclass(frozen=True)
class Advice:
    """The answers to what was asked beside a plan, and to what it asks itself."""

    misfit: bool
    """The plan does not fit its card."""
    change: Change | None
    """What makes a misfit fit; None where nothing does, or nothing need."""
    reach: Reach | None
    """How far each knob goes, where that was asked."""
    best: Change | None
    hours: float | None
    """The limit: asked for, or the recipe's own expectation that the plan breaks."""
    shares: tuple[Share, ...]
    """Parts of the corpus done within it."""
    elsewhere: tuple[Plan, ...] | None
    """Other machines that keep a limit for all that was asked; None where none was asked for."""


def give(
    found: Survey, made: Plan, limit: Limit, profiles: Iterable[str], *, fitted: bool
) -> Advice:
    """What to tell with the plan ``made``.

    Args:
        found: what the plan was made from.
        limit: hours or money that may be spent, if asked for.
        profiles: other machine classes, looked at where there is a limit.
        fitted: whether to look for the largest knobs.

    Raises:
        BadInput: the limit is money, and the machine has no price.
    """
    card, tree = fit.card_of(made), made.config.tree
    misfit = made.verdict == "does_not_fit"
    hours, expected = None, made.expected_hours
    if limit:
        hours = limit.hours_on(made.profile, made.config.profile_name)
    elif expected and made.hours and made.hours.low > expected:
        hours = expected
    return Advice(
        misfit=misfit,
        change=fit.cheapest_change(card, tree) if card and misfit else None,
        reach=fit.reach(card, tree) if card and fitted else None,
        best=fit.best(card, tree) if card and fitted else None,
        hours=hours,
        shares=tuple(offers.shares(found, hours)) if hours else (),
        elsewhere=tuple(offers.elsewhere(found, limit, profiles)) if limit else None,
    )


def as_document(advice: Advice) -> dict[str, Any]:
    """What ``plan --json`` says beside the plan."""
    document: dict[str, Any] = {}
    if advice.misfit:
        document["cheapest_change"] = asdict(advice.change) if advice.change else None
    if advice.reach:
        document["reach"] = asdict(advice.reach)
        document["best"] = asdict(advice.best) if advice.best else None
    if advice.hours:
        document["limit_hours"] = advice.hours
        document["fits_in_limit"] = [
            {"sample": s.sample, "epochs": s.epochs, **_shortened(s.plan)} for s in advice.shares
        ]
    if advice.elsewhere is not None:
        document["elsewhere"] = [
            {"profile": p.config.profile_name, **_shortened(p)} for p in advice.elsewhere
        ]
    return document


def _shortened(made: Plan) -> dict[str, Any]:
    whole = plan.as_document(made)
    return {key: whole[key] for key in ("verdict", "rows", "steps", "tokens", "hours", "usd")}
