"""Counts from a config.json against the real classes: transformers and PEFT, on the meta device."""

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from leviathan import shapes
from leviathan.errors import BadInput

pytestmark = pytest.mark.real

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 80, "vocab_size": 96,
         "max_position_embeddings": 64}  # fmt: skip
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
          "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_use_head": False}  # fmt: skip


def without(*keys, **changed):
    """SMALL with a size that any number of heads divides, less keys that have defaults."""
    return {k: v for k, v in {**SMALL, "hidden_size": 64, **changed}.items() if k not in keys}


FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi", "phi3"]
CASES = {family: {**SMALL, "model_type": family, "pad_token_id": 0} for family in FAMILIES} | {
    "llama tied": {**SMALL, "model_type": "llama", "tie_word_embeddings": True},
    "llama biases": {**SMALL, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama head_dim": {**SMALL, "model_type": "llama", "head_dim": 20},
    "qwen2 tied": {**SMALL, "model_type": "qwen2", "tie_word_embeddings": True},
    "gemma2 untied": {**SMALL, "model_type": "gemma2", "tie_word_embeddings": False, "head_dim": 8},
    "phi norms": {**SMALL, "model_type": "phi", "qk_layernorm": True, "head_dim": 20},
    "qwen2 absent": without("num_key_value_heads", model_type="qwen2", num_attention_heads=32),
    "qwen3 absent": without("num_key_value_heads", model_type="qwen3", num_attention_heads=32),
    "mistral absent": without("num_key_value_heads", model_type="mistral", num_attention_heads=16),
    "gemma2 absent": without(
        "num_attention_heads", "num_key_value_heads", "vocab_size", model_type="gemma2"
    ),
    "gemma3": {"model_type": "gemma3", "text_config": SMALL, "vision_config": VISION},
    "gemma3 untied": {"model_type": "gemma3", "text_config": SMALL, "vision_config": VISION,
                      "tie_word_embeddings": False},
}  # fmt: skip
GUIDE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")
SEVEN = (*GUIDE, "up_proj", "down_proj")


def build(config):
    """The model that Axolotl would load, without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {k: v for k, v in config.items() if k != "model_type"}
    loaded = AutoConfig.for_model(config["model_type"], **given)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(loaded)


def numel(model, trained=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def adapt(config, rank, targets, save=(), all_linear=False):
    """Trained parameters of a real adapter, targets found by the real Axolotl if all linears."""
    from peft import LoraConfig, get_peft_model

    model = build(config)
    names = list(targets)
    if all_linear:
        names = sorted({*names, *find_all_linear_names()(model)})
    lora = LoraConfig(r=rank, target_modules=names, modules_to_save=list(save) or None,
                      task_type="CAUSAL_LM")  # fmt: skip
    return numel(get_peft_model(model, lora), trained=True)


@functools.cache
def find_all_linear_names():
    from axolotl.loaders.adapter import find_all_linear_names

    return find_all_linear_names


@pytest.mark.parametrize("case", CASES)
def test_every_family_counts_what_transformers_builds(case):
    model, shape = build(CASES[case]), shapes.from_config(CASES[case], case)
    assert shape.parameters == numel(model)
    paths = {name: module for name, module in model.named_modules() if not list(module.children())}
    for part in shape.parts():
        if part.path in paths:  # the projector's matrix is a bare parameter
            assert part.parameters == numel(paths[part.path]), part.path
    assert {p.path for p in shape.parts()} >= {n for n, m in paths.items() if numel(m)}


@st.composite
def configs(draw):
    """Any config that its family's class takes."""
    kv_heads, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = kv_heads * groups
    config = {
        "model_type": draw(st.sampled_from(FAMILIES)),
        "hidden_size": heads * draw(st.integers(1, 12)) * 2,
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": draw(st.integers(1, 200)),
        "vocab_size": draw(st.integers(2, 500)),
        "max_position_embeddings": draw(st.integers(1, 200)),
        "pad_token_id": 0,
    }
    optional = {
        "head_dim": st.integers(1, 20).map(lambda x: 2 * x),
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "qk_layernorm": st.booleans(),
        "sliding_window": st.integers(1, 100),
    }
    for key in draw(st.sets(st.sampled_from(sorted(optional)))):
        config[key] = draw(optional[key])
    if draw(st.booleans()) and config["model_type"] in {"llama", "phi", "phi3"}:
        del config["num_key_value_heads"]
    return config


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs(), rank=st.integers(1, 16), data=st.data())
def test_any_config_and_any_targets_count_what_is_really_built(config, rank, data):
    shape = shapes.from_config(config, "drawn")
    names = [linear.name for linear in shape.linears]
    targets = data.draw(st.sets(st.sampled_from([*names, "embed_tokens", "lm_head"])))
    save = data.draw(st.sets(st.sampled_from(["embed_tokens", "lm_head", *names]), max_size=3))
    all_linear = data.draw(st.booleans())
    assume(({*targets, *names} if all_linear else targets) - save)
    assert shape.parameters == numel(build(config))
    real = adapt(config, rank, targets, save, all_linear)
    assert shape.lora_parameters(rank, targets, all_linear, save) == real


