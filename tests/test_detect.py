"""Profiles for machines that are not here: facts, knobs, the file's own words, the command."""

import json
import os
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import gpus as fake
from fakes.processes import FAKES, LEVIATHAN, listing
from leviathan import cards, config, detect, knobs
from leviathan.machine import Gpu

SHIPPED = {one.name: one for one in cards.shipped()}


def detected(machine: str):
    text, notes = detect.profile_for(fake.MACHINES[machine], "mine")
    return config.parse_profile(text), text, notes


# --- facts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sms", "sm", "boost_mhz", "tflops"),
    [
        ("Tesla V100-SXM2-16GB", 80, "sm_70", 1530, 125),
        ("Tesla T4", 40, "sm_75", 1590, 65),
        ("NVIDIA GeForce RTX 2080 Ti", 68, "sm_75", 1545, 53.8),
        ("NVIDIA RTX A4000", 48, "sm_86", 1560, 76.7),
        ("NVIDIA A10", 72, "sm_86", 1695, 125),
        ("NVIDIA A10G", 80, "sm_86", 1710, 70),
        ("NVIDIA RTX A6000", 84, "sm_86", 1800, 154.8),
        ("GeForce RTX 3090", 82, "sm_86", 1695, 71),
        ("NVIDIA GeForce RTX 4090", 128, "sm_89", 2520, 165.2),
        ("NVIDIA L4", 58, "sm_89", 2040, 121),
        ("NVIDIA L40", 142, "sm_89", 2490, 181),
        ("NVIDIA L40S", 142, "sm_89", 2520, 362),
        ("NVIDIA A100-SXM4-40GB", 108, "sm_80", 1410, 312),
        ("NVIDIA H100 80GB HBM3", 132, "sm_90", 1830, 989),
        ("NVIDIA GeForce RTX 5090", 170, "sm_120", 2407, 209.5),
    ],
)
def test_peak_by_arithmetic_is_nvidias_own(name, sms, sm, boost_mhz, tflops):
    """NVIDIA's data sheets and whitepapers, at the boost clocks that they are given for."""
    per_sm = 64 if sm in {"sm_70", "sm_75", "sm_80"} else 128
    gpu = Gpu(name, 16, 16, sm, cores=sms * per_sm, max_sm_clock_mhz=boost_mhz)
    assert cards.peak_tflops(gpu) == pytest.approx(tflops, rel=0.015)


@pytest.mark.parametrize(
    "gpu",
    [
        replace(fake.A4000, compute_capability="sm_61"),
        replace(fake.A4000, name="NVIDIA GeForce GTX 1660 Ti", compute_capability="sm_75"),
        replace(fake.A4000, cores=None),
        replace(fake.A4000, max_sm_clock_mhz=None),
        fake.NEW,
    ],
)
def test_no_peak_is_made_up(gpu):
    assert cards.peak_tflops(gpu) is None


@pytest.mark.parametrize(
    ("gpu", "gb_s"),
    [(fake.A4000, 448), (fake.RTX_3090, 936), (fake.A100_40, 1555), (fake.A100_80, 2039),
     (fake.L40S, 864), (fake.T4, 320), (fake.RTX_2080_TI, 616), (fake.H100_PCIE, 2000),
     (fake.NEW, None)],
)  # fmt: skip
def test_bandwidth_by_arithmetic_is_the_data_sheets(gpu, gb_s):
    found = cards.bandwidth_gb_s(gpu)
    assert found == (gb_s and pytest.approx(gb_s, rel=0.02))


