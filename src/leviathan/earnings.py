"""Owns what a run's rewards mean: whether they rise, and whether there is anything to learn from.

Pure. The loss of such a training hovers around 0 whatever it learns (each answer is held against
the others to its question), so nothing is read off it.
"""

from collections.abc import Iterator

import numpy as np

from leviathan import chance
from leviathan.judgement import Verdict
from leviathan.series import Series

_FEW, _WINDOW, _MANY = 10, 20, 60
"""Log lines: fewer than these say nothing, so many are compared, so many show a standstill."""
_SURE = 4.0
"""Standard errors of the difference of two means."""


def rewards(series: Series) -> Iterator[Verdict]:
    """The newest log lines' rewards against the first ones', and how far answers differ."""
    reward = series["reward"]
    if len(reward) < _FEW:
        return
    window = min(_WINDOW, len(reward) // 2)
    first, newest = reward.value[:window], reward.value[-window:]
    errors = -chance.fall(first, newest)
    begin, now = float(first.mean()), float(newest.mean())
    step = int(reward.step[-window])
    evidence = (
        f"{begin:.4g} over the first {window} log lines at hand, {now:.4g} over the newest",
    )
    if errors < -_SURE:
        text = f"the reward fell from {begin:.3g} to {now:.3g}; lower the learning rate, or raise "
        yield Verdict("reward", "warn", f"{text}trl.beta", evidence, step)
    elif errors > _SURE:
        text = f"the reward rose from {begin:.3g} to {now:.3g}"
        yield Verdict("reward", "good", text, evidence, step)
    elif len(reward) >= _MANY:
        text = f"the reward stays at {now:.3g}: no further from where it began than it scatters"
        yield Verdict("reward", "note", text, evidence, step)
    yield from _alike(series, window)


def _alike(series: Series, window: int) -> Iterator[Verdict]:
    """Where all answers to a question earn the same, none is better and nothing is learned."""
    spread = series["reward_std"].value[-window:]
    if len(spread) < _FEW // 2 or np.any(spread > 0):
        return
    last = float(series["reward"].value[-window:].mean())
    text = (
        f"for {len(spread)} log lines all answers to a question have earned the same ({last:.3g} "
        "on average): nothing is learned; ask harder or easier questions, raise trl.temperature or "
        "trl.num_generations"
    )
    yield Verdict("reward", "warn", text, ("reward_std is 0",), int(series["reward"].step[-window]))
