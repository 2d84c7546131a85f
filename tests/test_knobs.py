"""Knobs read from a configuration, where several keys say the same."""

import pytest

from leviathan import knobs

TREE = {"adapter": "lora", "lora_r": 8, "num_epochs": 2}


@pytest.mark.parametrize(
    ("tree", "evals", "saves"),
    [
        ({}, None, None),
        ({"eval_steps": 50, "save_steps": 0.25}, 50, 0.25),
        ({"evals_per_epoch": 4, "saves_per_epoch": 1}, 1 / 8, 1 / 2),
        # Axolotl's normalize_config: a share of all steps or more is never.
        ({"num_epochs": 1, "evals_per_epoch": 1}, None, None),
        ({"num_epochs": 0.5, "saves_per_epoch": 1}, None, None),
    ],
)
def test_intervals_per_epoch_are_shares_of_all_steps(tree, evals, saves):
    found = knobs.read({**TREE, **tree})
    assert (found.eval_steps, found.save_steps) == (evals, saves)


@pytest.mark.parametrize(
    ("deepspeed", "strategy"),
    [
        ("deepspeed_configs/zero3_bf16.json", "zero3"),
        ("/zero3/plain.json", "ddp"),
        ({"zero_optimization": {"stage": 2}}, "zero2"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"nvme_path": "/disk/x"}}}, "zero3"),
        ({"zero_optimization": {"stage": 0}}, "ddp"),
        ({"zero_optimization": True}, "ddp"),
        ({}, "single"),
    ],
)
def test_the_stage_of_deepspeed(deepspeed, strategy):
    assert knobs.read({**TREE, "deepspeed": deepspeed}).strategy == strategy
