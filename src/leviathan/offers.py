"""Owns what can be trained within a limit of hours or money: a part of the corpus, or elsewhere.

Tries plans. Does not make predictions of its own (``plan``) nor look for knobs (``fit``).
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from leviathan import layers, plan, samples
from leviathan.config import Profile
from leviathan.errors import BadInput
from leviathan.layers import Config
from leviathan.plan import Plan
from leviathan.survey import Survey

# Parts of a corpus that a person would type, in hundredths of a per cent: two digits.
_WHOLE = 10_000
_OF_THE_MACHINE = {"hardware", "price_usd_hour", "prices"}
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
            BadInput: the limit is money, and no price is known, or it is 0.
        """
        found = [self.hours] if self.hours is not None else []
        if self.usd is not None:
            price = hourly_usd(profile)
            if price is None:
                raise BadInput(
                    f"no price is known for profile {name}",
                    "set price_usd_hour in the profile, or --set price_usd_hour=1.50",
                )
            if not price:
                raise BadInput(f"an hour of profile {name} costs nothing", "leave out --budget-usd")
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
        try:
            taken = planned(hundredths).hours
        except BadInput:
            return True  # too few rows for that many processes: more of them may do
        return taken is not None and taken.high <= hours

    possible = [n for n in _PARTS if of_rows * n / _WHOLE > 2 * max(held_out, 1)]
    if not possible:
        return None
    try:
        part = _largest(holds, possible, guess=_likely(planned(possible[-1]), hours))
        made = planned(part) if part else None
    except BadInput:
        return None
    if part is None or made is None:
        return None
    sample = "full" if part == _WHOLE else f"{part / 100:g}pct"
    return Share(sample, epochs, made)


def _likely(whole: Plan, hours: float) -> float:
    """About which part of the corpus is done in time: hours grow with rows almost in a line."""
    return _WHOLE * hours / whole.hours.high if whole.hours else 0.0


def _largest(holds: Callable[[int], bool], parts: Sequence[int], guess: float) -> int | None:
    """The last of ascending ``parts`` that holds, sought near ``guess``: plans take time."""
    near = min(bisect.bisect_right(parts, guess), len(parts) - 1)
    low, high, stride = -1, len(parts), 1  # parts[low] holds, parts[high] does not
    place = near
    while low < place < high:
        if holds(parts[place]):
            low, place = place, place + stride
        else:
            high, place = place, place - stride
        stride *= 2
        if not low < place < high:
            place = (low + high) // 2
    return parts[low] if low >= 0 else None


def _rows_of_corpus(found: Survey) -> float:
    """Rows of the whole corpus; of the sample where that was asked for as a count."""
    wanted = samples.parse(found.config.sample)
    return found.statistics.rows / (wanted if isinstance(wanted, float) else 1.0)


def elsewhere(found: Survey, limit: Limit, profiles: Iterable[str]) -> list[Plan]:
    """Plans for all that was asked for on other machine classes that keep the limit.

    What ``--set`` says of the machine asked for, its price and hardware, is not said of them.
    """
    kept = []
    general = replace(found.config, overrides=tuple(_not_of_the_machine(found.config.overrides)))
    for name in profiles:
        config = on(general, name)
        if config.profile_name == found.config.profile_name:
            continue
        try:
            made = found.plan(config)
            hours = limit.hours_on(made.profile, name)
        except BadInput:
            continue  # too few rows for so many GPUs; or without a price it cannot be judged
        if made.hours is None:
            continue
        if made.verdict != "does_not_fit" and made.hours.high <= hours:
            kept.append(((hourly_usd(made.profile) or math.inf) * made.hours.mid, name, made))
    return [made for _, _, made in sorted(kept, key=lambda one: one[:2])]


def _not_of_the_machine(overrides: Iterable[str]) -> Iterator[str]:
    for text in overrides:
        if text.split("=", 1)[0].split(".")[0].strip() not in _OF_THE_MACHINE:
            yield text


def on(config: Config, profile: str) -> Config:
    """All that was asked for, on the machine class ``profile``.

    Raises:
        BadInput: no such profile.
    """
    overrides = list(config.overrides)
    return layers.build(config.recipe_asked, profile, config.sample, overrides)
