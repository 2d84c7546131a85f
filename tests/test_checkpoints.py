"""Commit records, soundness, choice and retention, on real files of the real formats."""

import io
import json
import math
import os
import pickle
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import fake_files
from leviathan import checkpoints
from leviathan.errors import BadInput, LeviathanError, Refused

FILES = sorted(
    [*fake_files.TORCH_FILES, fake_files.ADAPTER, "adapter_config.json", "tokenizer.json",
     "tokens_state.json", "README.md", "trainer_state.json"]
)  # fmt: skip
# Without a commit record nobody knows whether these were ever there.
OPTIONAL = {"training_args.bin", "README.md", "tokenizer.json", "tokens_state.json"}
# Nothing that resumes, merges or infers reads these.
HARMLESS = {"training_args.bin", "README.md"}


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def make(run_dir: Path, step: int, *, committed: bool = True, **facts) -> Path:
    path = fake_files.write_checkpoint(run_dir, step, **facts)
    if committed:
        state = json.loads((path / "trainer_state.json").read_text())
        checkpoints.commit(path, checkpoints.facts_from_history(state))
    return path


def verified(run_dir: Path) -> checkpoints.Checkpoint:
    (found,) = checkpoints.scan(run_dir)
    return checkpoints.verify(found)


# --- a model that is trained whole ------------------------------------------------


def make_whole(run_dir: Path, *, sharded: bool, committed: bool) -> Path:
    """A checkpoint of a training of every weight, as the Trainer writes one."""
    path = fake_files.write_checkpoint(run_dir, 20)
    (path / "adapter_config.json").rename(path / "config.json")
    (path / fake_files.ADAPTER).rename(path / "model.safetensors")
    if sharded:
        (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
        (path / "model-00002-of-00002.safetensors").write_bytes(fake_files.safetensors())
        weights = {n: f"model-0000{n}-of-00002.safetensors" for n in ("1", "2")}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    if committed:
        checkpoints.commit(path, {"step": 20})
    return path


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("damage", [missing, truncated, emptied, zeroed, grown])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_damage_to_a_whole_models_weights_is_found(tmp_path, committed, damage, sharded):
    path = make_whole(tmp_path, sharded=sharded, committed=committed)
    assert verified(tmp_path).sound
    damage(path / ("model-00002-of-00002.safetensors" if sharded else "model.safetensors"))
    assert not verified(tmp_path).sound


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"weight_map": {"1": "gone.safetensors"}}'])
def test_an_index_that_names_nothing_that_is_there_is_found(tmp_path, text):
    path = make_whole(tmp_path, sharded=True, committed=False)
    (path / "model.safetensors.index.json").write_text(text)
    assert "missing" in checkpoints.scan(tmp_path)[0].problem


# --- soundness --------------------------------------------------------------------


@pytest.mark.parametrize("committed", [True, False])
def test_whole_checkpoint_is_sound_and_knows_its_losses(tmp_path, committed):
    make(tmp_path, 20, committed=committed, loss=1.25, eval_loss=1.5)
    found = verified(tmp_path)
    assert found.sound, found.problem
    assert (found.step, found.committed) == (20, committed)
    assert (found.epoch, found.loss, found.eval_loss) == (2.0, 1.25, 1.5)
    assert found.best


@pytest.mark.parametrize("damage", [missing, truncated, emptied, zeroed, grown])
@pytest.mark.parametrize("name", sorted(set(FILES) - HARMLESS))
def test_every_damage_to_a_committed_checkpoint_is_found(tmp_path, name, damage):
    damage(make(tmp_path, 5) / name)
    found = verified(tmp_path)
    assert not found.sound
    assert name in found.problem
    assert checkpoints.newest_sound(tmp_path) == (None, [found])


