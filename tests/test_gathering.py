"""What FSDP leaves in pieces is gathered: one process whose model is sharded over itself.

Two processes are ``real/test_two_processes``'s.
"""

import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from leviathan import models, runs, shards
from leviathan.gathering import WholeCallback
from leviathan.journal import Journal


@pytest.fixture
def mesh(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def model(*, tied: bool) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    models.quiet()
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def saved(tmp_path, trained, *, main: bool = True):
    run = runs.RunPaths(tmp_path / "run")
    directory = run.directory / "checkpoint-7"
    directory.mkdir(parents=True, exist_ok=True)
    state = transformers.TrainerState(global_step=7, is_world_process_zero=main)
    args, control = None, transformers.TrainerControl()
    WholeCallback(Journal(run, 1)).on_save(args, state, control, model=trained)
    return directory


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_model_is_saved_whole_bit_for_bit(tmp_path, mesh, tied):
    whole = model(tied=tied)
    wanted = {name: value.clone() for name, value in whole.named_parameters()}
    fully_shard(whole, mesh=mesh)
    directory = saved(tmp_path, whole)
    found = {name: one.load() for name, one in shards.stored(directory).items()}
    assert found.keys() == wanted.keys()
    assert ("lm_head.weight" in found) != tied
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    told = json.loads((directory / "config.json").read_text())
    assert told["architectures"] == ["LlamaForCausalLM"]
    again = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert torch.equal(again.lm_head.weight, wanted.get("lm_head.weight", wanted[
        "model.embed_tokens.weight"]))  # fmt: skip


def test_a_sharded_adapter_is_saved_without_its_base(tmp_path, mesh):
    adapted = get_peft_model(model(tied=False), LoraConfig(r=2, target_modules=["q_proj"]))
    fully_shard(adapted, mesh=mesh)
    directory = saved(tmp_path, adapted)
    assert (directory / "adapter_model.safetensors").is_file()
    assert not (directory / "model.safetensors").exists()


def test_another_rank_and_what_is_whole_already_write_nothing(tmp_path, mesh):
    assert not list(saved(tmp_path, model(tied=False)).iterdir())  # DDP: the Trainer saves it
    sharded = fully_shard(model(tied=False), mesh=mesh)
    assert not list(saved(tmp_path, sharded, main=False).iterdir())
    directory = saved(tmp_path, sharded)
    (directory / "model.safetensors").write_bytes(b"FSDP's own")
    assert (saved(tmp_path, sharded) / "model.safetensors").read_bytes() == b"FSDP's own"
