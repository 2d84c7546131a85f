"""Axolotl's own keys: what it would drop silently is found, what it takes is not refused."""

import json
import os
from pathlib import Path

import pytest

from leviathan import schema

LIGER = ["axolotl.integrations.liger.LigerPlugin"]


def problems(keys, tree, plugins=()):
    return [(p.key, p.message, p.hint) for p in keys.check(tree, list(plugins))]


@pytest.mark.parametrize(
    "tree",
    [
        {"base_model": "x", "lora_r": 8, "learning_rate": 1e-4, "bf16": "auto", "val_set_size": 0.05},
        {"learning_rate": "2e-4"},
        {"datasets": [{"path": "a", "type": "alpaca", "ds_type": "json"}]},
        {"datasets": [{"path": "a", "type": {"field_instruction": "q", "field_output": "a"}}]},
        {"datasets": [{"path": "a", "type": "chat_template", "field_messages": "messages",
                       "message_property_mappings": {"role": "from", "content": "value"}}]},
        {"optimizer": "adamw_torch"}, {"optimizer": "paged_adamw_8bit"}, {"optimizer": "muon"},
        {"lr_scheduler": "cosine"}, {"lr_scheduler": "rex"}, {"lr_scheduler": None},
        {"lora_target_modules": ["q_proj"]}, {"lora_target_modules": "q_proj"},
        {"special_tokens": {"pad_token": "<pad>"}}, {"tokens": ["<a>"]},
        {"gradient_checkpointing": "offload"}, {"gradient_checkpointing": True},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"activation_offloading": "hidden_states"},
        {"micro_batch_size": 4.0}, {"bf16": 1}, {"save_steps": 0.1},
        {"deepspeed": "zero2.json"}, {"fsdp_config": {"offload_params": True}},
        {"rl": "grpo", "trl": {"num_generations": 4}},
        {"wandb_project": None}, {"chat_template": "llama3"},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_axolotl_takes_is_accepted(keys, tree):
    assert problems(keys, tree) == []


@pytest.mark.parametrize(
    ("tree", "key", "message", "hint"),
    [
        (
            {"lora_rr": 8},
            ("lora_rr",),
            "lora_rr is not a key Axolotl knows",
            "did you mean lora_",
        ),
        ({"learning_rat": 1}, ("learning_rat",), "not a key", "did you mean learning_rate?"),
        ({"qqqq": 1}, ("qqqq",), "not a key", "drop it silently"),
        (
            {"datasets": [{"path": "a"}, {"pth": "b"}]},
            ("datasets", 1, "pth"),
            "datasets.1.pth is not",
            "path",
        ),
        (
            {"micro_batch_size": "four"},
            ("micro_batch_size",),
            "'four' does not fit",
            "expected int",
        ),
        ({"learning_rate": [1]}, ("learning_rate",), "does not fit", "expected float"),
        ({"learning_rate": "fast"}, ("learning_rate",), "does not fit", "expected float"),
        ({"optimizer": "adam_torch"}, ("optimizer",), "'adam_torch' does not fit", "adamw_torch"),
        ({"lr_scheduler": "cosin"}, ("lr_scheduler",), "'cosin' does not fit", "cosine"),
        ({"sample_packing": "maybe"}, ("sample_packing",), "does not fit", "bool"),
        ({"trl": {"num_generation": 4}}, ("trl", "num_generation"), "not a key", "num_generations"),
    ],
)
def test_what_axolotl_would_drop_or_choke_on_is_found(keys, tree, key, message, hint):
    ((where, text, advice),) = problems(keys, tree)
    assert where == key
    assert message in text
    assert hint in advice


def test_keys_of_an_integration_need_its_plugin(keys):
    ((key, message, hint),) = problems(keys, {"liger_rope": True})
    assert key == ("liger_rope",)
    assert message == "liger_rope has no effect without its plugin"
    assert "axolotl.integrations.liger" in hint
    assert problems(keys, {"liger_rope": True}, LIGER) == []
    assert len(problems(keys, {"liger_ropes": True}, LIGER)) == 1


def test_problems_come_all_together_in_the_order_written(keys):
    tree = {"zz": 1, "lora_r": "x", "datasets": [{"aa": 1}]}
    assert [p[0] for p in problems(keys, tree)] == [("zz",), ("lora_r",), ("datasets", 0, "aa")]


def test_axolotl_is_asked_once_per_version(keys, keys_cache):
    (cached,) = Path(keys_cache, "leviathan").glob(f"axolotl-{keys.version}-*.json")
    before = cached.stat().st_mtime_ns
    assert schema.is_cached()
    assert schema.load() == keys
    assert cached.stat().st_mtime_ns == before


def test_cache_that_is_a_fraction_of_a_file_is_not_believed(
    keys, keys_cache, tmp_path, monkeypatch
):
    """Asked again: with a python that cannot answer, the answer is None, not half the keys."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (cached,) = Path(keys_cache, "leviathan").glob(f"axolotl-{keys.version}-*.json")
    (tmp_path / "leviathan").mkdir()
    (tmp_path / "leviathan" / cached.name).write_bytes(cached.read_bytes()[:1000])
    (tmp_path / "broken/axolotl").mkdir(parents=True)
    (tmp_path / "broken/axolotl/__init__.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "broken")]))
    assert schema.load() is None
