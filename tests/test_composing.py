"""Recipes with modes and stages: whose word counts, from which line, and what is refused."""

import pytest

from leviathan import layers, stages
from leviathan.errors import BadInput

STAGED = """
global_batch_tokens: 2048
total_tokens: 100_000
warmup_tokens: 9_000
stages:
  - name: mid
    train: full
    axolotl: {learning_rate: 3e-3, lr_scheduler: linear}
    checkpoints: {keep: 2}
  - name: sft
    epochs: 2
    start: latest
    axolotl: {weight_decay: 0.1}
modes:
  demo:
    sample: "100"
    axolotl: {learning_rate: 4e-3, logging_steps: 7}
    stages:
      sft: {axolotl: {max_steps: 9}, seed: 7}
"""


@pytest.fixture
def staged(project):
    """The tiny recipe in two stages, packed, as ``staged``."""
    recipe = (project / "configs/recipes/tiny.yaml").read_text()
    path = project / "configs/recipes/staged.yaml"
    recipe = recipe.replace("  warmup_steps: 2\n", "")
    path.write_text(recipe + "  sample_packing: true\n" + STAGED)

    def build(*sets, sample=None):
        return layers.build("staged", "tiny", sample, sets)

    build.path = path
    return build


def test_the_first_stage_is_meant_where_none_is_named(staged):
    config = staged()
    assert (config.stage, config.stages, config.before) == ("mid", ("mid", "sft"), "")
    assert config.sample == "10pct"
    assert layers.run_name(config, None) == "staged_10pct_tiny.mid"


def test_a_mode_brings_its_sample_and_its_name(staged):
    config = staged("mode=demo", "stage=sft")
    assert config.sample == "100"
    assert layers.run_name(config, None) == "staged_100_tiny_demo.sft"
    assert staged("mode=demo", sample="50").sample == "50"


@pytest.mark.parametrize("name", ["big", "big.sft"])
def test_a_name_is_of_the_whole(staged, name):
    assert layers.run_name(staged("stage=sft"), name) == "big.sft"


def test_a_stage_is_over_its_mode_and_both_over_the_profile(staged):
    config = staged("mode=demo")
    assert config.tree["learning_rate"] == 3e-3  # the stage's, not the mode's 4e-3
    assert config.tree["logging_steps"] == 7  # the mode's, not the profile's 1
    assert config.origin(("learning_rate",)).layer == "stage mid"
    where = config.origin(("logging_steps",))
    line = int(where.where.rpartition(":")[2])
    assert "logging_steps: 7" in staged.path.read_text().splitlines()[line - 1]
    assert config.profile.checkpoints.keep == 2
    assert staged("stage=sft").profile.checkpoints.keep == 5


def test_set_is_over_all(staged):
    config = staged("mode=demo", "learning_rate=1e-5", "seed=3", "stage=sft")
    assert (config.tree["learning_rate"], config.tree["seed"]) == (1e-5, 3)
    assert staged("mode=demo", "stage=sft").tree["seed"] == 7


def test_every_weight_needs_no_key_of_adapters(staged):
    full, adapter = staged(), staged("stage=sft")
    assert not [key for key in full.tree if key.startswith("lora_") or key == "adapter"]
    assert adapter.tree["adapter"] == "lora"
    with pytest.raises(BadInput, match="--set lora_r=4: lora_r belongs to an adapter"):
        staged("lora_r=4")


def test_tokens_become_whole_steps_with_their_arithmetic(staged):
    config = staged()
    tree = config.tree
    # 4 rows of 256 on one process are 1,024 tokens.
    assert (tree["gradient_accumulation_steps"], tree["max_steps"]) == (2, 49)
    assert tree["warmup_steps"] == 4
    told = config.origin(("max_steps",)).where
    assert "total_tokens 100,000 / 2,048 a step = 49 (48.83 rounded up)" in told
    assert f"{staged.path.name}:" in told


def test_epochs_above_take_the_place_of_tokens_below(staged):
    config = staged("stage=sft")
    assert "max_steps" not in config.tree
    assert config.tree["num_epochs"] == 2


def test_steps_that_are_said_above_count(staged):
    config = staged("mode=demo", "stage=sft")
    assert config.tree["max_steps"] == 9
    assert staged("max_steps=5").tree["max_steps"] == 5
    assert staged("gradient_accumulation_steps=1").tree["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["global_batch_tokens=3000"],
         "--set global_batch_tokens=3000: global_batch_tokens 3,000 is no multiple of micro batch "
         "x sequence length x processes: 4 x 256 x 1 process = 1,024"),
        (["sample_packing=false"], "global_batch_tokens counts full sequences"),
        (["warmup_tokens=5", "warmup_steps=5"], "warmup_tokens and warmup_steps"),
        (["mode=dem"], "has no mode 'dem'"),
        (["stage=sff"], "has no stage 'sff'"),
        (["train=half"], "train"),
        (["total_tokens=0"], "total_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_with_its_place(staged, sets, message):
    with pytest.raises(BadInput) as caught:
        staged(*sets)
    assert message in caught.value.message
    assert caught.value.hint or "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  - name: sft", "  - name: mid", "two stages are called mid"),
        ("      sft: {", "      rl: {", "mode demo names a stage rl"),
        ("    epochs: 2", "    epoch: 2", "stages.1.epoch is not a known key; did you mean epochs?"),
        ("    start: latest", "    start: newest", "stages.1.start"),
        ("  - name: sft", "  - name: SFT run", "stages.1.name"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_names_its_line(staged, old, new, message):
    staged.path.write_text(staged.path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=r"staged\.yaml:\d+: ") as caught:
        staged()
    assert message in caught.value.message


def test_a_secret_in_a_stage_is_refused(staged):
    secret = "hf_" + "A1b2C3d4" * 5
    staged.path.write_text(staged.path.read_text().replace("weight_decay: 0.1", f"hub: {secret}"))
    with pytest.raises(BadInput, match="environment variable") as caught:
        staged()
    assert secret not in caught.value.message


def test_a_later_stage_trains_what_the_one_before_makes(staged):
    config = staged("stage=sft")
    assert config.tree["base_model"] == "work/training/staged_10pct_tiny.sft/base"
    assert (config.before, config.starts, config.lacks_base) == ("mid", "latest", True)
    given = staged("stage=sft", "base_model=elsewhere")
    assert (given.tree["base_model"], given.makes_base) == ("elsewhere", False)


def test_legs_and_what_is_asked_of_them(staged):
    legs = stages.legs(staged("mode=demo", "stage=sft"), "big")
    assert [leg.paths.directory.name for leg in legs] == ["big.mid", "big.sft"]
    assert legs[1].before == legs[0].paths
    assert legs[1].config.tree["base_model"] == "work/training/big.sft/base"
    assert [leg.stage for leg in stages.select(legs, None, None)] == ["mid", "sft"]
    assert [leg.stage for leg in stages.select(legs, None, "mid")] == ["mid"]
    assert [leg.stage for leg in stages.select(legs, "sft", None)] == ["sft"]
    with pytest.raises(BadInput, match="--until 'rl' is no stage of this recipe"):
        stages.select(legs, None, "rl")
    with pytest.raises(BadInput, match="--stage is one stage"):
        stages.select(legs, "mid", "sft")


def test_a_recipe_without_stages_is_one_leg(project):
    (leg,) = stages.legs(layers.build("tiny", "tiny", "full"))
    assert (leg.stage, leg.paths.directory.name) == ("", "tiny_full_tiny")
    with pytest.raises(BadInput, match="no stage of this recipe"):
        stages.select((leg,), "sft", None)
