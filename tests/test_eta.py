"""The time left, of made-up histories whose end is known, and of recorded ones."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leviathan.eta import NO_EVIDENCE, WARM_UP_STEPS, History
from replay import moments

RECORDED = Path(__file__).parent / "recorded"


@dataclass
class Story:
    """A training that takes exactly as long as it is told to; its lines, and when they came."""

    last: int = 200
    step_s: float = 1.0
    eval_every: int = 0
    eval_s: float = 0.0
    save_every: int = 0
    save_s: float = 0.0
    log_every: int = 1
    warm_up_s: float = 0.0
    """More that the first evaluation and the first step take."""
    waits: dict[int, float] = field(default_factory=dict)
    noise: random.Random | None = None
    spells: float = 0.0
    """What the next step inherits of a step's noise."""
    noisy_evals: bool = False
    clock_s: float = 1000.0
    """Monotonic."""
    wall_s: float = 1.7e9
    """What the wall clock is ahead of it."""
    set_at: dict[int, float] = field(default_factory=dict)
    """At which steps the wall clock is set, by how much."""
    session: int = 0
    events: list[dict] = field(default_factory=list)
    metrics: list[dict] = field(default_factory=list)
    looks: dict[int, tuple[int, int, float]] = field(default_factory=dict)
    """After the log line of a step: how many events and metrics there were, and the time."""
    ended_s: float = 0.0
    spell: float = 0.0

    def train(self, begin: int = 0, until: int | None = None) -> "Story":
        """One more session, from a step to a step."""
        self.session += 1
        self.looks, until = {}, until or self.last
        self._event("resume" if begin else "start", begin)
        self._event("train_begin", begin, eval_every=self.eval_every, save_every=self.save_every)
        if not begin and self.eval_every:
            self._evaluate(0, self.eval_s + self.warm_up_s)
        for step in range(begin + 1, until + 1):
            self._step(step, self.warm_up_s * (step == begin + 1))
        self.ended_s = self.clock_s
        return self

    def _step(self, step: int, more_s: float) -> None:
        self.clock_s += self.step_s * (1.0 if self.noisy_evals else self._spread()) + more_s
        self.wall_s += self.set_at.get(step, 0.0)
        if step in self.waits:
            self.clock_s += self.waits[step]
            self._event("waited", step, wait_s=self.waits[step])
        if step % self.log_every == 0:
            self._line(step, loss=1.0)
            self.looks[step] = (len(self.events), len(self.metrics), self.clock_s)
        if self.eval_every and (step % self.eval_every == 0 or step == self.last):
            self._evaluate(step, self.eval_s)
        if self.save_every and (step % self.save_every == 0 or step == self.last):
            self.clock_s += self.save_s
            self._event("save", step, save_s=self.save_s)

    def _spread(self) -> float:
        if self.noise:
            fresh = (1 - self.spells**2) ** 0.5 * self.noise.gauss(0, 0.3)
            self.spell = self.spells * self.spell + fresh
        return math.exp(self.spell)

    def _evaluate(self, step: int, eval_s: float) -> None:
        eval_s *= self._spread() if self.noisy_evals else 1.0
        self.clock_s += eval_s
        self._line(step, eval_loss=1.0, eval_s=eval_s)

    def _event(self, kind: str, step: int, **facts) -> None:
        self.events.append({"event": kind, **self._now(), "step": step, **facts})

    def _line(self, step: int, **facts) -> None:
        self.metrics.append({**self._now(), "step": step, "max_steps": self.last, **facts})

    def _now(self) -> dict:
        return {
            "time": self.wall_s + self.clock_s, "monotonic_s": self.clock_s, "session": self.session
        }  # fmt: skip

    def history(self, step: int) -> History:
        """What was known right after the log line of a step of the newest session."""
        events, metrics, _ = self.looks[step]
        return History(self.events[:events], self.metrics[:metrics])

    def said(self, step: int):
        return self.history(step).eta(step, self.last)

    def true_s(self, step: int) -> float:
        waits = sum(s for at, s in self.waits.items() if at > step)
        return self.ended_s - self.looks[step][2] - waits