@pytest.mark.parametrize(
    ("name", "profile", "card", "tflops", "gb_s"),
    [
        ("NVIDIA RTX A4000", "a4000", "RTX A4000", 76.7, 448),
        ("RTX A4000", "a4000", "RTX A4000", 76.7, 448),
        ("GeForce RTX 3090", "rtx3090", "RTX 3090", 71, 936),
        ("NVIDIA GeForce RTX 4090", "rtx4090", "RTX 4090", 165.2, 1008),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", "A100 40GB SXM", 312, 1555),
        ("NVIDIA A100 80GB PCIe", "a100-80gb", "A100 80GB PCIe", 312, 1935),
        ("NVIDIA H100 80GB HBM3", "h100-80gb", "H100 80GB SXM", 989, 3350),
        ("NVIDIA H100 PCIe", "h100-80gb", "H100 80GB PCIe", 756, 2000),
        ("NVIDIA H200", "h200", "H200 141GB SXM", 989, 4800),
        ("NVIDIA H200 NVL", None, "H200 NVL", None, None),
        ("NVIDIA GeForce RTX 3090 Ti", None, "GeForce RTX 3090 Ti", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, "GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, "A100-SXM4-80GB MIG 1g.10gb", None, None),
    ],
)
def test_a_card_is_known_by_its_exact_name(name, profile, card, tflops, gb_s):
    found = cards.card(Gpu(name, 80, 80, "sm_80"), [*SHIPPED.values()])
    assert (found.known and found.known.name) == profile
    assert (found.name, found.bf16_tflops, found.memory_gb_s) == (card, tflops, gb_s)


def test_one_card_has_the_same_facts_in_every_profile():
    facts: dict[str, dict] = {}
    for one in SHIPPED.values():
        apart = {"count", "link_gb_s", "nvml_names", "variants"}
        own = one.profile.hardware.model_dump(exclude=apart)
        assert facts.setdefault(own["gpu"], own) == own, one.name


# --- knobs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "gpu", "count", "memory_gib", "tflops", "gb_s", "power_w", "sm"),
    [
        ("a4000", "RTX A4000", 1, 16, 76.7, 448, 140, "sm_86"),
        ("two-3090", "RTX 3090", 2, 24, 71, 936, 350, "sm_86"),
        ("2080ti", "GeForce RTX 2080 Ti", 1, 11, 73.1, 616, 250, "sm_75"),
        ("t4", "Tesla T4", 1, 15, 65.1, 320, 70, "sm_75"),
        ("l40s", "L40S", 1, 45, 366, 864, 350, "sm_89"),
        ("a100-40", "A100 40GB SXM", 1, 40, 312, 1555, 400, "sm_80"),
        ("h100-pcie", "H100 80GB PCIe", 1, 79.6, 756, 2000, 350, "sm_90"),
        ("eight-a100", "A100 80GB SXM", 8, 80, 312, 2039, 400, "sm_80"),
        ("mixed", "RTX A4000", 2, 16, 71, 448, 245, "sm_86"),
        ("with-display-card", "RTX A4000", 1, 16, 76.7, 448, 140, "sm_86"),
        ("new", "RTX Next", 1, 48, None, None, None, "sm_200"),
    ],
)
def test_hardware_is_measured_where_it_can_be(
    machine, gpu, count, memory_gib, tflops, gb_s, power_w, sm
):
    found = detected(machine)[0].hardware
    assert (found.gpu, found.count, found.compute_capability) == (gpu, count, sm)
    assert (found.memory_gib, found.power_w, found.memory_gb_s) == (memory_gib, power_w, gb_s)
    assert found.bf16_tflops == (tflops and pytest.approx(tflops, rel=0.003))
    assert found.device == "cuda"
    assert found.link_gb_s == (300 if machine == "eight-a100" else None)


@pytest.mark.parametrize(
    ("machine", "base", "differs"),
    [
        ("a4000", "a4000", {}),
        ("with-display-card", "a4000", {}),
        ("a100-40", "a100-40gb", {}),
        ("eight-a100", "a100x8", {}),
        ("two-3090", "rtx3090", {"gradient_accumulation_steps": 16, "save_steps": 50, "eval_steps": 50}),
        ("three-a100", "a100-80gb", {"gradient_accumulation_steps": 3, "save_steps": 300, "eval_steps": 300}),
        ("sixteen-a100", "a100-80gb", {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "save_steps": 1600, "eval_steps": 1600}),
        ("h100-pcie", "h100-80gb", {"save_steps": 190, "eval_steps": 190}),
        ("l40s", "a100-40gb", {"save_steps": 115, "eval_steps": 115}),
        ("mixed", "a4000", {"gradient_accumulation_steps": 16, "save_steps": 50, "eval_steps": 50}),
        ("new", "a100-40gb", {}),
    ],
)  # fmt: skip
def test_knobs_are_those_of_the_nearest_profile(machine, base, differs):
    profile, text, notes = detected(machine)
    assert f"knobs of profile {base}," in notes[0]
    assert profile.axolotl == {**SHIPPED[base].profile.axolotl, **differs}
    assert profile.out_of_memory == SHIPPED[base].profile.out_of_memory
    assert profile.price_usd_hour is None
    assert "tok/s" not in text or not differs, "another card's pace is told"