@pytest.mark.parametrize("damage", [missing, truncated, emptied, zeroed])
@pytest.mark.parametrize("name", FILES)
def test_damage_to_a_bare_checkpoint_is_found_where_structure_shows_it(tmp_path, name, damage):
    damage(make(tmp_path, 5, committed=False) / name)
    found = verified(tmp_path)
    harmless = name in HARMLESS or (damage is missing and name in OPTIONAL)
    assert found.sound == harmless, found.problem


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "bare"])
def test_weights_that_are_all_zeros_are_found(tmp_path, committed):
    """What a power cut leaves of a file whose length was written and whose data was not."""
    weights = make(tmp_path, 5, committed=committed) / fake_files.ADAPTER
    data = weights.read_bytes()
    weights.write_bytes(data[:-64] + b"\0" * 64)
    assert not verified(tmp_path).sound


@pytest.mark.parametrize(("name", "sound"), [("lora_A.weight", False), ("lora_B.weight", True)])
def test_one_zero_matrix_of_a_bare_checkpoint_is_damage_if_it_was_drawn_at_random(
    tmp_path, name, sound
):
    weights = make(tmp_path, 5, committed=False) / fake_files.ADAPTER
    header = {
        f"layer.{name}": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
        "other": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]},
    }
    head = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(head)) + head + bytes(8) + b"12345678")
    assert verified(tmp_path).sound is sound


def test_half_zeroed_weights_of_a_bare_checkpoint_pass_and_of_a_committed_one_do_not(tmp_path):
    """The limit of checking without hashes: safetensors has no checksum of its data."""
    for run, committed in (("bare", False), ("committed", True)):
        weights = make(tmp_path / run, 5, committed=committed) / fake_files.ADAPTER
        data = weights.read_bytes()
        weights.write_bytes(data[:-32] + b"\0" * 32)
    assert verified(tmp_path / "bare").sound
    assert "xxh3" in verified(tmp_path / "committed").problem


def test_a_bare_checkpoint_newer_than_a_committed_one_is_an_interrupted_save(tmp_path):
    """It may look whole, but nothing of it was made durable."""
    make(tmp_path, 5, committed=False)
    make(tmp_path, 10)
    make(tmp_path, 15, committed=False)
    newest, damaged = checkpoints.newest_sound(tmp_path)
    assert newest.step == 10
    assert [(c.step, c.problem) for c in damaged] == [(15, checkpoints.UNFINISHED)]
    assert [c.sound for c in checkpoints.scan(tmp_path)] == [True, True, False]


def test_zeroed_storage_inside_a_bare_torch_archive_is_found(tmp_path):
    file = make(tmp_path, 5, committed=False) / "optimizer.pt"
    file.write_bytes(file.read_bytes().replace(b"\x01\x02\x03" * 40, b"\0" * 120))
    assert "optimizer.pt has a damaged part" in verified(tmp_path).problem


def test_without_its_record_a_checkpoint_is_judged_as_a_bare_one(tmp_path):
    missing(make(tmp_path, 5) / checkpoints.COMMIT)
    found = verified(tmp_path)
    assert (found.sound, found.committed) == (True, False)


@pytest.mark.parametrize("damage", [truncated, emptied, zeroed])
def test_a_damaged_record_makes_the_checkpoint_unsound(tmp_path, damage):
    damage(make(tmp_path, 5) / checkpoints.COMMIT)
    assert checkpoints.COMMIT in verified(tmp_path).problem


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", b"[]"),
        ("trainer_state.json", b"null"),
        ("trainer_state.json", b'{"global_step": 6}'),
        ("trainer_state.json", b"{}"),
        (fake_files.ADAPTER, fake_files.safetensors(data_offsets=[0, "x"])),
        (fake_files.ADAPTER, fake_files.safetensors(data_offsets=[0, None])),
        (fake_files.ADAPTER, fake_files.safetensors(data_offsets=[])),
        (fake_files.ADAPTER, fake_files.safetensors(data_offsets=[0, 65])),
        (fake_files.ADAPTER, struct.pack("<Q", 2) + b"[]"),
        (fake_files.ADAPTER, struct.pack("<Q", 2**63) + b"{}"),
        (fake_files.ADAPTER, b"short"),
    ],
)
def test_well_formed_nonsense_is_unsound_not_a_crash(tmp_path, name, content):
    (make(tmp_path, 5, committed=False) / name).write_bytes(content)
    assert not verified(tmp_path).sound


