"""Forecasts of what a checkpoint and a merged model take."""

import dataclasses
import json
import struct

import pytest

from fakes import fake_files
from leviathan import checkpoints
from leviathan.disk import Forecast, forecast

Q, MLP = [64, 64], [128, 64]
SHAPES = {"model.layers.0.self_attn.q_proj.weight": Q, "model.layers.0.mlp.up_proj.weight": MLP,
          "model.norm.weight": [64], "lm_head.weight": [512, 64]}  # fmt: skip
NUMEL = 64 * 64 + 128 * 64 + 64 + 512 * 64


@pytest.fixture
def base(tmp_path):
    directory = tmp_path / "base"
    directory.mkdir()
    header = {name: {"dtype": "BF16", "shape": shape} for name, shape in SHAPES.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (directory / "tokenizer.json").write_bytes(b"x" * 1000)
    return directory


@pytest.mark.parametrize(
    ("tree", "parameters", "state"),
    [
        ({"lora_r": 8, "lora_target_modules": ["q_proj"]}, 8 * 128, 8),
        ({"lora_r": 8, "lora_target_modules": ["q_proj", "up_proj"]}, 8 * (128 + 192), 8),
        ({"lora_r": 8, "lora_target_linear": True}, 8 * (128 + 192), 8),
        ({"lora_r": 4, "lora_target_linear": True, "optimizer": "paged_adamw_8bit"}, 4 * (128 + 192), 2),
    ],
)  # fmt: skip
def test_before_the_first_checkpoint_loras_arithmetic_answers(base, tree, parameters, state):
    assert forecast(tree, str(base), []) == Forecast(parameters * (4 + state) + 1000, NUMEL * 2)


def test_a_checkpoint_of_the_run_answers_best(base, tmp_path):
    for step in (5, 10):
        fake_files.write_checkpoint(tmp_path, step)
    five, ten = checkpoints.scan(tmp_path)
    assert forecast({}, str(base), [five, ten]) == Forecast(ten.bytes, NUMEL * 2)
    broken = dataclasses.replace(ten, bytes=1, problem="made up")
    assert forecast({}, str(base), [five, broken]).checkpoint == five.bytes


def test_of_a_model_on_the_hub_nothing_is_known():
    assert forecast({"lora_r": 8}, "owner/model", []) == Forecast(None, None)


@pytest.mark.parametrize(
    "damage", [b"", b"\x01", b"\xff" * 8 + b"{}", struct.pack("<Q", 4) + b"nope"]
)
def test_a_broken_base_is_passed_over(base, damage):
    (base / "model.safetensors").write_bytes(damage)
    assert forecast({"lora_r": 8, "lora_target_linear": True}, str(base), []) == Forecast(
        None, None
    )
