"""The doctor as a real process, on machines that a fake NVML and a fake torch describe."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.processes import LEVIATHAN, listing

GIB = 1 << 30
FAKE_NVML = Path(__file__).parent / "fakes/driver"
A4000 = {
    "Name": "NVIDIA RTX A4000", "MemoryInfo": {"total": 16 * GIB, "free": 15.8 * GIB},
    "CudaComputeCapability": [8, 6], "EnforcedPowerLimit": 140000,
    "PowerManagementDefaultLimit": 140000, "Temperature": 41, "EccMode": [0, 0],
    "ComputeRunningProcesses": [], "GraphicsRunningProcesses": [],
    "CurrentClocksEventReasons": 1, "MemoryBusWidth": 256, "NumGpuCores": 6144,
}  # fmt: skip
PROFILE = """\
hardware: {gpu: RTX A4000, memory_gib: 16, power_w: 140, compute_capability: sm_86}
guards: {disk_reserve_gib: 0, hot_c: 85}
axolotl: {adapter: lora, lora_r: 8, sequence_len: 256, bf16: true, tf32: true}
"""


@pytest.fixture
def doctor(project, tmp_path_factory, monkeypatch):
    """Run ``leviathan doctor`` on a machine: a driver's state, a torch build, variables."""
    directory = tmp_path_factory.mktemp("machine")
    (project / "configs/profiles/card.yaml").write_text(PROFILE)

    def run(*arguments, nvml, torch="cuda: Optional[str] = '12.8'", **variables):
        (directory / "nvml.json").write_text(json.dumps(nvml))
        (directory / "torch").mkdir(exist_ok=True)
        (directory / "torch/__init__.py").write_text('raise ImportError("libcudart.so\\nis gone")')
        (directory / "torch/version.py").write_text(f"__version__ = '2.13.0+x'\n{torch}\n")
        path = [str(FAKE_NVML), str(directory), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "FAKE_NVML": str(directory / "nvml.json"),
                       "PYTHONPATH": os.pathsep.join(path), **variables}  # fmt: skip
        command = [LEVIATHAN, "doctor", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def checks(done):
    """Verdicts by name, of ``doctor --json``."""
    assert done.stdout, done.stderr
    return {found["check"]: found for found in json.loads(done.stdout)}


def driver(*gpus, cuda=12080, version="570.86"):
    return {"driver": version, "cuda": cuda, "gpus": list(gpus)}


def held(pid, command="", gib=9.0):
    process = {"pid": pid, "usedGpuMemory": gib * GIB}
    memory = {"total": 16 * GIB, "free": (15.8 - gib) * GIB}
    return {**A4000, "MemoryInfo": memory, "ComputeRunningProcesses": [process]}


CARD = ["-p", "card", "-r", "tiny", "-s", "full", "--json"]
MACHINES = {
    "no driver": (
        {"error": "NVML Shared Library Not Found"}, {},
        {"driver": ("fail", "no NVIDIA driver answers: NVML Shared Library Not Found"),
         "gpu": ("fail", "the profile wants 1 x RTX A4000, this machine has 0"),
         "precision": ("pass", "bf16, tf32; unknown without a GPU")},
    ),
    "idle": (
        driver(A4000), {},
        {"driver": ("pass", "driver 570.86, CUDA 12.8; torch 2.13.0+x wants 12.8"),
         "gpu": ("pass", "NVIDIA RTX A4000, 16.0 GiB, sm_86"),
         "gpu memory": ("pass", "15.8 of 16.0 GiB free"),
         "gpu health": ("pass", "41 C, 140 W"),
         "precision": ("pass", "bf16, tf32 on sm_86")},
    ),
    "memory held by a process that cannot be seen": (
        driver(held(4194304999)), {},
        {"gpu memory": ("warn", "6.8 of 16.0 GiB free; held by pid 4194304999 9.0 GiB")},
    ),
    "memory held by nobody knows whom": (
        driver({**A4000, "MemoryInfo": {"total": 16 * GIB, "free": 2 * GIB}}), {},
        {"gpu memory": ("warn", "2.0 of 16.0 GiB free")},
    ),
    "ECC": (
        driver({**A4000, "MemoryInfo": {"total": 15 * GIB, "free": 14.9 * GIB}, "EccMode": [1, 1]}),
        {}, {"gpu memory": ("pass", "14.9 of 15.0 GiB free; ECC is on and takes 1.0 GiB")},
    ),
    "ECC of HBM costs nothing": (
        driver({**A4000, "MemoryBusWidth": 5120, "EccMode": [1, 1]}), {},
        {"gpu memory": ("pass", "15.8 of 16.0 GiB free")},
    ),
    "throttled": (
        driver({**A4000, "CurrentClocksEventReasons": 0x24}), {},
        {"gpu health": ("warn", "41 C, 140 W, power cap, thermal slowdown: clocks are lowered "
                        "(thermal slowdown)")},
    ),
    "throttled, by its older name": (
        driver({k: v for k, v in A4000.items() if k != "CurrentClocksEventReasons"}
               | {"CurrentClocksThrottleReasons": 0x80}), {},
        {"gpu health": ("warn", "41 C, 140 W, power brake: clocks are lowered (power brake)")},
    ),
    "at its power cap": (
        driver({**A4000, "CurrentClocksEventReasons": 4}), {},
        {"gpu health": ("pass", "41 C, 140 W, power cap")},
    ),
    "hot": (
        driver({**A4000, "Temperature": 86}), {},
        {"gpu health": ("warn", "86 C, 140 W: hot already, the limit is 85 C")},
    ),
    "power limit lowered": (
        driver({**A4000, "EnforcedPowerLimit": 100000}), {},
        {"gpu health": ("warn", "41 C, 100 W: the power limit is lowered from 140 W: training is "
                        "slower")},
    ),
    "a card of less power than the profile's": (
        driver({**A4000, "EnforcedPowerLimit": 70000, "PowerManagementDefaultLimit": 70000}), {},
        {"gpu health": ("warn", "41 C, 70 W: the profile counts on 140 W: this card is slower than "
                        "it says")},
    ),
    "a driver that tells next to nothing": (
        driver({k: A4000[k] for k in ("Name", "MemoryInfo", "CudaComputeCapability")}), {},
        {"gpu": ("pass", "NVIDIA RTX A4000, 16.0 GiB, sm_86"),
         "gpu memory": ("pass", "15.8 of 16.0 GiB free"),
         "gpu health": ("pass", "temperature unknown, power limit unknown")},
    ),
    "driver too old": (
        driver(A4000, cuda=12080), {"torch": "cuda: Optional[str] = '13.0'"},
        {"driver": ("fail", "driver 570.86, CUDA 12.8; torch 2.13.0+x wants 13.0: the driver is too "
                    "old")},
    ),
    "a newer minor version will do": (
        driver(A4000, cuda=12040), {},
        {"driver": ("pass", "driver 570.86, CUDA 12.4; torch 2.13.0+x wants 12.8")},
    ),
    "torch without CUDA": (
        driver(A4000), {"torch": "cuda: Optional[str] = None"},
        {"driver": ("fail", "driver 570.86, CUDA 12.8, but torch 2.13.0+x is a build without "
                    "CUDA")},
    ),
    "a card without bf16": (
        driver({**A4000, "CudaComputeCapability": [7, 5]}), {},
        {"gpu": ("warn", "NVIDIA RTX A4000, 16.0 GiB, sm_75; the profile was made for sm_86"),
         "precision": ("fail", "bf16 is asked for; sm_75 has none, sm_80 has")},
    ),
    "too small": (
        driver({**A4000, "MemoryInfo": {"total": 12 * GIB, "free": 12 * GIB}}), {},
        {"gpu": ("fail", "the profile wants 16 GiB, NVIDIA RTX A4000 has 12.0")},
    ),
    "hidden": (
        driver(A4000), {"CUDA_VISIBLE_DEVICES": ""},
        {"gpu": ("fail", "the profile wants 1 x RTX A4000, this machine has 0 "
                 "(CUDA_VISIBLE_DEVICES hides 1)"),
         "environment": ("warn", "CUDA_VISIBLE_DEVICES hides 1 of 1 GPUs")},
    ),
    "the second of two": (
        driver(held(4194304999), A4000), {"CUDA_VISIBLE_DEVICES": "1"},
        {"gpu memory": ("pass", "15.8 of 16.0 GiB free"),
         "environment": ("warn", "CUDA_VISIBLE_DEVICES hides 1 of 2 GPUs")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_machines(doctor, name):
    nvml, more, expected = MACHINES[name]
    done = doctor(*CARD, nvml=nvml, **more)
    found = checks(done)
    assert {check: (found[check]["state"], found[check]["evidence"]) for check in expected} == (
        expected
    )
    for check in found.values():
        assert bool(check["fix"]) == (check["state"] != "pass"), check
        assert "\n" not in check["evidence"] + check["fix"]
    failed = any(check["state"] == "fail" for check in found.values())
    assert done.returncode == (3 if failed else 0)


def test_who_holds_the_memory_is_named_with_the_command_to_end_it(doctor):
    with subprocess.Popen([sys.executable, "-c", "input()  # a notebook"], stdin=-1) as process:
        try:
            found = checks(doctor(*CARD, nvml=driver(held(process.pid))))["gpu memory"]
        finally:
            process.kill()
    name = Path(os.path.realpath(sys.executable)).name, Path(sys.executable).name
    assert re.search(rf"held by pid {process.pid} \(({'|'.join(name)}) -c input\(\)  ?# a note",
                     found["evidence"])  # fmt: skip
    assert found["fix"] == f"end what holds it: kill {process.pid}"


def test_train_refuses_what_the_doctor_calls_a_failure(doctor, project):
    before = listing(project)
    nvml = driver(A4000, cuda=11080)
    failed = [c for c in checks(doctor(*CARD, nvml=nvml)).values() if c["state"] == "fail"]
    assert [c["check"] for c in failed] == ["driver"]
    environment = {**os.environ, "FAKE_NVML": str(project / "nvml.json"),
                   "PYTHONPATH": f"{FAKE_NVML}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}  # fmt: skip
    (project / "nvml.json").write_text(json.dumps(nvml))
    before = listing(project)
    command = [LEVIATHAN, "train", *CARD[:-1]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("leviathan: driver: driver 570.86, CUDA 11.8")
    assert listing(project) == before


def test_without_options_the_machine_is_judged_by_the_profile_that_suits_it(doctor):
    found = checks(doctor("--json", nvml={"error": "NVML Shared Library Not Found"}))
    assert found["profile"]["evidence"] == "no GPU here: cpu suits; train --profile cpu"
    assert not {"corpus", "base model", "disk"} & set(found)
    found = checks(
        doctor("--json", nvml=driver({**A4000, "MemoryInfo": {"total": GIB, "free": GIB}}))
    )
    assert (found["profile"]["state"], found["gpu"]["state"]) == ("warn", "pass")
    found = checks(doctor("--json", nvml=driver(A4000)))
    assert found["profile"]["evidence"].startswith("a GPU here: ")
    assert found["gpu"]["state"] == "pass"


def test_the_table_has_every_fix_under_its_check(doctor):
    done = doctor(*CARD[:-1], nvml={"error": "made up"})
    assert done.returncode == 3
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0].split() == ["state", "check", "evidence"]
    at = next(i for i, line in enumerate(lines) if line.startswith("fail   driver "))
    assert lines[at].endswith("no NVIDIA driver answers: made up")
    assert re.fullmatch(r" {20,}fix: install the driver, or use --profile cpu", lines[at + 1])
    assert done.stderr == "2 failed: train would refuse (--force goes on all the same)\n"


def test_bad_input_is_two_and_writes_nothing(doctor, project):
    before = listing(project)
    done = doctor("-p", "nobody", nvml={"error": "x"})
    assert (done.returncode, done.stdout) == (2, "")
    done = doctor(*CARD, "--set", "lora_rr=4", nvml={"error": "x"})
    assert done.returncode == 2
    assert "lora_rr is not a key Axolotl knows; did you mean lora_r?" in done.stderr
    assert listing(project) == before


def test_deep_tells_the_last_line_of_an_import_that_fails(doctor):
    done = doctor("-p", "tiny", "-r", "tiny", "-s", "full", "--deep", "--json", nvml={"error": "x"})
    found = checks(done)["imports"]
    assert found["state"] == "fail"
    assert "torch: ImportError: is gone; " in found["evidence"]
    assert "leviathan.plugin: ImportError: is gone" in found["evidence"]
    assert done.returncode == 3


def test_an_import_that_ends_the_process_is_named(tmp_path):
    (tmp_path / "deadly.py").write_text("import os\nos._exit(11)\n")
    answer = tmp_path / "answer.json"
    command = [sys.executable, "-m", "leviathan.import_probe", answer, "json", "deadly", "re"]
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{tmp_path}"}
    assert subprocess.run(command, env=environment, check=False).returncode == 11
    assert json.loads(answer.read_text()) == {
        "modules": {"json": "", "deadly": "the import ended the process"}
    }
