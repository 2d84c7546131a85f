"""Calibrations: kept for good, found by device, shape and knobs, the nearest if need be."""

import json
from dataclasses import replace

import pytest

from leviathan import calibrations, knobs

TREE = {"adapter": "qlora", "load_in_4bit": True, "lora_r": 32, "lora_target_modules": ["q_proj"],
        "sequence_len": 2048, "micro_batch_size": 2, "gradient_accumulation_steps": 8,
        "num_epochs": 2, "val_set_size": 256, "bf16": True, "optimizer": "adamw_torch"}  # fmt: skip
KNOBS = knobs.read(TREE)
SHAPE = calibrations.shape_digest("some/model", 8_000_000_000)


def made(tree=TREE, **changes) -> calibrations.Calibration:
    base = calibrations.Calibration(
        time=1.0, kind="bench", devices=("NVIDIA RTX A4000", "RTX A4000"), memory_gib=15.7,
        model="some/model", parameters=8_000_000_000, random=True,
        knobs=calibrations.essential(knobs.read(tree)), fits=True, phase="", problem="", steps=10,
        tok_s=700.0, padded_tok_s=720.0, step_s=46.8, step_low_s=46.0, step_high_s=47.0,
        eval_s_per_batch=1.5, save_s=2.0, load_s=30.0,
        peaks_gib={"load": 6.0, "train": 11.5}, allocated_gib={"train": 10.0},
        versions={"torch": "2.13.0"},
    )  # fmt: skip
    return replace(base, **changes)


def find(records, device="RTX A4000", shape=SHAPE, wanted=KNOBS):
    return calibrations.find(records, device, shape, wanted)


def test_what_is_appended_is_read_again(tmp_path):
    path = tmp_path / "work/calibrations.jsonl"
    records = [made(), made(time=2.0, kind="smoke", fits=False, phase="eval", tok_s=None)]
    for record in records:
        calibrations.append(record, path)
    assert calibrations.read(path) == records
    assert calibrations.read(tmp_path / "none") == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: "[]",
        lambda line: "\x00\x00",
        lambda line: json.dumps({**json.loads(line), "schema": 99}),
        lambda line: json.dumps({**json.loads(line), "unknown": 1}),
        lambda line: json.dumps({**json.loads(line), "tok_s": "fast"}),
        lambda line: json.dumps({**json.loads(line), "step_s": -1}),
        lambda line: json.dumps({**json.loads(line), "peaks_gib": {"train": None}}),
        lambda line: json.dumps({**json.loads(line), "peaks_gib": 3}),
        lambda line: json.dumps({**json.loads(line), "devices": []}),
        lambda line: json.dumps({**json.loads(line), "devices": [1]}),
        lambda line: json.dumps({**json.loads(line), "devices": 7}),
        lambda line: json.dumps({**json.loads(line), "capped": "yes"}),
        lambda line: json.dumps({**json.loads(line), "as_card": None}),
        lambda line: json.dumps({**json.loads(line), "devices": ["A4000\n\x1b[2J"]}),
        lambda line: json.dumps({**json.loads(line), "kind": "guess"}),
        lambda line: json.dumps({**json.loads(line), "tok_s": 1e308}),
        lambda line: json.dumps({**json.loads(line), "step_s": 1e-320}),
        lambda line: json.dumps({**json.loads(line), "parameters": 10**400}),
        lambda line: json.dumps({k: v for k, v in json.loads(line).items() if k != "model"}),
    ],
)
def test_damaged_lines_are_passed_over(tmp_path, damage):
    path = tmp_path / "calibrations.jsonl"
    calibrations.append(made(), path)
    whole = path.read_text()
    path.write_text(damage(whole.strip()) + "\n" + whole)
    assert calibrations.read(path) == [made()]


def test_of_equal_ones_the_newest_counts():
    records = [made(time=1.0, tok_s=1.0), made(time=3.0, tok_s=3.0), made(time=2.0, tok_s=2.0)]
    assert find(records).tok_s == 3.0


def test_a_bench_goes_before_a_newer_smoke_test():
    assert find([made(), made(time=9.0, kind="smoke", steps=1)]).kind == "bench"


@pytest.mark.parametrize("key", ["num_epochs", "val_set_size", "seed", "save_steps", "max_steps"])
def test_length_and_rows_do_not_matter(key):
    wanted = knobs.read({**TREE, key: 7})
    assert find([made()], wanted=wanted) == made()
    assert calibrations.is_exact(made(), wanted)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("micro_batch_size", 4), ("sequence_len", 1024), ("lora_r", 16),
        ("gradient_accumulation_steps", 2), ("eval_batch_size", 8),
        ("attn_implementation", "flash_attention_2"),
    ],
)  # fmt: skip
def test_a_neighbour_may_have_another_size(key, value):
    wanted = knobs.read({**TREE, key: value})
    assert find([made()], wanted=wanted) == made()
    assert not calibrations.is_exact(made(), wanted)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapter", "lora"), ("gradient_checkpointing", True), ("sample_packing", True),
        ("optimizer", "paged_adamw_8bit"), ("bf16", False), ("lora_target_modules", ["k_proj"]),
        ("chunked_cross_entropy", True),
    ],
)  # fmt: skip
def test_anything_else_makes_it_another_training(key, value):
    changed = {**TREE, key: value, "load_in_4bit": key != "adapter"}
    assert find([made()], wanted=knobs.read(changed)) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"a_knob_of_tomorrow": 1}, {"sequence_len": 10**30}, {"micro_batch_size": -4},
        {"rank": "many"},
    ],
)  # fmt: skip
def test_knobs_of_another_version_or_of_nonsense_do_not_count(damage):
    odd = made()
    assert find([replace(odd, knobs={**odd.knobs, **damage})]) is None


