"""Shapes from names and files; tests/real/test_exact_counts.py compares them with the real classes."""

import json
import subprocess
import sys

import pytest

from leviathan import shapes
from leviathan.errors import BadInput

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
         "vocab_size": 512, "max_position_embeddings": 512}  # fmt: skip
SIGLIP = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
          "model_type": "siglip_vision_model", "num_attention_heads": 16,
          "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def write(directory, text):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(text)
    return str(directory)


# --- the shipped table ------------------------------------------------------------


@pytest.mark.parametrize("name", [entry["names"][0] for entry in shapes.entries()])
def test_every_shipped_shape_has_the_published_count(name):
    entry = shapes.shipped()[name]
    assert shapes.load(name).parameters == entry["parameters"]


def test_every_name_stands_for_one_entry():
    names = [name for entry in shapes.entries() for name in entry["names"]]
    assert sorted(names) == sorted(set(names))
    assert all(name.count("/") == 1 for name in names)


@pytest.mark.parametrize(
    ("name", "per_rank"),
    [
        # Published trainable counts, all linears: 41,943,040 at rank 16 for Llama 3.1 8B and
        # for Mistral 7B, 39,976,960 for Llama 2 7B, 40,370,176 for Qwen2.5 7B (Unsloth's
        # banners); 24,313,856 at rank 16 for Llama 3.2 3B.
        ("meta-llama/Llama-3.1-8B", 41_943_040 / 16),
        ("mistralai/Mistral-7B-v0.1", 41_943_040 / 16),
        ("meta-llama/Llama-2-7b-hf", 39_976_960 / 16),
        ("Qwen/Qwen2.5-7B", 40_370_176 / 16),
        ("meta-llama/Llama-3.2-3B-Instruct", 24_313_856 / 16),
    ],
)
def test_lora_on_all_linears_has_the_published_count(name, per_rank):
    assert shapes.load(name).lora_parameters(1, (), all_linear=True) == per_rank


def test_the_parts_of_a_model_are_all_of_it():
    for name in ("meta-llama/Llama-3.2-1B", "microsoft/phi-2", "google/gemma-3-4b-it"):
        shape = shapes.load(name)
        tied = shape.embedding_parameters if shape.tied else 0
        assert sum(part.parameters for part in shape.parts()) - tied == shape.parameters


def test_windows_and_positions():
    found = {name: shapes.load(name) for name in shapes.shipped()}
    windows = {name.split("/")[1]: s.sliding_window for name, s in found.items()}
    assert windows["Llama-3.1-8B"] is None
    assert windows["Mistral-7B-v0.1"] == 4096
    assert windows["Mistral-7B-v0.3"] is None
    assert windows["Qwen2.5-7B"] is None
    assert windows["gemma-3-27b-it"] == 1024
    assert windows["phi-2"] is None
    assert found["Qwen/Qwen2.5-7B"].max_positions == 131072
    assert found["Qwen/Qwen2.5-7B-Instruct"].max_positions == 32768