@pytest.mark.parametrize(
    "record",
    [
        {"schema": 1, "files": {"optimizer.pt": None}},
        {"schema": 1, "files": {"optimizer.pt": {}}},
        {"schema": 1, "files": []},
        {"schema": 1},
        {"schema": 99, "files": {}},
        [],
        None,
    ],
)
def test_nonsense_commit_record_is_no_crash(tmp_path, record):
    path = make(tmp_path, 5, committed=False)
    (path / checkpoints.COMMIT).write_text(json.dumps(record))
    found = verified(tmp_path)
    assert found.sound is not found.committed  # judged as bare, or refused


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(set(FILES) - HARMLESS)),
    place=st.floats(0, 0.999),
    noise=st.binary(min_size=1, max_size=40),
    committed=st.booleans(),
)
def test_random_damage_never_crashes_and_never_passes_a_commit(
    tmp_path, name, place, noise, committed
):
    run_dir = tmp_path / f"{time.monotonic_ns()}"
    file = make(run_dir, 5, committed=committed) / name
    before = file.read_bytes()
    at = int(place * len(before))
    file.write_bytes(before[:at] + noise + before[at + len(noise) :])
    found = verified(run_dir)
    if committed:
        assert found.sound == (file.read_bytes() == before)


@pytest.mark.parametrize("bits", [0x01, 0xFF])
def test_flipped_bits_everywhere_in_a_torch_archive_never_crash(tmp_path, bits):
    file = make(tmp_path, 5, committed=False) / "optimizer.pt"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
        verified(tmp_path)


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("committed", [True, False])
def test_no_pickle_is_ever_opened(tmp_path, committed):
    target, run_dir = tmp_path / "exploded", tmp_path / "run"
    path = fake_files.write_checkpoint(run_dir, 5)
    pickled = pickle.dumps(Bomb(target))
    for name in fake_files.TORCH_FILES:
        (path / name).write_bytes(fake_files.torch_archive(pickled))
    if committed:
        checkpoints.commit(path, {})
    assert verified(run_dir).sound
    assert checkpoints.choose(run_dir, "best").step == 5
    assert checkpoints.newest_sound(run_dir)[0].step == 5
    assert not target.exists()
    with zipfile.ZipFile(io.BytesIO((path / "optimizer.pt").read_bytes())) as archive:
        pickle.loads(archive.read("archive/data.pkl"))  # noqa: S301 - the bomb is real
    assert target.exists()


def test_other_names_are_not_checkpoints(tmp_path):
    make(tmp_path, 5)
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-5.bak", "checkpoint", "quarantine"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file, not a directory")
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "nowhere")
    assert [c.step for c in checkpoints.scan(tmp_path) if c.sound] == [5]


def test_a_checkpoint_of_full_weights_is_sound_without_adapter_files(tmp_path):
    path = make(tmp_path, 5, committed=False)
    (path / fake_files.ADAPTER).rename(path / "model.safetensors")
    (path / "adapter_config.json").unlink()
    assert verified(tmp_path).sound


def test_sharded_rng_states_of_several_ranks_count(tmp_path):
    path = make(tmp_path, 5, committed=False)
    (path / "rng_state.pth").rename(path / "rng_state_0.pth")
    assert verified(tmp_path).sound


def test_thousand_checkpoints_are_scanned(tmp_path):
    for step in range(1, 1001):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        files = {"weights": {"bytes": 0, "xxh3_64": ""}}
        (path / "weights").touch()
        record = {"schema": 1, "files": files, "eval_loss": abs(step - 700) + 1, "epoch": 1}
        (path / checkpoints.COMMIT).write_text(json.dumps(record))
    found = checkpoints.scan(tmp_path)
    assert [c.step for c in found] == list(range(1, 1001))
    assert [c.step for c in found if c.best] == [700]
    assert len(checkpoints.removable(found, 3)) == 996


# --- choice -----------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path):
    """Checkpoints 5, 10, 15; 10 is the best."""
    for step, eval_loss in ((5, 1.5), (10, 1.2), (15, 1.3)):
        make(tmp_path, step, eval_loss=eval_loss)
    return tmp_path


