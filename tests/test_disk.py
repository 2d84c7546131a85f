"""Forecasts of what a checkpoint and a merged model take; tests/real/test_disk_forecast.py measures them."""

import dataclasses
import json
import struct

import pytest

from fakes import fake_files
from leviathan import checkpoints, knobs, shapes
from leviathan.disk import Forecast, forecast, optimizer_bytes, planned

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
          "vocab_size": 512, "max_position_embeddings": 512}  # fmt: skip
LORA = {"adapter": "lora", "lora_r": 8, "lora_target_linear": True, "bf16": True}
LLAMA = "meta-llama/Llama-3.1-8B"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def base(tmp_path):
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_bytes(b"x" * 1000)
    return directory


def gb(tree, name=LLAMA):
    found = forecast({"bf16": True, **tree}, name, [])
    return found.checkpoint / 1e9, found.merged / 1e9


@pytest.mark.parametrize(
    ("tree", "checkpoint_gb"),
    [
        # 2,621,440 LoRA parameters for each rank on all linears (shared/facts.md 5), 4 B for
        # each, 8 B of fp32 moments or 2 and a sixty-fourth in 8 bits, and 17 MB of tokenizer.
        ({**LORA, "lora_r": 16}, 0.503 + 0.018),
        ({**LORA, "lora_r": 32}, 1.007 + 0.018),
        ({**LORA, "lora_r": 16, "optimizer": "paged_adamw_8bit"}, 0.253 + 0.018),
        ({**LORA, "lora_r": 16, "optimizer": "lion_8bit"}, 0.211 + 0.018),
        ({**LORA, "lora_r": 16, "lora_modules_to_save": ["embed_tokens"]}, 0.503 + 6.304 + 0.018),
        # Whole: bf16 weights and moments; in 8 bits but for the embedding's; ZeRO's fp32 copies.
        ({}, 8.030 * 6),
        ({"optimizer": "adamw_8bit"}, 8.030 * 2 + 7.505 * 2.031 + 0.525 * 8),
        ({"optimizer": "adamw_torch_8bit"}, 8.030 * 4.031),
        ({"optimizer": "adafactor"}, 8.030 * 2),
        ({"deepspeed": "deepspeed_configs/zero3_bf16.json"}, 8.030 * 16),
        # FSDP2 casts what is trained up: weights and two moments in fp32.
        ({"fsdp_version": 2, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}, 8.030 * 12),
    ],
)  # fmt: skip
def test_a_model_that_is_not_downloaded_is_forecast(tree, checkpoint_gb):
    checkpoint, merged = gb(tree)
    assert checkpoint == pytest.approx(checkpoint_gb, rel=0.01)
    assert merged == pytest.approx(2 * 8.030, rel=0.01)


def test_a_local_models_own_tokenizer_counts(base):
    one = forecast(LORA, str(base), [])
    (base / "tokenizer.json").write_bytes(b"x" * 5000)
    two = forecast(LORA, str(base), [])
    assert (two.checkpoint - one.checkpoint, two.merged - one.merged) == (4000, 4000)
    shape = shapes.load(str(base))
    assert two == planned(shape, knobs.read(LORA), tokenizer=5000)


def test_so_does_a_downloaded_ones(base, tmp_path):
    snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    base.rename(snapshot)
    there = forecast(LORA, "owner/model", [])
    (snapshot / "tokenizer.json").write_bytes(b"x" * 5000)
    assert forecast(LORA, "owner/model", []).checkpoint == there.checkpoint + 4000


def test_a_checkpoint_of_the_run_answers_best(base, tmp_path):
    for step in (5, 10):
        fake_files.write_checkpoint(tmp_path, step)
    five, ten = checkpoints.scan(tmp_path)
    first = forecast(LORA, str(base), [])
    assert forecast(LORA, str(base), [five, ten]) == Forecast(ten.bytes, first.merged, first.slim)
    checkpoints.commit(ten.path, {"step": 10})
    five, ten = checkpoints.scan(tmp_path)
    resumed = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    slim = ten.bytes - sum((ten.path / name).stat().st_size for name in resumed)
    assert forecast(LORA, str(base), [five, ten]) == Forecast(ten.bytes, first.merged, slim)
    broken = dataclasses.replace(ten, bytes=1, problem="made up")
    assert forecast(LORA, str(base), [five, broken]).checkpoint == five.bytes


@pytest.mark.parametrize(
    "tree", [LORA, {**LORA, "lora_target_linear": None}, {**LORA, "lora_r": "many"}]
)
def test_what_cannot_be_forecast_refuses_no_run(tree):
    assert forecast(tree, "owner/model", []) == Forecast(None, None)


def test_of_an_unknown_architecture_the_weights_tell_the_merged_size(base):
    (base / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": 8}')
    header = json.dumps({"w": {"dtype": "BF16", "shape": [50], "data_offsets": [0, 100]}}).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(100)
    (base / "model.safetensors").write_bytes(whole)
    assert forecast(LORA, str(base), []) == Forecast(None, len(whole))


def test_small_tensors_are_not_quantised():
    assert optimizer_bytes("adamw_8bit", [(8, 511)]) == 8 * 8 * 511
    assert optimizer_bytes("adamw_8bit", [(8, 512)]) == 2 * (8 * 512 + 4 * 16)