STORIES = {
    "constant": {},
    "sparse log lines": {"log_every": 10},
    "slow evaluations": {"eval_every": 20, "eval_s": 60.0},
    "slow saves": {"save_every": 15, "save_s": 40.0},
    "both, at the same and at other steps": {
        "eval_every": 20, "eval_s": 60.0, "save_every": 10, "save_s": 7.0, "log_every": 5,
    },
    "a save and an evaluation that come only at the end": {"last": 199, "eval_every": 40,
                                                           "eval_s": 30.0, "save_every": 30, "save_s": 9.0},
    "a slow beginning": {"warm_up_s": 300.0, "eval_every": 20, "eval_s": 2.0},
    "pauses": {"waits": {3: 30.0, 17: 900.0, 20: 50.0, 21: 5.0, 120: 4000.0}, "save_every": 10,
               "save_s": 3.0},
    "pauses between sparse log lines": {"waits": {7: 30.0, 10: 900.0, 27: 50.0}, "log_every": 10,
                                        "last": 400},
    "a clock that is set": {"set_at": {10: -86400.0, 30: 7200.0, 31: -9.0}},
}  # fmt: skip


@pytest.mark.parametrize("told", STORIES.values(), ids=STORIES)
def test_of_what_takes_the_same_each_time_the_end_is_known(told):
    story = Story(**told).train()
    for step in (n for n in story.looks if n >= max(0.2 * story.last, 40)):
        said = story.said(step)
        assert said.mid_s == pytest.approx(story.true_s(step), rel=1e-6, abs=1e-6)
        assert said.low_s == pytest.approx(said.high_s, rel=1e-6, abs=1e-6)
        shown = min(max(step - WARM_UP_STEPS, 0), 400 * story.log_every)
        assert said.source.startswith("this session's ")
        assert int(said.source.split()[2]) in range(shown - story.log_every, shown + 1)


@settings(max_examples=150, deadline=None)
@given(
    last=st.integers(60, 300), eval_every=st.integers(1, 90), save_every=st.integers(1, 90),
    begin=st.integers(0, 200), look=st.integers(0, 10_000),
)  # fmt: skip
def test_what_is_still_to_come_is_counted_as_the_trainer_does_it(
    last, eval_every, save_every, begin, look
):
    """Saves and evaluations are all that takes time here, so the count is what is said."""
    story = Story(last=last, step_s=1e-6, eval_every=eval_every, eval_s=1000.0,
                  save_every=save_every, save_s=1.0)  # fmt: skip
    story.train(until=min(begin, last - 1)) if begin else None
    story.train(begin=min(begin, last - 1))
    step = list(story.looks)[look % len(story.looks)]
    said, timed = story.said(step), story.said(step).source
    if "timed yet" not in timed and said.mid_s is not None:
        assert said.mid_s == pytest.approx(story.true_s(step), rel=1e-3)


def test_what_was_not_timed_yet_is_named():
    story = Story(save_every=50, save_s=10.0).train()
    assert story.said(40).source == "this session's 35 steps; no save was timed yet"
    assert story.said(40).mid_s == pytest.approx(160.0)
    assert story.said(60).source == "this session's 55 steps"
    both = Story(save_every=50, eval_every=60, eval_s=1.0).train()
    both.metrics = [line for line in both.metrics if "eval_s" not in line]
    assert both.said(40).source.endswith("; no evaluation and no save was timed yet")


# --- resumed ----------------------------------------------------------------------


def resumed(faster: float) -> Story:
    """A hundred steps, then on another machine."""
    story = Story(step_s=2.0, eval_every=20, eval_s=40.0, save_every=50, save_s=6.0).train(0, 100)
    story.step_s, story.eval_s = story.step_s / faster, story.eval_s / faster
    return story.train(100)


