"""Every damage to every file of the newest checkpoint: found before it is resumed from.

The decision is checked for all of them, the whole resume for one damage of each file
that a resume loads: it must end with the weights of a run nobody disturbed.
"""

import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
from project import RUN, TINY, Project

from fakes import fake_files
from leviathan import checkpoints, layers, runs, train

pytestmark = pytest.mark.real

RECORD = "leviathan-commit.json"
ADAPTER = "adapter_model.safetensors"
FILES = (ADAPTER, "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
         "trainer_state.json", "tokens_state.json", "tokenizer.json", "tokenizer_config.json",
         "training_args.bin", "README.md", RECORD)  # fmt: skip
# Nothing that resumes reads these.
HARMLESS = {"training_args.bin", "README.md"}
# Without a commit record nobody knows that they were ever there; no resume needs them.
OPTIONAL = {"tokens_state.json", "tokenizer.json", "tokenizer_config.json"}


def missing(path: Path) -> None:
    path.unlink()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def no_payload(path: Path) -> None:
    """A safetensors header followed by zeros."""
    data = path.read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    path.write_bytes(data[:begin] + bytes(len(data) - begin))


DAMAGES = (missing, half, zeroed)


def bare(run: Path) -> None:
    """As Axolotl alone would have written the checkpoints."""
    for record in run.glob(f"checkpoint-*/{RECORD}"):
        record.unlink()


def steps(run: Path) -> list[int]:
    return [c.step for c in checkpoints.scan(run)]


def decide(project: Project, monkeypatch) -> train.Decision:
    monkeypatch.chdir(project.directory)
    sets = [word for word in TINY if "=" in word]
    return train.decide(layers.build("tiny", "tiny", "full", sets))


def expected(name: str, damage, *, committed: bool) -> bool:
    """Whether the newest checkpoint is still good."""
    if not committed and damage is missing and name in OPTIONAL:
        return True
    return name in HARMLESS


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "bare"])
def test_every_damage_to_every_file_is_found(stopped_copy, monkeypatch, committed):
    run = stopped_copy.path(RUN)
    if not committed:
        bare(run)
    *_, before, newest = steps(run)
    names = {path.name for path in (run / f"checkpoint-{newest}").iterdir()}
    assert names == set(FILES) - (set() if committed else {RECORD})
    cases = [(name, damage) for name in sorted(names) for damage in DAMAGES]
    for name, damage in [*cases, (ADAPTER, no_payload)]:
        path = run / f"checkpoint-{newest}" / name
        whole = path.read_bytes()
        damage(path)
        decision = decide(stopped_copy, monkeypatch)
        path.write_bytes(whole)
        assert decision.action == "resume"
        if expected(name, damage, committed=committed):
            assert (decision.resume_from.step, decision.aside) == (newest, ()), (name, damage)
        else:
            assert decision.resume_from.step == before, (name, damage)
            assert [c.step for c in decision.aside] == [newest], (name, damage)
            assert decision.aside[0].problem, (name, damage)
    assert decide(stopped_copy, monkeypatch).resume_from.step == newest  # all was put back


@pytest.mark.parametrize(
    ("name", "damage", "committed"),
    [
        ("optimizer.pt", missing, True), ("optimizer.pt", missing, False),
        ("scheduler.pt", zeroed, False), ("rng_state.pth", half, True),
        (ADAPTER, half, True), (ADAPTER, no_payload, False),
        ("trainer_state.json", missing, False), (RECORD, zeroed, True),
        ("training_args.bin", zeroed, True), ("tokens_state.json", missing, False),
    ],
)  # fmt: skip
def test_a_resume_after_damage_ends_with_the_same_weights(
    stopped_copy, reference, name, damage, committed
):
    run = stopped_copy.path(RUN)
    if not committed:
        bare(run)
    *_, before, newest = steps(run)
    damage(run / f"checkpoint-{newest}" / name)
    done = stopped_copy.run(*TINY)
    assert done.code == 0, done.err
    good = expected(name, damage, committed=committed)
    assert f"resuming from checkpoint-{newest if good else before}" in done.err
    assert (f"checkpoint-{newest} quarantined: " in done.err) is not good
    assert len(list(run.glob("quarantine/checkpoint-*"))) == (0 if good else 1)
    assert len(stopped_copy.events(RUN, "resume")) == 1
    assert stopped_copy.adapter(RUN) == reference.adapter(RUN)


class Poison:
    """Unpickled, it creates a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("name", "loaded"),
    [("optimizer.pt", True), ("scheduler.pt", True), ("rng_state.pth", True),
     ("training_args.bin", False)],
)  # fmt: skip
def test_a_pickle_that_would_execute_code_is_not_executed(stopped_copy, tmp_path, name, loaded):
    """Not even with a commit record that its author wrote for it, nor by the resume itself.

    torch loads with ``weights_only`` and refuses; nothing loads training_args.bin.
    """
    run, marker = stopped_copy.path(RUN), tmp_path / "executed"
    newest = run / f"checkpoint-{steps(run)[-1]}"
    poison = pickle.dumps(Poison(marker), protocol=2)
    (newest / name).write_bytes(fake_files.torch_archive(pickled=poison))
    checkpoints.commit(newest, {"step": steps(run)[-1]})
    for command in (("checkpoints", "list", RUN), ("checkpoints", "verify", RUN),
                    (*TINY, "--dry-run")):  # fmt: skip
        assert stopped_copy.run(*command).code == 0
    done = stopped_copy.run(*TINY)
    assert not marker.exists()
    assert (done.code == 1) is loaded, done.err
    log = "".join(path.read_text() for path in runs.RunPaths(run).logs.glob("*.log"))
    assert ("Weights only load failed" in log) is loaded
    # The poison works: whoever unpickles it without care executes it.
    pickle.loads(poison)  # noqa: S301
    assert marker.exists()
    shutil.rmtree(marker)