def test_a_published_file_that_leaves_defaults_out():
    """google/gemma-3-4b-it: its text_config has neither heads nor vocabulary."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "sliding_window": 1024}  # fmt: skip
    values = {"model_type": "gemma3", "text_config": text, "vision_config": SIGLIP}
    assert shapes.from_config(values, "gemma").parameters == 4_300_079_472


# --- names ------------------------------------------------------------------------


def test_a_downloaded_model_goes_before_the_table_and_a_directory_before_both(
    cache, tmp_path, monkeypatch
):
    name = "meta-llama/Llama-3.1-8B"
    assert shapes.load(name).layers == 32
    snapshot = cache / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "main"
    write(snapshot, json.dumps(LLAMA))
    assert shapes.load(name).layers == 2
    assert shapes.config(name) == LLAMA
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, json.dumps({**LLAMA, "num_hidden_layers": 3}))
    assert shapes.load(name).layers == 3


def test_only_the_tokenizer_was_downloaded(cache):
    (cache / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "main").mkdir(parents=True)
    assert shapes.load("meta-llama/Llama-3.1-8B").layers == 32


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("meta-lama/Llama-3.1-8B", "did you mean meta-llama/Llama-3.1-8B? else fetch it: hf "
         "download meta-lama/Llama-3.1-8B config.json"),
        ("a/b", "the shape of a/b is unknown: it is neither in the hub's cache nor shipped; fetch "
         "it: hf download a/b config.json"),
        ("./nowhere", "base model directory ./nowhere does not exist"),
        (".", " has no config.json; give a model's directory"),
    ],
)  # fmt: skip
def test_unknown_names(name, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        shapes.load(name)
    assert line in caught.value.line


# --- damage -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "cannot read {path}"),
        ("{", "cannot read {path}"),
        ("[" * 100_000, "cannot read {path}"),
        ("\xff", "cannot read {path}"),
        ("[]", "{path}: not a model's config: found list"),
        ("{}", "{path}: model_type is missing; shapes known: gemma2, gemma3, "),
    ],
)
def test_files_that_are_no_config(tmp_path, text, line):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput) as caught:
        shapes.load(str(tmp_path))
    assert caught.value.line.startswith(line.format(path=tmp_path / "config.json"))
    assert "\n" not in caught.value.line


@pytest.mark.parametrize("key", [*LLAMA, "head_dim"][1:])
@pytest.mark.parametrize("value", [0, -1, "4096", 1.5, True, [], 1 << 40])
def test_absurd_values(key, value):
    with pytest.raises(BadInput) as caught:
        shapes.from_config({**LLAMA, key: value}, "here", "here/config.json")
    assert caught.value.line.startswith(f"here/config.json: {key} must be a whole number from 1 to")
    assert repr(value) in caught.value.line


@pytest.mark.parametrize("key", [k for k in LLAMA if k not in {"num_key_value_heads"}])
def test_missing_keys(key):
    values = {k: v for k, v in LLAMA.items() if k != key}
    with pytest.raises(BadInput, match=f"^here: {key} is missing"):
        shapes.from_config(values, "here")
    with pytest.raises(BadInput, match=f"^here: {key} "):
        shapes.from_config({**LLAMA, key: None}, "here")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false (found 'yes')"),
        ({"mlp_bias": 1}, "mlp_bias must be true or false (found 1)"),
        ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of"),
        ({"model_type": "mistral", "sliding_window": "all"}, "sliding_window must be a whole"),
        ({"num_hidden_layers": 1001}, "num_hidden_layers must be a whole number from 1 to 1,000"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is none of the dense decoders"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral' is a mixture of experts"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "'qwen3_moe' is a mixture of experts"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "is a mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder-decoder"),
        ({"model_type": "mamba", "state_size": 16}, "'mamba' is a state-space model"),
        ({"model_type": "vit", "image_size": 224}, "'vit' is a vision model"),
        ({"model_type": "llava", "vision_config": SIGLIP}, "'llava' is a vision model"),
        ({"model_type": "gpt2"}, "'gpt2' is none of the dense decoders known here"),
        ({"model_type": "gemma3"}, "text_config must be a mapping (found None)"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 0}, "vision_config": SIGLIP},
         "text_config.hidden_size must be a whole number"),
        ({"model_type": "gemma3", "text_config": {}, "vision_config": {}},
         "vision_config.vision_use_head must be false"),
    ],
)  # fmt: skip
def test_what_is_no_known_decoder(values, line):
    with pytest.raises(BadInput) as caught:
        shapes.from_config({**LLAMA, **values}, "here")
    assert line in caught.value.line
    assert "\n" not in caught.value.line


def test_targets_that_name_nothing():
    shape = shapes.from_config(LLAMA, "here")
    with pytest.raises(BadInput) as caught:
        shape.lora_parameters(8, ("query",))
    assert caught.value.line == (
        "lora_target_modules: query names no linear of here; known: down_proj, gate_proj, k_proj, "
        "o_proj, q_proj, up_proj, v_proj"
    )


# --- weight -----------------------------------------------------------------------


def test_neither_torch_nor_the_hub_is_loaded():
    program = (
        "import sys; from leviathan import shapes; shapes.load('meta-llama/Llama-3.1-8B');"
        "print({'torch', 'transformers', 'huggingface_hub', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\n", done.stderr
