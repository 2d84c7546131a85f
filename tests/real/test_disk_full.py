"""A full disk: nothing is lost, one clear line, and all goes on once there is space."""

import json
import shutil
import time

import pytest
from project import RUN, TINY, Project
from smalldisk import SmallDisk

import tiny
from fakes.processes import listing, wait_for

pytestmark = pytest.mark.real

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """24 MiB, of which a project with a finished run takes about 8."""
    with SmallDisk(tmp_path / "small", 24) as disk:
        yield disk


@pytest.fixture
def small_project(small_disk, template, fork_server) -> Project:
    """A fresh project on the small disk."""
    shutil.copytree(template, small_disk.directory, dirs_exist_ok=True)
    return Project(small_disk.directory, fork_server if small_disk.shared else None,
                   small_disk.prefix)  # fmt: skip


def test_the_small_disk_is_small_and_filled_to_the_page(small_disk):
    small_disk.fill(64 << 10)
    assert small_disk.free_bytes() == 64 << 10
    (small_disk.directory / "fits").write_bytes(bytes(60 << 10))
    with pytest.raises(OSError, match="No space left"):
        (small_disk.directory / "does-not").write_bytes(bytes(8 << 10))
    small_disk.release()
    assert small_disk.free_bytes() > 20 * MIB


# --- training -----------------------------------------------------------------------

SLOW_STEPS = """
import time
from transformers import Trainer
real = Trainer.training_step
def slow(*arguments, **keywords):
    time.sleep(0.1)
    return real(*arguments, **keywords)
Trainer.training_step = slow
"""
# As if the space went between the look at the disk and the save.
BLIND = (
    SLOW_STEPS
    + """
from leviathan.safeguards import DiskCallback
DiskCallback.on_step_end = lambda *arguments, **keywords: None
"""
)


def start(project: Project, tmp_path, hook: str, *arguments: str):
    """A training with slow steps, at step 5 or more."""
    (tmp_path / "hook.py").write_text(hook)
    process = project.start(*TINY, *arguments, FORK_HOOK=str(tmp_path / "hook.py"))
    metrics = project.path(RUN) / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and any(m["step"] >= 5 for m in project.metrics(RUN)), 120)
    return process


def test_a_save_waits_for_room(small_disk, small_project, reference, tmp_path):
    process = start(small_project, tmp_path, SLOW_STEPS)
    small_disk.fill(200 << 10)
    wait_for(lambda: small_project.events(RUN, "pause"), 60)
    time.sleep(2)
    assert process.poll() is None
    assert not list(small_project.path(RUN).glob("checkpoint-*"))
    small_disk.release()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert "the disk has 0.2 MB free" in err
    assert "there is room again" in err
    assert small_project.curve(RUN) == reference.curve(RUN)
    assert small_project.adapter(RUN) == reference.adapter(RUN)


@pytest.mark.parametrize("free_kib", [0, 400], ids=["nothing-free", "half-a-save"])
def test_a_disk_that_fills_up_within_a_save_costs_nothing(
    small_disk, small_project, reference, tmp_path, free_kib
):
    profile = small_project.directory / "configs/profiles/tiny.yaml"
    healing = "recovery: {restarts: 3, backoff_s: 0.1}\nguards: {disk_reserve_gib: 0}\n"
    profile.write_text(tiny.PROFILE.split("recovery:")[0] + healing)
    process = start(small_project, tmp_path, BLIND)
    small_disk.fill(free_kib << 10)
    wait_for(lambda: not small_project.trainers(), 60)
    time.sleep(2)
    assert process.poll() is None
    small_disk.release()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert "waiting for free space" in err
    assert small_project.adapter(RUN) == reference.adapter(RUN)


def test_log_lines_a_full_disk_refused_are_written_later(
    small_disk, small_project, reference, tmp_path
):
    seldom = ("--set", "save_steps=1000", "--set", "eval_steps=1000")
    process = start(small_project, tmp_path, SLOW_STEPS, *seldom)
    small_disk.fill(0)
    time.sleep(3)
    assert process.poll() is None
    small_disk.release()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    lines = (small_project.path(RUN) / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(_json, lines) if "loss" in line]
    assert steps == list(range(1, 99))
    assert small_project.adapter(RUN) == reference.adapter(RUN)


def _json(line: str) -> dict:
    try:
        return json.loads(line)
    except ValueError:
        return {}  # the half that the full disk took; the whole line comes later


# --- merging ------------------------------------------------------------------------


@pytest.mark.parametrize("free_bytes", [0, 256 << 10], ids=["nothing-free", "weights-half-written"])
def test_merging_onto_a_full_disk_leaves_no_half_model(
    small_disk, small_project, reference, free_bytes
):
    run = small_project.path(RUN)
    run.parent.mkdir(parents=True)
    shutil.copytree(reference.path(RUN), run)
    before = listing(run)
    small_disk.fill(free_bytes)
    failed = small_project.run("merge", RUN)
    assert failed.code in (1, 3), failed.err
    assert "Traceback" not in failed.err
    (line,) = [line for line in failed.err.splitlines() if line.startswith("leviathan: ")]
    assert "space" in line
    models = small_project.directory / "models"
    left = [path.name for path in models.iterdir() if path.suffix != ".lock"]
    assert left == [], "nothing, under whatever name, takes the space there is not"
    assert listing(run) == before
    small_disk.release()
    done = small_project.run("merge", RUN)
    assert done.code == 0, done.err
    proof = json.loads((models / f"{RUN}-merged/merge-proof.json").read_text())
    assert proof["verdict"] == "equal"
