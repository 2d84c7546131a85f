"""Owns what row lengths mean for ``sequence_len``: what it loses, how full it packs, which suits.

Pure: figures of a corpus and settings in, ``Report`` out. Does not count tokens
(``tokens``) nor draw anything. docs/data.md argues the recommendation.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leviathan import steps
from leviathan.estimate import error_of_sum
from leviathan.figures import Statistics
from leviathan.knobs import Knobs
from leviathan.steps import Rules

USUAL = (1024, 2048, 4096, 8192)
"""Told in any case, beside the profile's own."""
PERCENTILES = (5, 25, 50, 75, 95, 99)
MOST_ROWS, MOST_TOKENS = 0.01, 0.02
"""What a recommended ``sequence_len`` may lose of each, as a share."""
FULL_ENOUGH = 0.95
"""Share of packed positions that need not be bettered by longer bins."""
_SHORTEST = 128
_Z = 1.96  # 95 % of a normal distribution lie within so many standard errors

_FATES = {"drop": "dropped", "truncate": "cut", "raise": "too long"}


@dataclass(frozen=True)
class Share:
    """A share of all with its 95 % interval; of no width where every row was counted."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fate:
    """What one ``sequence_len`` does to the rows."""

    sequence_len: int
    over: Share
    """Rows that are longer."""
    lost: Share
    """Of all tokens, those not trained on because of it."""
    packed: float | None
    """Share of the computed positions that are tokens; None where no row is left."""
    unpacked: float | None


@dataclass(frozen=True)
class Prepared:
    """What Axolotl will prepare at the profile's own ``sequence_len``."""

    rows: int
    tokens: int
    trainable_tokens: int
    """With loss. Of conversations that are cut, at most so many."""


@dataclass(frozen=True)
class Advice:
    """The ``sequence_len`` to use."""

    sequence_len: int
    reason: str
    certain: bool
    """False where the rows looked at are too few to tell it from its neighbour."""


@dataclass(frozen=True)
class Report:
    """The lengths of a corpus, told for one profile."""

    statistics: Statistics
    sequence_len: int
    fate: str
    """What happens to a row that is longer: dropped, cut, split, too long."""
    percentiles: dict[str, int]
    fates: tuple[Fate, ...]
    prepared: Prepared
    advice: Advice

    @property
    def tokens_interval(self) -> tuple[float, float]:
        """95 % of all tokens."""
        total, off = self.statistics.total_tokens, _Z * self.statistics.total_error
        return max(0.0, total * (1 - off)), total * (1 + off)


def describe(
    statistics: Statistics, knobs: Knobs, rules: Rules, positions: int | None = None
) -> Report:
    """The report on a corpus.

    Args:
        statistics: measured, row by row.
        knobs: of the profile and recipe.
        rules: of the same configuration.
        positions: tokens a row of the base model can have at most; None where that is not known.
    """
    told = _Telling(statistics, knobs, rules)
    ascending = statistics.row_tokens
    told_of = sorted({*USUAL, knobs.sequence_len})
    return Report(
        statistics=statistics,
        sequence_len=knobs.sequence_len,
        fate=told.fate_of_long,
        percentiles=_percentiles(ascending),
        fates=tuple(told.fate(length) for length in told_of),
        prepared=told.prepared(),
        advice=_advise(told, int(ascending[-1]), positions),
    )


def _percentiles(ascending: npt.NDArray[np.uint32]) -> dict[str, int]:
    """Lengths of rows there are: the shortest that so many per cent do not exceed."""
    rows = len(ascending)
    places = {str(p): math.ceil(p / 100 * rows) - 1 for p in PERCENTILES}
    return {name: int(ascending[place]) for name, place in {"min": 0, **places, "max": -1}.items()}


# --- one sequence_len --------------------------------------------------------------------


