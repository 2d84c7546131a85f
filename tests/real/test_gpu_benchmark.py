"""benchmarks/gpu with a tiny model on the CPU: every kind of measurement and of failure, for real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from project import environment

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks/gpu"))
import run

pytestmark = pytest.mark.real

RUN = Path(run.__file__)
SHORT = ("--steps", "2", "--warm-up", "1")
# As torch words it; only where the guide's values are trained.
SHORT_OF_MEMORY = """
import torch, transformers
step = transformers.Trainer.training_step

def limited(self, *rest, **named):
    if "guide-a4000" in self.args.output_dir:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return step(self, *rest, **named)

transformers.Trainer.training_step = limited
"""


def told(directory: Path, *arguments: str, **env: str) -> tuple[str, dict]:
    """What is printed and written by a run in ``directory``."""
    done = subprocess.run(
        [sys.executable, str(RUN), "--tiny", "--work", str(directory), "--out", str(directory / "out"),
         *arguments],
        env=environment(**env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((directory / "out/results.json").read_text())


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """With the base model: making it needs the real accelerate, which forked launches have not."""
    path = tmp_path_factory.mktemp("gpu")
    told(path, "--minutes", "0", "--only", "plain-a4000")
    return path


def assert_measured(result: dict) -> None:
    assert result["outcome"] == "measured", result
    assert result["steps"] == 2
    assert 0 < result["tok_s"] <= result["padded_tok_s"]
    assert result["step_s"] > 0
    assert result["reserved_gib"] > 0.1
    assert result["predicted"]["verdict"] == "fits"
    assert 0 < result["predicted"]["memory_gib"]["total"] < 0.1


def test_a_plain_trainer_is_measured(directory):
    _, found = told(directory, *SHORT, "--only", "plain-a4000")
    (plain,) = found["results"]
    assert_measured(plain)


def test_the_profile_is_measured_and_memory_that_runs_out_is_a_result(directory, fork_server):
    hook = directory / "short_of_memory.py"
    hook.write_text(SHORT_OF_MEMORY)
    env = {"FORK_HOOK": str(hook), **fork_server.environment()}
    shown, found = told(directory, *SHORT, "--only", "leviathan-a4000,guide-a4000", **env)
    ours, guide = found["results"]
    assert_measured(ours)
    assert ours["tok_s"] == ours["padded_tok_s"], "its rows are packed"
    assert guide["outcome"] == "out of memory in phase train"
    assert "out of memory in phase train (plan: fits)" in shown
    kept = (directory / "out/calibrations.jsonl").read_text().splitlines()
    assert [json.loads(line)["fits"] for line in kept] == [True, False]


def test_without_time_there_are_predictions_only(directory):
    _, found = told(directory, "--minutes", "0.001")
    assert [r["outcome"] for r in found["results"]] == ["no time left"] * 6
    assert all(r["predicted"]["memory_gib"]["total"] > 0 for r in found["results"])
    # Of a CPU a plan knows only what was measured, here by the runs before this one.
    assert all(r["predicted"]["tok_s"] is None for r in found["results"])


def test_speeds_are_compared_within_a_group():
    plan = {"verdict": "does_not_fit", "memory_gib": {"low": 5.0, "high": 7.5}, "tok_s": None}
    made = [
        run.Result("leviathan-a4000", "measured", tok_s=800.0, reserved_gib=7.0, predicted=plan),
        run.Result("plain-a4000", "measured", tok_s=400.0, predicted=plan),
        run.Result("guide-a4000", "out of memory in phase load", capped_gib=15.7, predicted=plan),
        run.Result("guide-a100", "measured", tok_s=400.0, predicted=plan),
    ]
    _, _, _, ours, plain, guide, alone = run.table("here", made).splitlines()
    assert "100%" in ours
    assert "5.0-7.5" in ours
    assert " 50%" in plain
    assert guide.endswith("capped to 15.7 GiB  out of memory in phase load (plan: does not fit)")
    assert "%" not in alone


def test_a_machine_without_gpu_is_told_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(RUN), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "there is no NVIDIA GPU here" in done.stderr
