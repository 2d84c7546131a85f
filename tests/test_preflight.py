"""Every verdict with its evidence and fix, on subjects made by hand.

GPUs and drivers are judged in test_doctor.py, through a fake NVML.
"""

import os
import time
import tomllib
from pathlib import Path

import pytest

from leviathan import check_gpu, check_inputs, check_shell, check_software, preflight, schema
from leviathan.basemodel import Located
from leviathan.checkup import Inputs, Subject, visible
from leviathan.config import Profile
from leviathan.disk import Forecast, Need, Volume
from leviathan.machine import Gpu, Host, Machine

GIB = 1 << 30
VERSIONS = {"axolotl": "0.19.0", "torch": "2.13.0", "transformers": "5", "peft": "0.20",
            "accelerate": "1.13.0"}  # fmt: skip
A4000 = Gpu("NVIDIA RTX A4000", 15.7, 15.2, "sm_86", memory_bus_bits=256)
T4 = Gpu("Tesla T4", 14.0, 14.0, "sm_75")
A100 = Gpu("A100", 79.2, 78.8, "sm_80")


def machine(gpus=(), versions=VERSIONS, host=None, flash_attn=False):
    return Machine(tuple(gpus), flash_attn, versions, host=host or Host())


def subject(hardware=None, tree=None, *, here=None, environment=None, inputs=None, **more):
    profile = Profile.model_validate({"hardware": hardware or {}, **more.pop("profile", {})})
    return Subject(here or machine(), environment or {}, profile, tree or {}, inputs, **more)


def told(check):
    return check.state, check.evidence


def inputs(
    volumes=(), forecast=None, source="", corpus="rows.jsonl", fields=(), base=None, run_dir="run"
):
    return Inputs(
        Path(corpus), fields, base or Located("base", None), tuple(volumes),
        forecast or Forecast(None, None), source, Path(run_dir),
    )  # fmt: skip


# --- software ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "extra", "state", "evidence"),
    [
        ({}, {}, "pass", "axolotl 0.19.0, torch 2.13.0, transformers 5, peft 0.20, accelerate 1.13.0"),
        ({"load_in_4bit": True}, {}, "fail", "not installed: bitsandbytes (load_in_4bit)"),
        ({"load_in_8bit": True}, {}, "fail", "not installed: bitsandbytes (load_in_8bit)"),
        ({"optimizer": "paged_adamw_8bit"}, {}, "fail", "not installed: bitsandbytes (optimizer paged_adamw_8bit)"),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"]}, {}, "fail", "not installed: liger-kernel (the Liger plugin)"),
        ({"deepspeed": "zero3.json"}, {}, "fail", "not installed: deepspeed (deepspeed)"),
        ({"load_in_4bit": True}, {"bitsandbytes": "0.50"}, "pass", "bitsandbytes 0.50"),
        ({}, {"peft": None}, "fail", "not installed: peft"),
    ],
)  # fmt: skip
def test_packages(tree, extra, state, evidence):
    versions = {k: v for k, v in {**VERSIONS, **extra}.items() if v}
    found = check_software.packages(subject(tree=tree, here=machine(versions=versions)))
    assert found.state == state
    assert found.evidence.endswith(evidence)
    assert ("pip install" in found.fix) == (state == "fail")


@pytest.mark.parametrize(
    ("version", "keys_read", "state"),
    [("0.19.0", True, "pass"), ("0.21.3", None, "pass"), ("0.18.9", True, "fail"),
     ("0.22.0", True, "warn"), ("1.0", True, "warn"), ("0.19.0", False, "fail")],
)  # fmt: skip
def test_axolotls_version(version, keys_read, state):
    here = machine(versions={**VERSIONS, "axolotl": version})
    assert check_software.axolotl(subject(here=here, keys_read=keys_read)).state == state


def test_the_versions_known_are_those_the_package_asks_for():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    oldest, newest = schema.SUPPORTED
    assert f"axolotl>={oldest},<{newest}" in project["project"]["optional-dependencies"]["train"]


@pytest.mark.parametrize(
    ("device", "tree", "gpus", "state"),
    [
        ("cpu", {"bf16": True}, [], "fail"),
        ("cpu", {"bf16": False}, [], "pass"),
        ("cuda", {"bf16": True, "tf32": True}, [A100], "pass"),
        ("cuda", {"bf16": True}, [T4], "fail"),
        ("cuda", {"bf16": "auto"}, [T4], "pass"),
        ("cuda", {"bf16": False, "tf32": True}, [T4], "warn"),
        ("cuda", {"bf16": True}, [Gpu("B200", 180, 180, "sm_100")], "pass"),
    ],
)
def test_precision(device, tree, gpus, state):
    found = check_software.precision(subject({"device": device}, tree, here=machine(gpus)))
    assert found.state == state


