"""Layers, provenance, overrides, names and errors of the configuration."""

from pathlib import Path
from typing import get_args

import pytest

from leviathan import config, corpus, layers, render, samples
from leviathan.errors import BadInput
from leviathan.layers import build
from leviathan.recipe import Recipe


def edit(path: str, old: str, new: str) -> None:
    file = Path(path)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def origin(merged, *key):
    found = merged.origin(key)
    return found.layer, found.where


# --- layers -----------------------------------------------------------------------


def test_profile_wins_over_recipe_and_set_over_both(project):
    edit(
        "configs/recipes/tiny.yaml",
        "  warmup_steps: 2",
        "  warmup_steps: 2\n  lora_r: 4\n  lora_alpha: 8",
    )
    merged = build("tiny", "tiny", "full", ["lora_alpha=32"])
    assert (merged.tree["lora_r"], merged.tree["lora_alpha"]) == (8, 32)
    assert origin(merged, "lora_r") == ("profile", "configs/profiles/tiny.yaml:10")
    assert origin(merged, "lora_alpha") == ("--set", "--set lora_alpha=32")
    assert origin(merged, "warmup_steps") == ("recipe", "configs/recipes/tiny.yaml:10")
    assert origin(merged, "base_model") == ("recipe", "configs/recipes/tiny.yaml:2")
    assert origin(merged, "num_epochs") == ("recipe", "configs/recipes/tiny.yaml:5")
    assert origin(merged, "datasets") == ("recipe", "configs/recipes/tiny.yaml:4")
    assert origin(merged, "datasets", 0, "type")[0] == "recipe"
    assert origin(merged, "not", "there") == ("leviathan", "derived")


def test_nested_blocks_merge_key_by_key_with_an_origin_each(project):
    edit("configs/recipes/tiny.yaml", "  warmup_steps: 2",
         "  warmup_steps: 2\n  special_tokens: {pad_token: a, eos_token: b}")  # fmt: skip
    edit("configs/profiles/tiny.yaml", "  adapter: lora",
         "  adapter: lora\n  special_tokens:\n    eos_token: c")  # fmt: skip
    merged = build("tiny", "tiny", "full", ["special_tokens.bos_token=d"])
    assert merged.tree["special_tokens"] == {"pad_token": "a", "eos_token": "c", "bos_token": "d"}
    origins = [
        origin(merged, "special_tokens", k)[0] for k in ("pad_token", "eos_token", "bos_token")
    ]
    assert origins == ["recipe", "profile", "--set"]


def test_lists_are_replaced_not_merged(project):
    merged = build("tiny", "tiny", "full", ["lora_target_modules=[q_proj]"])
    assert merged.tree["lora_target_modules"] == ["q_proj"]


def test_epochs_of_the_sample_win_over_the_recipes(project):
    edit("configs/recipes/tiny.yaml", "seed: 42", "seed: 42\nsamples:\n  10pct: {epochs: 4}")
    merged = build("tiny", "tiny", "10pct")
    assert merged.tree["num_epochs"] == 4
    assert origin(merged, "num_epochs") == ("recipe", "configs/recipes/tiny.yaml:8")
    assert build("tiny", "tiny", "full").tree["num_epochs"] == 1
    assert build("tiny", "tiny", "10pct", ["epochs=9"]).tree["num_epochs"] == 9


def test_a_value_nobody_set_says_so(project):
    edit("configs/recipes/tiny.yaml", "seed: 42\n", "")
    merged = build("tiny", "tiny", "full")
    assert merged.tree["seed"] == 42
    assert origin(merged, "seed") == ("default", "seed (not set in tiny.yaml)")


def test_files_are_left_as_they_were_by_a_second_build(project):
    one = build("tiny", "tiny", "full", ["datasets.0.type=completion", "lora_target_modules.0=x"])
    two = build("tiny", "tiny", "full")
    assert one.tree["datasets"][0]["type"] == "completion"
    assert two.tree["datasets"][0]["type"] == "alpaca"
    assert two.tree["lora_target_modules"][0] == "q_proj"


