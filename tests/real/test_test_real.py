"""A run's own checkpoints put to a suite in one go, and lm-eval's tasks on files of one's own."""

import json
import random
import shutil

import pytest
from project import RUN, Project

import tiny
from leviathan import checkpoints, evaluate, grades, models, ranking, runs
from leviathan.errors import BadInput

pytestmark = pytest.mark.real

# What the tiny run learns early, late, never: found by asking each of its checkpoints.
SUITE = """\
cases:
  - {name: begins, prompt: 'Repeat: alpha beta', checks: [{regex: '^alpha'}], max_new_tokens: 12}
  - {name: whole, prompt: 'Repeat: mu nu', checks: [{exact: mu nu}], max_new_tokens: 12, weight: 2}
  - {name: words, prompt: 'Repeat: xi omicron', checks: [{regex: 'a'}], max_new_tokens: 6}
  - {name: stops, prompt: 'Repeat: gamma', checks: [{stops-by-itself: true}], max_new_tokens: 40}
  - {name: never, prompt: 'Repeat: gamma', checks: [{contains: Paris}], max_new_tokens: 6}
  - {name: warm, prompt: 'Repeat: mu', checks: [{contains: mu}], temperature: 0.9}
"""

TASK = """\
task: echo
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def project(reference, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tested") / "project"
    shutil.copytree(reference.directory, directory)
    (directory / "s.yaml").write_text(SUITE)
    return Project(directory)


def test_every_checkpoint_is_judged_as_it_is_alone(project, monkeypatch):
    """Adapters swapped on one base answer as each does, loaded for itself; the rest is kept."""
    monkeypatch.chdir(project.directory)
    paths = runs.find(RUN)
    ranked = ranking.rank(evaluate.prepare(RUN, "latest", "s.yaml", None), lambda *_: None)
    found = checkpoints.scan(paths.directory)
    assert [c.step for c, _ in ranked.entries] == [c.step for c in found]
    for checkpoint, summary in (ranked.entries[0], ranked.entries[-1]):
        alone = evaluate.examine(evaluate.prepare(RUN, str(checkpoint.step), "s.yaml", None))
        assert alone == summary
    texts = {json.dumps([case["answer"] for case in told["cases"]]) for _, told in ranked.entries}
    assert len(texts) > 1  # else nothing was swapped
    kept = grades.every(paths)
    assert {g.checkpoint for g in kept} == {c.path.name for c in found}
    assert {g.checkpoint: g.pass_pct for g in kept} == {
        c.path.name: told["pass_pct"] for c, told in ranked.entries
    }


def test_a_damaged_checkpoint_is_not_asked(project, monkeypatch, tmp_path):
    shutil.copytree(project.directory, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    paths = runs.find(RUN)
    first = checkpoints.scan(paths.directory)[0]
    weights = first.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    ranked = ranking.rank(evaluate.prepare(RUN, "latest", "s.yaml", None), lambda *_: None)
    assert [c.path.name for c in ranked.damaged] == [first.path.name]
    assert first.step not in [c.step for c, _ in ranked.entries]
    assert ranked.to_json()["damaged"][0]["problem"]


def test_it_is_about_a_run(project, monkeypatch):
    monkeypatch.chdir(project.directory)
    with pytest.raises(BadInput, match="--all-checkpoints is about a run"):
        ranking.rank(evaluate.prepare("base", "best", "s.yaml", None), lambda *_: None)


def test_an_adapter_without_its_run_answers_as_the_run_does(project, monkeypatch):
    done = project.run("cloud", "pull", str(project.path(RUN)), "--for", "serve", "--json")
    assert done.code == 0, done.err
    monkeypatch.chdir(project.directory)
    pulled = json.loads(done.out)["target"]
    examination = evaluate.prepare(pulled, "best", "s.yaml", None)
    assert "no run vouches for the adapter" in examination.source.caution
    told = evaluate.examine(examination)
    assert told == evaluate.examine(evaluate.prepare(RUN, "best", "s.yaml", None))
    asked = project.run("infer", pulled, "-q", "Repeat: alpha beta", "--max-new-tokens", "12")
    assert asked.code == 0, asked.err
    assert asked.out.strip() == told["cases"][0]["answer"] != ""
    assert "warning: no run vouches for the adapter" in asked.err


def right_answers(model, rows):
    """Share of rows whose right choice is the likeliest, counted without lm-eval."""
    import torch

    def likelihood(question, choice):
        asked = len(model.tokenizer(question)["input_ids"])
        ids = torch.tensor([model.tokenizer(f"{question} {choice}")["input_ids"]])
        told = model.logits(ids).log_softmax(-1)[asked - 1 : -1]
        return float(told.gather(1, ids[0, asked:, None]).sum())

    best = [max(row["choices"], key=lambda choice: likelihood(row["question"], choice))
            for row in rows]  # fmt: skip
    return sum(
        row["choices"][row["answer"]] == one for row, one in zip(rows, best, strict=True)
    ) / (len(rows))


def test_lm_eval_puts_local_tasks_to_tuned_and_base(project, monkeypatch):
    chance = random.Random(5)
    rows = []
    for _ in range(24):
        right, wrong = (" ".join(chance.sample(tiny.WORDS, 3)) for _ in range(2))
        rows.append({"question": f"Repeat: {right}", "choices": [right, wrong], "answer": 0})
    (project.directory / "echo.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks = project.directory / "tasks"
    tasks.mkdir()
    (tasks / "echo.yaml").write_text(TASK.replace("ROWS", str(project.directory / "echo.jsonl")))
    done = project.run("test", "--tasks", "echo", "--task-path", "tasks", "--suite", "s.yaml",
                       "--min-pass", "0", "--json")  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    (score,) = told["lm_eval"]
    assert (score["task"], score["metric"], score["rows"]) == ("echo", "acc", 24)
    assert grades.read(runs.RunPaths(project.path(RUN))).lm_eval == (score,)
    assert len(told["cases"]) == 6
    assert told["seed"] == 42  # the recipe's
    monkeypatch.chdir(project.directory)
    model = models.Model(evaluate.resolve(RUN, "best")[0])
    assert score["value"] == pytest.approx(right_answers(model, rows))
    with model.without_adapter():
        assert score["base_value"] == pytest.approx(right_answers(model, rows))
    assert score["value"] != score["base_value"]


def test_a_task_that_is_not_there(project):
    """In a child: lm_eval changes the environment of whoever imports it."""
    done = project.run("test", "--tasks", "ecko", "--task-path", "tasks", "--suite", "s.yaml")
    assert done.code == 2
    assert "ecko" in done.err
    assert "echo" in done.err
