"""What a run's figures are said to mean: on made curves with noise, and on recorded ones."""

import math
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leviathan import chance, config, judgement, runs, series, tidings, verdicts
from leviathan.checkpoints import Checkpoint
from leviathan.config import Guards
from leviathan.guards import LossWatch
from told_curves import Told, cosine

RECORDED = Path(__file__).parent / "recorded"
SEEDS = 200


def saved(step, eval_loss=None, problem=None):
    path = Path(f"checkpoint-{step}")
    return Checkpoint(step, path, None, None, eval_loss, 1, 0.0, True, problem)


def judged(told, events=(), kept=(), **more):
    return verdicts.judge(told.series, list(events), told.samples, list(kept), **more)


def of(found, kind):
    return [verdict for verdict in found if verdict.kind == kind]


def only(found, kind):
    (verdict,) = of(found, kind)
    return verdict


# --- no false alarms --------------------------------------------------------------

HEALTHY = {
    "usual": {},
    "noisy": {"noise": 0.3, "eval_noise": 0.015, "jitter": 0.2},
    "short": {"steps": 240, "every": 40},
    "rarely evaluated": {"every": 300},
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_runs_with_a_resume_raise_no_alarm(kind):
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        told = Told(seed, **HEALTHY[kind])
        found = judged(told, told.resumed(int(told.steps[-1]) // 2, undone=3))
        grades = {verdict.grade for verdict in found}
        counts.update(grades)
        assert {v.kind for v in found} == {"divergence", "overfitting", "resume", "throughput"}
    assert counts["warn"] + counts["bad"] < 0.02 * SEEDS, counts
    assert counts["note"] < 0.05 * SEEDS, counts


def test_evaluations_that_only_scatter_are_no_overfitting():
    alarms = 0
    for seed in range(SEEDS):
        told = Told(seed)
        told.evals = 1.3 + told.chance.normal(0, 0.01, len(told.evals))
        alarms += any(v.grade in {"warn", "bad"} for v in judged(told))
    assert alarms < 0.02 * SEEDS


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_a_real_run_is_sound(run):
    paths = runs.RunPaths(RECORDED / run)
    found = verdicts.judge(series.read(paths), runs.events(paths), [], [])
    assert {v.grade for v in found} == {"good"}, found
    assert len(of(found, "resume")) == (run == "resumed")


# --- overfitting ------------------------------------------------------------------


def overfitted(seed=1, rise=4e-4):
    told = Told(seed)
    late = np.maximum(told.evals_at - 400, 0)
    told.evals = told.evals + late * rise
    told.loss = told.loss - np.maximum(told.steps - 400, 0) * 3e-4
    return told


@pytest.mark.parametrize("seed", range(20))
def test_overfitting_names_the_checkpoint_to_use(seed):
    told = overfitted(seed)
    at = int(told.evals_at[told.evals.argmin()])
    kept = [saved(int(s), float(e)) for s, e in zip(told.evals_at, told.evals, strict=True)]
    found = judged(told, kept=kept)
    verdict = only(found, "overfitting")
    assert found[0] == verdict
    assert verdict.grade in {"warn", "bad"}
    assert (verdict.step, verdict.checkpoint) == (at, f"checkpoint-{at}")
    assert verdict.text.endswith(f"while the training loss fell; use checkpoint-{at}")
    assert any(line.startswith("training loss: ") for line in verdict.evidence)


def test_overfitting_whose_best_checkpoint_is_damaged_or_gone_names_the_next():
    told = overfitted()
    at = int(told.evals_at[told.evals.argmin()])
    kept = [saved(at, 1.5, "weights are zeros"), saved(at + 50, 1.56), saved(900, 1.7)]
    verdict = only(judged(told, kept=kept), "overfitting")
    assert verdict.checkpoint == f"checkpoint-{at + 50}"
    assert (
        f"no sound checkpoint of step {at} is there; checkpoint-{at + 50} is next, its "
        "evaluation loss is 1.5600"
    ) in verdict.evidence
    nothing = only(judged(told, kept=kept[:1]), "overfitting")
    assert nothing.checkpoint is None
    assert "no sound checkpoint is left" in nothing.evidence


def test_overfitting_where_saves_and_evaluations_differ_names_the_nearest():
    told = overfitted()
    at = int(told.evals_at[told.evals.argmin()])
    kept = [saved(at - 190), saved(at + 10), saved(at + 210)]
    assert only(judged(told, kept=kept), "overfitting").checkpoint == f"checkpoint-{at + 10}"


def test_one_evaluation_an_epoch_is_enough_for_a_large_rise():
    told = Told(1, every=300)
    told.evals = np.array([1.2, 1.29, 1.4])
    assert only(judged(told), "overfitting").step == 300


def test_an_evaluation_loss_that_rises_with_the_training_loss_is_no_overfitting():
    told = overfitted()
    told.loss = told.loss + np.maximum(told.steps - 400, 0) * 1.5e-3
    found = judged(told)
    assert not of(found, "overfitting")
    assert "itself goes wrong" in found[0].text
    assert found[0].kind == "divergence"


def test_a_training_loss_that_only_scatters_did_not_fall():
    told = overfitted()
    told.loss = 1.3 + told.chance.normal(0, 0.08, len(told.loss))
    told.loss[-50:] += 1.299 - told.loss[-50:].mean()
    verdict = next(v for v in judged(told) if "did not fall" in v.text)
    assert (verdict.kind, verdict.grade) == ("divergence", "note")


def test_the_newest_lines_of_a_long_run_are_enough():
    told = overfitted()
    cut = told.series
    recent = {n: c if n == "eval_loss" else c.taken(c.step > 500) for n, c in cut.curves.items()}
    found = verdicts.judge(series.Series(recent, cut.parts, 400, 0), [], [], [])
    verdict = only(found, "overfitting")
    assert any("in the first lines at hand after the lowest" in line for line in verdict.evidence)


# --- plateau ----------------------------------------------------------------------


def stuck(seed, *, constant):
    told = Told(seed, every=25)
    told.rate = np.full(len(told.steps), 2e-4) if constant else told.rate
    told.evals = 1.5 + 0.5 * np.exp(-told.evals_at / 60)
    told.evals += told.chance.normal(0, 0.003, len(told.evals))
    return told


def test_a_plateau_is_noted_while_the_learning_rate_is_high():
    for seed in range(20):
        assert only(judged(stuck(seed, constant=True)), "plateau").grade == "note"
        assert not of(judged(stuck(seed, constant=False)), "plateau")


def test_without_evaluations_a_long_training_loss_tells_a_plateau():
    told = Told(1, steps=20_000)
    told.rate[:], told.evals, told.evals_at = 2e-4, told.evals[:0], told.evals_at[:0]
    told.loss = 1.5 + told.chance.normal(0, 0.08, len(told.steps))
    assert "training loss" in only(judged(told), "plateau").text
    told.loss = told.loss - 2e-5 * told.steps
    assert not of(judged(told), "plateau")


# --- divergence -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_divergence_is_what_the_guard_inside_calls_so(seed):
    told = Told(seed, noise=0.2)
    told.loss[700:] += np.linspace(0, 3, 200)
    watch = LossWatch(Guards())
    told_at = next(
        step for step, loss in zip(told.steps, told.loss, strict=True) if watch.feed(float(loss))
    )
    curves = told.series
    for last, grade in ((told_at - 1, "good"), (told_at, "bad")):
        cut = {n: c.taken(c.step <= last) for n, c in curves.curves.items()}
        found = verdicts.judge(series.Series(cut, curves.parts, 0, 0), [], [], [])
        assert only(found, "divergence").grade == grade


def test_divergence_names_where_to_resume_from_and_passes_once_it_is_over():
    told = Told(1)
    told.loss[800:] += 4
    kept = [saved(500), saved(700), saved(701, problem="damaged"), saved(900)]
    verdict = only(judged(told, kept=kept), "divergence")
    assert (verdict.grade, verdict.checkpoint) == ("bad", "checkpoint-700")
    told = Told(1)
    told.loss[400:500] += 4
    assert only(judged(told), "divergence").grade == "note"


def test_limits_are_the_profiles_where_they_are_given():
    told = Told(1)
    told.loss[800:] += 0.6
    assert only(judged(told), "divergence").grade == "good"
    strict = Guards(divergence=0.3)
    assert only(judged(told, limits=strict), "divergence").grade == "bad"
    usual, guards = judgement.Usual(), config.Guards()
    assert usual == judgement.Usual(guards.loss_jump, guards.divergence, guards.hot_c)


@pytest.mark.parametrize(("at", "grade"), [(900, "bad"), (500, "note")])
def test_a_loss_that_is_no_number_is_bad_until_it_is_passed(at, grade):
    guard = {"event": "guard", "kind": "nan", "session": 1, "step": at, "text": "the loss is nan"}
    found = judged(Told(1), [guard])
    assert found[0].text.startswith(f"the loss is nan, at step {at}")
    assert found[0].grade == grade


def test_an_evaluation_that_is_no_number_is_bad():
    found = judged(Told(1), [{"event": "eval", "step": 900, "eval_loss": "nan"}])
    assert (found[0].grade, found[0].step) == ("bad", 900)


# --- resumes ----------------------------------------------------------------------


def test_a_resume_that_went_on_says_so_with_its_figures():
    told = Told(1)
    verdict = only(judged(told, told.resumed(412, undone=12)), "resume")
    assert (verdict.grade, verdict.step) == ("good", 412)
    assert verdict.text == "resume at step 412 (session 2): it went on as it was"
    for start in ("loss: ", "learning rate: ", "torch's memory: ", "GPU memory: "):
        assert any(line.startswith(start) for line in verdict.evidence), start
    assert "12 steps were trained again" in verdict.evidence


def after(told, name, change):
    values = getattr(told, name)
    values[told.steps > 412] = change(values[told.steps > 412])


BROKEN = {
    "loss": ("loss", lambda v: v + 0.9, "bad", "the loss jumped by"),
    "a little": ("loss", lambda v: v + 0.4, "note", "beyond what it scatters"),
    "rate halved": ("rate", lambda v: v / 2, "note", "a changed learning_rate"),
    "rate anew": ("rate", lambda v: cosine(np.arange(1, len(v) + 1)), "bad", "began anew"),
    "rate to zero": ("rate", lambda v: v * 0, "warn", "which its schedule does not tell"),
    "rate off": ("rate", lambda v: np.linspace(3e-5, 5e-4, len(v)), "warn", "not tell"),
    "memory": ("memory", lambda v: v + 2.5, "warn", "torch's memory is 2.5 GiB more"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_go_on_across_a_resume_is_told(kind):
    name, change, grade, text = BROKEN[kind]
    told = Told(1)
    events = told.resumed(412)
    after(told, name, change)
    verdict = only(judged(told, events), "resume")
    assert verdict.grade == grade
    assert text in verdict.text


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant", "warm-up"])
@pytest.mark.parametrize("every", [1, 10])
def test_schedules_that_go_on_are_no_break(shape, every):
    told = Told(1)
    told.rate = {
        "linear": 2e-4 * (1 - told.steps / 901), "cosine": cosine(told.steps),
        "constant": np.full(900, 2e-4), "warm-up": cosine(told.steps, warm_up=600),
    }[shape]  # fmt: skip
    for at in (31, 412, 605, 893):
        events = told.resumed(at)
        curves = told.series
        cut = {n: c.taken(c.step % every == 0) for n, c in curves.curves.items()}
        cut = series.Series(cut, curves.parts, 0, 0)
        found = [v for v in verdicts.judge(cut, events, [], []) if v.kind == "resume"]
        assert [v.grade for v in found] == ["good"], (at, found)


def test_every_resume_has_one_verdict_even_without_lines():
    told = Told(1)
    events = told.resumed(412)
    events += [{"event": "resume", "session": n, "step": 900} for n in (3, 4)]
    found = of(judged(told, events), "resume")
    assert [v.step for v in found] == [900, 900, 412]
    assert [v.grade for v in found] == ["note", "note", "good"]


def test_a_resume_is_judged_by_its_own_lines():
    told = Told(1)
    told.resumed(412)
    told.session[told.steps > 412] = 3
    told.parts = [series.Part(1, 0, 412, 0, 0, 0), series.Part(2, 412, 412, 9, 0, 0),
                  series.Part(3, 412, 900, 0, 0, 0)]  # fmt: skip
    events = [{"event": "resume", "session": n, "step": 412} for n in (2, 3)]
    lost, kept = of(judged(told, events), "resume")
    assert lost.text == "resume at step 412 (session 2): no log line of it counts"
    assert (kept.grade, kept.evidence[-1]) == ("good", "9 steps were trained again")


# --- throughput -------------------------------------------------------------------


def thermal(told):
    told.slower(700, 1.3, throttle=("thermal slowdown",), sm_mhz=1050.0, temperature_c=88.0)


def limited(told):
    told.slower(700, 1.3, power_limit_w=100.0, power_w=100.0, sm_mhz=1080.0)


def capped(told):
    for facts in told.gpu[:700]:
        facts["throttle"] = ()
    told.slower(700, 1.3, sm_mhz=1200.0)


def starving(told):
    told.slower(700, 1.0, busy_pct=55.0)
    told.data_s[700:] += 6
    told.step_s[700:] += 6


def waiting(told):
    told.slower(700, 1.4, busy_pct=50.0)


def alone(told):
    told.slower(700, 1.3)


def unseen(told):
    told.slower(700, 1.3)
    told.sampled = False


def resumed_elsewhere(told):
    told.resumed(700)
    told.slower(700, 1.3)


CAUSES = {
    thermal: "thermal throttling",
    limited: "the power limit was lowered",
    capped: "the power cap",
    starving: "the data loader: steps wait for their rows",
    waiting: "the GPU waits (for the CPU, the disk or another GPU)",
    alone: "no cause seen in the samples: heat, power, clocks and use as before",
    unseen: "no telemetry of that time",
    resumed_elsewhere: "no cause seen; since session 2",
}


@pytest.mark.parametrize("slow", CAUSES, ids=lambda slow: slow.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_a_slowdown_is_told_with_its_cause(slow, seed):
    told = Told(seed)
    slow(told)
    verdict = only(judged(told), "throughput")
    assert verdict.grade == "warn"
    assert abs(verdict.step - 701) <= 10
    assert verdict.text.endswith(f" s): {CAUSES[slow]}")
    assert verdict.evidence[0].startswith("a step: ")


def test_the_ladder_is_a_cause_before_all_others():
    told = Told(1)
    events = told.resumed(700)
    rung = {"event": "ladder", "step": 700, "session": None, "reason": "next rung: offload"}
    told.slower(700, 1.3, throttle=("thermal slowdown",))
    verdict = only(judged(told, [events[0], rung, events[1]]), "throughput")
    assert verdict.text.endswith("settings lowered when memory ran out")
    assert "next rung: offload" in verdict.evidence


def test_longer_rows_are_no_slowdown():
    for seed in range(20):
        told = Told(seed)
        told.rows[500:] *= 1.6
        told.step_s[500:] *= 1.6
        assert only(judged(told), "throughput").grade == "good"


def test_a_slow_spell_that_is_over_is_a_note_and_none_of_the_usual():
    told = Told(1)
    told.slower(200, 1.4, until=300, throttle=("hardware thermal slowdown",))
    found = of(judged(told), "throughput")
    assert [v.grade for v in found] == ["note", "good"]
    assert "thermal throttling" in found[0].text


def test_a_fresh_slowdown_is_seen_within_twenty_lines():
    told = Told(1)
    thermal(told)
    curves = told.series
    cut = {n: c.taken(c.step <= 720) for n, c in curves.curves.items()}
    found = verdicts.judge(series.Series(cut, curves.parts, 0, 0), [], told.samples, [])
    assert only(found, "throughput").grade == "warn"


# --- chance -----------------------------------------------------------------------


def test_levels_are_found_where_they_change_and_hardly_in_noise():
    noise = np.random.default_rng(1)
    alarms = sum(bool(chance.levels(noise.normal(size=200))) for _ in range(300))
    assert alarms <= 6
    values = noise.normal(size=200)
    values[60:90] += 4
    values[150:] -= 4
    found = chance.levels(values)
    assert np.allclose(found, [60, 90, 150], atol=2)


def test_noise_passes_over_slopes_bends_and_outliers():
    at = np.arange(400.0)
    values = np.random.default_rng(1).normal(0, 0.5, 400) + at / 10 + (at / 100) ** 2
    values[7] = 1e6
    assert math.isclose(chance.noise(values), 0.5, rel_tol=0.15)


def test_kendalls_trend_is_the_textbooks():
    assert math.isclose(chance.trend(np.arange(10.0)), 45 / math.sqrt(10 * 9 * 25 / 18))
    assert chance.trend(np.ones(10)) == 0.0


# --- anything at all --------------------------------------------------------------

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(-3, 3), st.text(max_size=2),
    st.none(), st.just("nan"),
)  # fmt: skip
FIGURES = ["loss", "eval_loss", "learning_rate", "data_s", "monotonic_s", "time", "tokens/total",
           "memory/max_allocated (GiB)"]  # fmt: skip
LINES = st.fixed_dictionaries(
    {"step": st.integers(-2, 60), "session": st.integers(-1, 4)},
    optional=dict.fromkeys(FIGURES, NUMBERS),
)
EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(["start", "resume", "guard", "eval", "ladder", "save"])},
    optional={"session": NUMBERS, "step": NUMBERS, "kind": st.just("nan"), "eval_loss": NUMBERS},
)


@given(st.lists(LINES, max_size=80), st.lists(EVENTS, max_size=8), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_odd_data_is_judged_or_not_but_never_raises(lines, events, sampled):
    told = Told(1, steps=60)
    kept = [saved(10, math.nan), saved(20, 1.0), saved(30, None, "damaged")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers near the largest there is
        curves = series.recent(tidings.Tidings(events, lines, []))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = verdicts.judge(curves, events, told.samples if sampled else [], kept)
    for verdict in found:
        assert verdict.grade in {"good", "note", "warn", "bad"}
        assert verdict.text


@given(st.lists(st.floats(-1e3, 1e3, width=16), max_size=60), st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_curves_of_any_shape_are_judged(values, every):
    told = Told(1, steps=max(len(values), 1), every=every)
    told.loss = np.array([*values, 1.0][: len(told.steps)])
    told.step_s = np.abs(told.loss)
    told.evals = np.resize(told.loss, len(told.evals_at))
    told.rate = told.rate * 0
    judged(told, told.resumed(len(values) // 2))


def test_a_million_lines_take_less_than_a_second():
    told = Told(1, steps=1_000_000, every=2_000)
    events = told.resumed(400_000)
    told.sampled = False
    curves = told.series
    began = time.perf_counter()
    assert verdicts.judge(curves, events, [], [])
    assert time.perf_counter() - began < 1
