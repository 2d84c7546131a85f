"""A run begun under one profile goes on under another, elsewhere, and comes back: real Axolotl."""

import json
import random
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from project import ROWS, Project

import tiny
from leviathan import checkpoints

pytestmark = pytest.mark.real

RUN = "moved"
SETS = ("--set", "adapter=qlora", "--set", "load_in_4bit=true",
        "--set", "save_steps=5", "--set", "eval_steps=null", "--set", "num_epochs=1",
        "--set", "learning_rate=5e-3", "--set", "max_steps=24")  # fmt: skip
COMMAND = ("train", "--profile", "small", "--recipe", "tiny", "--sample", "full", "--name", RUN,
           *SETS)  # fmt: skip


def write_profiles(project: Project, micro: int) -> None:
    """A small card that takes one row at a time, and a large one of other habits."""
    profiles = project.directory / "configs/profiles"
    batch = "micro_batch_size: 4\n  gradient_accumulation_steps: 1"
    assert batch in tiny.PROFILE
    small = tiny.PROFILE.replace(batch, "micro_batch_size: 1\n  gradient_accumulation_steps: 4")
    (profiles / "small.yaml").write_text(small)
    large = tiny.PROFILE.replace("lora_r: 8", "lora_r: 16").replace(
        batch, f"micro_batch_size: {micro}\n  gradient_accumulation_steps: 1"
    )
    large = large.replace("sequence_len: 256", "sequence_len: 512")
    large = large.replace("save_steps: 5", "save_steps: 7\n  gradient_checkpointing: true")
    (profiles / "large.yaml").write_text(large.replace("keep: 5", "keep: 9"))


def write_even_rows(path: Path) -> None:
    """Rows of as many tokens each: a mean over micro batches is then one over rows."""
    chance, lines = random.Random(5), []
    for _ in range(ROWS):
        words = "alpha " + " ".join(chance.sample(tiny.WORDS[1:6], 5))
        lines.append({"instruction": f"Repeat: {words}", "input": "", "output": words})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def sound(project: Project) -> list[int]:
    found = [checkpoints.verify(c) for c in checkpoints.scan(project.path(RUN))]
    assert [c.problem for c in found if c.problem] == []
    return [c.step for c in found]


@pytest.fixture(scope="module")
def begun(template, tmp_path_factory, fork_server):
    """Never interrupted, and the same stopped in its middle."""
    directory = tmp_path_factory.mktemp("promotion")
    projects = []
    for name in ("whole", "stopped"):
        shutil.copytree(template, directory / name)
        projects.append(Project(directory / name, fork_server))
        write_profiles(projects[-1], 4)
        write_even_rows(directory / name / "rows.jsonl")
    whole, stopped = projects
    running = whole.start(*COMMAND)
    done = stopped.signal_at(RUN, 8, signal.SIGINT, arguments=COMMAND)
    assert done.code == 4, done.err
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    return whole, stopped


def promoted(stopped: Project, there: Path, *options: str) -> tuple[dict, Project]:
    """What promote says, and the run at the other end; the base model lies elsewhere there."""
    done = stopped.run("cloud", "promote", RUN, "--profile", "large", "--to", str(there),
                       "--base", "--json", *options)  # fmt: skip
    assert done.code == 0, done.err
    far = Project(there, stopped.server)
    (there / "base").rename(there / "the base")
    return json.loads(done.out), far


def resume(document: dict, far: Project) -> list[str]:
    words = [*document["command"][1:], "--set", "base_model=./the base"]
    done = far.run(*words)
    assert done.code == 0, done.err
    return words


@pytest.mark.parametrize("micro", [4, None], ids=["larger", "same"])
def test_a_run_goes_on_under_another_profile_elsewhere_and_comes_back(begun, tmp_path, micro):
    whole, stopped = begun
    stopped_at = stopped.saved(RUN)[-1]
    there = tmp_path / "another machine's project"
    options = () if micro is None else ("--micro-batch", str(micro))
    document, far = promoted(stopped, there, *options)
    rows = {row["key"]: row for row in document["settings"]}
    assert rows["lora_r"]["verdict"] == rows["sequence_len"]["verdict"] == "kept"
    assert (rows["save_steps"]["then"], rows["save_steps"]["verdict"]) == (5, "kept")
    assert rows["gradient_checkpointing"]["verdict"] == "changed"
    assert sound(far) == [stopped_at]
    assert not (far.path(RUN) / "prepared").exists()

    words = resume(document, far)
    assert [e["step"] for e in far.events(RUN, "resume")] == [stopped_at]
    here, moved = whole.exact(RUN), far.exact(RUN)
    assert [line[1] for line in moved] == [line[1] for line in here]  # tokens, steps, epochs
    assert [(c[0], c[3]) for c, _ in moved] == [(c[0], c[3]) for c, _ in here]  # the schedule
    if micro is None:
        assert moved == here
        assert far.adapter(RUN) == whole.adapter(RUN)
    else:
        config = (far.path(RUN) / "axolotl.yaml").read_text()
        assert "micro_batch_size: 4" in config
        assert "gradient_accumulation_steps: 1" in config
        for (mine, _), (theirs, _) in zip(moved, here, strict=True):
            assert mine[1:3] == pytest.approx(theirs[1:3], rel=2e-3)
    assert sound(far)[-1] == 24
    if micro is None:  # its base lies elsewhere than where the run was begun
        done = far.run("merge", RUN)
        assert done.code == 0, done.err

    back = Project(shutil.copytree(stopped.directory, tmp_path / "back"), stopped.server)
    done = back.run("cloud", "pull", str(far.path(RUN)), "--for", "resume")
    assert done.code == 0, done.err
    assert sound(back)[-1] == 24
    assert back.exact(RUN) == moved
    again = back.run("train", *words[1:-1], "base_model=base")
    assert (again.code, "nothing to do" in again.out) == (0, True), again.err
    refused = stopped.run("cloud", "push", RUN, str(there))
    assert refused.code == 3
    assert "trained further" in refused.err
    assert shlex.join(document["command"]) == shlex.join(["leviathan", *words[:-2]])