class _Telling:
    """Answers about the same rows, each worked out once: there may be millions of them."""

    def __init__(self, statistics: Statistics, knobs: Knobs, rules: Rules) -> None:
        self.statistics, self.knobs = statistics, knobs
        self.raises = rules.excess_length == "raise"
        self.fate_of_long = "split" if statistics.splits else _FATES[rules.excess_length]
        # Axolotl would end the training; what is asked here is which rows make it do so.
        self.rules = replace(rules, excess_length="drop") if self.raises else rules
        self.tokens = np.asarray(statistics.tokens)
        self._uncut = self._prepare(max(int(self.tokens.max()), 1))
        self.over = functools.cache(self._over)
        self.lost = functools.cache(self._lost)
        self.efficiency = functools.cache(self._efficiency)

    def fate(self, sequence_len: int) -> Fate:
        """All of it."""
        return Fate(
            sequence_len,
            self.over(sequence_len),
            self.lost(sequence_len),
            self.efficiency(sequence_len, True),
            self.efficiency(sequence_len, False),
        )

    def _over(self, sequence_len: int) -> Share:
        """Rows that are longer."""
        one_each = np.broadcast_to(np.float64(1), self.tokens.shape)
        return self._share(self.tokens > sequence_len, one_each)

    def _lost(self, sequence_len: int) -> Share:
        """Tokens that a longer ``sequence_len`` would have kept."""
        if self.statistics.splits:
            most = steps.COMPLETION_PIECES * sequence_len
            lost = np.maximum(self.tokens.astype(np.int64) - most, 0)
        else:
            lost = self._uncut - self._prepare(sequence_len)
        return self._share(lost, self.tokens)

    def _efficiency(self, sequence_len: int, packing: bool) -> float | None:
        """How many of the computed positions are tokens."""
        lengths = self._prepare(sequence_len, packing=packing)
        lengths = lengths[lengths > 0]
        knobs = replace(self.knobs, sequence_len=sequence_len, packing=packing)
        return steps.efficiency(lengths, knobs, self.rules) if len(lengths) else None

    def prepared(self) -> Prepared:
        """What is left at the profile's own ``sequence_len``."""
        lengths = self._prepare(self.knobs.sequence_len)
        if self.statistics.splits:
            trainable = lengths  # completion has no prompt
        else:
            answers = lengths - np.minimum(self.statistics.masked, lengths)
            trainable = np.minimum(self.statistics.trainable, answers)
        times = self.statistics.rows / len(self.tokens)
        found = (np.count_nonzero(lengths), lengths.sum(), trainable.sum())
        return Prepared(*(round(times * int(number)) for number in found))

    def _prepare(self, sequence_len: int, packing: bool | None = None) -> steps.Lengths:
        packing = self.knobs.packing if packing is None else packing
        knobs = replace(self.knobs, sequence_len=sequence_len, packing=packing)
        return steps.prepare(self.statistics, knobs, self.rules)

    def _share(self, part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Share:
        """``part`` of ``whole``, both row by row, as the share of the whole corpus."""
        everything = float(whole.sum())
        value = float(part.sum()) / everything if everything else 0.0
        if self.statistics.whole:
            return Share(value, value, value)
        error = error_of_sum(part - value * whole) / max(everything, 1.0)
        return _interval(value, error, len(part))


def _interval(value: float, error: float, rows: int) -> Share:
    """Wilson's interval, with as many independent rows as explain the standard error.

    Rows that were found in one block are alike, and count for less than as many drawn one
    by one (Kish, Survey Sampling, 1965, 8.2). Where no row was seen, ``error`` is 0 and the
    interval's end still is not.
    """
    number = float(rows)
    if error:
        number = min(number, max(1.0, value * (1 - value) / error**2))
    spread = _Z**2 / number
    middle = (value + spread / 2) / (1 + spread)
    half = math.sqrt(spread * value * (1 - value) + spread**2 / 4) / (1 + spread)
    return Share(value, min(value, max(0.0, middle - half)), max(value, min(1.0, middle + half)))


# --- which to use ------------------------------------------------------------------------


def _advise(told: _Telling, longest: int, positions: int | None) -> Advice:
    own = told.knobs.sequence_len
    lengths = _candidates(own, longest, positions)
    least = next((length for length in lengths if _keeps(told, length)), lengths[-1])
    chosen = _fullest(told, [length for length in lengths if least <= length <= max(own, least)])
    shorter = lengths[lengths.index(least) - 1] if least > lengths[0] else None
    parts = [_what_it_keeps(told, least, shorter)]
    if chosen > least:
        parts.append(f"{least:,} would do, but packs {percent(told.efficiency(least, True) or 0)}")
    parts += [*_costs(told, chosen), *_packing_helps(told, chosen)]
    if positions and (own > positions or not _keeps(told, least)):
        parts.append(f"the base model takes at most {positions:,}")
    return Advice(chosen, "; ".join(parts), _is_certain(told, least, shorter))


def _candidates(own: int, longest: int, positions: int | None) -> list[int]:
    """Powers of two up to one that takes every row, the profile's own, the model's end."""
    doubled = [_SHORTEST]
    while doubled[-1] < max(longest, own):
        doubled.append(2 * doubled[-1])
    wanted = sorted({*doubled, own})
    if positions is None or positions >= wanted[-1]:
        return wanted
    return sorted({*(length for length in wanted if length < positions), positions})


def _keeps(told: _Telling, length: int) -> bool:
    """Whether so little is lost that it may be. Completion's pieces lose nothing by being cut."""
    over, lost = told.over(length).value, told.lost(length).value
    if told.raises:
        return over == 0
    pieces_do = told.statistics.splits and length >= told.knobs.sequence_len
    return (over <= MOST_ROWS or pieces_do) and lost <= MOST_TOKENS


def _fullest(told: _Telling, lengths: list[int]) -> int:
    """Packed, short bins of long rows stay half empty: the first that is full enough."""
    if not told.knobs.packing:
        return lengths[0]
    full = {length: told.efficiency(length, True) or 0.0 for length in lengths}
    return next((n for n in lengths if full[n] >= FULL_ENOUGH), max(lengths, key=full.__getitem__))


def _is_certain(told: _Telling, least: int, shorter: int | None) -> bool:
    """Whether the intervals leave no doubt about the length that keeps enough."""
    if told.statistics.whole:
        return True
    pieces_do = told.statistics.splits and least >= told.knobs.sequence_len
    enough = told.over(least).high <= MOST_ROWS or pieces_do
    if not enough or told.lost(least).high > MOST_TOKENS:
        return False
    return shorter is None or (
        told.over(shorter).low > MOST_ROWS or told.lost(shorter).low > MOST_TOKENS
    )


def _what_it_keeps(told: _Telling, least: int, shorter: int | None) -> str:
    """Of the length that does, and of the next shorter one that does not."""
    over, *lost = _loss(told, least)
    said = f"{over} of the rows are {told.fate_of_long}"
    if lost:
        said += f" with {lost[0]} of the tokens"
    if not told.over(least).value:
        said = "no row is longer"
    return f"{said} (at {shorter:,}: {' with '.join(_loss(told, shorter))})" if shorter else said


def _loss(told: _Telling, length: int) -> list[str]:
    """Rows and tokens; no tokens where a text goes on in its next piece."""
    over, lost = told.over(length).value, told.lost(length).value
    return [percent(share) for share in ([over, lost] if lost else [over])]


def _costs(told: _Telling, chosen: int) -> Iterator[str]:
    own, micro = told.knobs.sequence_len, told.knobs.micro_batch_size
    if chosen > own:
        yield f"a micro batch has {micro * chosen:,} tokens then, not {micro * own:,}"
    elif chosen < own and chosen * 2 <= own:
        yield f"a micro batch takes {own // chosen} times the rows in the same memory"


def _packing_helps(told: _Telling, chosen: int) -> Iterator[str]:
    packed, unpacked = (told.efficiency(chosen, p) for p in (True, False))
    if not told.knobs.packing and packed and unpacked and packed > unpacked + 0.1:
        yield f"sample_packing=true would compute {percent(packed)} tokens, not {percent(unpacked)}"


def percent(share: float, ends: tuple[float, float] | None = None) -> str:
    """A share for people, to digits that tell it from none and from all.

    Args:
        share: of 1.
        ends: of its interval, told behind it.
    """
    told = [100 * each for each in (share, *(ends or ()))]
    decide = told[:1] if 0 < share < 1 else told  # of none and all, how sure that is
    least = min(part for each in decide for part in (each, 100 - each) if part)
    if least < 10**-4:
        return "<0.0001 %" if told[0] < 50 else ">99.9999 %"
    digits = min(4, max(1 if ends else 0, 1 - math.floor(math.log10(least))))
    texts = [f"{each:.{digits if 0 < each < 100 else 0}f}" for each in told]
    return f"{texts[0]} % ({texts[1]} to {texts[2]})" if ends else f"{texts[0]} %"


def as_document(report: Report, path: Path | None) -> dict[str, Any]:
    """The document of ``data stats --json``.

    Args:
        report: on the corpus.
        path: where the figures are kept for ``plan``.
    """
    found, (low, high) = report.statistics, report.tokens_interval
    return {
        "rows": found.rows,
        "rows_error": found.rows_error,
        "bytes": found.size,
        "tokens": {
            "total": round(found.total_tokens), "low": round(low), "high": round(high),
            "mean": found.mean_tokens, "mean_error": found.mean_error,
            "percentiles": report.percentiles,
        },
        "trainable_share": found.trainable_share,
        "bytes_per_token": found.bytes_per_token,
        "sequence_len": report.sequence_len,
        "over_long_rows_are": report.fate,
        "truncated": {
            str(fate.sequence_len): {"rows": asdict(fate.over), "tokens": asdict(fate.lost)}
            for fate in report.fates
        },
        "packing": {
            str(fate.sequence_len): {"packed": fate.packed, "unpacked": fate.unpacked}
            for fate in report.fates
        },
        "prepared": asdict(report.prepared),
        "recommended_sequence_len": report.advice.sequence_len,
        "recommendation": report.advice.reason,
        "recommendation_certain": report.advice.certain,
        "exact": found.exact,
        "source": found.source,
        "path": str(path) if path else None,
    }  # fmt: skip


# --- drawing -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Histogram:
    """Rows by length, in columns that grow as the lengths do."""

    edges: tuple[float, ...]
    """Where columns begin, and where the last one ends."""
    shares: tuple[float, ...]
    """Of all rows, in each column; evened where a column has fewer whole numbers than wide."""

    def column(self, length: float) -> int:
        """The column of a row so long."""
        place = int(np.searchsorted(self.edges, length, side="right")) - 1
        return min(max(place, 0), len(self.shares) - 1)


def histogram(tokens: npt.NDArray[np.uint32], mark: int, columns: int) -> Histogram:
    """Rows by length on a logarithmic scale that has room for ``mark``, too."""
    low = max(1.0, float(min(int(tokens.min()), mark)))
    high = max(float(max(int(tokens.max()), mark)) + 1, low + 1, low * 1.5)
    edges = _edges(low, high, columns)
    counts, _ = np.histogram(np.maximum(tokens, 1), bins=edges)
    whole_numbers = np.maximum(np.diff(np.ceil(edges)), 1)
    evened = counts / whole_numbers * np.maximum(np.diff(edges), 1)
    total = max(float(evened.sum()), 1.0)
    return Histogram(tuple(map(float, edges)), tuple(float(count) / total for count in evened))


def _edges(low: float, high: float, columns: int) -> npt.NDArray[np.float64]:
    """Logarithmic, but no column narrower than one token."""
    edges = [low]
    for left in range(columns, 0, -1):
        edges.append(max(edges[-1] + 1, edges[-1] * (high / edges[-1]) ** (1 / left)))
    return np.asarray(edges)