def test_the_nearest_counts_not_the_newest():
    near = made({**TREE, "sequence_len": 1024}, time=1.0)
    far = made({**TREE, "sequence_len": 256}, time=9.0)
    assert find([far, near]) == near
    assert find([far, near, made()]) == made()


def test_other_models_devices_and_process_counts_do_not_count():
    assert find([made()], shape=calibrations.shape_digest("some/model", 1)) is None
    assert find([made()], shape=calibrations.shape_digest("another/model", 8_000_000_000)) is None
    assert find([made()], device="RTX 4090") is None
    assert find([made()], wanted=knobs.read(TREE, processes=2)) is None


def test_what_did_not_fit_tells_no_speed_but_refutes():
    failed = made(time=5.0, fits=False, phase="train", problem="out of memory")
    assert find([failed]) is None
    assert calibrations.refuting([made(), failed], "RTX A4000", SHAPE, KNOBS) == failed
    assert calibrations.refuting([failed, made(time=6.0)], "RTX A4000", SHAPE, KNOBS) is None
    assert failed.text == "bench on NVIDIA RTX A4000: out of memory in phase train"


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("NVIDIA RTX A4000", "RTX A4000", True),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM", True),
        ("NVIDIA A100-SXM4-40GB", "A100 80GB SXM", False),
        ("NVIDIA A100 80GB PCIe", "A100 80GB SXM", False),
        ("NVIDIA GeForce RTX 3090", "RTX 3090", True),
        ("NVIDIA RTX 6000 Ada Generation", "RTX A6000", False),
        ("NVIDIA RTX A4000", "RTX 4000", False),
        ("NVIDIA RTX A4000", "RTX A400", False),
        ("NVIDIA A100-SXM4-80GB", "A10", False),
        ("NVIDIA H200", "H20", False),
        ("", "RTX A4000", False),
    ],
)
def test_a_card_has_several_names(one, two, same):
    assert calibrations.same_device(one, two) is same
    assert calibrations.same_device(two, one) is same


def test_the_evidence_is_one_line():
    assert made().text == (
        "bench on NVIDIA RTX A4000: 700 tok/s, 10 steps of 46.8 s, peak 11.5 GiB, random weights"
    )
    assert made().peak_gib == 11.5


# --- a smaller card's memory on a larger one ----------------------------------------------


CAPPED = {"devices": ("NVIDIA H100 PCIe",), "capped": True, "as_card": "RTX A4000"}


@pytest.mark.parametrize("device", ["RTX A4000", "NVIDIA H100 PCIe"])
def test_a_capped_measurement_tells_no_cards_speed(device):
    assert find([made(**CAPPED)], device) is None
    assert find([made(devices=(device,), tok_s=5.0), made(**CAPPED, time=9.0)], device).tok_s == 5.0


@pytest.mark.parametrize(("device", "refuted"), [("RTX A4000", True), ("NVIDIA H100 PCIe", False)])
def test_memory_that_ran_out_under_a_cap_ran_out_on_that_card(device, refuted):
    record = made(**CAPPED, fits=False, phase="train")
    assert bool(calibrations.refuting([record], device, SHAPE, KNOBS)) is refuted


def test_what_happened_on_the_card_itself_goes_before_a_newer_cap():
    failed = made(fits=False, phase="train")
    assert calibrations.refuting([failed, made(**CAPPED, time=9.0)], "RTX A4000", SHAPE, KNOBS)
    broke = made(**CAPPED, time=9.0, fits=False, phase="train")
    assert not calibrations.refuting([made(), broke], "RTX A4000", SHAPE, KNOBS)


def test_a_cap_without_a_card_tells_of_none():
    record = made(**{**CAPPED, "as_card": ""}, fits=False, phase="train")
    for device in ("RTX A4000", "NVIDIA H100 PCIe", ""):
        assert not calibrations.refuting([record], device, SHAPE, KNOBS)


def test_the_text_of_a_capped_measurement_says_whose_memory_and_whose_speed():
    text = made(**CAPPED).text
    assert text.startswith(
        "bench on NVIDIA H100 PCIe with the memory of RTX A4000 (15.7 GiB), not its speed: 700"
    )
