"""Trackers of a real run that is taken up from an older checkpoint: one curve, no secret."""

import contextlib
import json
import sqlite3
import subprocess
from collections import Counter

import pytest
from project import RUN, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.real

SECRET = "0123456789abcdef" * 3
TRACKED = (*TINY, "--set", "max_steps=40", "--set", "eval_steps=null", "--set", "save_steps=10",
           "--track", "tensorboard,wandb", "--track", "trackio")  # fmt: skip


@pytest.fixture
def resumed(forked_project, tmp_path):
    """Trained to step 40, then anew from step 10 on, with other numbers."""
    env = {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET, "TRACKIO_DIR": str(tmp_path / "t")}
    first = forked_project.run(*TRACKED, **env)
    assert first.code == 0, first.err
    again = (*TRACKED, "--resume", "checkpoint-10", "--set", "learning_rate=1e-5")
    second = forked_project.run(*again, **env)
    assert second.code == 0, second.err
    assert "failed" not in first.err + second.err
    return forked_project


def test_a_resumed_run_goes_on_in_every_tracker(resumed, tmp_path):
    run = resumed.path(RUN)
    losses = {m["step"]: m["loss"] for m in resumed.metrics(RUN) if "loss" in m}
    assert list(losses) == list(range(1, 41))

    curve = EventAccumulator(str(run / "tensorboard"))
    curve.Reload()
    points = [(point.step, point.value) for point in curve.Scalars("train/loss")]
    assert [step for step, _ in points] == list(losses)  # repeated steps are there once
    assert [value for _, value in points] == pytest.approx(list(losses.values()))

    offline = sorted((run / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    assert len({path.name.split("-", 3)[3] for path in offline}) == 1

    with contextlib.closing(sqlite3.connect(tmp_path / "t/tiny.db")) as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == {RUN}
    logged = [json.loads(line) for _, line in rows]
    times = Counter(line["train/global_step"] for line in logged if "train/loss" in line)
    # Trackio and wandb keep both; docs/tracking.md says so.
    assert times == {step: 1 + (step > 10) for step in losses}

    found = subprocess.run(["grep", "-rl", SECRET, resumed.directory, tmp_path / "t"], check=False)
    assert found.returncode == 1