@pytest.mark.parametrize(
    ("wanted", "device", "gpu", "installed", "state"),
    [
        ("sdpa", "cuda", A4000, False, "pass"),
        ("flash_attention_2", "cuda", A4000, True, "pass"),
        ("flash_attention_2", "cuda", A4000, False, "warn"),
        ("flash_attention_2", "cpu", A4000, True, "warn"),
        ("flash_attention_2", "cuda", T4, True, "fail"),
    ],
)
def test_attention(wanted, device, gpu, installed, state):
    here = machine([gpu], flash_attn=installed)
    tree = {"attn_implementation": wanted}
    assert check_software.attention(subject({"device": device}, tree, here=here)).state == state


# --- GPUs of which several count, and a need that was predicted ---------------------


@pytest.mark.parametrize(
    ("hardware", "gpus", "state", "evidence"),
    [
        ({"device": "cpu"}, [], "pass", "the profile trains on the CPU"),
        ({"count": 2}, [A4000], "fail", "the profile wants 2 x CUDA GPU, this machine has 1"),
        ({"memory_gib": 16, "count": 2}, [A4000, T4], "fail", "the profile wants 16 GiB, Tesla T4 has 14.0"),
        ({"memory_gib": 16, "count": 2}, [A4000, A4000, T4], "pass", "2 x NVIDIA RTX A4000, 15.7 GiB, sm_86"),
        ({}, [T4], "pass", "Tesla T4, 14.0 GiB, sm_75"),
    ],
)  # fmt: skip
def test_several_gpus_against_a_profile(hardware, gpus, state, evidence):
    assert told(check_gpu.gpu(subject(hardware, here=machine(gpus)))) == (state, evidence)


ECC = Gpu("A4000", 15.0, 14.8, "sm_86", ecc=True, memory_bus_bits=256)


@pytest.mark.parametrize(
    ("gpu", "needed_gib", "state", "fix"),
    [
        (A4000, 15.0, "pass", ""),
        (A4000, 15.3, "fail", "end what holds it"),
        (A4000, 17.0, "fail", "leviathan plan"),
        (ECC, 15.5, "fail", "turn ECC off"),
        (ECC, 17.0, "fail", "leviathan plan"),
        (Gpu("x", 24, 12, "sm_86"), 11.0, "pass", ""),
        (Gpu("x", 24, 12, "sm_86"), None, "warn", "end what holds it"),
    ],
)
def test_free_memory_against_what_is_needed(gpu, needed_gib, state, fix):
    found = check_gpu.memory(subject(here=machine([gpu]), needed_gib=needed_gib))
    assert found.state == state
    assert found.fix.startswith(fix)
    assert bool(found.fix) == bool(fix)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [(None, "abc"), ("", ""), ("-1", ""), ("1", "b"), ("2,0", "ca"), ("0,7,1", "a"),
     ("GPU-1f2e", "a"), ("MIG-1,MIG-2", "ab"), (" 1 , 2 ", "bc")],
)  # fmt: skip
def test_visible_gpus(wanted, left):
    gpus = tuple(Gpu(name, 16, 16, "sm_86") for name in "abc")
    assert "".join(gpu.name for gpu in visible(gpus, wanted)) == left


@pytest.mark.parametrize(
    ("gpus", "name"),
    [((), "cpu"), ((A4000,), "a4000"), ((A100,), "a100"), ((A100,) * 8, "a100x8"),
     ((A100,) * 2, "a100"), ((T4,), None), ((Gpu("L4", 22.5, 22, "sm_89"),), "rtx4090"),
     ((Gpu("A10", 22.5, 22, "sm_86"),), "rtx3090")],
)  # fmt: skip
def test_the_profile_that_suits(gpus, name):
    def profile(memory_gib, capability, count=1):
        hardware = {"memory_gib": memory_gib, "compute_capability": capability, "count": count}
        return Profile.model_validate({"hardware": hardware})

    profiles = {
        "a100": profile(80, "sm_80"), "a100x8": profile(80, "sm_80", 8),
        "a4000": profile(16, "sm_86"), "rtx3090": profile(24, "sm_86"),
        "rtx4090": profile(24, "sm_89"), "cpu": Profile.model_validate({"hardware": {"device": "cpu"}}),
    }  # fmt: skip
    assert preflight.suited(gpus, profiles) == name


