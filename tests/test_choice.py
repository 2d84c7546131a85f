"""Why a checkpoint is the best there is: the reasoning, and what the command says."""

import json
from pathlib import Path

import numpy as np
import pytest

from fakes import fake_files
from leviathan import checkpoints, choice, files, runs
from leviathan.checkpoints import Checkpoint
from leviathan.series import Curve
from telling import Telling


def saved(step, eval_loss=None, problem=None):
    path = Path(f"checkpoint-{step}")
    return Checkpoint(step, path, None, None, eval_loss, 1, 0.0, True, problem)


def evals(**told):
    steps = np.array([int(name[1:]) for name in told])
    values = np.array(list(told.values()), float)
    return Curve(steps, values, np.ones(len(steps), np.int64), steps.astype(float))


NONE = evals()
FEW = evals(_100=1.5, _200=1.2, _300=1.3)
STEADY = evals(_100=1.5, _200=1.3, _300=1.206, _400=1.2, _500=1.202, _600=1.25, _700=1.3)
KEPT = [saved(300, 1.206), saved(400, 1.2), saved(500, 1.202), saved(600, 1.25), saved(700, 1.3)]


def explained(step, found, told, events=()):
    chosen = next(c for c in found if c.step == step)
    return choice.explain(chosen, found, told, list(events))


def test_the_best_stands_beside_the_second_and_the_newer():
    found = explained(400, KEPT, STEADY)
    assert found.why == (
        "lowest evaluation loss, 1.2000, of 5 sound checkpoints that were evaluated"
    )
    second, newer = found.reasons
    assert second.startswith("second is checkpoint-500, 0.0020 above it, within the noise of ")
    assert second.endswith("; it trained 100 steps longer")
    assert newer.startswith("2 other newer ones are above it by up to 0.1000: ")
    assert (found.of, found.second) == (5, KEPT[2])


@pytest.mark.parametrize(
    ("scatter", "told"),
    [(0.01, "training on made it worse"), (0.5, "no more than evaluations scatter")],
)
def test_what_evaluations_scatter_decides_whether_training_on_made_it_worse(scatter, told):
    falls = np.array([1.6, 1.5, 1.4, 1.3, 1.2, 1.2, 1.3, 1.4, 1.5])
    chance = np.array([1, -1, 0, 1, -1, 0, 1, -1, 0]) * scatter
    steps = range(100, 1000, 100)
    losses = dict(zip([f"_{step}" for step in steps], falls + chance, strict=True))
    kept = [saved(500, 1.2), saved(600, 1.21), saved(900, 1.5)]
    assert told in explained(500, kept, evals(**losses)).reasons[1]


def test_too_few_evaluations_tell_no_noise():
    found = explained(200, [saved(200, 1.2), saved(300, 1.3)], FEW)
    assert found.noise is None
    assert found.reasons == (
        "second is checkpoint-300, 0.1000 above it, too few evaluations to tell whether that is "
        "chance; it trained 100 steps longer",
    )


@pytest.mark.parametrize(
    ("events", "fate"),
    [
        (["save", "remove"], "its checkpoint was removed"),
        (["save", "quarantine"], "its checkpoint was moved aside"),
        (["save"], "its checkpoint is gone"),
        ([], "no checkpoint was saved there"),
    ],
)
def test_a_lower_evaluation_whose_checkpoint_is_not_there_is_told(events, fate):
    told = [{"event": kind, "step": 200} for kind in events]
    found = explained(300, [saved(300, 1.3)], FEW, told)
    assert found.why == (
        "lowest evaluation loss, 1.3000, and the only sound checkpoint that was evaluated"
    )
    assert found.reasons == (f"the run's lowest evaluation was 1.2000 at step 200; {fate}",)


def test_damaged_ones_are_passed_over_and_named():
    found = explained(300, [saved(200, 1.2, "zeros"), saved(300, 1.3)], FEW)
    assert found.reasons == ("passed over: checkpoint-200 with 1.2000, damaged: zeros",)
    worse = explained(200, [saved(200, 1.2), saved(300, 1.3, "zeros")], FEW)
    assert worse.reasons == ()


def test_without_evaluations_it_is_the_latest():
    found = explained(200, [saved(100), saved(200)], NONE)
    assert found.why == "no sound checkpoint was evaluated: it is the latest"
    assert found.reasons == (
        "the run has no evaluations; val_set_size and evals_per_epoch make some",
    )
    beside = explained(290, [saved(190), saved(290)], FEW)
    assert beside.reasons == (
        "the run's lowest evaluation was 1.2000 at step 200, where no sound checkpoint is; "
        "checkpoint-190 is nearest to it",
    )


def test_nothing_is_left_of_a_run_without_sound_checkpoints():
    assert choice.best_left([saved(100, 1.2, "zeros")], FEW)[0] is None


# --- the command ------------------------------------------------------------------


@pytest.fixture
def told(project):
    run = Telling(runs.TRAINING / "r")
    run.begin()
    for step, loss in ((25, 1.5), (50, 1.2), (75, 1.3), (100, 1.4)):
        run.evaluate(step, loss)
        run.save(step, keep=9)
    return run


def test_best_says_why_and_stays_what_it_was(told, run_cli):
    done = run_cli("checkpoints", "best", "r")
    assert done.exit_code == 0
    assert "checkpoint-50  best" in done.stdout
    shown = " ".join(done.stdout.split())
    assert "why lowest evaluation loss, 1.2000, of 4 sound checkpoints" in shown
    assert "second is checkpoint-75, 0.1000 above it" in shown
    document = json.loads(run_cli("checkpoints", "best", "r", "--json").stdout)
    before = json.loads(run_cli("checkpoints", "show", "r", "-c", "best", "--json").stdout)
    assert before.items() <= document.items()
    assert set(document) - set(before) == {"why", "reasons", "of", "second", "noise"}
    assert document["second"]["step"] == 75


def test_best_names_damage_that_only_its_bytes_show(told, run_cli):
    path = told.paths.directory / "checkpoint-50" / fake_files.ADAPTER
    path.write_bytes(b"\0" * path.stat().st_size)
    document = json.loads(run_cli("checkpoints", "best", "r", "--json").stdout)
    assert document["step"] == 75
    assert document["reasons"][-1] == (
        "passed over: checkpoint-50 with 1.2000, damaged: "
        f"{fake_files.ADAPTER} is not what was committed (xxh3 differs)"
    )


def test_best_of_a_run_with_garbage_for_metrics_is_still_explained(told, run_cli):
    told.paths.metrics.write_bytes(b"\xff\x00garbage\n" * 9)
    told.paths.events.write_bytes(b"{\n")
    done = run_cli("checkpoints", "best", "r")
    assert done.exit_code == 0
    assert "lowest evaluation loss, 1.2000" in " ".join(done.stdout.split())


def test_a_removed_best_is_told_by_the_command(told, run_cli):
    (best,) = [c for c in checkpoints.scan(told.paths.directory) if c.best]
    checkpoints.remove(best)
    files.append_json(told.paths.events, {"event": "remove", "session": None, "step": best.step})
    shown = " ".join(run_cli("checkpoints", "best", "r").stdout.split())
    assert "lowest evaluation was 1.2000 at step 50; its checkpoint was removed" in shown
