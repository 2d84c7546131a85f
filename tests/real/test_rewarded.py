"""GRPO by the real Axolotl: a stop and a resume change nothing, and its rewards are told."""

import json
import random
import shutil
import signal

import pytest
from project import Project

from tiny import WORDS

pytestmark = pytest.mark.real

RUN, CUT = "whole", "cut"
COMMAND = ("train", "--profile", "tiny", "--recipe", "quiz", "--sample", "full", "--set",
           "gradient_accumulation_steps=2", "--set", "dataset_num_proc=1", "--name")  # fmt: skip
STEPS, EPOCH = 42, 21
RECIPE = """\
base_model: base
corpus: questions.jsonl
format: choices
epochs: 2
axolotl:
  learning_rate: 1e-2
  warmup_steps: 2
  val_set_size: 0.125
  eval_steps: 7
  save_steps: 7
  chat_template: chatml
  trl:
    num_generations: 4
    max_completion_length: 6
    reward_funcs: [quiz.variety, leviathan.rewards.correct_choice]
"""
# A random model answers nothing rightly; something has to tell its answers apart.
QUIZ = """\
def variety(prompts, completions, **columns):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    assert {len(choices) for choices in columns["choices"]} == {3}
    return [len(set(answer[0]["content"])) / 10 for answer in completions]
"""


@pytest.fixture(scope="module")
def quiz(template, tmp_path_factory, fork_server) -> Project:
    """One GRPO training in the directory, never interrupted."""
    directory = tmp_path_factory.mktemp("quiz") / "project"
    shutil.copytree(template, directory)
    chance = random.Random(3)
    with (directory / "questions.jsonl").open("w") as out:
        for number in range(48):
            choices = chance.sample(WORDS, 3)
            row = {"question": f"Which is {choices[number % 3]}?", "choices": choices}
            out.write(json.dumps({**row, "answer": "ABC"[number % 3]}) + "\n")
    (directory / "configs/recipes/quiz.yaml").write_text(RECIPE)
    (directory / "quiz.py").write_text(QUIZ)
    project = Project(directory, fork_server)
    done = project.run(*COMMAND, RUN)
    assert done.code == 0, done.err
    return project


def told(project, run):
    """Everything that a resume must not change, of every step."""
    passing = {"time", "monotonic_s", "session", "data_s", "step_time", "eval_s"}
    passing |= {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    lines = [line for line in project.metrics(run) if "reward" in line or "eval_reward" in line]
    return [{name: line[name] for name in line if name not in passing} for line in lines]


def test_it_went_as_many_steps_as_planned(quiz):
    planned = json.loads(quiz.run("plan", *COMMAND[1:-1], "--json").out)
    lines = [line for line in told(quiz, RUN) if "reward" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert (planned["steps"], planned["steps_per_epoch"]) == (STEPS, EPOCH)
    assert (planned["rows"]["train"], planned["rows"]["eval"]) == (42, 6)
    assert planned["exact"] is True


def test_a_run_stopped_in_its_second_epoch_and_resumed_equals_it(quiz):
    stopped = quiz.signal_at(CUT, EPOCH + 2, signal.SIGINT, arguments=(*COMMAND, CUT))
    assert stopped.code == 4, stopped.err
    done = quiz.run(*COMMAND, CUT)
    assert done.code == 0, done.err
    (resumed,) = quiz.events(CUT, "resume")
    assert EPOCH < resumed["step"] < STEPS
    assert told(quiz, CUT) == told(quiz, RUN)
    assert quiz.adapter(CUT) == quiz.adapter(RUN)


def test_its_rewards_are_told_and_its_loss_is_not_judged(quiz):
    found = json.loads(quiz.run("status", RUN, "--json").out)
    assert found["reward"] > 0
    assert found["eval_reward"] > 0
    assert 0 < found["answer_tokens"] <= 6
    kinds = {verdict["kind"] for verdict in found["verdicts"]}
    assert not kinds & {"divergence", "overfitting", "plateau"}
    assert "\nreward" in quiz.run("status", RUN).out
    shown = json.loads(quiz.run("report", RUN, "--json").out)
    assert shown["curves"]["reward"]["step"] == list(range(1, STEPS + 1))
    assert shown["curves"]["eval_reward"]["step"][-1] == STEPS
    assert "final loss" not in {criterion["name"] for criterion in shown["criteria"]}
    saved = json.loads(quiz.run("checkpoints", "list", RUN, "--json").out)
    (best,) = [c for c in saved if c["best"]]
    assert best["eval_reward"] == max(c["eval_reward"] for c in saved)


def test_a_function_that_is_not_there_is_told_before_the_training(quiz):
    done = quiz.run(*COMMAND, "none", "--set", "trl.reward_funcs=[quiz.varety]")
    assert done.code == 3
    assert "reward function quiz.varety: module quiz has no varety" in done.err
    assert not quiz.path("none").exists()
