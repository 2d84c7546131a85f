"""Owns whether a run became slower, when, and what most probably made it so.

Pure. Does not say how long it will take (``eta``).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leviathan import chance, runs
from leviathan.judgement import Limits, Verdict
from leviathan.series import Curve, Series
from leviathan.telemetry import Sample

_SLOWER, _BAD = 1.15, 1.5
_PARTS, _NEWEST = 200, 400
_REACH = 8
_LEAST = 16
_WARM_UP = 5
"""Steps of a session's beginning that tell no pace (``eta``)."""
_MOST_SAMPLES = 200
_EXPLAINS = 0.5
"""Share of the lost time that a cause must account for."""


@dataclass(frozen=True)
class _Stretch:
    """Log lines at one pace, by their indices."""

    begin: int
    end: int


@dataclass(frozen=True)
class _Slow:
    """A stretch that was slower than what was usual before it."""

    stretch: _Stretch
    usual: NDArray[np.int64]
    """The lines before it at the usual pace."""
    times: float
    newest: bool


def throughput(
    series: Series, events: Sequence[dict[str, Any]], samples: Sequence[Sample], limits: Limits
) -> Iterator[Verdict]:
    """Stretches of 15 % slower steps, and their probable cause.

    Where the pace changed is found by ranks (``chance.levels``): by medians of 200 parts over
    the whole run, by single lines over the newest 400. A stretch is slow when its median is
    15 % and more above that of the stretches before it that are not, and above three
    quarters of their steps; and when, where tokens are counted, fewer are computed a second:
    steps that take longer because their rows are longer are no slower.
    """
    steps = _settled(series["step_s"])
    if len(steps) < _LEAST:
        return
    rates = _matched(series["tok_s"], steps.step)
    slow = list(_slow(steps.value, rates))
    for found in slow:
        yield _verdict(found, steps, rates, series, events, samples, limits)
    if not any(found.newest for found in slow):
        yield _steady(steps)


def _settled(steps: Curve) -> Curve:
    """Without the first steps of each session, one by one in caches and compilation."""
    kept = np.ones(len(steps), bool)
    starts = [0, *(np.flatnonzero(np.diff(steps.session)) + 1).tolist()] if len(steps) else []
    for start in starts:
        kept[start : start + _WARM_UP] &= steps.step[start : start + _WARM_UP] > (
            steps.step[start] + _WARM_UP - 1
        )
    return steps.taken(kept)


def _matched(curve: Curve, steps: NDArray[np.int64]) -> chance.Numbers:
    """A curve at given steps; not a number where it tells nothing."""
    values = np.full(len(steps), np.nan)
    if len(curve):
        place = np.minimum(np.searchsorted(curve.step, steps), len(curve) - 1)
        told = curve.step[place] == steps
        values[told] = curve.value[place[told]]
    return values


def _slow(step_s: chance.Numbers, tok_s: chance.Numbers) -> Iterator[_Slow]:
    """Over the whole run, then the newest lines one by one, where that found nothing at the end."""
    medians, begins = chance.parts(step_s, _PARTS)
    edges = [begins[cut] for cut in chance.levels(medians)]
    found = list(_stretches(step_s, tok_s, edges, 0))
    since = max(len(step_s) - _NEWEST, 0)
    if since and not any(slow.newest for slow in found):
        edges = [since + cut for cut in chance.levels(step_s[since:])]
        found += [s for s in _stretches(step_s, tok_s, edges, since) if s.newest]
    yield from found


def _stretches(
    step_s: chance.Numbers, tok_s: chance.Numbers, edges: list[int], first: int
) -> Iterator[_Slow]:
    usual = np.arange(first, edges[0] if edges else len(step_s))
    merged: list[_Slow] = []
    for begin, end in pairwise([*edges, len(step_s)]):
        mine = np.arange(begin, end)
        if not _is_slow(step_s, tok_s, usual, mine):
            usual = np.concatenate([usual, mine])
            continue
        since = begin
        if merged and merged[-1].stretch.end == begin:
            since = merged.pop().stretch.begin
        times = float(np.median(step_s[since:end]) / np.median(step_s[usual]))
        merged.append(_Slow(_Stretch(since, end), usual, times, end == len(step_s)))
    for slow in merged:
        yield _placed(slow, step_s)


