"""What GRPO asks of a configuration, beside TRL's and Axolotl's own word on it."""

import itertools
import json

import pytest

from leviathan import layers, reinforcement, render
from leviathan.check_rewards import rewards
from leviathan.errors import BadInput

QUIZ = """\
base_model: base
corpus: questions.jsonl
format: choices
epochs: 2
axolotl:
  learning_rate: 1e-5
  trl: {num_generations: 4}
"""
ROW = {"question": "Which?", "choices": ["this", "that"], "answer": "B"}


def tree(**more):
    trl = {"reward_funcs": ["m.f"], "num_generations": 4, **more.pop("trl", {})}
    return {
        "rl": "grpo",
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "trl": trl,
        **more,
    }


def wrong(processes=1, row_format="choices", **more):
    return [text for _, text in reinforcement.problems(tree(**more), processes, row_format)]


@pytest.fixture
def quiz(project):
    (project / "configs/recipes/quiz.yaml").write_text(QUIZ)
    (project / "questions.jsonl").write_text("".join(json.dumps({**ROW, "id": n}) + "\n"
                                                     for n in range(20)))  # fmt: skip
    return project


# --- the batch --------------------------------------------------------------------------


def test_it_takes_the_batches_that_trl_and_axolotl_take():
    """Every one of these, by TRL's arguments and Axolotl's validator themselves."""
    from axolotl.utils.schemas.validation import RLValidationMixin
    from trl import GRPOConfig

    def theirs(made, processes):
        several = type("Several", (GRPOConfig,), {"world_size": property(lambda _: processes)})
        asked = {**made, "capabilities": {"n_gpu": processes}}
        try:
            RLValidationMixin.check_grpo_batch_size_divisibility(asked)
            several(
                output_dir="none", bf16=False, use_cpu=True,
                per_device_train_batch_size=made["micro_batch_size"],
                gradient_accumulation_steps=made["gradient_accumulation_steps"],
                num_generations=made["trl"]["num_generations"],
                generation_batch_size=made["trl"].get("generation_batch_size"),
            )  # fmt: skip
        except ValueError:
            return False
        return True

    seen = {True: 0, False: 0}
    for micro, accumulation, processes, generations in itertools.product(
        (1, 2, 3, 8), (1, 2, 4), (1, 2, 8), (2, 4, 8)
    ):
        made = tree(micro_batch_size=micro, gradient_accumulation_steps=accumulation,
                    trl={"num_generations": generations})  # fmt: skip
        ours = not list(reinforcement.problems(made, processes, "choices"))
        for (_, name), value, _ in reinforcement.derived(made, processes):
            made["trl"][name] = value
        assert ours == theirs(made, processes), (micro, accumulation, processes, generations)
        seen[ours] += 1
    assert min(seen.values()) > 20