def test_every_set_of_targets_counts_what_peft_adapts():
    shape = shapes.from_config(CASES["llama"], "llama")
    sets = [(name,) for name in (*SEVEN, "lm_head", "embed_tokens")] + [GUIDE, SEVEN]
    sets += [("self_attn.q_proj",), ("layers.1.mlp.up_proj", "nothing"), ("q_proj", "lm_head")]
    for targets in sets:
        assert shape.lora_parameters(4, targets) == adapt(CASES["llama"], 4, targets), targets
    pattern = r"model\.layers\.1\.mlp\.(up|down)_proj"
    both = ["layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]
    assert shape.lora_parameters(4, (pattern,)) == adapt(CASES["llama"], 4, both)


@pytest.mark.parametrize("case", CASES)
def test_all_linears_are_those_axolotl_finds(case):
    shape = shapes.from_config(CASES[case], case)
    assert shape.lora_parameters(8, (), True) == adapt(CASES[case], 8, (), all_linear=True)
    if case != "phi3":
        assert shape.lora_parameters(8, ("q_proj",)) == adapt(CASES[case], 8, ("q_proj",))


@pytest.mark.parametrize("case", ["llama", "llama tied", "phi", "gemma3"])
@pytest.mark.parametrize(
    "save",
    [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head"), ("norm",), ("q_proj",),
     ("mlp",), ("input_layernorm",), ("self_attn.v_proj",), ("nothing",), ("0",)],
    ids="+".join,
)  # fmt: skip
def test_modules_trained_whole_are_counted_as_peft_copies_them(case, save):
    shape = shapes.from_config(CASES[case], case)
    for targets, every in itertools.product([("v_proj", "up_proj", "fc1")], [False, True]):
        counted = shape.lora_parameters(4, targets, every, save)
        assert counted == adapt(CASES[case], 4, targets, save, every), every


def test_what_peft_refuses_is_refused():
    shape = shapes.from_config(CASES["llama"], "llama")
    with pytest.raises(BadInput, match="names no linear of llama"):
        shape.lora_parameters(4, ("nothing",))
    with pytest.raises(ValueError, match="not found in the base model"):
        adapt(CASES["llama"], 4, ("nothing",))


def test_a_downloaded_model_is_found_where_huggingface_hub_keeps_it(tmp_path, monkeypatch):
    names = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"]
    program = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for layers, name in enumerate(reversed(names), 1):
        monkeypatch.setenv(name, str(tmp_path / name))
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        model = Path(done.stdout.strip()) / "models--owner--model"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("c0ffee")
        (model / "snapshots" / "c0ffee").mkdir(parents=True)
        config = {**CASES["llama"], "num_hidden_layers": layers}
        (model / "snapshots" / "c0ffee" / "config.json").write_text(json.dumps(config))
        assert shapes.load("owner/model").layers == layers, name


def test_a_shape_is_read_from_what_transformers_saves(tmp_path):
    """Its config.json leaves out what equals the class's default."""
    for case, config in CASES.items():
        model = build(config)
        model.config.save_pretrained(tmp_path / case)
        assert json.loads((tmp_path / case / "config.json").read_bytes())
        assert shapes.load(str(tmp_path / case)).parameters == numel(model), case