# --- --set ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("learning_rate=1e-4", "learning_rate", 1e-4),
        ("learning_rate = 1e-4", "learning_rate", 1e-4),
        ("axolotl.lora_r=4", "lora_r", 4),
        ("bf16=auto", "bf16", "auto"),
        ("sample_packing=true", "sample_packing", True),
        ("wandb_name='a=b'", "wandb_name", "a=b"),
        ("wandb_name=a=b", "wandb_name", "a=b"),
        ("lora_target_modules=[q_proj, v_proj]", "lora_target_modules", ["q_proj", "v_proj"]),
        ("gradient_checkpointing_kwargs.use_reentrant=false", "gradient_checkpointing_kwargs",
         {"use_reentrant": False}),
        ("gradient_checkpointing_kwargs={use_reentrant: false}", "gradient_checkpointing_kwargs",
         {"use_reentrant": False}),
        ("datasets.0.type=completion", "datasets", [{"ds_type": "json", "type": "completion"}]),
        ("seed=7", "seed", 7),
        ("epochs=2.5", "num_epochs", 2.5),
        ("base_model=other/model", "base_model", "other/model"),
    ],
)  # fmt: skip
def test_set(project, text, key, value):
    merged = build("tiny", "tiny", "full", [text])
    assert merged.tree[key] == value
    assert type(merged.tree[key]) is type(value)


def test_set_of_leviathans_own_keys_reaches_the_recipe(project):
    merged = build(
        "tiny", "tiny", "full", ["corpus=other.jsonl", "format=chat", "seed=7", "suite=demo"]
    )
    assert (merged.recipe.corpus, merged.recipe.format, merged.recipe.seed) == (
        "other.jsonl",
        "chat",
        7,
    )
    assert merged.recipe.suite == "demo"
    assert merged.tree["datasets"] == layers.dataset_entries("chat")
    assert not {"corpus", "format", "suite"} & set(merged.tree)


def test_every_format_is_one_axolotl_takes(project, keys):
    for row_format in get_args(Recipe.model_fields["format"].annotation):
        rewarded = ["val_set_size=0", "gradient_accumulation_steps=2"]
        more = rewarded if row_format == "choices" else []
        merged = build("tiny", "tiny", "full", [f"format={row_format}", *more])
        assert merged.tree["datasets"] == layers.dataset_entries(row_format)
        assert layers.row_fields(merged) == corpus.REQUIRED_FIELDS[row_format]
        render.check_keys(merged, keys)


@pytest.mark.parametrize("text", ["lora_dropout=null", "lora_dropout=", "lora_dropout=~"])
def test_null_takes_a_key_back(project, text):
    merged = build("tiny", "tiny", "full", [text])
    assert "lora_dropout" not in merged.tree
    assert build("tiny", "tiny", "full", [text, "lora_dropout=0.1"]).tree["lora_dropout"] == 0.1


def test_the_last_of_two_sets_of_one_key_wins(project):
    merged = build("tiny", "tiny", "full", ["lora_r=2", "lora_r=3"])
    assert merged.tree["lora_r"] == 3
    assert origin(merged, "lora_r")[1] == "--set lora_r=3"


# --- finding ----------------------------------------------------------------------


def test_own_configs_hide_the_packages(project):
    assert config.find("profiles", "a4000") != Path("configs/profiles/a4000.yaml")
    Path("configs/profiles/a4000.yaml").write_text("description: mine\n")
    name, profile, source = config.load_profile("a4000")
    assert (name, profile.description) == ("a4000", "mine")
    assert source.path == Path("configs/profiles/a4000.yaml")


def test_aliases_name_the_canonical_profile(project):
    name, profile, _ = config.load_profile("a100")
    assert name == "a100-80gb"
    assert "a100" in profile.aliases
    merged = build("tiny", "a100", "full")
    assert (merged.profile_name, merged.profile_asked) == ("a100-80gb", "a100")
    assert layers.run_name(merged, None) == "tiny_full_a100-80gb"


