"""Owns what can be trained within a limit of hours or money: a part of the corpus, or elsewhere.

Tries plans. Does not make predictions of its own (``plan``) nor look for knobs (``fit``).
"""

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from leviathan import corpus, layers, plan
from leviathan.config import Profile
from leviathan.errors import BadInput
from leviathan.layers import Config
from leviathan.plan import Plan
from leviathan.survey import Survey

# Parts of a corpus that a person would type, in hundredths of a per cent: two digits.
_WHOLE = 10_000
_PARTS = (*range(1, 100), *range(100, 1000, 10), *range(1000, _WHOLE + 1, 100))


@dataclass(frozen=True)
class Limit:
    """Hours or dollars that a training may take; both None: no limit was asked for."""

    hours: float | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("--fit-hours", self.hours), ("--budget-usd", self.usd)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise BadInput(f"{option} {value:g} is no limit", f"example: {option} 36")

    def __bool__(self) -> bool:
        return self.hours is not None or self.usd is not None

    def hours_on(self, profile: Profile, name: str) -> float:
        """The nearer of both limits in hours of this machine, at the cheapest price known.

        Raises:
            BadInput: the limit is money, and no price is known.
        """
        found = [self.hours] if self.hours is not None else []
        if self.usd is not None:
            price = hourly_usd(profile)
            if not price:
                raise BadInput(
                    f"no price is known for profile {name}",
                    "set price_usd_hour in the profile, or --set price_usd_hour=1.50",
                )
            found.append(self.usd / price)
        return min(found)


def hourly_usd(profile: Profile) -> float | None:
    """What an hour costs: the cheapest price, or the electricity of one's own machine."""
    known = plan.prices(profile)
    if known:
        return known.get("yours", min(known.values()))
    watts, kwh = plan.watts_of(profile), profile.electricity_usd_kwh
    return watts / 1000 * kwh if watts and kwh is not None else None


@dataclass(frozen=True)
class Share:
    """The part of a corpus that is done within a limit."""

    sample: str
    """As for ``--sample``."""
    epochs: float
    plan: Plan


def shares(found: Survey, hours: float) -> list[Share]:
    """The largest part of the corpus for the epochs asked for, and for one epoch.

    Done even at the slow end of the estimate: a limit is a promise. Empty where nothing is.
    """
    asked = found.plan().knobs.epochs
    made = [_share(found, hours, epochs) for epochs in sorted({asked, min(asked, 1.0)})[::-1]]
    return [share for share in made if share]


def _share(found: Survey, hours: float, epochs: float) -> Share | None:
    config = layers.changed(found.config, {"num_epochs": epochs}, "offered")
    of_rows = _rows_of_corpus(found)
    held_out = config.tree.get("val_set_size") or 0

    def planned(hundredths: int) -> Plan:
        return found.plan(config, rows=round(of_rows * hundredths / _WHOLE))

    def holds(hundredths: int) -> bool:
        taken = planned(hundredths).hours
        return taken is not None and taken.high <= hours

    possible = [n for n in _PARTS if of_rows * n / _WHOLE > 2 * max(held_out, 1)]
    part = _largest(holds, possible, guess=_likely(planned(possible[-1]), hours))
    if part is None:
        return None
    sample = "full" if part == _WHOLE else f"{part / 100:g}pct"
    return Share(sample, epochs, planned(part))


def _likely(whole: Plan, hours: float) -> float:
    """About which part of the corpus is done in time: hours grow with rows almost in a line."""
    return _WHOLE * hours / whole.hours.high if whole.hours else 0.0


def _largest(holds: Callable[[int], bool], parts: Sequence[int], guess: float) -> int | None:
    """The last of ascending ``parts`` that holds, sought near ``guess``: plans take time."""
    place = min(bisect.bisect_right(parts, guess), len(parts) - 1)
    while place >= 0 and not holds(parts[place]):
        place -= 1
    while 0 <= place < len(parts) - 1 and holds(parts[place + 1]):
        place += 1
    return parts[place] if place >= 0 else None


def _rows_of_corpus(found: Survey) -> float:
    """Rows of the whole corpus; of the sample where that was asked for as a count."""
    wanted = corpus.parse_sample(found.config.sample)
    return found.statistics.rows / (wanted if isinstance(wanted, float) else 1.0)


def elsewhere(found: Survey, limit: Limit, profiles: Iterable[str]) -> list[Plan]:
    """Plans for all that was asked for on other machine classes that keep the limit."""
    kept = []
    for name in profiles:
        config = on(found.config, name)
        if config.profile_name == found.config.profile_name:
            continue
        made = found.plan(config)
        if made.hours is None:
            continue
        try:
            hours = limit.hours_on(made.profile, name)
        except BadInput:
            continue  # without a price it cannot be judged
        if made.verdict != "does_not_fit" and made.hours.high <= hours:
            kept.append(((hourly_usd(made.profile) or math.inf) * made.hours.mid, name, made))
    return [made for _, _, made in sorted(kept, key=lambda one: one[:2])]


def on(config: Config, profile: str) -> Config:
    """All that was asked for, on the machine class ``profile``.

    Raises:
        BadInput: no such profile.
    """
    overrides = list(config.overrides)
    return layers.build(config.recipe_asked, profile, config.sample, overrides)