@pytest.mark.parametrize(
    ("which", "step"), [("best", 10), ("latest", 15), ("5", 5), ("checkpoint-10", 10)]
)
def test_choose(run_dir, which, step):
    assert checkpoints.choose(run_dir, which).step == step


def test_best_is_the_latest_when_nothing_was_evaluated(tmp_path):
    make(tmp_path, 5)
    make(tmp_path, 10)
    assert checkpoints.choose(tmp_path, "best").step == 10


def test_a_nan_evaluation_is_never_the_best(tmp_path):
    make(tmp_path, 5, eval_loss=math.nan)
    make(tmp_path, 10, eval_loss=1.5)
    make(tmp_path, 15, eval_loss=math.nan)
    assert checkpoints.choose(tmp_path, "best").step == 10


def test_an_evaluation_of_another_step_is_not_this_checkpoints(tmp_path):
    state = fake_files.trainer_state(10, 1.0, 0.5)
    state["log_history"][1]["step"] = 5
    assert checkpoints.facts_from_history(state)["eval_loss"] is None


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("checkpoint-999", "no checkpoint 'checkpoint-999'"),
        ("999", "no checkpoint '999'"),
        ("newest", "'newest' names no checkpoint"),
        ("", "'' names no checkpoint"),
        ("../5", "'../5' names no checkpoint"),
    ],
)
def test_choosing_what_is_not_there_is_bad_input(run_dir, which, message):
    with pytest.raises(BadInput, match=message):
        checkpoints.choose(run_dir, which)


def test_choosing_in_a_run_without_checkpoints_is_bad_input(tmp_path):
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput, match="has no checkpoints"):
            checkpoints.choose(directory, "best")


def test_latest_passes_over_what_is_visibly_damaged(run_dir):
    truncated(run_dir / "checkpoint-15/optimizer.pt")
    assert checkpoints.choose(run_dir, "latest").step == 10


@pytest.mark.parametrize("which", ["10", "checkpoint-10"])
def test_damaged_choice_is_refused_with_what_is_wrong(run_dir, which):
    zeroed(run_dir / "checkpoint-10/optimizer.pt")
    with pytest.raises(LeviathanError, match=r"checkpoint-10 is damaged: optimizer\.pt") as caught:
        checkpoints.choose(run_dir, which)
    assert caught.value.exit_code == 3  # design.md: 3 refused by a check (unsound)


@pytest.mark.parametrize(("which", "step"), [("best", 15), ("latest", 5)])
def test_best_and_latest_pass_over_what_is_damaged(run_dir, which, step):
    zeroed(run_dir / "checkpoint-10/optimizer.pt")  # the best one
    if which == "latest":
        zeroed(run_dir / "checkpoint-15/optimizer.pt")
    assert checkpoints.choose(run_dir, which).step == step


def test_without_any_sound_checkpoint_there_is_no_choice(run_dir):
    for path in run_dir.glob("checkpoint-*"):
        zeroed(path / "optimizer.pt")
    with pytest.raises(LeviathanError, match=r"no checkpoint of .* is sound") as caught:
        checkpoints.choose(run_dir, "latest")
    assert caught.value.exit_code == 3


def test_newest_sound_goes_back_until_one_verifies(run_dir):
    zeroed(run_dir / "checkpoint-15/scheduler.pt")
    missing(run_dir / "checkpoint-10/rng_state.pth")
    newest, damaged = checkpoints.newest_sound(run_dir)
    assert newest.step == 5
    assert [c.step for c in damaged] == [15, 10]


# --- retention --------------------------------------------------------------------


def steps(found):
    return [c.step for c in found]


@pytest.mark.parametrize(
    ("keep", "drop_best", "going"),
    [(1, False, [5]), (1, True, [5, 10]), (2, False, [5]), (3, False, []), (9, False, []),
     (0, True, [5, 10])],
)  # fmt: skip
def test_removable_keeps_the_newest_and_the_best(run_dir, keep, drop_best, going):
    found = checkpoints.scan(run_dir)
    assert steps(checkpoints.removable(found, keep, drop_best=drop_best)) == going