@pytest.mark.parametrize("faster", [4.0, 1.0, 0.25])
def test_a_resumed_session_counts_by_its_own_pace(faster):
    """The evaluations too, before the first one here; a save has to do with the disk."""
    story = resumed(faster)
    for step in (109, 119, 120, 121, 150, 199):
        assert story.said(step).mid_s == pytest.approx(story.true_s(step), rel=1e-6)
        assert story.said(step).source == f"this session's {step - 100 - WARM_UP_STEPS} steps"


@pytest.mark.parametrize("heard", ["train_begin", "resume"])
def test_where_it_began_is_told_twice_and_either_is_enough(heard):
    """A view that is there from the beginning hears the one, an old directory has the other."""
    story = Story().train(0, 100).train(100)
    events = [e for e in story.events if e["event"] == heard]
    said = History(events, [line for line in story.metrics if line["step"] <= 120]).eta(120, 200)
    assert said.source == "this session's 15 steps"


def test_before_it_has_a_pace_the_session_before_is_asked_and_named():
    story = resumed(4.0)
    assert story.said(101).source == "session 1's 95 steps, this one has too few yet"
    assert story.said(101).mid_s == pytest.approx(99 * 2.0 + 5 * 40.0 + 2 * 6.0)
    assert story.said(107).source.startswith("session 1's 95 steps")


def test_without_a_session_before_a_few_steps_are_better_than_none():
    story = Story(warm_up_s=8.0).train()
    assert story.said(1) == NO_EVIDENCE
    two = story.said(2)
    assert (two.low_s, two.mid_s, two.high_s) == (None, pytest.approx(198.0), None)
    assert (two.source, story.said(3).source) == ("this session's 1 step", "this session's 2 steps")
    assert History().eta(0, 100) == NO_EVIDENCE
    assert story.history(50).eta(50, None) == NO_EVIDENCE


def test_steps_trained_again_are_counted_once():
    """A session that died at 100 is gone on with from the save of 60."""
    story = Story(save_every=20, save_s=3.0).train(0, 100).train(60)
    for step in (61, 70, 99, 150):
        assert story.said(step).mid_s == pytest.approx(story.true_s(step))


# --- the pace ---------------------------------------------------------------------


def paced(*parts):
    """A history of (steps, seconds a step)."""
    history, step, now = History(), 0, 0.0
    for count, step_s in parts:
        for _ in range(count):
            step, now = step + 1, now + step_s
            history.metrics({"session": 1, "step": step, "time": now, "loss": 1.0})
    return history.eta(step, step + 100)


def test_a_suspended_machine_is_no_pace():
    assert paced((50, 1.0), (1, 3600.0), (50, 1.0)).mid_s == pytest.approx(100.0)


def test_a_machine_that_got_slower_is_one():
    assert paced((70, 1.0), (35, 3.0)).mid_s > 150.0
    assert paced((95, 1.0), (10, 1.9)).mid_s > 108.0


def test_after_long_enough_only_the_new_pace_counts():
    assert paced((3000, 1.0), (400, 5.0)).mid_s == pytest.approx(500.0)


def test_however_different_the_steps_nothing_ends_before_now():
    said = paced((6, 1.0), (1, 90.0), (1, 1.0))
    assert (said.low_s, said.mid_s) == (0.0, pytest.approx(3067, rel=0.01))
    assert said.high_s > 2 * said.mid_s


def test_saves_that_were_not_heard_of_are_over_all_the_same():
    history, now = History(), 0.0
    history.event({"session": 1, "step": 0, "event": "train_begin", "save_every": 10})
    history.event({"session": 1, "step": 10, "event": "save", "save_s": 5.0})
    for step in range(1, 101):
        now += 1.0 + 5.0 * (step == 11)
        history.metrics({"session": 1, "step": step, "time": now, "loss": 1.0})
    assert history.eta(100, 200).mid_s == pytest.approx(100 * 1.0 + 11 * 5.0)