def test_a_profile_may_be_a_path(project):
    Path("mine.yaml").write_text(Path("configs/profiles/tiny.yaml").read_text())
    assert build("tiny", "mine.yaml", "full").profile_name == "mine"


@pytest.mark.parametrize("kind", ["profiles", "recipes"])
def test_shipped_files_are_valid(kind):
    load = {"profiles": config.load_profile, "recipes": config.load_recipe}[kind]
    assert {load(str(path))[0] for path in config.names(kind).values()} >= (
        {
            "a4000",
            "rtx3090",
            "rtx4090",
            "a100-40gb",
            "a100-80gb",
            "h100-80gb",
            "h200",
            "a100x8",
            "h100x8",
            "cpu",
        }
        if kind == "profiles"
        else {"leviathan"}
    )


def test_prices_are_dated_and_for_the_whole_machine():
    one, eight = (config.load_profile(name)[1].prices for name in ("a100-80gb", "a100x8"))
    assert one is not None
    assert eight is not None
    assert {p: round(8 * usd, 2) for p, usd in one.usd_hour.items()} == eight.usd_hour
    text = "prices: {as_of: 2025-11, usd_hour: {mine: 0}}"
    assert config.parse_profile(text).prices.as_of == "2025-11"
    assert config.parse_profile(text.replace("-11", "")).prices.as_of == "2025"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("prices: {usd_hour: {a: 1}}", "prices.as_of is required and missing"),
        ("prices: {as_of: soon, usd_hour: {a: 1}}", "prices.as_of: string should match"),
        ("prices: {as_of: 2025}", "prices.usd_hour is required and missing"),
        ("prices: {as_of: 2025, usd_hour: {}}", "prices.usd_hour: dictionary should have"),
        ("prices: {as_of: 2025, usd_hour: {a: -1}}", "prices.usd_hour.a: input should be"),
        ("prices: {as_of: 2025, usd_hour: {a: .nan}}", "prices.usd_hour.a: input should be"),
        ("prices: {as_of: 2025, usd_hours: {a: 1}}", "did you mean usd_hour?"),
        ("electricity_usd_kwh: -1", "electricity_usd_kwh: input should be"),
        ("hardware: {variants: [{gpu: x}]}", "hardware.variants.0.nvml_names is required"),
        ("hardware: {system_power_w: -5}", "hardware.system_power_w: input should be"),
    ],
)
def test_wrong_money_and_power_are_bad_input(project, block, message):
    Path("configs/profiles/wrong.yaml").write_text(f"{block}\n")
    with pytest.raises(BadInput) as caught:
        config.load_profile("wrong")
    assert message in caught.value.message
    assert "configs/profiles/wrong.yaml:1: " in caught.value.message


def test_differences_between_profiles(project):
    one, two = config.load_profile("a4000")[1], config.load_profile("a100")[1]
    found = {key: (left, right) for key, left, right in config.differences(one, two)}
    assert found["axolotl.adapter"] == ("qlora", "lora")
    assert found["axolotl.load_in_4bit"] == (True, None)
    assert "axolotl.bf16" not in found
    assert config.differences(one, one) == []


# --- samples and names ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("10pct", 0.1), ("0.5pct", 0.005), ("100pct", 1.0), ("full", None), ("5000", 5000), ("1", 1)],
)
def test_parse_sample(text, value):
    assert samples.parse(text) == value


@pytest.mark.parametrize(
    "text",
    ["0pct", "150pct", "100.1pct", "-3", "-3pct", "abc", "0", "00", "", "10%", "10 pct", "1e3", "1.5",
     "Full", "10pct ", "10pct\n", ".5pct", "nanpct"],
)  # fmt: skip
def test_what_is_no_sample_is_bad_input(text):
    with pytest.raises(BadInput, match="is not a sample"):
        samples.parse(text)


@pytest.mark.parametrize("name", ["a", "my-run_2.0", "2026-11-21", "x" * 100])
def test_run_names(project, name):
    assert layers.run_name(build("tiny", "tiny", "full"), name) == name


