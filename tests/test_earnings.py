"""What a training by rewards is said to be doing: by its rewards, never by its loss."""

import json
from dataclasses import replace

import numpy as np
import pytest

from leviathan import checkpoints, page, report, series, status, verdicts
from telling import Telling
from told_curves import Told

LINES = 200


def judged(reward, spread=0.3, events=(), seed=1):
    """Verdicts on a run whose loss is GRPO's: noise around 0, with spikes."""
    told = Told(seed=seed, steps=len(reward))
    told.loss = told.chance.normal(0, 0.05, len(reward))
    told.loss[50:55] += 9  # a divergence, were it a loss that counts
    if events:
        events = told.resumed(45)
    made = told.series
    more = {
        "reward": told.curve(told.steps, reward),
        "reward_std": told.curve(told.steps, np.broadcast_to(spread, len(reward))),
    }
    found = verdicts.judge(replace(made, curves={**made.curves, **more}), list(events), [], [])
    assert not {v.kind for v in found} & {"divergence", "overfitting", "plateau"}
    return [(v.grade, v.text) for v in found if v.kind == "reward"], found


def noise(seed, level=0.4, scatter=0.1, lines=LINES):
    return np.random.default_rng(seed).normal(level, scatter, lines)


def test_a_reward_that_rises_is_well_and_one_that_falls_is_told():
    slope = np.linspace(0, 0.4, LINES)
    (rose,), _ = judged(noise(1) + slope)
    assert rose[0] == "good"
    assert rose[1].startswith("the reward rose from 0.4")
    (fell,), _ = judged(noise(1, level=0.8) - slope)
    assert fell[0] == "warn"
    assert "lower the learning rate" in fell[1]


def test_noise_is_neither():
    grades = [grade for seed in range(200) for grade, _ in judged(noise(seed))[0]]
    assert grades.count("note") >= 198  # it stays where it is
    assert grades.count("warn") <= 1


def test_few_lines_say_nothing():
    assert judged(noise(1, lines=9))[0] == []


def test_answers_that_all_earn_the_same_teach_nothing():
    spread = np.where(np.arange(LINES) < LINES - 30, 0.3, 0.0)
    found, _ = judged(np.full(LINES, 1.0), spread)
    assert found[-1][0] == "warn" or found[0][0] == "warn"
    (text,) = [text for grade, text in found if grade == "warn"]
    assert text.startswith("for 20 log lines all answers to a question have earned the same (1 on")
    one_differs = np.where(np.arange(LINES) == LINES - 5, 0.1, 0.0)
    assert all(grade != "warn" for grade, _ in judged(noise(1), one_differs)[0])


def test_a_resume_is_not_judged_by_the_loss():
    _, found = judged(noise(1), events=True)
    (resume,) = [v for v in found if v.kind == "resume"]
    assert resume.grade == "good"
    assert not any("loss" in line for line in resume.evidence)


@pytest.fixture
def told(tmp_path):
    """A run as TRL tells it; its evaluations' loss is lowest where the reward is lowest, too."""
    made = Telling(tmp_path / "quiz", began=1_000_000.0)
    made.begin()
    for step in range(1, 61):
        made.clock += 10
        made.metrics(step, loss=0.001 * (-1) ** step, learning_rate=1e-5, num_tokens=step * 900,
                     reward=0.2 + step / 100, reward_std=0.3,
                     **{"completions/mean_length": 20 - step / 10})  # fmt: skip
        if step % 20 == 0:
            made.clock += 1
            facts = {"eval_loss": step / 100 - 1, "eval_s": 1.0, "eval_reward": 0.2 + step / 100}
            made.metrics(step, **facts)
            made.event("eval", step=step, **facts)
    return made


def test_rewards_are_curves_and_stand_on_the_screen_and_in_the_report(told):
    found = series.read(told.paths)
    assert found["reward"].value[[0, -1]].tolist() == pytest.approx([0.21, 0.8])
    assert found["answer_tokens"].value[-1] == 14
    assert found["eval_reward"].step.tolist() == [20, 40, 60]
    assert found["tok_s"].value.tolist() == [90.0] * 59
    summary = status.summarize(told.paths)
    assert (summary.reward, summary.eval_reward, summary.answer_tokens) == (0.8, 0.8, 14)
    assert summary.reward_trend.direction == "rising"
    assert summary.curve[0] < summary.curve[-1]
    made = report.gather(told.paths)
    assert "final loss" not in {criterion.name for criterion in made.criteria}
    text = page.markdown(made)
    assert "| reward | 0.8 | rising |" in text
    assert "training loss" not in text
    shown = page.html(made)
    assert "<h3>Reward" in shown
    assert "Length of answers" in shown
    assert "<h3>Loss" not in shown


def test_the_best_checkpoint_is_the_one_with_the_highest_reward(tmp_path):
    for step, loss, reward in ((10, -0.2, 0.3), (20, 0.1, 0.9), (30, 0.0, 0.8)):
        history = [
            {"step": step, "loss": 0.0},
            {"step": step, "eval_loss": loss, "eval_reward": reward},
        ]
        state = {"global_step": step, "epoch": 1.0, "log_history": history}
        directory = tmp_path / f"checkpoint-{step}"
        directory.mkdir()
        (directory / "trainer_state.json").write_text(json.dumps(state))
        (directory / "adapter_model.safetensors").write_bytes(b"weights")
        checkpoints.commit(directory, checkpoints.facts_from_history(state))
    found = checkpoints.scan(tmp_path)
    assert [(c.step, c.eval_reward, c.best) for c in found] == [
        (10, 0.3, False), (20, 0.9, True), (30, 0.8, False),
    ]  # fmt: skip
    assert found[1].score == -0.9
    assert checkpoints.choose(tmp_path, "best").step == 20