@pytest.mark.parametrize("set_s", [-86400.0, 86400.0])
def test_old_lines_have_the_wall_clock_alone_and_it_may_be_set(set_s):
    story = Story(set_at={50: set_s}).train()
    for line in story.metrics:
        del line["monotonic_s"]
    assert story.said(100).mid_s == pytest.approx(100.0, rel=0.01)


def test_old_lines_told_no_durations_so_the_pace_has_them_in_it():
    story = Story(eval_every=10, eval_s=20.0, save_every=5, save_s=4.0, last=400).train()
    for line in (*story.events, *story.metrics):
        for name in ("monotonic_s", "eval_s", "save_s", "eval_every", "save_every"):
            line.pop(name, None)
        if line.get("event") == "save":
            line["seconds"] = 24.0
    assert story.said(200).mid_s == pytest.approx(story.true_s(200), rel=0.05)


@pytest.mark.parametrize(
    ("told", "step", "held_pct"),
    [
        ({"spells": 0.95}, 120, (83, 97)),
        ({"spells": 0.95}, 480, (83, 97)),
        ({"noisy_evals": True, "eval_every": 10, "eval_s": 50.0}, 120, (83, 97)),
        ({"noisy_evals": True, "eval_every": 10, "eval_s": 50.0}, 480, (83, 97)),
        ({}, 120, (95, 100)),  # each step for itself: wider than need be
    ],
)
def test_the_interval_holds_the_truth_about_nine_times_in_ten(told, step, held_pct):
    held = 0
    for seed in range(200):
        story = Story(last=600, noise=random.Random(seed), **told).train()
        said = story.said(step)
        held += said.low_s <= story.true_s(step) <= said.high_s
    assert held_pct[0] <= held / 2 <= held_pct[1]


def test_line_by_line_is_the_same_as_all_at_once():
    story = Story(eval_every=20, eval_s=9.0, save_every=10, save_s=7.0, waits={33: 5.0},
                  noise=random.Random(1)).train(0, 90).train(80)  # fmt: skip
    live = History()
    for line in sorted([*story.events, *story.metrics], key=lambda each: each["monotonic_s"]):
        live.event(line) if "event" in line else live.metrics(line)
        if line.get("loss"):
            live.eta(line["step"], story.last)
    whole = History(story.events, story.metrics)
    assert live.eta(190, story.last) == whole.eta(190, story.last)


STRANGE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.just(10**400) | st.sampled_from([0, 1, 2, 5, 7.5, "nan", []])
)  # fmt: skip
NAMES = ("session", "step", "time", "monotonic_s", "loss", "eval_s", "save_s", "wait_s",
         "eval_every", "save_every", "event")  # fmt: skip
SOUND = st.fixed_dictionaries(
    {"step": st.integers(0, 9), "time": st.floats(0, 99), "loss": st.just(1.0)},
    optional={"eval_s": st.floats(0, 9), "wait_s": st.floats(0, 9)},
)
LINES = st.lists(
    (st.dictionaries(st.sampled_from(NAMES), STRANGE) | SOUND).map(lambda n: {"session": 1, **n}),
    max_size=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LINES, LINES, st.integers(0, 50), st.none() | st.integers(-5, 10**400))
def test_damaged_lines_are_no_error_and_the_interval_is_one(events, metrics, step, max_steps):
    begin = {"session": 1, "step": 0, "event": "train_begin", "eval_every": 3}
    said = History([begin, *events], metrics).eta(step, max_steps)
    if said.low_s is not None:
        assert 0 <= said.low_s <= said.high_s
        assert said.low_s <= said.mid_s <= said.high_s
    assert json.dumps(said.source)


# --- recorded ---------------------------------------------------------------------


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_at_a_fifth_of_a_recorded_training_it_was_within_15_percent(run):
    (found,) = moments(RECORDED / run, (20,))
    assert found.session == {"whole": 1, "resumed": 2}[run]
    assert abs(found.error_pct) <= 15
