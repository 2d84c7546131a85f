"""What a run takes over from a new profile, and what it keeps."""

import json

import pytest

import tiny
from leviathan import layers, promotion, runs
from leviathan.errors import BadInput, Refused
from test_transfer import digests, make_run

LARGE = tiny.PROFILE.replace("{device: cpu}", "{device: cpu, count: 2}").replace(
    "micro_batch_size: 4", "micro_batch_size: 8"
)
LARGE = LARGE.replace("lora_r: 8", "lora_r: 16").replace(
    "attn_implementation: sdpa", "attn_implementation: eager"
)
LARGE += "price_usd_hour: 2.5\n"


@pytest.fixture
def begun(project):
    """Makes a run of so many rows a step; it was begun with these overrides."""
    (project / "configs/profiles/large.yaml").write_text(LARGE)

    def make(*sets: str) -> runs.RunPaths:
        paths = runs.RunPaths(make_run(project))
        record = runs.read(paths)
        config = layers.build("tiny", "tiny", "full", sets)
        record.tree, record.overrides, record.processes = config.tree, list(sets), 1
        words = " ".join(f"--set {text}" for text in sets)
        record.again = (
            f"leviathan train --profile tiny --recipe tiny --sample full {words} --shrink"
        )
        runs.write(paths, record)
        return paths

    return make


def test_what_is_the_machines_is_taken_and_the_rest_kept(begun, project):
    paths = begun(
        "gradient_accumulation_steps=2",
        "lora_r=4",
        "save_steps=3",
        "learning_rate=0.5",
        "epochs=2",
        "attn_implementation=sdpa",
    )
    made = promotion.of(paths, "large")
    tree, rows = made.config.tree, {row.key: row for row in made.rows}
    assert (tree["lora_r"], tree["save_steps"], tree["learning_rate"]) == (4, 3, 0.5)
    assert (tree["num_epochs"], tree["attn_implementation"]) == (2, "eager")
    assert made.sets == ("epochs=2",)
    assert (rows["lora_r"].verdict, rows["attn_implementation"].verdict) == ("kept", "changed")
    assert "shape" in rows["lora_r"].why
    assert made.config.profile.price_usd_hour == 2.5
    assert made.command[-1] == "--shrink"
    assert not made.path.exists()
    made.write()
    again = layers.build("tiny", made.profile, "full", made.sets)
    assert again.tree == tree
    assert promotion.of(paths, "large").text == made.text


@pytest.mark.parametrize(
    ("sets", "asked", "batch"),
    [
        (("micro_batch_size=2", "gradient_accumulation_steps=4"), None, (2, 2)),
        (("micro_batch_size=2", "gradient_accumulation_steps=4"), 4, (4, 1)),
        (("micro_batch_size=1", "gradient_accumulation_steps=12"), 3, (3, 2)),
        (("micro_batch_size=1", "gradient_accumulation_steps=8"), "fit", (4, 1)),
    ],
)
def test_the_effective_batch_stays(begun, monkeypatch, sets, asked, batch):
    monkeypatch.setattr(promotion, "_planned", lambda _: None)  # nothing tells what fits
    tree = promotion.of(begun(*sets), "large", asked).config.tree
    assert (tree["micro_batch_size"], tree["gradient_accumulation_steps"]) == batch


@pytest.mark.parametrize(
    ("sets", "asked", "error", "line"),
    [
        (("micro_batch_size=3",), None, Refused, "which 2 processes cannot share"),
        (("micro_batch_size=4",), None, Refused, "micro batch of 4 rows cannot be kept"),
        (("micro_batch_size=4",), 3, BadInput, "cannot keep the effective batch"),
    ],
)
def test_what_cannot_be_promoted(begun, sets, asked, error, line):
    with pytest.raises(error, match=line):
        promotion.of(begun(*sets, "gradient_accumulation_steps=1"), "large", asked)


def test_a_recipe_that_has_changed_is_refused(begun, project):
    paths = begun("micro_batch_size=2")
    recipe = project / "configs/recipes/tiny.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 42", "seed: 43"))
    with pytest.raises(Refused, match="seed: 42 -> 43"):
        promotion.of(paths, "large", 1)


def test_the_command(begun, run_cli, project):
    paths = begun("micro_batch_size=2", "gradient_accumulation_steps=2")
    before = digests(project)
    dry = run_cli("cloud", "promote", "r", "--profile", "large", "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "the saved adapter has another shape" in dry.stdout
    assert digests(project) == before
    done = run_cli("cloud", "promote", "r", "--profile", "large", "--json")
    document = json.loads(done.stdout)
    path = project / "configs/profiles/r-on-large.yaml"
    assert (document["profile"], path.is_file()) == ("configs/profiles/r-on-large.yaml", True)
    path.write_text("mine: 1\n")
    refused = run_cli("cloud", "promote", "r", "--profile", "large")
    assert (refused.exit_code, path.read_text()) == (2, "mine: 1\n")
    assert runs.read(paths).overrides == ["micro_batch_size=2", "gradient_accumulation_steps=2"]


def test_a_stage_stays_the_stage_it_is_with_its_batch(project):
    (project / "configs/profiles/large.yaml").write_text(LARGE)
    recipe = (project / "configs/recipes/tiny.yaml").read_text()
    stages = "stages:\n  - name: mid\n    axolotl: {micro_batch_size: 4, weight_decay: 0.1}\n"
    (project / "configs/recipes/staged.yaml").write_text(recipe + stages)
    paths = runs.RunPaths(make_run(project))
    record = runs.read(paths)
    sets = ["gradient_accumulation_steps=2", "mode=full", "stage=mid"]
    record.tree = layers.build("staged", "tiny", "full", sets).tree
    record.recipe, record.overrides, record.processes = "staged", sets, 1
    record.stage, record.stages = "mid", ["mid"]
    record.again = (
        "leviathan train --profile tiny --recipe staged --sample full "
        "--set gradient_accumulation_steps=2"
    )
    runs.write(paths, record)
    made = promotion.of(paths, "large", 2)
    assert made.config.stage == "mid"
    assert made.config.tree["weight_decay"] == 0.1
    # Eight rows a step on two processes: the stage's own 4 rows of a pass give way.
    assert {*made.sets} >= {"stage=mid", "micro_batch_size=2"}
    assert made.config.tree["gradient_accumulation_steps"] == 2
