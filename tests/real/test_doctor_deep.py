"""What the doctor foretells, against what the real stack does."""

import json

import pytest
from project import RUN, TINY

from leviathan import disk

pytestmark = pytest.mark.real


@pytest.mark.parametrize("packed", [False, True])
def test_the_prepared_dataset_takes_what_its_tokens_foretell(forked_project, packed):
    import datasets

    done = forked_project.run(*TINY, "--set", f"sample_packing={packed}", "--set", "max_steps=1")
    assert done.code == 0, done.err
    prepared = forked_project.path(RUN) / "prepared"
    tokens = 0
    for info in prepared.rglob("dataset_info.json"):
        tokens += sum(map(len, datasets.load_from_disk(str(info.parent))["input_ids"]))
    taken = sum(file.stat().st_size for file in prepared.rglob("*.arrow"))
    foretold = disk.prepared_bytes(int(tokens * disk.TEXT_BYTES_PER_TOKEN), packed=packed)
    assert tokens > 10_000
    assert foretold == pytest.approx(taken, rel=0.05)


def test_deep_imports_everything_this_profile_needs(project):
    done = project.run("doctor", "-p", "tiny", "-r", "tiny", "-s", "full", "--deep", "--json")
    found = {check["check"]: check for check in json.loads(done.out)}
    assert done.code == 0, done.out
    assert found["axolotl"]["evidence"].endswith("its keys were read")
    assert found["imports"]["evidence"].endswith(
        "axolotl.cli.train, bitsandbytes, leviathan.plugin"
    )
    assert found["base model"]["state"] == "pass"
    assert found["torch"]["state"] == "pass"
