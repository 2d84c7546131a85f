"""The model of a training of every weight: what is served against the checkpoint and the base."""

import json
import re
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leviathan import merge, shards, wholemodel
from leviathan.errors import Refused
from leviathan.wholemodel import Weights

NAMES = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def write(directory: Path, seed: int, *, rows: int = 6, sharded: bool = False, dtype="float32"):
    """A model of three tensors, as transformers saves one."""
    directory.mkdir(parents=True)
    chance = torch.Generator().manual_seed(seed)
    shapes = ((rows, 4), (4,), (rows, 4))
    tensors = {
        name: torch.randn(shape, generator=chance).to(getattr(torch, dtype))
        for name, shape in zip(NAMES, shapes, strict=True)
    }
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": dtype}))
    if not sharded:
        save_file(tensors, directory / "model.safetensors")
        return tensors
    files = {name: f"model-{i:05}-of-00003.safetensors" for i, name in enumerate(NAMES, 1)}
    for name, file in files.items():
        save_file({name: tensors[name]}, directory / file)
    (directory / shards.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return tensors


def work(tmp_path: Path, *, base=True, dtype=None, shard_bytes=None):
    """What the child process does, in this one."""
    found = wholemodel._work(
        {
            "checkpoint": str(tmp_path / "checkpoint-4"),
            "base": str(tmp_path / "base") if base else None,
            "made": str(tmp_path / "models/.m.partial/merged"),
            "dtype": dtype,
            "shard_bytes": shard_bytes,
        },
        lambda _: None,
    )
    return Weights(**found["weights"]), found["digests"], tmp_path / "models/.m.partial/merged"


@pytest.mark.parametrize("sharded", [False, True])
def test_the_files_are_the_checkpoints_own_and_take_no_room(tmp_path, sharded):
    write(tmp_path / "base", 1)
    tensors = write(tmp_path / "checkpoint-4", 2, sharded=sharded)
    found, digests, made = work(tmp_path)
    assert found == Weights(3, 3, 3, 3, 0, linked=True)
    for name in digests:
        assert (made / name).samefile(tmp_path / "checkpoint-4" / name)
    assert set(shards.stored(made)) == set(tensors)
    assert len(digests) == (3 if sharded else 1)
    assert found.verdict("equal", "")[0] == "equal"
    assert "bit for bit" in found.verdict("equal", "")[1]


def test_copies_do_where_no_link_can_be_made(tmp_path, monkeypatch):
    def another_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    write(tmp_path / "base", 1)
    write(tmp_path / "checkpoint-4", 2)
    monkeypatch.setattr(wholemodel.os, "link", another_disk)
    found, _, made = work(tmp_path)
    assert (found.linked, found.equal) == (False, 3)
    assert not (made / "model.safetensors").samefile(tmp_path / "checkpoint-4/model.safetensors")
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(wholemodel.shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(Refused, match="not enough disk space"):
        work(tmp_path)


def test_another_type_is_its_rounding_and_told(tmp_path):
    write(tmp_path / "base", 1)
    tensors = write(tmp_path / "checkpoint-4", 2, sharded=True)
    found, digests, made = work(tmp_path, dtype="bf16", shard_bytes=64)
    assert (found.tensors, found.equal, found.linked) == (3, 3, False)
    assert 0 < found.max_rounding < 0.02
    assert len(digests) == 2  # of 48 and 8 bytes, and of 48
    for name, stored in shards.stored(made).items():
        assert torch.equal(stored.load(), tensors[name].bfloat16())
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    assert "rounded" in found.verdict("equal", "")[1]


def test_what_exceeds_fp16_is_refused(tmp_path):
    write(tmp_path / "base", 1)
    tensors = write(tmp_path / "checkpoint-4", 2)
    save_file({**tensors, NAMES[1]: torch.full((4,), 1e6)},
              tmp_path / "checkpoint-4/model.safetensors")  # fmt: skip
    with pytest.raises(Refused, match=r"model.norm.weight exceeds the range of F16"):
        work(tmp_path, dtype="fp16")


def test_a_training_that_changed_nothing_is_caught_in_any_type(tmp_path):
    write(tmp_path / "base", 1)
    # Loaded in bf16 and saved at once: other bits than the base's, and still its weights.
    write(tmp_path / "checkpoint-4", 1, dtype="bfloat16")
    found, *_ = work(tmp_path)
    assert (found.compared_with_base, found.changed) == (3, 0)
    assert found.verdict("equal", "") == (
        "unproven", "training changed nothing: every weight is the base's")  # fmt: skip


def test_a_vocabulary_that_grew_is_no_training(tmp_path):
    base = write(tmp_path / "base", 1)
    write(tmp_path / "checkpoint-4", 2, rows=8)
    grown = {n: torch.cat([t, torch.zeros(2, 4)]) if t.dim() == 2 else t for n, t in base.items()}
    save_file(grown, tmp_path / "checkpoint-4/model.safetensors")
    assert work(tmp_path)[0].changed == 0
    save_file({**grown, NAMES[1]: base[NAMES[1]] + 1}, tmp_path / "checkpoint-4/model.safetensors")
    assert work(tmp_path)[0].changed == 1


def test_a_model_made_from_nothing_has_no_base_to_differ_from(tmp_path):
    write(tmp_path / "checkpoint-4", 2)
    found, *_ = work(tmp_path, base=False)
    assert (found.compared_with_base, found.verdict("equal", "")[0]) == (0, "equal")
    assert "made from nothing" in found.verdict("equal", "")[1]


@pytest.mark.parametrize("damage", ["a bit", "a tensor less"])
def test_weights_that_are_not_the_checkpoints_are_different(tmp_path, monkeypatch, damage):
    write(tmp_path / "base", 1)
    tensors = write(tmp_path / "checkpoint-4", 2)

    def badly(trained, checkpoint, made):
        wrong = {name: value.clone() for name, value in load_file(
            checkpoint / "model.safetensors").items()}  # fmt: skip
        if damage == "a bit":
            wrong[NAMES[0]].view(torch.uint8)[0, 0] ^= 1
        else:
            del wrong[NAMES[0]]
        save_file(wrong, made / "model.safetensors")
        return False

    monkeypatch.setattr(wholemodel, "_place", badly)
    found, *_ = work(tmp_path)
    assert (found.tensors, found.equal) == (len(tensors), 2)
    assert found.verdict("equal", "") == ("different", "1 of 3 tensors are not the checkpoint's")


def test_the_logits_word_counts_as_well():
    found = Weights(3, 3, 3, 3, 0, linked=True)
    assert found.verdict("different", "as served, ...") == ("different", "as served, ...")


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            ["pytorch_model_fsdp_0/.metadata"],
            "holds its weights in FSDP's pieces.*accelerate merge",
        ),
        (["latest", "global_step4/x"], r"in DeepSpeed's parts.*zero_to_fp32\.py"),
        (["config.json"], r"holds no model\.safetensors"),
    ],
)
def test_weights_in_pieces_are_refused_in_one_line(tmp_path, files, line):
    checkpoint = tmp_path / "checkpoint-4"
    for name in files:
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(b"x")
    with pytest.raises(Refused) as refused:
        wholemodel.demand(checkpoint)
    assert re.search(line, refused.value.line)
    assert "\n" not in refused.value.line


def test_an_adapter_is_no_whole_model(tmp_path):
    write(tmp_path / "checkpoint-4", 2)
    assert wholemodel.is_whole(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4/adapter_config.json").write_text("{}")
    assert not wholemodel.is_whole(tmp_path / "checkpoint-4")


def test_what_training_saved_goes_before_what_the_base_has(tmp_path):
    write(tmp_path / "base", 1)
    write(tmp_path / "checkpoint-4", 2)
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        for where in ("base", "checkpoint-4"):
            (tmp_path / where / name).write_text(where)
    (tmp_path / "base/modeling.py").write_text("code")
    (tmp_path / "checkpoint-4/zero_to_fp32.py").write_text("DeepSpeed's")
    _, _, made = work(tmp_path)
    merge.copy_companions(tmp_path / "base", tmp_path / "checkpoint-4", made)
    told = {path.name: path.read_text() for path in made.iterdir() if path.suffix != ".safetensors"}
    del told["config.json"]
    assert told == {
        "generation_config.json": "checkpoint-4", "tokenizer.json": "checkpoint-4",
        "chat_template.jinja": "checkpoint-4", "modeling.py": "code",
    }  # fmt: skip