def test_removable_never_names_a_pinned_or_a_damaged_one(run_dir):
    (run_dir / "checkpoint-5/leviathan-pin").touch()
    truncated(run_dir / "checkpoint-10/optimizer.pt")
    found = checkpoints.scan(run_dir)
    assert found[0].pinned
    assert checkpoints.removable(found, 1, drop_best=True) == []


def test_a_pin_does_not_break_a_commit(run_dir):
    (run_dir / "checkpoint-5/leviathan-pin").touch()
    assert checkpoints.choose(run_dir, "5").sound


def test_the_last_sound_one_survives_damaged_newer_ones(run_dir):
    for step in (10, 15):
        truncated(run_dir / f"checkpoint-{step}/optimizer.pt")
    assert checkpoints.removable(checkpoints.scan(run_dir), 1, drop_best=True) == []


def test_retention_goes_by_step_whatever_the_clock_said(run_dir):
    os.utime(run_dir / "checkpoint-15", (0, 0))
    assert steps(checkpoints.removable(checkpoints.scan(run_dir), 1)) == [5]


def test_one_that_cannot_be_removed_is_told_and_keeps_no_other(run_dir):
    make(run_dir, 20)
    fake_files.refuse_removal(run_dir / "checkpoint-5")
    retention = checkpoints.retain(run_dir, 1)
    assert retention.removed == (15,)  # 10 is the best
    assert retention.problem.startswith("checkpoint-5 could not be removed: ")
    assert steps(checkpoints.scan(run_dir)) == [5, 10, 20]


def test_the_newest_sound_ones_size_is_the_next_ones(run_dir):
    assert checkpoints.newest_bytes([]) is None
    (run_dir / "checkpoint-10/extra").write_bytes(b"x" * 999)
    checkpoints.commit(run_dir / "checkpoint-10", {})
    truncated(run_dir / "checkpoint-15/optimizer.pt")
    found = checkpoints.scan(run_dir)
    assert checkpoints.newest_bytes(found) == found[1].bytes > found[0].bytes


def test_set_aside_moves_and_never_overwrites(run_dir):
    first = checkpoints.set_aside(checkpoints.scan(run_dir)[0], "quarantine")
    make(run_dir, 5)
    second = checkpoints.set_aside(checkpoints.scan(run_dir)[0], "quarantine")
    assert first != second
    assert first.is_dir()
    assert second.is_dir()
    assert steps(checkpoints.scan(run_dir)) == [10, 15]


def test_remove(run_dir):
    checkpoints.remove(checkpoints.scan(run_dir)[0])
    assert steps(checkpoints.scan(run_dir)) == [10, 15]


# --- the commit record ------------------------------------------------------------


def test_commit_record_names_every_file_that_matters(tmp_path):
    path = make(tmp_path, 5, eval_loss=1.0)
    (path / "sub").mkdir()
    (path / "sub/shard").write_bytes(b"x")
    checkpoints.commit(path, {"step": 5})
    record = json.loads((path / checkpoints.COMMIT).read_text())
    assert sorted(record["files"]) == sorted([*(set(FILES) - HARMLESS), "sub/shard"])
    assert record["files"]["sub/shard"]["bytes"] == 1
    assert verified(tmp_path).sound


def test_json_document_has_the_promised_keys(tmp_path):
    make(tmp_path, 5)
    document = verified(tmp_path).to_json()
    assert {"step", "epoch", "loss", "eval_loss", "bytes", "sound", "best", "pinned"} <= set(
        document
    )
    json.dumps(document)


# --- pins -------------------------------------------------------------------------


def only(run_dir):
    (found,) = checkpoints.scan(run_dir)
    return found


def test_a_pinned_checkpoint_stays_sound_and_pinning_twice_is_once(tmp_path):
    make(tmp_path, 5)
    assert checkpoints.pin(only(tmp_path))
    assert verified(tmp_path).pinned
    assert verified(tmp_path).sound
    assert not checkpoints.pin(only(tmp_path))
    assert checkpoints.unpin(only(tmp_path))
    assert not verified(tmp_path).pinned
    assert not checkpoints.unpin(only(tmp_path))


