"""Curves of runs as they might be, with noise, for what judges them. Seeded."""

import math

import numpy as np

from leviathan import machine
from leviathan.series import Curve, Part, Series
from leviathan.telemetry import Sample

STEPS, EVERY, STEP_S, TOKENS = 900, 50, 12.0, 8_192
CALM = {"busy_pct": 98.0, "temperature_c": 76.0, "power_w": 139.0, "power_limit_w": 140.0,
        "sm_mhz": 1410.0, "throttle": ("power cap",)}  # fmt: skip


def cosine(step, steps=STEPS, peak=2e-4, warm_up=30):
    rest = np.clip((step - warm_up) / (steps - warm_up), 0, 1)
    return peak * np.minimum(step / warm_up, (1 + np.cos(math.pi * rest)) / 2)


def falling(step, floor=1.1, height=0.9, pace=60.0):
    return floor + height / np.sqrt(1 + step / pace)


class Told:
    """A run's curves; change what you want to be otherwise, then ask for ``series``."""

    def __init__(self, seed=1, steps=STEPS, every=EVERY, noise=0.08, eval_noise=0.003,
                 jitter=0.05):  # fmt: skip
        self.chance = np.random.default_rng(seed)
        self.steps, self.session = np.arange(1, steps + 1), np.ones(steps, np.int64)
        self.loss = falling(self.steps) + self.chance.normal(0, noise, steps)
        self.rate = cosine(self.steps, steps)
        # Rows differ in length; steps take as long as their tokens, and spells come and go.
        self.rows = self.chance.normal(1, 0.1, steps).clip(0.5)
        spells = np.convolve(self.chance.normal(0, 1, steps + 9), np.ones(10) / 10, "valid")
        self.step_s = STEP_S * self.rows * (1 + jitter * spells).clip(0.5)
        self.step_s *= 1 + np.abs(self.chance.normal(0, jitter / 2, steps))
        self.data_s = np.full(steps, 0.05) + self.chance.exponential(0.02, steps)
        self.memory = np.full(steps, 11.9)
        self.evals_at = np.arange(every, steps + 1, every)
        self.evals = falling(self.evals_at, floor=1.2) + self.chance.normal(
            0, eval_noise, len(self.evals_at)
        )
        self.parts = [Part(1, 0, steps, 0, 0.0, 0.0)]
        self.gpu = [dict(CALM) for _ in range(steps)]
        self.sampled = True

    @property
    def time_s(self):
        return 1_000.0 + np.cumsum(self.step_s)

    def curve(self, step, value):
        place = np.searchsorted(self.steps, step)
        return Curve(step, np.asarray(value, float), self.session[place], self.time_s[place])

    @property
    def series(self):
        values = {
            "loss": self.loss, "learning_rate": self.rate, "step_s": self.step_s,
            "tok_s": TOKENS * self.rows / np.maximum(self.step_s, 1e-9), "data_s": self.data_s,
            "memory_gib": self.memory,
        }  # fmt: skip
        curves = {name: self.curve(self.steps, value) for name, value in values.items()}
        curves["eval_loss"] = self.curve(self.evals_at, self.evals)
        return Series(
            {n: c for n, c in curves.items() if len(c)}, tuple(self.parts), len(self.steps), 0
        )

    @property
    def samples(self):
        if not self.sampled:
            return []
        return [
            Sample(float(at) - 1, int(session), (gpu(**facts),), 6.1, 300.0)
            for at, session, facts in zip(self.time_s, self.session, self.gpu, strict=True)
        ]

    def resumed(self, at, undone=0):
        """From ``at`` on it is session 2's."""
        self.session[self.steps > at] = 2
        self.parts = [Part(1, 0, at, undone, 0.0, 0.0),
                      Part(2, at, int(self.steps[-1]), 0, 0.0, 0.0)]  # fmt: skip
        return [
            {"event": "start", "session": 1, "step": 0},
            {"event": "resume", "session": 2, "step": at},
        ]

    def slower(self, since, times, until=None, **facts):
        """Steps take longer from a step on; what the GPU tells is as given."""
        chosen = slice(since, until)
        self.step_s[chosen] *= times
        for told in self.gpu[chosen]:
            told.update(facts)


def gpu(**facts):
    return machine.GpuState(index=0, used_gib=13.0, total_gib=16.0, **(CALM | facts))
