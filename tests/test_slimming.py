"""Slimming: what goes, from which checkpoints, and what a kill at any moment of it leaves."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny
from fakes import fake_files
from leviathan import (
    checkpoints,
    config,
    disk,
    knobs,
    layers,
    parcel,
    runs,
    shapes,
    slimming,
    train,
)
from leviathan.cli import app
from leviathan.errors import BadInput, Refused
from leviathan.runs import RunPaths

RESUMED = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


def make(run: Path, step: int, *more: str, **facts) -> Path:
    """A committed checkpoint of a training of every weight, with ``more`` files."""
    path = fake_files.write_checkpoint(run, step, **facts)
    (path / fake_files.ADAPTER).rename(path / "model.safetensors")
    (path / "adapter_config.json").rename(path / "config.json")
    for name in more:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(name.encode() * 100)
    checkpoints.commit(path, {"step": step, "eval_loss": facts.get("eval_loss")})
    return path


def names(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def looked_at(run: Path) -> dict[int, checkpoints.Checkpoint]:
    return {c.step: c for c in slimming.verified(run)}


# --- what goes --------------------------------------------------------------------


def test_a_slim_checkpoint_is_sound_and_holds_what_is_served(tmp_path):
    path = make(tmp_path, 10, loss=2.0, eval_loss=1.5)
    before = checkpoints.scan(tmp_path)[0]
    gone = sum((path / name).stat().st_size for name in RESUMED)
    assert slimming.freed(before) == gone
    assert slimming.slim(before) == gone
    found = looked_at(tmp_path)[10]
    assert (found.sound, found.slim, found.obstacle) == (True, True, checkpoints.SLIMMED)
    assert (found.bytes, found.eval_loss, found.modified) == (
        before.bytes - gone, 1.5, before.modified)  # fmt: skip
    assert not names(path) & RESUMED
    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"} < names(
        path
    )
    assert found.to_json()["slim"]
    assert slimming.slim(found) == 0


@pytest.mark.parametrize(
    ("files", "going"),
    [
        (["model.safetensors", "optimizer.pt", "scaler.pt"], ["optimizer.pt", "scaler.pt"]),
        (["adapter_model.safetensors", "pytorch_model_fsdp_0/a.distcp", "optimizer_0/a.distcp"],
         ["pytorch_model_fsdp_0/a.distcp", "optimizer_0/a.distcp"]),
        # A model that lies nowhere but in the pieces.
        (["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "rng_state_1.pth"],
         ["optimizer_0/.metadata", "rng_state_1.pth"]),
        (["pytorch_model_fsdp.bin", "optimizer.bin"], ["optimizer.bin"]),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors",
          "model-00002-of-00002.safetensors", "global_step8/x_optim_states.pt", "latest",
          "zero_to_fp32.py"], ["global_step8/x_optim_states.pt", "latest", "zero_to_fp32.py"]),
        # DeepSpeed without a gathered model: nothing can go.
        (["global_step8/mp_rank_00_model_states.pt", "latest", "rng_state_0.pth"], []),
        (["model.safetensors", "trainer_state.json", "tokens_state.json"], []),
    ],
)  # fmt: skip
def test_what_only_a_resume_reads_goes_and_no_weight_that_lies_nowhere_else(files, going):
    assert sorted(slimming.names(files)) == sorted(going)


def test_folders_go_with_what_was_in_them(tmp_path):
    path = make(tmp_path, 10, "optimizer_0/.metadata", "optimizer_0/0.distcp")
    slimming.slim(checkpoints.scan(tmp_path)[0])
    assert not (path / "optimizer_0").exists()
    assert looked_at(tmp_path)[10].sound


# --- from which -------------------------------------------------------------------


def test_the_newest_pinned_damaged_and_uncommitted_ones_stay_whole(tmp_path):
    for step in (10, 20, 30, 40, 50, 60):
        make(tmp_path, step)
    checkpoints.pin(checkpoints.scan(tmp_path)[1])
    (tmp_path / "checkpoint-30" / checkpoints.COMMIT).unlink()
    (tmp_path / "checkpoint-40" / "optimizer.pt").write_bytes(b"no")
    (tmp_path / "checkpoint-60" / "model.safetensors").write_bytes(b"no")
    found = slimming.verified(tmp_path)
    # 60 is damaged: a resume needs 50.
    assert [c.step for c in slimming.candidates(found, 1)] == [10]
    assert slimming.candidates(found, 9) == []


def test_nothing_goes_where_nothing_can_be_resumed_from(tmp_path):
    make(tmp_path, 10)
    slimming.slim(checkpoints.scan(tmp_path)[0])
    (make(tmp_path, 20) / "optimizer.pt").unlink()
    assert slimming.candidates(slimming.verified(tmp_path), 1) == []


def test_the_policy_leaves_so_many_whole_and_none_when_unset(tmp_path):
    for step in (10, 20, 30):
        make(tmp_path, step)
    assert slimming.retain(tmp_path, None).slimmed == ()
    assert [step for step, _ in slimming.retain(tmp_path, 2).slimmed] == [10]
    # Its sizes are right and its bytes are not: the older one is what a resume needs.
    damaged = tmp_path / "checkpoint-30" / "optimizer.pt"
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    assert slimming.retain(tmp_path, 1).slimmed == ()


def test_a_disk_that_takes_no_record_is_told(tmp_path):
    make(tmp_path, 10)
    make(tmp_path, 20)
    going = slimming.candidates(slimming.verified(tmp_path), 1)
    # The new record's temporary file cannot be made.
    (tmp_path / "checkpoint-10" / f".{checkpoints.COMMIT}.{os.getpid()}.tmp").mkdir()
    before = names(tmp_path)
    found = slimming.apply(going)
    assert found.slimmed == ()
    assert found.problem.startswith("checkpoint-10 could not be slimmed: ")
    assert names(tmp_path) == before
    assert looked_at(tmp_path)[10].obstacle is None


# --- kills and power cuts ---------------------------------------------------------


def _killed_at(number: int, work) -> bool:
    """Do ``work`` in a process that dies before its file operation ``number``; whether it did."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in {"os.rename", "os.remove", "os.rmdir"}:
                seen += 1
                if seen == number:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def _kills(template: Path, place: Path, work) -> Iterator[Path]:
    number = 1
    while True:
        run = place / str(number)
        shutil.copytree(template, run)
        if not _killed_at(number, lambda run=run: work(run)):
            assert number > 5, "it does more than that"
            return
        yield run
        number += 1


