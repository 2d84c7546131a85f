"""A training in stages before and between its stages: what is shown, planned, handed on, refused."""

import json
import time

import pytest

from leviathan import course, handover, layers, runs, stages
from leviathan.errors import BadInput

COMMON = ["-p", "tiny", "-r", "staged", "-s", "50pct"]
STAGES = """\
stages:
  - name: mid
    train: full
    axolotl: {max_steps: 4}
  - name: sft
"""


@pytest.fixture
def staged(project):
    """The tiny recipe in two stages, as ``staged``; a base that has a shape and no weights."""
    recipe = (project / "configs/recipes/tiny.yaml").read_text()
    (project / "configs/recipes/staged.yaml").write_text(recipe + STAGES)
    return project


def begin(stage: str, state: str, **facts) -> runs.RunPaths:
    """A stage's run with a record and nothing else."""
    paths = runs.RunPaths(runs.TRAINING / f"staged_50pct_tiny.{stage}")
    paths.directory.mkdir(parents=True)
    record = runs.RunRecord(
        paths.directory.name, "staged", "tiny", "50pct", [f"stage={stage}"], {}, {}, 1, {}, None,
        {}, time.time(), state=state, stage=stage, stages=["mid", "sft"], **facts,
    )  # fmt: skip
    runs.write(paths, record)
    return paths


def second() -> stages.Leg:
    return stages.legs(layers.build("staged", "tiny", "50pct"))[1]


def test_stages_that_are_not_begun_are_shown_too(staged, run_cli):
    begin("mid", "stopped")
    document = json.loads(run_cli("status", "staged_50pct_tiny", "--json").stdout)
    assert document["whole"] == "staged_50pct_tiny"
    assert [(s["stage"], s["state"]) for s in document["stages"]] == [
        ("mid", "stopped"), ("sft", "not begun"),
    ]  # fmt: skip
    shown = run_cli("status").stdout
    assert "0 of 2 stages done" in shown
    assert "not begun" in shown


def test_the_whole_means_its_last_stage_begun(staged):
    mid = begin("mid", "done")
    assert runs.find("staged_50pct_tiny") == mid
    sft = begin("sft", "stopped")
    assert runs.find("staged_50pct_tiny") == runs.find(None) == sft
    assert runs.find("staged_50pct_tiny.mid") == mid
    with pytest.raises(BadInput, match="no run 'staged_50pct'"):
        runs.find("staged_50pct")


def test_a_run_that_is_the_whole_has_no_course(project):
    paths = runs.RunPaths(runs.TRAINING / "one.sft")
    paths.directory.mkdir(parents=True)
    record = runs.RunRecord("one.sft", "r", "p", "full", [], {}, {}, 1, {}, None, {}, 0.0)
    runs.write(paths, record)
    assert course.of(paths) is None


def test_a_stage_waits_for_the_one_before(staged, run_cli):
    with pytest.raises(BadInput, match=r"staged_50pct_tiny\.mid is not trained to its end"):
        handover.prepare(second(), print)
    begin("mid", "stopped")
    done = run_cli("train", *COMMON, "--stage", "sft")
    assert done.exit_code == 2
    assert "--stage mid" in done.stderr
    assert not (staged / "work/training/staged_50pct_tiny.sft").exists()


def test_a_smaller_run_stands_for_its_stage(staged):
    begin("mid", "failed", successor={"name": "smaller", "overrides": []})
    (runs.TRAINING / "smaller").mkdir()
    assert stages.trained(second().before).directory.name == "smaller"


def test_other_stages_take_of_the_budget(staged):
    from leviathan.budget import Budget

    session = runs.Session(1, 0.0, {}, ended=3600.0, outcome="done", seconds=3600.0)
    begin("mid", "done", sessions=[session])
    legs = stages.legs(layers.build("staged", "tiny", "50pct"))
    left = stages.budget_for(legs[1], legs, Budget(3.0, 10.0, 2.0))
    assert (left.max_hours, left.budget_usd) == (2.0, 8.0)
    assert stages.budget_for(legs[0], legs, Budget(3.0)).max_hours == 3.0
    assert stages.budget_for(legs[1], legs, Budget(0.5)).max_hours == 0.0


def test_a_stage_whose_supervisor_was_killed_took_its_time_too(staged):
    from leviathan.budget import Budget

    paths = begin("mid", "running", sessions=[runs.Session(1, 1000.0, {})])
    paths.metrics.write_text('{"session": 1, "step": 5, "time": 4600.0}\n')
    legs = stages.legs(layers.build("staged", "tiny", "50pct"))
    assert stages.budget_for(legs[1], legs, Budget(3.0)).max_hours == 2.0


def test_a_dry_run_tells_of_every_stage_and_writes_nothing(staged, run_cli):
    done = run_cli("train", *COMMON, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["stages"]
    assert [one["action"] for one in found] == [
        "start from the base model", "start from the base model, which is made first",
    ]  # fmt: skip
    assert not (staged / "work/training").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "best"], "--resume best is about one stage"),
        (["--until", "rl"], "--until 'rl' is no stage"),
        (["--mode", "small"], "has no modes"),
        (["--stage", "mid", "--until", "sft"], "leave one of them out"),
    ],
)
def test_what_cannot_be_asked_of_stages(staged, run_cli, options, message):
    done = run_cli("train", *COMMON, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (staged / "work/training").exists()


def test_a_later_stage_s_corpus_is_looked_at_before_the_first_trains(staged, run_cli):
    path = staged / "configs/recipes/staged.yaml"
    path.write_text(path.read_text() + "    corpus: gone.jsonl\n")
    done = run_cli("train", *COMMON, "--no-smoke")
    assert done.exit_code == 2
    assert "gone.jsonl" in done.stderr
    assert not (staged / "work/training").exists()


def test_the_dearest_known_price_limits_a_recipe_s_budget(staged):
    from leviathan import cli_train

    merged = layers.build(
        "staged", "tiny", "50pct",
        ["budget_usd=10", "prices={as_of: '2025', usd_hour: {a: 2.0, b: 4.0}}"],
    )  # fmt: skip
    assert cli_train._budget(merged, None, None, None).hours == 2.5
    assert cli_train._budget(merged, 1.0, None, 20.0).hours == 0.5


def test_stopped_while_a_base_is_made_the_command_can_be_given_again(staged, run_cli, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(handover, "prepare", interrupted)
    done = run_cli("train", *COMMON, "--no-smoke")
    assert done.exit_code == 4
    assert "stopped before stage mid began" in done.stderr
