"""Can this machine run this profile: every verdict with its evidence."""

from pathlib import Path

import pytest

from leviathan import preflight
from leviathan.config import Profile
from leviathan.machine import Gpu, Machine

VERSIONS = dict.fromkeys(("axolotl", "torch", "transformers", "peft", "accelerate"), "1")
A4000 = Gpu("NVIDIA RTX A4000", 15.7, 15.2, "sm_86")
T4 = Gpu("Tesla T4", 14.0, 14.0, "sm_75")


def states(profile, gpus=(), versions=VERSIONS, free_gib=100.0):
    machine = Machine(tuple(gpus), flash_attn=False, versions=versions)
    found = preflight.checks(Profile.model_validate(profile), machine, Path("/r"), free_gib)
    return {check.name: (check.state, check.evidence, check.fix) for check in found}


@pytest.mark.parametrize(
    ("hardware", "gpus", "state", "evidence"),
    [
        ({"device": "cpu"}, [], "pass", "the profile trains on the CPU"),
        ({"gpu": "RTX A4000"}, [], "fail", "wants 1 x RTX A4000, this machine has 0"),
        ({"count": 2}, [A4000], "fail", "wants 2 x CUDA GPU, this machine has 1"),
        ({"memory_gib": 16}, [A4000], "pass", "NVIDIA RTX A4000, 15.7 GiB"),
        ({"memory_gib": 16}, [T4], "fail", "wants 16 GiB, Tesla T4 has 14.0"),
        ({"memory_gib": 16, "count": 2}, [A4000, T4], "fail", "wants 16 GiB"),
        ({}, [T4], "pass", "Tesla T4"),
    ],
)
def test_gpu_against_profile(hardware, gpus, state, evidence):
    found = states({"hardware": hardware}, gpus)["gpu"]
    assert found[0] == state
    assert evidence in found[1]
    assert bool(found[2]) == (state == "fail")


@pytest.mark.parametrize(("free_gib", "state"), [(0.5, "fail"), (5.0, "warn"), (50.0, "pass")])
def test_disk(free_gib, state):
    assert states({}, free_gib=free_gib)["disk"][:2] == (state, f"{free_gib:.1f} GiB free for /r")


def test_missing_packages_are_named_with_the_way_to_get_them():
    found = states({}, versions={"axolotl": "1", "torch": "1"})["packages"]
    assert found == (
        "fail", "not installed: transformers, peft, accelerate", "pip install 'leviathan-train[train]'",
    )  # fmt: skip
    assert states({})["packages"][0] == "pass"