def test_a_kill_at_any_moment_leaves_it_whole_or_slim_and_the_next_slimming_ends_it(tmp_path):
    template = tmp_path / "template"
    make(template, 10, "optimizer_0/.metadata", "optimizer_0/0.distcp")
    make(template, 20)
    states = set()

    def work(run: Path) -> None:
        slimming.apply(slimming.candidates(slimming.verified(run), 1))

    for run in _kills(template, tmp_path / "killed", work):
        left = looked_at(run)
        assert left[10].sound, left[10].problem
        whole = {*RESUMED, "optimizer_0/.metadata", "optimizer_0/0.distcp"}
        lying = whole & names(run / "checkpoint-10")
        assert left[10].slim or lying == whole
        states.add((left[10].slim, len(lying)))
        chosen, newer = checkpoints.newest_sound(run)
        assert (chosen.step, newer) == (20, [])
        work(run)
        ended = looked_at(run)[10]
        assert (ended.sound, ended.slim) == (True, True)
        assert not whole & names(run / "checkpoint-10")
        assert not list((run / "checkpoint-10").glob(".*"))
    assert {(False, 5), (True, 5), (True, 1)} <= states


# --- resuming and retention -------------------------------------------------------


def test_resuming_passes_slim_ones_over_and_refuses_one_that_is_named(tmp_path):
    for step in (10, 20, 30):
        make(tmp_path, step, eval_loss=1 / step)
    slimming.slim(checkpoints.scan(tmp_path)[1])
    paths = RunPaths(tmp_path)
    with pytest.raises(Refused, match="checkpoint-20 cannot be resumed from: its optimizer was"):
        train.resume_point(paths, "checkpoint-20")
    assert checkpoints.choose(tmp_path, "20").slim  # merge and test take it
    (tmp_path / "checkpoint-30" / "optimizer.pt").unlink()
    chosen, aside = train.resume_point(paths, "auto")
    assert (chosen.step, [(c.step, c.sound) for c in aside]) == (10, [(30, False), (20, True)])
    slimming.slim(checkpoints.scan(tmp_path)[0])
    with pytest.raises(Refused, match="checkpoint-20: its optimizer was slimmed away"):
        train.resume_point(paths, "auto")


def test_an_older_leviathan_takes_a_slim_one_for_no_checkpoint(tmp_path):
    """It knows records of schema 1 only, and would train on without the optimizer."""
    make(tmp_path, 10)
    slimming.slim(checkpoints.scan(tmp_path)[0])
    record = json.loads((tmp_path / "checkpoint-10" / checkpoints.COMMIT).read_text())
    assert (record["schema"], record["step"]) == (2, 10)


def test_what_travels_to_be_resumed_is_whole(tmp_path):
    for step in (10, 20):
        make(tmp_path, step, eval_loss=step)
    slimming.slim(checkpoints.scan(tmp_path)[0])
    found = checkpoints.scan(tmp_path)
    assert [c.step for c in parcel.wanted(found, "best", "there", served=False)] == [20]
    assert [c.step for c in parcel.wanted(found, "best", "there")] == [10, 20]
    with pytest.raises(BadInput, match="checkpoint-10 of there cannot be resumed from"):
        parcel.wanted(found, "10", "there", served=False)


