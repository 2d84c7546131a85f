"""Can this machine run this profile: every verdict with its evidence."""

from pathlib import Path

import pytest

from leviathan import preflight
from leviathan.config import Profile
from leviathan.disk import Forecast
from leviathan.machine import Gpu, Machine

VERSIONS = dict.fromkeys(("axolotl", "torch", "transformers", "peft", "accelerate"), "1")
A4000 = Gpu("NVIDIA RTX A4000", 15.7, 15.2, "sm_86")
UNKNOWN = Forecast(None, None)
T4 = Gpu("Tesla T4", 14.0, 14.0, "sm_75")


def states(profile, gpus=(), versions=VERSIONS, free_gib=100.0, forecast=UNKNOWN):
    machine = Machine(tuple(gpus), flash_attn=False, versions=versions)
    found = preflight.checks(
        Profile.model_validate(profile), machine, Path("/r"), free_gib, forecast
    )
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


GIB = 1 << 30


@pytest.mark.parametrize(
    ("free_gib", "forecast", "state", "evidence"),
    [
        (
            0.4,
            Forecast(None, None),
            "fail",
            "0.4 GiB free for /r; a checkpoint takes an unknown size",
        ),
        (5.0, Forecast(None, None), "warn", "5 GiB free"),
        (50.0, Forecast(None, None), "pass", "50 GiB free"),
        (2.5, Forecast(2 * GIB, None), "fail", "a checkpoint takes 2 GiB"),
        (9.0, Forecast(2 * GIB, None), "warn", "all that is kept and the merged model 10.5 GiB"),
        (11.0, Forecast(2 * GIB, None), "pass", "a checkpoint takes 2 GiB"),
        (11.0, Forecast(2 * GIB, 16 * GIB), "warn", "the merged model 26.5 GiB"),
    ],
)
def test_disk_against_what_the_run_will_write(free_gib, forecast, state, evidence):
    found = states({}, free_gib=free_gib, forecast=forecast)["disk"]
    assert found[0] == state
    assert evidence in found[1]


def test_missing_packages_are_named_with_the_way_to_get_them():
    found = states({}, versions={"axolotl": "1", "torch": "1"})["packages"]
    assert found == (
        "fail", "not installed: transformers, peft, accelerate", "pip install 'leviathan-train[train]'",
    )  # fmt: skip
    assert states({})["packages"][0] == "pass"