@pytest.mark.parametrize(("machine", "sequence_len"), [("t4", 2048), ("2080ti", 1024)])
def test_cards_before_ampere_get_fp16_and_no_kernel_they_cannot_run(machine, sequence_len):
    profile, _, notes = detected(machine)
    tree = profile.axolotl
    assert (tree["bf16"], tree["fp16"], tree["tf32"]) == (False, True, False)
    assert (tree["attn_implementation"], tree["sdpa_varlen"]) == ("sdpa", False)
    assert not any(value for key, value in tree.items() if "kernel" in key or "liger" in key)
    assert "plugins" not in tree
    assert tree["chunked_cross_entropy"] is True
    assert tree["sequence_len"] == sequence_len
    assert any("has no bf16" in note for note in notes)


@pytest.mark.parametrize("name", [*SHIPPED])
def test_a_step_of_every_shipped_profile_is_the_same(name):
    profile = SHIPPED[name].profile
    found = knobs.read(profile.axolotl, profile.hardware.count)
    assert found.tokens_per_step == detect.TOKENS_PER_STEP


@pytest.mark.parametrize("machine", [m for m in fake.MACHINES if m != "three-a100"])
def test_a_step_of_every_detected_profile_is_the_same(machine):
    profile, _, _ = detected(machine)
    found = knobs.read(profile.axolotl, profile.hardware.count)
    assert found.tokens_per_step == detect.TOKENS_PER_STEP


@pytest.mark.parametrize(
    ("machine", "note"),
    [
        ("three-a100", "the effective batch is 73,728 tokens; the shipped profiles' is 65,536"),
        ("mixed", "different cards, GeForce RTX 3090 (24.0 GiB), RTX A4000 (16.0 GiB): written"),
        ("with-display-card", "start with CUDA_VISIBLE_DEVICES=1; a run takes the first it sees"),
        ("with-display-card", "left out as too small: T400 4GB (4.0 GiB)"),
        ("l40s", "the nearest by memory: assumed to suit this card, too"),
    ],
)
def test_what_the_user_should_know_is_told(machine, note):
    assert any(told.startswith(note) or note in told for told in detected(machine)[2])


def test_a_machine_of_one_small_card_is_told_that_8b_does_not_fit():
    text, notes = detect.profile_for([fake.T400])
    assert config.parse_profile(text).hardware.gpu == "T400 4GB"
    assert "an 8B model does not fit this card: choose a smaller base_model" in notes


def test_the_users_own_profiles_are_not_asked_for_facts(project):
    Path("configs/profiles/a4000.yaml").write_text("hardware: {bf16_tflops: 1}\n")
    Path("configs/profiles/broken.yaml").write_text("hardware: [\n")
    assert detected("a4000")[0].hardware.bf16_tflops == 76.7


# --- the file's own words ---------------------------------------------------------


@pytest.mark.parametrize("machine", fake.MACHINES)
def test_the_file_teaches(machine):
    text = detected(machine)[1]
    assert max(map(len, text.splitlines())) <= 100
    assert "#   leviathan train --profile mine --sample 10pct\n" in text
    values = [line for line in text.splitlines() if re.match(r" +(?!- )[a-z]\w*: ", line)]
    commented = [line for line in values if "  # " in line]
    assert len(commented) > 0.6 * len(values)


def test_a_whole_file():
    """Two cards of a shipped profile; reviewed by eye, rewritten as those of test_render."""
    text = detected("two-3090")[1]
    path = Path(__file__).parent / "snapshots/detected-two-3090.yaml"
    if os.environ.get("LEVIATHAN_REWRITE_SNAPSHOTS"):
        path.write_text(text)
    assert text == path.read_text()