@pytest.mark.parametrize(
    ("more", "processes", "text"),
    [
        ({"trl": {"num_generations": 3}}, 1, "trl.num_generations is 3, which does not divide "
         "micro_batch_size 4 x gradient_accumulation_steps 2 x 1 process = 8; set "
         "gradient_accumulation_steps to 3 or a multiple of it"),
        ({"trl": {"num_generations": 16}}, 4, "is 16, and Axolotl wants as many"),
        ({"micro_batch_size": 1, "gradient_accumulation_steps": 1}, 8, "Axolotl wants as many"),
        ({"trl": {"num_generations": 1}}, 1, "trl.num_generations is 1; it needs 2 or more"),
        ({"trl": {"num_generations": "4"}}, 1, "trl.num_generations is '4'; it needs a whole number"),
        ({"trl": {"max_completion_length": 0}}, 1, "trl.max_completion_length is 0"),
        ({"trl": {"generation_batch_size": 6}}, 1, "generation_batch_size 6 is no multiple"),
        ({"trl": {"num_iterations": 2}}, 1, "in 4 micro batches, a step has 2: a stop in between"),
        ({"trl": {"sync_ref_model": True}}, 1, "trl.sync_ref_model cannot be resumed exactly"),
        ({"trl": {"reward_funcs": []}}, 1, "rl: grpo needs trl.reward_funcs"),
        ({"sample_packing": True}, 1, "sample_packing does not go with rl: grpo"),
        ({"val_set_size": 8}, 1, "val_set_size is 8; rl: grpo takes a share below 1 only"),
        ({"rl": "dpo"}, 1, "format: choices is trained by rewards; set rl: grpo"),
        ({"val_set_size": 0.1, "eval_steps": 5, "eval_batch_size": 3}, 1,
         "trl.num_generations is 4, which does not divide eval_batch_size x processes = 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_what_to_do(more, processes, text):
    (found,) = wrong(processes, **more)
    assert text in found


def test_an_evaluation_has_whole_groups_by_itself():
    made = tree(micro_batch_size=2, val_set_size=0.1, eval_steps=5)
    assert [(k, v) for k, v, _ in reinforcement.derived(made, 1)] == [(("eval_batch_size",), 4)]
    assert list(reinforcement.derived(tree(val_set_size=0.1, eval_steps=5), 1)) == []
    assert list(reinforcement.derived({"sample_packing": True}, 8)) == []


# --- in a configuration -----------------------------------------------------------------


def test_choices_bring_rewards_along_and_leave_what_is_for_supervised_training(quiz, keys):
    profile = quiz / "configs/profiles/tiny.yaml"
    profile.write_text(
        profile.read_text().replace("axolotl:\n", "axolotl:\n  sample_packing: true\n")
    )
    made = layers.build("quiz", "tiny", "full", ["hardware.count=2"])
    render.check_keys(made, keys)
    assert made.tree["rl"] == "grpo"
    assert made.tree["trl"] == {
        "reward_funcs": ["leviathan.rewards.correct_choice", "leviathan.rewards.answers_at_once"],
        "num_generations": 4, "max_completion_length": 16, "generation_batch_size": 8,
    }  # fmt: skip
    assert made.tree["datasets"] == [{"ds_type": "json", "type": "leviathan.choices"}]
    assert not {"sample_packing", "lora_mlp_kernel"} & made.tree.keys()


def test_a_batch_that_does_not_divide_is_refused_where_it_was_set(quiz, keys):
    made = layers.build("quiz", "tiny", "full", ["micro_batch_size=3"])
    with pytest.raises(BadInput, match=r"quiz\.yaml:7: trl\.num_generations is 4, which does not"):
        render.check_keys(made, keys)


def test_packing_that_the_user_asks_for_is_refused(quiz, keys):
    made = layers.build("quiz", "tiny", "full", ["sample_packing=true"])
    with pytest.raises(BadInput, match="--set sample_packing=true: sample_packing does not go"):
        render.check_keys(made, keys)


def test_a_plan_counts_steps_and_says_what_it_does_not_know(quiz, run_cli):
    done = run_cli("plan", "--profile", "tiny", "--recipe", "quiz", "--sample", "full", "--json",
                   "--set", "base_model=meta-llama/Llama-3.1-8B")  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["steps"], found["steps_per_epoch"]) == (40, 20)
    assert found["hours"] is None
    assert found["evidence"]["time"].startswith("not planned: writing answers takes most of it")
    assert "0.0" in found["evidence"]["answers' memory"]
    assert "second model" not in found["evidence"]
    done = run_cli("plan", "--profile", "tiny", "--recipe", "quiz", "--sample", "full",
                   "--set", "base_model=meta-llama/Llama-3.1-8B", "--set", "adapter=null")  # fmt: skip
    assert "not planned: answers are written" in done.output
    assert "Axolotl loads the weights once more" in done.output


def test_bad_questions_are_found_with_line_and_key(quiz, run_cli):
    rows = [ROW, {**ROW, "answer": 2}, {**ROW, "choices": ["one"], "answer": 0},
            {"question": "Which?", "choices": ["a", "a"], "answer": 1}, {"choices": ["a", "b"]}]  # fmt: skip
    (quiz / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_cli("data", "check", "--profile", "tiny", "--recipe", "quiz", "--json")
    found = {f["kind"]: f for f in json.loads(done.stdout)["findings"]}
    assert {kind: f["rows"] for kind, f in found.items() if f["severity"] == "error"} == {
        "bad_answer": 1, "bad_choices": 2, "missing_field": 1,
    }  # fmt: skip
    assert found["bad_answer"]["examples"] == [
        {"path": "questions.jsonl", "line": 2, "what": "answer '2' names none of 2 choices"}
    ]
    assert [e["line"] for e in found["bad_choices"]["examples"]] == [3, 4]


# --- a user's functions -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("mine.good", None),
        ("mine.absent", "reward function mine.absent: module mine has no absent"),
        ("mine.number", "reward function mine.number: it is int, no function"),
        ("mine.narrow", "reward function mine.narrow: it takes fewer than two arguments"),
        (
            "nobody.good",
            "reward function nobody.good: ModuleNotFoundError: No module named 'nobody'",
        ),
        ("broken.good", "reward function broken.good: NameError: name 'nonsense' is not defined"),
        ("leaving.good", "reward function leaving.good: importing it ended the process"),
        ("good", "reward function good: it is no module.function"),
    ],
)
def test_a_function_that_cannot_be_called_fails_the_check(quiz, monkeypatch, name, evidence):
    (quiz / "mine.py").write_text(
        "print('hello')\nnumber = 3\ndef good(prompts, completions, **more):\n    return []\n"
        "def narrow(completions):\n    return []\n"
    )
    (quiz / "broken.py").write_text("nonsense\n")
    (quiz / "leaving.py").write_text("import os\nos._exit(0)\n")
    subject = type("Subject", (), {"tree": tree(trl={"reward_funcs": [name]})})()
    found = rewards(subject)
    if evidence is None:
        assert (found.state, found.evidence) == ("pass", name)
    else:
        assert found.state == "fail"
        assert found.evidence.startswith(evidence)
        assert "beside configs/" in found.fix


def test_the_shipped_functions_need_no_child(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere")
    shipped = tree(trl=reinforcement.DEFAULTS["trl"])
    assert rewards(type("Subject", (), {"tree": shipped})()).state == "pass"
    assert rewards(type("Subject", (), {"tree": {}})()) is None