def test_a_bare_checkpoint_can_be_pinned_and_is_committed_without_its_pin(tmp_path):
    path = make(tmp_path, 5, committed=False)
    assert checkpoints.pin(verified(tmp_path))
    assert verified(tmp_path).sound
    checkpoints.commit(path, {})
    assert checkpoints.PIN not in json.loads((path / checkpoints.COMMIT).read_text())["files"]
    assert checkpoints.unpin(only(tmp_path))
    assert verified(tmp_path).sound


def test_a_damaged_checkpoint_is_not_pinned(tmp_path):
    path = make(tmp_path, 5)
    truncated(path / "optimizer.pt")
    with pytest.raises(Refused, match=r"checkpoint-5 is damaged: optimizer\.pt has"):
        checkpoints.pin(only(tmp_path))
    assert not (path / checkpoints.PIN).exists()


def test_neither_retention_nor_cleanup_takes_a_pinned_one(tmp_path):
    for step in (5, 10, 15):
        make(tmp_path, step)
    oldest = checkpoints.scan(tmp_path)[0]
    checkpoints.pin(oldest)
    assert [c.step for c in checkpoints.removable(checkpoints.scan(tmp_path), 1)] == [10]
    checkpoints.remove(oldest)  # chosen to go before it was pinned
    assert [c.step for c in checkpoints.scan(tmp_path)] == [5, 10, 15]
    assert checkpoints.verify(checkpoints.scan(tmp_path)[0]).sound


@pytest.mark.parametrize("taken", [lambda p: (p / checkpoints.COMMIT).unlink(), shutil.rmtree])
def test_a_pin_that_comes_too_late_says_so(tmp_path, taken):
    """Retention deletes the commit record first, then the rest."""
    path = make(tmp_path, 5)
    looked_at = only(tmp_path)
    (path / "optimizer.pt").unlink()
    taken(path)
    with pytest.raises(Refused, match="checkpoint-5 was deleted while it was being pinned"):
        checkpoints.pin(looked_at)


def test_pinning_is_durable(tmp_path, monkeypatch):
    path = make(tmp_path, 5)
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(os.path.realpath(f"/proc/self/fd/{fd}"))
    )
    checkpoints.pin(only(tmp_path))
    assert synced == [str(path / checkpoints.PIN), str(path)]
    synced.clear()
    checkpoints.unpin(only(tmp_path))
    assert synced == [str(path)]


def test_what_was_set_aside_is_found_with_where_it_lies(tmp_path):
    for step in (5, 10, 15):
        make(tmp_path, step)
    five, ten, fifteen = checkpoints.scan(tmp_path)
    checkpoints.set_aside(five, "set-aside")
    make(tmp_path, 5)
    checkpoints.set_aside(only_step(tmp_path, 5), "set-aside")
    checkpoints.set_aside(ten, "quarantine")
    (tmp_path / "quarantine/notes.txt").write_text("mine")
    (tmp_path / "quarantine/checkpoint-x").mkdir()
    assert [(c.step, c.where) for c in checkpoints.aside(tmp_path)] == [
        (5, "set-aside"), (5, "set-aside"), (10, "quarantine"),
    ]  # fmt: skip
    assert [c.step for c in checkpoints.scan(tmp_path)] == [fifteen.step]
    assert checkpoints.aside(tmp_path / "elsewhere") == []


def only_step(run_dir, step):
    return next(c for c in checkpoints.scan(run_dir) if c.step == step)


def test_a_commit_makes_the_names_in_subdirectories_last_too(tmp_path, monkeypatch):
    """FSDP and DeepSpeed write their shards below the checkpoint."""
    path = fake_files.write_checkpoint(tmp_path, 5, loss=1.0)
    shards = path / "optimizer_0" / "shards"
    shards.mkdir(parents=True)
    (shards / "0.distcp").write_bytes(b"moments")
    synced = []
    monkeypatch.setattr(checkpoints.files, "fsync_directory", synced.append)
    checkpoints.commit(path, {"step": 5})
    assert {shards, shards.parent, path, tmp_path} <= {*synced}
    assert "optimizer_0/shards/0.distcp" in (path / checkpoints.COMMIT).read_text()


