"""docs/guides.md and the recipes it is about."""

import subprocess
import sys
from pathlib import Path

import pytest

from leviathan import config, layers

ROOT = Path(__file__).parents[1]
MACHINES = {"nanochat": "a100-40gb", "nanochat-d64": "h100x8", "pure-transformer": "a100x8",
            "leviathan": "a4000", "demo": "cpu"}  # fmt: skip


def test_the_page_says_what_the_planner_says(tmp_path):
    """In a directory without corpora, so that nothing is measured on this machine."""
    command = [sys.executable, ROOT / "scripts/make_guides.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, check=False)
    assert done.returncode == 0, "run scripts/make_guides.py"


def built(recipe, *sets):
    return layers.build(recipe, MACHINES[recipe], "full", sets)


@pytest.mark.parametrize("recipe", sorted(MACHINES))
def test_every_recipe_has_modes_and_all_of_them_can_be_built(recipe):
    _, found, _ = config.load_recipe(recipe)
    assert {"demo", "small", "medium"} <= set(found.modes)
    for mode in found.modes:
        for stage in [one.name for one in found.stages] or [""]:
            sets = [f"mode={mode}", *([f"stage={stage}"] if stage else [])]
            assert built(recipe, *sets).problems == ()


def test_what_the_guides_ask_for_in_tokens_comes_out_in_steps():
    nanochat = built("nanochat", "stage=base").tree
    assert (nanochat["max_steps"], nanochat["gradient_accumulation_steps"]) == (21_363, 32)
    d64 = built("nanochat-d64", "stage=base").tree
    assert d64["micro_batch_size"] * 2048 * 8 * d64["gradient_accumulation_steps"] == 524_288
    pure = built("pure-transformer", "stage=base").tree
    assert (pure["max_steps"], pure["warmup_steps"]) == (83_924, 763)
    assert pure["micro_batch_size"] * 2048 * 8 * pure["gradient_accumulation_steps"] == 131_072
    assert pure["learning_rate"] * pure["cosine_min_lr_ratio"] == pytest.approx(3e-5)
    rl = built("pure-transformer", "stage=rl").tree
    assert (rl["learning_rate"], rl["trl"]["num_generations"]) == (1e-5, 16)


@pytest.mark.parametrize(
    ("mode", "caps"),
    [("small", [2000, 500, 200]), ("medium", [5000, 1000, 500])],
)
def test_the_modes_of_nanochat_have_the_guides_caps(mode, caps):
    stages = ("base", "mid", "sft")
    assert [built("nanochat", f"mode={mode}", f"stage={stage}").tree["max_steps"]
            for stage in stages] == caps  # fmt: skip