def test_retention_keeps_the_last_that_can_be_resumed_from(tmp_path):
    for step in (10, 20, 30):
        make(tmp_path, step)
    for found in checkpoints.scan(tmp_path)[1:]:
        slimming.slim(found)
    assert checkpoints.newest_bytes(checkpoints.scan(tmp_path)) == checkpoints.scan(tmp_path)[
        0].bytes  # fmt: skip
    assert [c.step for c in checkpoints.removable(checkpoints.scan(tmp_path), 1)] == [20]


# --- the command and the policy ---------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tiny.write_project(tmp_path))
    run = tmp_path / runs.TRAINING / "r"
    for step in (10, 20, 30):
        make(run, step, eval_loss=1 / step)
    record = runs.RunRecord(
        "r", "tiny", "tiny", "full", [], {}, {}, 1, {}, None, {}, 0.0, state="stopped"
    )
    runs.write(RunPaths(run), record)
    return run


def command(*arguments: str):
    return CliRunner().invoke(app, ["checkpoints", *arguments])


def test_the_command_says_what_goes_asks_and_tells_what_went(run):
    size = 2 * slimming.freed(checkpoints.scan(run)[0])
    before = names(run)
    dry = command("slim", "--dry-run")
    assert dry.exit_code == 0
    assert dry.stdout.splitlines()[-1].startswith("2 to slim")
    would = json.loads(command("slim", "--dry-run", "--keep-optimizer", "2", "--json").stdout)
    assert [c["step"] for c in would["would_slim"]] == [10]
    asked = command("slim")
    assert asked.exit_code == 2
    assert asked.stderr == (
        "leviathan: nothing was removed; these would be slimmed: checkpoint-10, checkpoint-20; "
        "say --yes\n"
    )
    assert {name for name in names(run) if ".lock" not in name} == before
    done = json.loads(command("slim", "--yes", "--json").stdout)
    assert (done["freed_bytes"], [c["slim"] for c in done["slimmed"]]) == (size, [True, True])
    told = [(e["step"], e["bytes"]) for e in runs.events(RunPaths(run)) if e["event"] == "slim"]
    assert told == [(10, size // 2), (20, size // 2)]
    shown = command("list").stdout.splitlines()
    assert [line.split()[-1] for line in shown[1:]] == ["slim", "slim", "best"]
    assert command("slim", "--yes").stdout.endswith("nothing was slimmed\n")
    assert command("verify").exit_code == 0


def test_the_policy_is_the_profiles_over_the_recipes(run):
    recipe = Path("configs/recipes/tiny.yaml")
    recipe.write_text(recipe.read_text() + "checkpoints: {whole: 2, keep: 9, every_hours: 1}\n")
    found = layers.build("tiny", "tiny", "full", ["checkpoints.whole=1"]).profile.checkpoints
    assert (found.keep, found.whole, found.every_hours) == (5, 1, 1)
    assert layers.build("tiny", "tiny", "full").profile.checkpoints.whole == 2
    recipe.write_text(recipe.read_text().replace("whole: 2", "whole: 0"))
    with pytest.raises(BadInput, match=r"tiny.yaml:\d+: checkpoints.whole"):
        layers.build("tiny", "tiny", "full")


def test_the_forecast_knows_what_the_policy_leaves():
    found = disk.Forecast(checkpoint=200, merged=26, slim=26)
    policy = config.CheckpointPolicy(keep=3)
    assert found.kept(policy) == 4 * 200
    assert found.kept(policy.model_copy(update={"whole": 1})) == 200 + 3 * 26
    assert found.kept(policy.model_copy(update={"whole": 9})) == 4 * 200
    assert disk.Forecast(None, None).kept(policy) is None


def test_the_forecast_of_a_real_model():
    """Weights in bf16 and torch's two moments in the same type: a third of it is left."""
    shape = shapes.load("meta-llama/Llama-3.1-8B")
    read = knobs.read({"base_model": "meta-llama/Llama-3.1-8B", "bf16": True,
                       "optimizer": "adamw_torch_fused", "sequence_len": 2048})  # fmt: skip
    found = disk.planned(shape, read)
    weights = shape.parameters * 2
    assert found.slim == pytest.approx(weights, rel=0.02)
    assert found.checkpoint == pytest.approx(3 * weights, rel=0.02)
    forecast = disk.Forecast(found.checkpoint, found.merged, found.slim)
    assert forecast.kept(config.CheckpointPolicy(keep=3, whole=1)) == (
        found.checkpoint + 3 * found.slim
    )