# --- what is read and written -------------------------------------------------------

LLAMA = "meta-llama/Llama-3.1-8B"
LOCAL = Located("base", Path("base"), is_local=True, weight_bytes=2 * GIB)


@pytest.mark.parametrize(
    ("base", "environment", "state", "evidence"),
    [
        (LOCAL, {}, "pass", "base, local, 2 GiB of weights"),
        (Located("base", Path("base"), ("model-2.safetensors",), is_local=True), {}, "fail",
         "base, local, lacks or has cut short: model-2.safetensors"),
        (Located("./bsae", None), {}, "fail", "base model directory ./bsae does not exist"),
        (Located("o/n", Path("x"), (), 4 * GIB), {"HF_HUB_OFFLINE": "1"}, "pass",
         "o/n, in the hub cache, 4 GiB of weights"),
        (Located("o/n", Path("x"), ("the tokenizer",)), {"HF_HUB_OFFLINE": "1"}, "fail",
         "o/n, in the hub cache, lacks or has cut short: the tokenizer, and HF_HUB_OFFLINE is set"),
        (Located("o/n", Path("x"), ("the tokenizer",)), {}, "pass",
         "o/n, in the hub cache, lacks or has cut short: the tokenizer: fetched at the start"),
        (Located("o/n", None), {}, "pass", "o/n is not here yet: downloaded at the start"),
        (Located("o/n", None), {"HF_HUB_OFFLINE": "1"}, "fail",
         "o/n is not on this machine, and HF_HUB_OFFLINE is set"),
        (Located(LLAMA, None), {}, "warn",
         f"{LLAMA} is gated, and there is no token to download it with"),
        (Located(LLAMA, None), {"HF_TOKEN": "hf_x"}, "pass",
         f"{LLAMA} is not here yet: downloaded at the start"),
    ],
)  # fmt: skip
def test_base_model(tmp_path, monkeypatch, base, environment, state, evidence):
    monkeypatch.chdir(tmp_path)
    environment = {"HF_HOME": str(tmp_path), **environment}
    found = check_inputs.base_model(subject(environment=environment, inputs=inputs(base=base)))
    assert told(found) == (state, evidence)


@pytest.mark.parametrize(
    ("text", "state", "evidence"),
    [
        ('{"text": "a"}\n' * 150, "pass", "the first 100 rows have text"),
        ('{"text": "a"}\n' * 3, "pass", "the first 3 rows have text"),
        ('{"text": "a"}\n{"txt": "b"}\n', "fail", "rows.jsonl:2"),
        ("", "fail", "is empty"),
        (None, "fail", "does not exist"),
    ],
)
def test_corpus(tmp_path, text, state, evidence):
    path = tmp_path / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    found = check_inputs.rows(subject(inputs=inputs(corpus=path, fields=("text",))))
    assert found.state == state
    assert evidence in found.evidence


def volume(free_gib, name="work", **needs_gib):
    """A file system with a need by its name; those that begin with ``later`` are not urgent."""
    needs = [Need(what, Path(name), int(gib * GIB), soon=not what.startswith("later"))
             for what, gib in needs_gib.items()]  # fmt: skip
    return Volume(Path(name), int(free_gib * GIB), tuple(needs))


@pytest.mark.parametrize(
    ("volumes", "state", "fix"),
    [
        ([volume(50, a=10, later=20)], "pass", ""),
        ([volume(31, a=10, later=20)], "warn", "free some space for work, or lower"),
        ([volume(11, a=10, later=20)], "fail", "free some space for work: a save"),
        ([volume(50, a=10), volume(11, "other", b=10)], "fail", "free some space for other: "),
        ([volume(31, a=10, later=20), volume(11, "other", b=10)], "fail", "free some space for other"),
        ([volume(9)], "warn", "free some space: how much is needed"),
    ],
)  # fmt: skip
def test_disk(volumes, state, fix):
    guards = {"guards": {"disk_reserve_gib": 2}}
    found = check_inputs.disk(subject(profile=guards, inputs=inputs(volumes)))
    assert found.state == state
    assert found.fix.startswith(fix)
    assert bool(found.fix) == bool(fix)