@pytest.mark.parametrize(
    "name",
    ["a/b", "..", ".", "a..b", ".hidden", "-x", "a b", "é", "x" * 101, "a\n", "a\x00", "/tmp/x"],
)
def test_names_that_could_leave_the_directory_are_bad_input(project, name):
    with pytest.raises(BadInput, match="cannot be a run's name"):
        layers.run_name(build("tiny", "tiny", "full"), name)


# --- errors -----------------------------------------------------------------------


def test_every_problem_of_a_file_comes_in_one_error_with_its_line(project):
    edit("configs/profiles/tiny.yaml", "hardware: {device: cpu}",
         "hardware: {device: tpu, cout: 2}\nchekpoints: {keep: 3}")  # fmt: skip
    with pytest.raises(BadInput) as caught:
        build("tiny", "tiny", "full")
    lines = caught.value.message.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("configs/profiles/tiny.yaml:") for line in lines)
    text = caught.value.message
    assert ":2: hardware.device: input should be 'cuda' or 'cpu' (found 'tpu')" in text
    assert ":2: hardware.cout is not a known key; did you mean count?" in text
    assert ":3: chekpoints is not a known key; did you mean checkpoints?" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_model: base\n", "", "tiny.yaml:1: base_model, or model for one made from nothing, is required"),
        ("seed: 42", "seed: -1", ":6: seed: "),
        ("epochs: 1", "epochs: 0", ":5: epochs: "),
        ("epochs: 1", "epochs: many", ":5: epochs: "),
        ("format: alpaca", "format: alpacca", ":4: format: "),
        ("seed: 42", "seed: 42\nlearning_rate: 1", ":7: learning_rate is not a known key; Axolotl's own keys belong under axolotl:"),
        ("seed: 42", "seed: 42\nsamples: {10pct: {epoch: 2}}", ":7: samples.10pct.epoch is not a known key; did you mean epochs?"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_named_by_line(project, old, new, message):
    edit("configs/recipes/tiny.yaml", old, new)
    with pytest.raises(BadInput) as caught:
        build("tiny", "tiny", "full")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("output_dir=/tmp/x", "--set output_dir=/tmp/x: output_dir is not yours to set here"),
        ("axolotl.output_dir=/tmp/x", "output_dir is not yours to set here"),
        ("leviathan.run_dir=/tmp/x", "leviathan is not yours to set here"),
        ("save_total_limit=3", "use checkpoints.keep in the profile"),
    ],
)
def test_keys_that_leviathan_writes_itself_are_told_with_the_unknown_ones(project, text, problem):
    (found,) = build("tiny", "tiny", "full", [text]).problems
    assert problem in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate", "is not key=value"),
        ("=5", "is not key=value"),
        ("", "is not key=value"),
        ("learning-rate=5", "is not key=value"),
        ("a b=5", "is not key=value"),
        ("lora_target_modules=[q_proj", "cannot read '[q_proj' as a YAML value"),
        ("epochs=0", "--set epochs=0: epochs: "),
        ("seed=abc", "--set seed=abc: seed: "),
        ("format=xml", "--set format=xml: format: "),
        (
            "datasets.0.path=x",
            "--set datasets.0.path=x: datasets.0.path is where the sample is put",
        ),
        ("datasets.3.type=x", "datasets.3 is not in the list it names"),
        ("datasets.first.type=x", "datasets.first is not in the list it names"),
    ],
)
def test_a_wrong_set_is_bad_input(project, text, message):
    with pytest.raises(BadInput) as caught:
        build("tiny", "tiny", "full", [text])
    assert message in caught.value.message


@pytest.mark.parametrize("aliases", ["5", "a100", "{a: b}", "[{a: b}]"])
def test_aliases_of_a_wrong_type_are_bad_input_not_a_crash(project, aliases):
    Path("configs/profiles/wrong.yaml").write_text(f"aliases: {aliases}\n")
    for name in ("nobody", "wrong"):
        with pytest.raises(BadInput):
            config.load_profile(name)