def _placed(slow: _Slow, step_s: chance.Numbers) -> _Slow:
    """With its beginning where single lines put it: fewest slow ones before, fast ones after.

    Ranks of parts find that the pace changed; they are some parts off in saying where.
    """
    reach = _REACH * max(-(-len(step_s) // _PARTS), 1)
    begin, end = slow.stretch.begin, slow.stretch.end
    usual = float(np.median(step_s[slow.usual]))
    since = max(begin - reach, 1)
    high = step_s[since : min(begin + reach, end)] > usual * (1 + slow.times) / 2
    misplaced = np.concatenate([[0], np.cumsum(np.where(high, 1, -1))])
    begin = since + int(misplaced.argmin())
    kept = slow.usual[slow.usual < begin]
    return replace(slow, stretch=_Stretch(begin, end), usual=kept if len(kept) else slow.usual)


def _is_slow(
    step_s: chance.Numbers, tok_s: chance.Numbers, usual: NDArray[np.int64],
    mine: NDArray[np.int64],
) -> bool:  # fmt: skip
    median, third = np.quantile(step_s[usual], [0.5, 0.75])
    now = float(np.median(step_s[mine]))
    if now < _SLOWER * median or now <= third:
        return False
    before, after = (values[np.isfinite(values)] for values in (tok_s[usual], tok_s[mine]))
    if not len(before) or not len(after):
        return True
    return bool(np.median(after) * _SLOWER <= np.median(before))


def _verdict(
    found: _Slow, steps: Curve, tok_s: chance.Numbers, series: Series,
    events: Sequence[dict[str, Any]], samples: Sequence[Sample], limits: Limits,
) -> Verdict:  # fmt: skip
    begin, end = found.stretch.begin, found.stretch.end
    slow, usual = np.arange(begin, end), found.usual
    first, last = int(steps.step[begin]), int(steps.step[end - 1])
    before, now = (float(np.median(steps.value[lines])) for lines in (usual, slow))
    cause, told = _cause(steps, slow, usual, series, events, samples, limits)
    evidence = [f"a step: {before:.4g} s before, {now:.4g} s then (medians of {len(usual):,} and "
                f"{len(slow):,} log lines)"]  # fmt: skip
    rates = [values[np.isfinite(values)] for values in (tok_s[usual], tok_s[slow])]
    if all(len(rate) for rate in rates):
        one, two = (float(np.median(rate)) for rate in rates)
        evidence.append(f"tokens a second: {one:,.0f} before, {two:,.0f} then")
    lost = (now - before) * (last - int(steps.step[begin - 1]))
    evidence.append(f"it cost {lost / 3600:.2g} h" if lost >= 360 else f"it cost {lost:.0f} s")
    where = f"since step {first:,}" if found.newest else f"from step {first:,} to {last:,}"
    word = "take" if found.newest else "took"
    text = f"steps {word} {100 * (found.times - 1):.0f} % longer {where} ({before:.3g} -> {now:.3g}"
    grade = "note" if not found.newest else "bad" if found.times >= _BAD else "warn"
    return Verdict("throughput", grade, f"{text} s): {cause}", (*evidence, *told), first)


def _steady(steps: Curve) -> Verdict:
    newest = float(np.median(steps.value[-20:]))
    usual = float(np.median(steps.value))
    text = f"steady: a step takes {newest:.3g} s, {usual:.3g} s over the run"
    return Verdict("throughput", "good", text, (f"medians of 20 and {len(steps):,} log lines",))


# --- causes -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Sampled:
    """What the samples of some time say, each the median or the share of them."""

    count: int
    temperature_c: float
    thermal: float
    """Share of the samples with a reason that is heat."""
    capped: float
    """Share with the power cap as a reason."""
    other: float
    """Share with another reason: power brake, hardware."""
    limit_w: float
    power_w: float
    busy_pct: float
    sm_mhz: float


def _cause(
    steps: Curve, slow: NDArray[np.int64], usual: NDArray[np.int64], series: Series,
    events: Sequence[dict[str, Any]], samples: Sequence[Sample], limits: Limits,
) -> tuple[str, list[str]]:  # fmt: skip
    """The most probable cause, and every figure that speaks for one."""
    moments = np.array([sample.time_s for sample in samples], np.float64)
    before, now = (
        _summed([samples[index] for index in _during(moments, steps, lines)])
        for lines in (usual, slow)
    )
    causes = [*_settings(events, steps, slow), *_rows(steps, slow, usual, series)]
    if before.count and now.count:
        causes += _machine(before, now, limits)
    told = [why for _, why in causes]
    if not (before.count and now.count):
        told.append("no telemetry of that time")
    else:
        told.append(_shown(before, now))
    if causes:
        return causes[0][0], told
    new = _new_session(steps, int(slow[0]))
    if new is not None:
        where = f"about when session {new[1]} began: other settings, another machine?"
        return f"no cause seen; since session {new[1]}", [where, *told]
    if before.count and now.count:
        return "no cause seen in the samples: heat, power, clocks and use as before", told
    return "no telemetry of that time", told[:-1]


def _new_session(steps: Curve, begin: int) -> tuple[int, int] | None:
    """The sessions before and after a change between two close to a line."""
    close = 8 + len(steps) // _PARTS
    since = max(begin - close, 0)
    around = steps.session[since : begin + close]
    changes = np.flatnonzero(np.diff(around))
    if not len(changes):
        return None
    last = int(changes[-1])
    return int(around[last]), int(around[last + 1])


def _settings(
    events: Sequence[dict[str, Any]], steps: Curve, slow: NDArray[np.int64]
) -> Iterator[tuple[str, str]]:
    """The out-of-memory ladder, where the slow stretch begins with the session after it."""
    sessions = _new_session(steps, int(slow[0]))
    if sessions is None:
        return
    number: Any = None
    for event in events:
        if event.get("event") in {"start", "resume"} and runs.is_whole(event.get("session")):
            number = event["session"]
        elif event.get("event") == "ladder" and number and sessions[0] <= number < sessions[1]:
            text = f"{event.get('reason') or 'a rung of the ladder'!s:.200}"
            yield "settings lowered when memory ran out", text


def _rows(
    steps: Curve, slow: NDArray[np.int64], usual: NDArray[np.int64], series: Series
) -> Iterator[tuple[str, str]]:
    """What steps wait for their rows; told by the training process itself."""
    data = series["data_s"]
    if not len(data):
        return
    each = data.value.copy()
    each[1:] /= np.maximum(np.diff(data.step), 1)
    waited = _matched(Curve(data.step, each, data.session, data.time_s), steps.step)
    one, two = (
        float(np.median(told)) if len(told := values[np.isfinite(values)]) else math.nan
        for values in (waited[usual], waited[slow])
    )
    lost = float(np.median(steps.value[slow]) - np.median(steps.value[usual]))
    if two - one >= _EXPLAINS * lost:
        text = f"a step waits {two:.3g} s for its rows, {one:.3g} s before"
        yield "the data loader: steps wait for their rows", text


def _machine(before: _Sampled, now: _Sampled, limits: Limits) -> Iterator[tuple[str, str]]:
    """What the GPU tells; a power cap is an A4000's usual state, and a cause only if new."""
    slower = now.sm_mhz < 0.95 * before.sm_mhz
    if now.thermal - before.thermal >= 0.2:
        yield (
            "thermal throttling",
            (
                f"throttled by heat in {100 * now.thermal:.0f} % of the samples, in "
                f"{100 * before.thermal:.0f} % before"
            ),
        )
    elif slower and now.temperature_c >= limits.hot_c > before.temperature_c:
        yield "heat", f"at {now.temperature_c:.0f} C, {before.temperature_c:.0f} C before"
    if now.limit_w < 0.97 * before.limit_w:
        text = f"power limit {now.limit_w:.0f} W, {before.limit_w:.0f} W before"
        yield "the power limit was lowered", text
    elif now.capped - before.capped >= 0.2:
        yield (
            "the power cap",
            (
                f"power cap in {100 * now.capped:.0f} % of the samples, in "
                f"{100 * before.capped:.0f} % before"
            ),
        )
    if now.other - before.other >= 0.2:
        yield (
            "the hardware slows itself down (power supply?)",
            (f"hardware slowdown or power brake in {100 * now.other:.0f} % of the samples"),
        )
    if now.busy_pct <= before.busy_pct - 15:
        yield (
            "the GPU waits (for the CPU, the disk or another GPU)",
            (f"busy {now.busy_pct:.0f} % of the time, {before.busy_pct:.0f} % before"),
        )
    elif slower:
        text = f"{now.sm_mhz:.0f} MHz, {before.sm_mhz:.0f} before"
        yield "lower clocks, for no reason that the driver tells", text


def _shown(before: _Sampled, now: _Sampled) -> str:
    figures = (
        (now.temperature_c, before.temperature_c, "C"), (now.power_w, before.power_w, "W"),
        (now.sm_mhz, before.sm_mhz, "MHz"), (now.busy_pct, before.busy_pct, "% busy"),
    )  # fmt: skip
    told = [
        f"{two:.0f} -> {one:.0f} {unit}" for one, two, unit in figures if math.isfinite(one + two)
    ]
    if not told:
        return f"{now.count} samples, none of a GPU"
    return f"GPU: {', '.join(told)} (medians of {before.count} and {now.count} samples)"


def _during(moments: chance.Numbers, steps: Curve, lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which samples are of the time in which these lines were logged: at most some 200, evenly."""
    chosen = np.zeros(len(moments), bool)
    for run in np.split(lines, np.flatnonzero(np.diff(lines) != 1) + 1):
        since = steps.time_s[max(int(run[0]) - 1, 0)]
        chosen |= (moments > since) & (moments <= steps.time_s[int(run[-1])])
    found = np.flatnonzero(chosen)
    return found[:: max(len(found) // _MOST_SAMPLES, 1)]


def _summed(samples: list[Sample]) -> _Sampled:
    def median(values: list[float | None]) -> float:
        told = [value for value in values if value is not None and math.isfinite(value)]
        return float(np.median(told)) if told else math.nan

    def share(*words: str) -> float:
        hits = [any(w in reason for reason in s.throttle for w in words) for s in samples]
        return sum(hits) / len(hits) if hits else 0.0

    return _Sampled(
        count=len(samples),
        temperature_c=median([s.hottest_c for s in samples]),
        thermal=share("thermal"),
        capped=share("power cap"),
        other=share("power brake", "hardware slowdown"),
        limit_w=median([_sum(g.power_limit_w for g in s.gpus) for s in samples]),
        power_w=median([s.power_w for s in samples]),
        busy_pct=median([s.busy_pct for s in samples]),
        sm_mhz=median([_least(g.sm_mhz for g in s.gpus) for s in samples]),
    )


def _sum(values: Iterator[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) if told else None


def _least(values: Iterator[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
