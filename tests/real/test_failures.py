"""What guards and recovery do in a real training: NaN, memory, a jump of the loss, budgets."""

import json
import resource
import subprocess
import sys

import pytest
from project import HEALING, RUN, TINY, Project
from safetensors.torch import load_file

import tiny

pytestmark = pytest.mark.real


def heal(project: Project) -> Project:
    """Let the project's runs restart by themselves."""
    profile = project.directory / "configs/profiles/tiny.yaml"
    text = tiny.PROFILE.split("recovery:")[0]
    profile.write_text(text + HEALING)
    return project


def outcomes(project: Project) -> list[str]:
    record = json.loads((project.path(RUN) / "run.json").read_text())
    return [session["outcome"] for session in record["sessions"]]


def test_a_nan_ends_training_before_it_can_be_saved(forked_project):
    heal(forked_project)
    done = forked_project.run(
        *TINY, "--set", "learning_rate=1e30", "--set", "warmup_steps=0", "--set", "save_steps=1",
        "--set", "eval_steps=1",
    )  # fmt: skip
    assert done.code == 1
    assert "the loss or a gradient became NaN or infinite" in done.err
    assert "lower learning_rate" in done.err
    # A glitch deserves one more try; the same NaN again is no glitch.
    assert outcomes(forked_project) == ["failed", "failed"]
    saved = sorted(forked_project.path(RUN).glob("checkpoint-*"))
    assert saved
    for checkpoint in saved:
        weights = load_file(checkpoint / "adapter_model.safetensors").values()
        assert all(bool(tensor.isfinite().all()) for tensor in weights)


def test_a_loss_that_jumps_after_the_resume_is_said(stopped_copy):
    done = stopped_copy.run(*TINY, "--set", "learning_rate=100", "--set", "guards.loss_jump=0.1")
    assert done.code == 0, done.err
    assert "the loss jumped after the resume" in done.err
    assert [e["kind"] for e in stopped_copy.events(RUN, "warning")][:1] == ["jump"]


def test_another_split_of_the_same_batch_resumes(stopped_copy, reference):
    done = stopped_copy.run(
        *TINY, "--set", "micro_batch_size=2", "--set", "gradient_accumulation_steps=2"
    )
    assert done.code == 0, done.err
    assert "the effective batch stays 4 rows" in done.err
    old, new = reference.curve(RUN), stopped_copy.curve(RUN)
    assert [line[0] for line in new] == [line[0] for line in old]
    # The same rows in each step; means over micro batches differ a little (axolotl 0.19).
    for before, after in zip(old, new, strict=True):
        assert after[1] == pytest.approx(before[1], abs=0.05)


def test_a_budget_ends_the_session_with_a_checkpoint(forked_project):
    slow = ("--set", "num_epochs=200")
    done = forked_project.run(*TINY, *slow, "--max-hours", "0.005", "--usd-hour", "36")
    assert done.code == 4, done.err
    assert "stopped (the budget is used up): saved checkpoint-" in done.out
    assert "steps to go, about" in done.err
    assert "$" in done.err
    end = forked_project.events(RUN, "train_end")[-1]
    assert (forked_project.path(RUN) / f"checkpoint-{end['step']}/leviathan-commit.json").exists()
    again = forked_project.run(*TINY, *slow, "--max-hours", "0.001")
    assert again.code == 3
    assert "is spent" in again.err
    assert len(outcomes(forked_project)) == 1


# --- out of memory ------------------------------------------------------------------


def long_rows(project: Project) -> None:
    """256 rows of the same length, besides the 8 held out: memory follows the batch."""
    row = {
        "instruction": "Repeat: " + "alpha beta " * 30,
        "input": "",
        "output": "alpha beta " * 30,
    }
    (project.directory / "rows.jsonl").write_text((json.dumps(row) + "\n") * 264)


def memory_of(project: Project, batch: int) -> int:
    """Address space in bytes that a training with this batch takes at its peak."""
    hook = project.directory / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "if 'axolotl.cli.train' in ' '.join(sys.orig_argv) and 'accelerate' not in sys.orig_argv[2]:\n"
        "    def tell():\n"
        "        peak = [l for l in open('/proc/self/status') if l.startswith('VmPeak')][0]\n"
        "        open('peak', 'w').write(peak.split()[1])\n"
        "    atexit.register(tell)\n"
    )
    done = project.run(
        *ARGUMENTS, "--name", "probe", "--set", f"micro_batch_size={batch}",
        "--set", "max_steps=1", PYTHONPATH=str(hook),
    )  # fmt: skip
    assert done.code == 0, done.err
    return int((project.directory / "peak").read_text()) * 1024


ARGUMENTS = ("train", "-p", "tiny", "-r", "tiny", "-s", "full", "--set", "eval_batch_size=4",
             "--set", "save_steps=1", "--set", "eval_steps=1", "--set", "num_epochs=2")  # fmt: skip


def test_a_real_out_of_memory_walks_the_ladder_and_finishes(project):
    """On the genuine accelerate, under a limit of the address space that the child inherits."""
    heal(project)
    long_rows(project)
    room = memory_of(project, 32) + (150 << 20)
    process = subprocess.run(
        [sys.executable, "-m", "leviathan.cli", *ARGUMENTS, "--set", "micro_batch_size=128"],
        cwd=project.directory, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room)),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    rungs = project.events(RUN, "ladder")
    assert rungs
    for number, rung in enumerate(rungs, 1):
        wanted = {"micro_batch_size": 128 >> number, "gradient_accumulation_steps": 1 << number}
        assert rung["changes"] == wanted
        assert "out of memory" in rung["why"]
    assert outcomes(project) == ["failed"] * len(rungs) + ["done"]
    last = rungs[-1]["changes"]
    advice = ", ".join(f"{key}: {value}" for key, value in last.items())
    assert f"put into the profile's axolotl block: {{{advice}}}" in process.stderr
    # The command again stands where the ladder ended.
    dry = project.run(*ARGUMENTS, "--set", "micro_batch_size=128", "--dry-run")
    assert "nothing: the run is finished" in dry.out
