"""Training of every weight has LoRA's promises: exact resumes, sound checkpoints, a proven model."""

import json
import shutil
import signal

import pytest
from project import Project

pytestmark = pytest.mark.real

RUN = "tiny_full_long"
# The end is in the middle of an epoch: where Transformers would train a step too many.
COMMAND = ("train", "--profile", "long", "--recipe", "tiny", "--sample", "full",
           "--set", "train=full", "--set", "max_steps=16", "--set", "save_steps=4",
           "--set", "eval_steps=4", "--set", "use_tensorboard=false",
           "--set", "dataset_num_proc=1")  # fmt: skip
STEADY = (*COMMAND, "--set", "learning_rate=1e-3")
# A rate that is too high, and rises: the model only gets worse.
EARLY = (*COMMAND, "--set", "learning_rate=4", "--set", "warmup_steps=40", "--set", "early_stopping_patience=3", "--set", "checkpoints.every_hours=1e-9",
         "--set", "checkpoints.whole=2")  # fmt: skip

# kill -9 when half of step 8's optimizer is written, once.
_KILLED_IN_A_SAVE = """
import os, pathlib, signal
import torch

save, mark = torch.save, pathlib.Path(os.environ["KILL_MARK"])

def half(what, path, *arguments, **named):
    save(what, path, *arguments, **named)
    if str(path).endswith("checkpoint-8/optimizer.pt") and not mark.exists():
        mark.touch()
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = half
"""


def weights(project: Project, place: str = "") -> bytes:
    return (project.path(RUN) / place / "model.safetensors").read_bytes()


def listed(project: Project) -> dict[int, dict]:
    done = project.run("checkpoints", "list", "--json")
    assert done.code == 0, done.err
    return {found["step"]: found for found in json.loads(done.out)}


@pytest.fixture(scope="module")
def whole(make_project, fork_server) -> Project:
    """One run that nobody disturbed."""
    project = make_project("full")
    project.server = fork_server
    done = project.run(*STEADY)
    assert done.code == 0, done.err
    return project


@pytest.fixture
def copy(whole, tmp_path) -> Project:
    shutil.copytree(whole.directory, tmp_path / "project")
    return Project(tmp_path / "project", whole.server)


def test_a_run_killed_in_a_save_and_stopped_later_ends_as_one_that_was_not(
    whole, forked_project, tmp_path
):
    hook = tmp_path / "hook.py"
    hook.write_text(_KILLED_IN_A_SAVE)
    killed = forked_project.run(*STEADY, FORK_HOOK=str(hook), KILL_MARK=str(tmp_path / "mark"))
    assert killed.code == 1
    assert (tmp_path / "mark").exists()
    assert forked_project.saved(RUN) == [4, 8]
    stopped = forked_project.signal_at(RUN, 10, signal.SIGINT, arguments=STEADY)
    assert stopped.code == 4, stopped.err
    assert "checkpoint-8 quarantined" in stopped.err
    done = forked_project.run(*STEADY)
    assert done.code == 0, done.err
    assert next(e["step"] for e in forked_project.events(RUN, "resume")) == 4
    assert forked_project.exact(RUN) == whole.exact(RUN)
    assert weights(forked_project, "checkpoint-16") == weights(whole, "checkpoint-16")
    assert weights(forked_project) == weights(whole)


def test_a_run_resumed_at_its_last_checkpoint_is_not_trained_further(copy, whole):
    before = copy.exact(RUN)
    done = copy.run(*STEADY, "--resume", "checkpoint-16")
    assert done.code == 0, done.err
    assert copy.exact(RUN) == before
    assert copy.events(RUN, "train_end")[-1]["step"] == 16
    assert weights(copy) == weights(whole)


def test_early_stopping_ends_a_resumed_run_where_it_ends_an_undisturbed_one(
    make_project, fork_server, forked_project
):
    early = make_project("early")
    early.server = fork_server
    done = early.run(*EARLY)
    assert done.code == 0, done.err
    end = early.events(RUN, "early_stop")[-1]["step"]
    evals = {e["step"]: e["eval_loss"] for e in early.events(RUN, "eval")}
    print("EVALS", evals)
    assert end == 12  # better before the first step than after 4, 8 and 12
    stopped = forked_project.signal_at(RUN, 5, signal.SIGINT, arguments=EARLY)
    assert stopped.code == 4, stopped.err
    resumed = forked_project.run(*EARLY)
    assert resumed.code == 0, resumed.err
    assert forked_project.exact(RUN) == early.exact(RUN)
    assert weights(forked_project, "checkpoint-12") == weights(early, "checkpoint-12")
    # Hours that pass at once: each step was saved; the policy left two with an optimizer.
    found = listed(early)
    assert list(found) == list(range(1, end + 1))
    assert [step for step, told in found.items() if not told["slim"]] == [end - 1, end]
    best = early.run("checkpoints", "best", "--json")
    assert json.loads(best.out)["step"] == 4
    refused = early.run(*EARLY, "--resume", "best")
    assert refused.code == 3
    assert "checkpoint-4 cannot be resumed from: its optimizer was slimmed away" in refused.err


def test_a_whole_model_is_its_checkpoint_and_a_slim_one_merges_too(copy):
    slimmed = copy.run("checkpoints", "slim", "--yes", "--json")
    assert slimmed.code == 0, slimmed.err
    assert [c["step"] for c in json.loads(slimmed.out)["slimmed"]] == [4, 8, 12]
    done = copy.run("merge", "--checkpoint", "8", "--json")
    assert done.code == 0, done.err
    told, made = json.loads(done.out), copy.directory / "models" / f"{RUN}-merged"
    assert (told["verdict"], told["max_abs_diff"], told["differs_from_base"]) == ("equal", 0, True)
    assert (made / "model.safetensors").read_bytes() == weights(copy, "checkpoint-8")
    assert json.loads((made / "merge-proof.json").read_text())["weights"]["linked"]
    tokenizer = (copy.path(RUN) / "checkpoint-8" / "tokenizer.json").read_bytes()
    assert (made / "tokenizer.json").read_bytes() == tokenizer


def test_damage_of_a_models_weights_is_found(copy):
    path = copy.path(RUN) / "checkpoint-16" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    done = copy.run("checkpoints", "verify")
    assert done.code == 3
    assert "model.safetensors is not what was committed" in done.err
    resumed = copy.run(*STEADY, "--resume", "checkpoint-16")
    assert resumed.code == 3
    assert "checkpoint-16 is damaged" in resumed.err
