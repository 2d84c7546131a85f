"""SkyPilot tasks: what is exported is what SkyPilot's own loader has read (recorded)."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from leviathan import config, skypilot

RECORDED = Path(__file__).parent / "recorded/skypilot"
PLACE = "/PROJECT"
AGAIN = "LEVIATHAN_RECORD=1 pytest tests/test_skypilot.py, then scripts/check_skypilot.py"
TASKS = {
    "spot-a4000": ["-p", "a4000", "-s", "50pct", "--bucket", "s3://mine/runs", "--max-hours", "30"],
    "stays-a100": ["-p", "a100", "-s", "full", "--no-spot", "--idle-minutes", "30"],
    "two-hosts": ["-p", "h100x8", "-s", "full", "--nodes", "2", "--volume", "shared"],
    "hub-model": ["-p", "a100x8", "-s", "full", "--bucket", "mine", "--name", "A.b_C",
                  "--set", "base_model=org/model", "--secret", "WANDB_API_KEY"],
    "hostile": ["-p", "a4000", "-s", "full", "--bucket", "mine", "--set", "corpus=it's $(x) ü;.jsonl",
                "--name", "hostile"],
}  # fmt: skip


@pytest.fixture
def export(run_cli, project):
    """The task of a bundle, with the project's directory named as in the recordings."""
    (project / "it's $(x) ü;.jsonl").write_bytes((project / "rows.jsonl").read_bytes())

    def export(*options: str) -> str:
        done = run_cli("cloud", "export", "-r", "tiny", "-t", "skypilot", "-o", "out", *options)
        assert done.exit_code == 0, done.output
        return (project / "out/task.yaml").read_text().replace(str(project), PLACE)

    return export


@pytest.mark.parametrize("name", TASKS)
def test_the_task_is_the_one_that_skypilot_has_read(export, name):
    text = export(*TASKS[name])
    path = RECORDED / f"{name}.yaml"
    if os.environ.get("LEVIATHAN_RECORD"):
        path.write_text(text)
    assert text == path.read_text(), AGAIN
    verdict = json.loads((RECORDED / "verdict.json").read_text())
    assert verdict["skypilot"] == skypilot.VERSION
    told = verdict["tasks"][path.name]
    assert told["sha256"] == hashlib.sha256(text.encode()).hexdigest(), AGAIN
    assert "refused" not in told


def test_what_the_loader_understood():
    tasks = json.loads((RECORDED / "verdict.json").read_text())["tasks"]
    spot, stays, two = (tasks[f"{name}.yaml"] for name in ("spot-a4000", "stays-a100", "two-hosts"))
    assert (spot["accelerators"], spot["spot"]) == ({"RTXA4000": 1}, True)
    assert spot["recovery"]["recover_on_exit_codes"] == [4]
    assert spot["buckets"] == {"/leviathan-keep": "MOUNT"}
    assert (stays["accelerators"], stays["spot"], stays["autostop"]) == (
        {"A100-80GB": 1},
        False,
        30,
    )
    assert (two["accelerators"], two["nodes"]) == ({"H100": 8}, 2)
    assert two["volumes"] == {"/leviathan-work": "shared"}
    assert f"{PLACE}/it's $(x) ü;.jsonl" in tasks["hostile.yaml"]["mounts"].values()


def test_every_shipped_card_has_a_name():
    named = {
        name: skypilot.accelerators(config.load_profile(name)[1].hardware)
        for name in config.names("profiles")
    }
    assert named == {
        "a100-40gb": "A100:1", "a100-80gb": "A100-80GB:1", "a100x8": "A100-80GB:8",
        "a4000": "RTXA4000:1", "cpu": None, "h100-80gb": "H100:1", "h100x8": "H100:8",
        "h200": "H200:1", "rtx3090": "RTX3090:1", "rtx4090": "RTX4090:1",
    }  # fmt: skip


def test_several_hosts_meet_at_the_first_ones_address(export):
    run = yaml.safe_load(export(*TASKS["two-hosts"]))["run"]
    assert (
        '--nodes "$SKYPILOT_NUM_NODES" --rdzv "$head:29400" --node-rank "$SKYPILOT_NODE_RANK"'
        in run
    )


def test_secrets_are_names(export):
    task = yaml.safe_load(export(*TASKS["hub-model"]))
    assert task["secrets"] == {"HF_TOKEN": None, "WANDB_API_KEY": None}
    assert task["envs"] == {"AXOLOTL_DO_NOT_TRACK": "1"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-p", "a4000"], "a spot machine is taken away with its disk"),
        (["-p", "a4000", "--bucket", "b", "--nodes", "2"], "several hosts share one run directory"),
        (["-p", "a4000", "--no-spot", "--nodes", "2"], "several hosts share one run directory"),
        (["-p", "a4000", "--bucket", "b", "--set", "hardware.gpu=Abacus"],
         "SkyPilot's name of Abacus is not known here"),
    ],
)  # fmt: skip
def test_what_no_task_can_be(run_cli, project, options, line):
    done = run_cli(
        "cloud", "export", "-r", "tiny", "-s", "full", "-t", "skypilot", "-o", "o", *options
    )
    assert done.exit_code == 2
    assert line in done.stderr
    assert not (project / "o").exists()