def test_disk_says_what_it_reckons_with():
    known = Forecast(GIB, None)
    needs = (Need("one checkpoint", Path("w"), GIB, soon=True),
             Need("prepared data", Path("w"), GIB // 2, soon=True))  # fmt: skip
    guards = {"guards": {"disk_reserve_gib": 2}}
    volumes = [Volume(Path("w"), 50 * GIB, needs)]
    found = check_inputs.disk(subject(profile=guards, inputs=inputs(volumes, known, "arithmetic")))
    assert found.evidence == (
        "50 GiB free for w, 3.5 GiB wanted: one checkpoint 1 GiB, prepared data 0.5 GiB, 2 GiB "
        "kept free (4 bytes of text a token, checkpoints by arithmetic)"
    )


@pytest.mark.parametrize(
    ("device", "weights_gib", "host", "state"),
    [
        ("cpu", 10, Host(32, 20), "pass"), ("cpu", 25, Host(32, 20), "warn"),
        ("cpu", 40, Host(32, 20), "fail"), ("cuda", 40, Host(32, 20), "warn"),
        ("cuda", 0, Host(32, 20), "pass"), ("cpu", 10, Host(), "pass"),
    ],
)  # fmt: skip
def test_ram(device, weights_gib, host, state):
    base = Located("base", Path("base"), weight_bytes=weights_gib * GIB)
    here = machine(host=host)
    found = check_inputs.ram(subject({"device": device}, here=here, inputs=inputs(base=base)))
    assert found.state == state


# --- the shell ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "terminal", "state", "evidence"),
    [
        ({}, True, "pass", "on this machine, not over SSH"),
        ({"SSH_CONNECTION": "1 2 3 4"}, True, "warn", "over SSH without tmux or screen"),
        ({"SSH_TTY": "/dev/pts/1"}, True, "warn", "over SSH without tmux or screen"),
        ({"SSH_CONNECTION": "x", "TMUX": "/tmp/t,1,0"}, True, "pass", "in tmux"),
        ({"SSH_CONNECTION": "x", "STY": "1.x"}, True, "pass", "in screen"),
        ({"SSH_CONNECTION": "x"}, False, "pass", "no terminal that could hang up"),
    ],
)
def test_terminal(environment, terminal, state, evidence):
    here = machine(host=Host(terminal=terminal))
    found = check_shell.terminal(subject(here=here, environment=environment))
    assert found.state == state
    assert found.evidence.startswith(evidence)


def test_accelerates_default_configuration_is_told_and_overridden(tmp_path):
    environment = {"HF_HOME": str(tmp_path)}
    assert "no default configuration" in check_shell.accelerate(
        subject(environment=environment)
    ).evidence  # fmt: skip
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate/default_config.yaml").write_text("num_processes: 8\n")
    found = check_shell.accelerate(subject(environment=environment))
    assert found.state == "pass"
    assert "default_config.yaml is overridden by the run's accelerate.yaml" in found.evidence


@pytest.mark.parametrize(
    ("hardware", "variables", "unset"),
    [
        ({}, {}, ""),
        ({}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7"}, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
        ({}, {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_DYNAMO_BACKEND": "x"}, ""),
        ({}, {"ACCELERATE_USE_CPU": "true"}, ""),
        ({"count": 2}, {"ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_CPU"),
        ({}, {"LOCAL_RANK": "0", "MASTER_ADDR": "h"}, "LOCAL_RANK MASTER_ADDR"),
        ({}, {"WORLD_SIZE": "2"}, "WORLD_SIZE"),
        ({}, {"MASTER_ADDR": "h"}, ""),
        ({"count": 2}, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, ""),
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "PYTORCH_CUDA_ALLOC_CONF"),
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": "x", "PYTORCH_ALLOC_CONF": "y"}, ""),
        ({}, {"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES"),
        ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}, ""),
        ({"device": "cpu"}, {"CUDA_VISIBLE_DEVICES": "0"}, ""),
    ],
)  # fmt: skip
def test_variables_that_reach_the_training(hardware, variables, unset):
    here = machine([A4000, A4000])
    found = check_shell.environment(subject(hardware, here=here, environment=variables))
    assert found.state == ("warn" if unset else "pass")
    assert found.fix == (f"unset {unset}" if unset else "")


def test_clock(tmp_path, monkeypatch):
    here = machine(host=Host(clock_synchronised=False))
    right = subject(here=here, inputs=inputs(run_dir=tmp_path))
    assert check_shell.clock(right).evidence.endswith(" UTC, not synchronised")
    (tmp_path / "run.json").write_text("{}")
    os.utime(tmp_path / "run.json", (0, time.time() + 3600))
    found = check_shell.clock(right)
    assert (found.state, "but the run has files of" in found.evidence) == ("warn", True)
    monkeypatch.setattr(time, "time", lambda: 86400.0 * 365)
    assert (
        check_shell.clock(right).evidence
        == "1971-01-01 00:00 UTC is before this Leviathan was made"
    )


@pytest.mark.parametrize(
    ("tree", "host", "state"),
    [
        ({}, Host(open_files=1024), "pass"), ({}, Host(open_files=256), "warn"),
        ({}, Host(open_files=-1), "pass"), ({}, Host(), "pass"),
        ({}, Host(shm_gib=0.06), "pass"),
        ({"dataloader_num_workers": 2}, Host(shm_gib=0.06), "warn"),
        ({"dataloader_num_workers": 2}, Host(shm_gib=8), "pass"),
    ],
)  # fmt: skip
def test_limits(tree, host, state):
    assert check_shell.limits(subject(tree=tree, here=machine(host=host))).state == state


# --- gathered from a real project -----------------------------------------------------


def needs(project, *sets, sample="full", hub="hub"):
    from leviathan import layers, runs, samples

    config = layers.build("tiny", "tiny", sample, sets)
    paths = runs.RunPaths(runs.TRAINING / "r")
    found = preflight.of_training(
        config, machine(), paths, samples.DIRECTORY, keys_read=True
    ).inputs
    return {n.what: n.bytes for v in found.volumes for n in v.needs}, found


def test_what_a_run_has_yet_to_write(project):
    size = (project / "rows.jsonl").stat().st_size
    whole, found = needs(project)
    assert whole["sample"] == 0
    assert whole["prepared data"] == pytest.approx(size / 4 * 13, abs=1)
    assert needs(project, "sample_packing=true")[0]["prepared data"] == pytest.approx(
        size / 4 * 21, abs=1
    )
    half, _ = needs(project, sample="50pct")
    assert half["sample"] == pytest.approx(size / 2, abs=1)
    assert needs(project, sample="36")[0]["sample"] == pytest.approx(size / 2, rel=0.1)
    assert found.fields == ("instruction", "output")
    directory = project / "work/training/r"
    directory.mkdir(parents=True)
    (directory / ".prepared").touch()
    again, _ = needs(project)
    assert (again["prepared data"], again["the rows' cache"]) == (0, 0)


def test_checkpoints_that_are_kept_already_are_not_asked_room_for(project):
    from fakes import fake_files

    directory = project / "work/training/r"
    for step in (1, 2):
        fake_files.write_checkpoint(directory, step)
    found, _ = needs(project)
    one = found["one checkpoint"] / 1.1
    assert one > 0
    assert found["4 more checkpoints"] == pytest.approx(4 * one, rel=0.01)  # keep: 5, and the best


def test_each_file_system_is_counted_once_and_by_itself(project, monkeypatch):
    (shm,) = [p for p in (Path("/dev/shm"),) if p.is_dir()]
    monkeypatch.setenv("HF_DATASETS_CACHE", str(shm / "nowhere"))
    _, found = needs(project)
    run, cache = found.volumes
    assert [n.what for n in cache.needs] == ["the rows' cache"]
    assert {n.what for n in run.needs} > {"one checkpoint", "prepared data", "merged model"}
    assert run.total() == sum(n.bytes for n in run.needs) > run.total(soon=True) - 1


@pytest.mark.parametrize(("free_gib", "state"), [(15.5, "pass"), (8.0, "fail")])
def test_free_memory_against_the_formula(project, free_gib, state):
    """What the A4000's YAML takes is known before anything is downloaded."""
    from leviathan import layers, runs, samples

    config = layers.build("leviathan", "a4000", "10pct", [])
    here = machine([Gpu("NVIDIA RTX A4000", 16.0, free_gib, "sm_86")])
    paths = runs.RunPaths(runs.TRAINING / "r")
    found = preflight.of_training(config, here, paths, samples.DIRECTORY, keys_read=True)
    assert check_gpu.memory(found).state == state
    unknown = layers.build("tiny", "tiny", "full", ["base_model=my/model"])
    assert (
        preflight.of_training(unknown, here, paths, samples.DIRECTORY, keys_read=True).needed_gib
        is None
    )