def test_a_checkpoint_moved_elsewhere_behind_a_link_is_let_go_but_not_touched(run_dir, tmp_path):
    """Retention runs inside training: failing here would end it at each save."""
    oldest = checkpoints.scan(run_dir)[0].path
    elsewhere = tmp_path / "another-disk"
    oldest.rename(elsewhere)
    oldest.symlink_to(elsewhere)
    before = sorted(path.name for path in elsewhere.iterdir())
    (link,) = [c for c in checkpoints.scan(run_dir) if c.path == oldest]
    checkpoints.remove(link)
    assert not oldest.is_symlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == before


def shards(run_dir, step, kind):
    """A bare checkpoint as FSDP or DeepSpeed writes it (FSDP's names as seen on two ranks)."""
    path = fake_files.write_checkpoint(run_dir, step)
    (path / "optimizer.pt").unlink()
    if kind == "pieces":
        for folder in ("pytorch_model_fsdp_0", "optimizer_0"):
            (path / folder).mkdir()
            for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
                (path / folder / name).write_bytes(b"piece")
    elif kind == "whole":
        for name in ("pytorch_model_fsdp.bin", "optimizer.bin"):
            (path / name).write_bytes(fake_files.torch_archive())
    else:
        (path / "latest").write_text(f"global_step{step}")
        (path / f"global_step{step}").mkdir()
        for rank in (0, 1):
            name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            (path / f"global_step{step}" / name).write_bytes(fake_files.torch_archive())
        (path / "scheduler.pt").unlink()  # DeepSpeed's own is in its parts
    return path


@pytest.mark.parametrize("kind", ["pieces", "whole", "deepspeed"])
def test_what_fsdp_and_deepspeed_write_is_sound_and_every_part_of_it_committed(tmp_path, kind):
    path = shards(tmp_path, 4, kind)
    (bare,) = checkpoints.scan(tmp_path)
    assert checkpoints.verify(bare).problem is None
    checkpoints.commit(path, {"step": 4})
    record = json.loads((path / checkpoints.COMMIT).read_text())["files"]
    parts = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert set(record) == parts - {checkpoints.COMMIT, "README.md", "training_args.bin"}
    last = max(record)
    (path / last).write_bytes(b"x" * record[last]["bytes"])
    (committed,) = checkpoints.scan(tmp_path)
    assert last in checkpoints.verify(committed).problem


@pytest.mark.parametrize(
    ("kind", "gone", "problem"),
    [
        ("pieces", "optimizer_0", "optimizer.pt is missing"),
        ("pieces", "optimizer_0/.metadata", "optimizer_0/.metadata is missing"),
        ("pieces", "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/.metadata is missing"),
        ("pieces", "scheduler.pt", "scheduler.pt is missing"),
        ("whole", "optimizer.bin", "optimizer.pt is missing"),
        ("deepspeed", "latest", "optimizer.pt is missing"),
        ("deepspeed", "global_step4", "latest names 'global_step4', which is not there"),
        ("deepspeed", "global_step4/*", "global_step4 holds no optimizer state"),
    ],
)
def test_a_part_that_was_not_saved_is_named(tmp_path, kind, gone, problem):
    path = shards(tmp_path, 4, kind)
    for lost in path.glob(gone):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    (found,) = checkpoints.scan(tmp_path)
    assert found.problem == problem


def test_a_damaged_part_below_is_found(tmp_path):
    path = shards(tmp_path, 4, "deepspeed")
    part = next(path.glob("global_step4/*rank_1*"))
    part.write_bytes(part.read_bytes()[:-9])
    (found,) = checkpoints.scan(tmp_path)
    assert "is not a whole torch archive" in checkpoints.verify(found).problem
    assert found.problem is None