# --- the command ------------------------------------------------------------------


def nvml(*gpus: Gpu) -> list[dict]:
    return [
        {
            "Name": gpu.name, "MemoryInfo": dict.fromkeys(("total", "free"), int(gpu.memory_gib * 2**30)),
            "CudaComputeCapability": [int(gpu.compute_capability[3:-1]), int(gpu.compute_capability[-1])],
            "EnforcedPowerLimit": int((gpu.power_limit_w or 0) * 1000), "NumGpuCores": gpu.cores,
            "MaxClockInfo": [gpu.max_sm_clock_mhz, gpu.max_memory_clock_mhz],
            "MemoryBusWidth": gpu.memory_bus_bits,
        }
        for gpu in gpus
    ]  # fmt: skip


def leviathan(*arguments: str, gpus=(fake.L40S,)):
    path = os.pathsep.join([str(FAKES / "driver"), os.environ.get("PYTHONPATH", "")])
    state = {"driver": "580.95", "cuda": 13000, "gpus": nvml(*gpus)}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(state))
        file.flush()
        environment = {**os.environ, "PYTHONPATH": path, "FAKE_NVML": file.name}
        return subprocess.run(
            [LEVIATHAN, *arguments], env=environment, capture_output=True, text=True, check=False
        )


def test_detect_shows_writes_and_never_overwrites(project):
    before = listing(project)
    shown = leviathan("profiles", "detect")
    assert shown.returncode == 0, shown.stderr
    assert listing(project) == before
    assert shown.stderr == "L40S: knobs of profile a100-40gb, the nearest by memory: assumed to suit this card, too\n"  # fmt: skip

    written = leviathan("profiles", "detect", "--write", "mine")
    assert (written.returncode, written.stdout) == (0, "wrote configs/profiles/mine.yaml\n")
    path = Path("configs/profiles/mine.yaml")
    assert path.read_text() == shown.stdout.replace("--profile detected", "--profile mine")

    for name in ("mine", "tiny"):
        again = leviathan("profiles", "detect", "--write", name, gpus=[fake.T4])
        assert again.returncode == 2
        assert f"configs/profiles/{name}.yaml exists and is not overwritten" in again.stderr
    assert "L40S" in path.read_text()

    dry = leviathan("train", "-p", "mine", "-r", "tiny", "-s", "full", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "NVIDIA L40S, 45.0 GiB" in dry.stdout + dry.stderr


def test_detect_as_json(project):
    document = json.loads(leviathan("profiles", "detect", "--json").stdout)
    assert document["hardware"]["gpu"] == "L40S"
    assert document["axolotl"]["gradient_accumulation_steps"] == 8
    assert (document["name"], document["path"], len(document["notes"])) == (None, None, 1)
    document = json.loads(leviathan("profiles", "detect", "--json", "--write", "mine").stdout)
    assert (document["name"], document["path"]) == ("mine", "configs/profiles/mine.yaml")
    assert Path(document["path"]).exists()


def test_without_a_gpu_the_cpu_profile_is_shown_and_nothing_written(project):
    before = listing(project)
    shown = leviathan("profiles", "detect", gpus=[])
    assert shown.returncode == 0
    assert shown.stderr.startswith("no NVIDIA GPU answers: this is the cpu profile")
    assert shown.stdout == config.find("profiles", "cpu").read_text()
    written = leviathan("profiles", "detect", "--write", "mine", gpus=[])
    assert written.returncode == 3
    assert "no NVIDIA GPU answers; nothing was written; use --profile cpu" in written.stderr
    assert listing(project) == before


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a..b", "x.", "-x", "a b", "é", "a\n"])
def test_a_name_that_could_leave_the_directory_is_bad_input(run_cli, project, name):
    before = listing(project)
    done = run_cli("profiles", "detect", f"--write={name}")
    assert done.exit_code == 2
    assert "cannot be a profile's name" in done.stderr
    assert listing(project) == before
