"""Bench and smoke test on the fake accelerate: what is told, kept, refused and cleaned up."""

import json
import os
import signal
from pathlib import Path

import pytest

from fakes import fake_files
from fakes.processes import listing, wait_for
from leviathan import bench, calibrations, gauge, stand_in
from leviathan.config import Hardware
from leviathan.errors import BadInput
from leviathan.machine import Gpu, Machine

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
TINY = ("-p", "tiny", "-r", "tiny")
LADDER = "out_of_memory: {ladder: [{halve: micro_batch_size}]}\n"


@pytest.fixture
def benches(trainings):
    """Trainings in a project whose base model is there, as far as anybody looks."""
    base = trainings.project / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(fake_files.safetensors())
    profile = trainings.project / "configs/profiles/tiny.yaml"
    profile.write_text(profile.read_text() + LADDER)
    return trainings


def run(benches, *arguments, **fake):
    done = benches.command("bench", *TINY, *arguments, **fake)
    done.end()
    return done


def kept(benches) -> list[calibrations.Calibration]:
    return calibrations.read(benches.project / calibrations.FILE)


def directory(benches) -> Path:
    return benches.project / "work/bench/tiny_tiny"


# --- bench --------------------------------------------------------------------------


def test_a_bench_tells_and_keeps_what_it_measured(benches):
    done = run(benches, "--steps", "4", "--warm-up", "2", "--json",
               "--set", "gradient_accumulation_steps=8")  # fmt: skip
    assert done.code == 0, done
    told = json.loads(done.stdout)
    (record,) = kept(benches)
    assert told["verdict"] == "fits"
    assert {k: told[k] for k in ("model", "steps", "tok_s", "peak_gib")} == {
        "model": "base", "steps": 4, "tok_s": record.tok_s, "peak_gib": 3.0,
    }  # fmt: skip
    assert record.peaks_gib == {"load": 1.0, "train": 3.0, "eval": 2.0, "save": 1.5}
    assert (record.load_s, record.eval_s_per_batch, record.save_s) == (0.5, 0.05, 0.3)
    # Eight micro batches of 0.1 s and one update of 0.2 s, although four were measured.
    assert record.step_s == pytest.approx(1.0)
    assert record.tok_s == pytest.approx(8 * 90 / 1.0)
    assert record.padded_tok_s == pytest.approx(8 * 100 / 1.0)
    assert record.knobs["gradient_accumulation_steps"] == 8
    assert (
        record.parameters == 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 128) + 2 * 512 * 64 + 64
    )


def test_what_is_launched_is_trains_own_with_a_few_keys_over_it(benches):
    assert run(benches, "--set", "gradient_accumulation_steps=8").code == 0
    import yaml

    tree = yaml.safe_load((directory(benches) / "axolotl.yaml").read_text())
    wanted = {"max_steps": 13, "save_steps": 13, "eval_steps": 13, "val_set_size": 0,
              "gradient_accumulation_steps": 4, "curriculum_sampling": True,
              "excess_length_strategy": "truncate", "micro_batch_size": 4,
              "sequence_len": 256, "lora_r": 8}  # fmt: skip
    assert {key: tree[key] for key in wanted} == wanted
    assert tree["leviathan"]["probe"] == {"warm_up": 3, "worst_rows": 2 * 4 * 4}
    assert tree["test_datasets"][0]["path"].endswith("/eval_rows.jsonl")


def test_nothing_of_the_users_is_touched_and_weights_do_not_stay(benches):
    assert benches.run().code == 0
    before = listing(benches.project / "work/training")
    assert run(benches).code == 0
    assert listing(benches.project / "work/training") == before
    assert not list(directory(benches).glob("checkpoint-*"))
    assert (directory(benches) / "events.jsonl").exists()


@pytest.mark.parametrize("phase", ["load", "train", "eval", "save"])
def test_out_of_memory_is_a_verdict(benches, phase):
    done = run(benches, "--set", "micro_batch_size=16", mode="oom", oom_in=phase, fits=8)
    assert done.code == 3, done
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("leviathan:")]
    assert f"does not fit: in phase {phase}, out of memory" in line
    assert "total capacity of 15.70 GiB" in line
    if phase == "load":
        assert "the next rung" not in line
    else:
        assert "the next rung would be micro_batch_size 16 -> 8" in line
    (record,) = kept(benches)
    assert not record.fits
    assert record.phase == phase
    # One launch: a bench tells, it does not walk the ladder.
    assert len(json.loads((directory(benches) / "run.json").read_text())["sessions"]) == 1


def test_another_failure_is_no_measurement(benches):
    done = run(benches, mode="crash", crash_at=2)
    assert done.code == 1
    assert "the bench failed: " in done.stderr
    assert "made up" in done.stderr
    assert not kept(benches)


def test_ctrl_c_ends_it_at_once_and_it_can_be_run_again(benches):
    started = benches.command("bench", *TINY, step_s=60)
    wait_for(lambda: "train_begin" in _events(benches))
    started.signal(signal.SIGINT).end()
    assert started.code == 130, started
    assert "work/bench/tiny_tiny can be removed" in started.stderr
    assert not benches.left()
    assert not kept(benches)
    assert run(benches).code == 0


def _events(benches) -> str:
    path = directory(benches) / "events.jsonl"
    return path.read_text() if path.exists() else ""


def test_two_benches_of_one_name_do_not_meet(benches):
    started = benches.command("bench", *TINY, step_s=5)
    wait_for(lambda: "train_begin" in _events(benches))
    second = run(benches)
    assert second.code == 3
    assert "is already being trained" in second.stderr
    assert started.signal(signal.SIGINT).end() == 130


def test_without_a_corpus_rows_are_made_up(benches):
    (benches.project / "rows.jsonl").unlink()
    done = run(benches, "--json")
    assert done.code == 0, done
    assert "there is no corpus here" in json.loads(done.stdout)["rows"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "0"], "--steps"),
        (["--warm-up", "-1"], "--warm-up"),
        (["--cap-gib", "8"], "--cap-gib is for a GPU's memory, and the profile trains on the CPU"),
        (["--set", "micro_batch_size=0"], "micro_batch_size is 0"),
        (["--set", "rl=dpo"], "rl is set"),
        (["--set", "base_model=./nowhere"], "base model directory ./nowhere does not exist"),
        (["--set", "base_model=nobody/nothing"], "the shape of nobody/nothing is unknown"),
        (["--set", "base_model=empty"], "has no config.json"),
        (["--set", "base_model=broken"], "broken/config.json: Expecting property name"),
        (["--set", "base_model=listed"], "not a model's config"),
        (["--set", "base_model=strange"], "strange: model_type 'x'"),
        (["--set", "corpus=nowhere.jsonl", "--set", "datasets.0.type=chat_template"],
         "corpus nowhere.jsonl does not exist"),
        (["--set", "corpus=bad.jsonl"], "bad.jsonl:1: not JSON"),
        (["--set", "corpus=shards"], "bench measures one plain JSONL file, and shards is none"),
        (["--set", "learning_rat=1"], "learning_rate"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(run_cli, project, arguments, complaint):
    for name, text in (("broken", "{"), ("listed", "[]"), ("strange", '{"model_type": "x"}')):
        (project / name).mkdir()
        (project / name / "config.json").write_text(text)
    (project / "empty").mkdir()
    (project / "bad.jsonl").write_text("{\n")
    (project / "shards").mkdir()
    (project / "shards/a.jsonl").write_text("{}\n")
    before = listing(project)
    done = run_cli("bench", *TINY, *arguments)
    assert done.exit_code == 2, done.output
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert listing(project) == before


@pytest.mark.parametrize(
    ("lacking", "real", "has_tokenizer"),
    [
        (None, True, True),
        ("model.safetensors", False, True),
        ("tokenizer.json", False, False),
    ],
)
def test_only_a_whole_base_model_is_taken_for_the_real_one(benches, lacking, real, has_tokenizer):
    if lacking:
        (benches.project / "base" / lacking).unlink()
    found = stand_in.find({"base_model": "base", "special_tokens": {"pad_token": "<pad>"}})
    assert (found.real, found.tokenizer is not None) == (real, has_tokenizer)
    assert found.special_tokens == ("<pad>",)
    assert found.directory == Path("work/bench/models/base")


def test_a_model_that_is_not_here_is_made_from_the_shipped_shape(project):
    found = stand_in.find({"base_model": "meta-llama/Llama-3.1-8B"})
    assert (found.real, found.parameters) == (False, 8_030_261_248)
    assert found.directory == Path("work/bench/models/meta-llama_Llama-3.1-8B")


def test_a_whole_model_of_no_known_shape_is_measured_all_the_same(benches):
    (benches.project / "base/config.json").write_text('{"model_type": "strange"}')
    assert stand_in.find({"base_model": "base"}).parameters == 64  # as its one tensor has
    (benches.project / "base/model.safetensors").unlink()
    with pytest.raises(BadInput, match="strange"):
        stand_in.find({"base_model": "base"})


# --- arithmetic ---------------------------------------------------------------------


def test_a_longer_step_is_made_of_more_micro_batches():
    steps = [
        {"seconds": s, "micro_batches": 2, "tokens": 10, "padded": 20} for s in (2.0, 3.0, 4.0)
    ]
    found = bench.speeds({"steps": steps, "micro_s": [0.5, 0.5, 9.0]}, 6)
    assert found["step_s"] == 3.0 + 4 * 0.5
    assert (found["step_low_s"], found["step_high_s"]) == (4.5, 5.5)
    assert found["tok_s"] == pytest.approx(30 / 5.0)
    assert found["padded_tok_s"] == pytest.approx(60 / 5.0)
    assert bench.speeds({}, 6)["tok_s"] is None


# --- a smaller card's memory --------------------------------------------------------------


@pytest.fixture
def on_h100(benches, monkeypatch):
    """The tiny profile says that it is for an A4000; the machine has an H100."""
    path = [str(Path(fake_files.__file__).parent / "driver"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    memory = {"total": 80 * 2**30, "free": 78 * 2**30}
    gpu = {"Name": "NVIDIA H100 PCIe", "MemoryInfo": memory, "CudaComputeCapability": [9, 0]}
    state = benches.project / "nvml.json"
    state.write_text(json.dumps({"driver": "580", "cuda": 13000, "gpus": [gpu]}))
    monkeypatch.setenv("FAKE_NVML", str(state))
    profile = benches.project / "configs/profiles/tiny.yaml"
    card = "{device: cuda, gpu: RTX A4000, memory_gib: 16}"
    profile.write_text(profile.read_text().replace("{device: cpu}", card))
    return benches


@pytest.mark.parametrize(("cap", "card"), [("15.7", "RTX A4000"), ("12", ""), ("40", "")])
def test_a_cap_reaches_the_training_and_the_calibration_says_so(on_h100, cap, card):
    done = run(on_h100, "--force", "--cap-gib", cap, "--json")
    assert done.code == 0, done
    import yaml

    tree = yaml.safe_load((directory(on_h100) / "axolotl.yaml").read_text())
    assert tree["leviathan"]["probe"]["limit_gib"] == float(cap) + 2
    (record,) = kept(on_h100)
    assert (record.capped, record.as_card, record.memory_gib) == (True, card, float(cap))
    assert record.devices == ("NVIDIA H100 PCIe",)
    assert json.loads(done.stdout)["capped"]


def test_without_a_cap_there_is_none(on_h100):
    assert run(on_h100, "--force").code == 0
    assert "limit_gib" not in (directory(on_h100) / "axolotl.yaml").read_text()
    (record,) = kept(on_h100)
    assert (record.capped, record.memory_gib) == (False, 80)


@pytest.mark.parametrize("cap", ["0", "-1", "nan", "inf", "78.1"])
def test_a_cap_that_is_none_is_refused(on_h100, cap):
    done = run(on_h100, "--cap-gib", cap)
    assert done.code == 2
    assert "NVIDIA H100 PCIe has 78.0 GiB free" in done.stderr
    assert not directory(on_h100).exists()


def test_what_others_hold_counts_for_neither():
    gpu = Gpu("NVIDIA H100 PCIe", 80.0, 60.0, "sm_90")
    here = Machine((gpu,), flash_attn=False, versions={})
    cap = bench._cap(Hardware(device="cuda"), here, 15.7)
    assert (cap.gib, cap.held_gib) == (15.7, 20.0)
    # 20 GiB of others and 0.5 of context lie beside torch, which gets what is left of 35.7.
    assert gauge.share(cap.gib + cap.held_gib, 20.5, 80.0) == pytest.approx(15.2 / 80)
    assert gauge.share(1.0, 2.0, 80.0) == 0.0
    assert gauge.share(90.0, 2.0, 80.0) == 1.0


# --- smoke test ---------------------------------------------------------------------


def record(benches) -> dict:
    return json.loads((benches.run_dir / "run.json").read_text())


def test_a_smoke_test_that_passes_changes_nothing(benches):
    done = benches.run("--smoke")
    assert done.code == 0, done
    assert "smoke on " in done.stderr
    assert record(benches)["adjustments"] == []
    assert [session["outcome"] for session in record(benches)["sessions"]] == ["done"]
    (kept_one,) = kept(benches)
    assert (kept_one.kind, kept_one.fits, kept_one.steps) == ("smoke", True, 1)
    assert not list((benches.project / "work/bench").glob("*/checkpoint-*"))


@pytest.mark.parametrize("phase", ["train", "eval", "save"])
def test_the_ladder_is_walked_before_the_run_and_the_run_begins_on_the_rung(benches, phase):
    options = ("--smoke", "--set", "micro_batch_size=16", "--set", "gradient_accumulation_steps=2")
    done = benches.run(*options, mode="oom", oom_in=phase, fits=4)
    assert done.code == 0, done
    told = record(benches)
    rungs = [{"micro_batch_size": 8, "gradient_accumulation_steps": 4},
             {"micro_batch_size": 4, "gradient_accumulation_steps": 8}]  # fmt: skip
    assert [a["after"] for a in told["adjustments"]] == rungs
    assert [s["outcome"] for s in told["sessions"]] == ["done"]
    events = [json.loads(x) for x in (benches.run_dir / "events.jsonl").read_text().splitlines()]
    ladder = [e for e in events if e["event"] == "ladder"]
    assert [e["changes"] for e in ladder] == rungs
    assert {e["reason"] for e in ladder} == {"smoke test"}
    assert "the run begins with micro_batch_size 8 -> 4" in done.stderr
    assert "put into the profile's axolotl block" in done.stderr
    assert kept(benches)[-1].knobs["micro_batch_size"] == 4
    again = benches.run(*options, "--dry-run")
    assert "nothing: the run is finished" in again.stdout


def test_a_resume_is_not_tested(benches):
    assert benches.run(mode="crash", crash_at=7).code == 1
    done = benches.run("--smoke")
    assert done.code == 0, done
    assert "smoke test" not in done.stderr
    assert not (benches.project / "work/bench").exists()


@pytest.mark.parametrize(("in_profile", "option", "tested"),
                         [("true", None, True), ("true", "--no-smoke", False),
                          ("false", None, False), ("false", "--smoke", True)])  # fmt: skip
def test_the_profile_decides_unless_told(benches, in_profile, option, tested):
    profile = benches.project / "configs/profiles/tiny.yaml"
    profile.write_text(profile.read_text() + f"smoke_test: {in_profile}\n")
    done = benches.run(*filter(None, [option]))
    assert done.code == 0, done
    assert (benches.project / "work/bench").exists() is tested


def test_a_training_that_cannot_be_tested_is_trained(benches):
    profile = benches.project / "configs/profiles/tiny.yaml"
    profile.write_text(profile.read_text() + "smoke_test: true\n")
    done = benches.run("--set", "rl=kto")
    assert done.code == 0, done
    assert "no smoke test: rl is set" in done.stderr
    refused = benches.run("--set", "rl=kto", "--name", "other", "--smoke")
    assert refused.code == 2, refused
    assert not (benches.project / "work/training/other").exists()


def test_what_memory_cannot_hold_is_refused_before_the_run_exists(benches):
    done = benches.run("--smoke", mode="oom", fits=0)
    assert done.code == 3, done
    assert "the smoke test failed in phase train: out of memory" in done.stderr
    assert "the out-of-memory ladder is at its end" in done.stderr
    assert not (benches.project / "work/training").exists()
    (kept_one,) = kept(benches)
    assert not kept_one.fits


def test_any_other_failure_is_refused_with_its_diagnosis(benches):
    done = benches.run("--smoke", mode="refused")
    assert done.code == 3, done
    assert "activation_offloading requires gradient_checkpointing" in done.stderr
    assert "--no-smoke trains all the same" in done.stderr
    assert not (benches.project / "work/training").exists()
    assert not kept(benches)


def test_shrink_goes_on_from_the_end_of_the_ladder(benches):
    profile = benches.project / "configs/profiles/tiny.yaml"
    shrink = LADDER.replace("}]}", "}], shrink: [{halve: lora_r, down_to: 2}]}")
    profile.write_text(profile.read_text().replace(LADDER, shrink))
    done = benches.run("--smoke", "--shrink", mode="oom", fits=0.5)
    assert done.code == 0, done
    assert record(benches)["successor"]["name"] == "tiny_full_tiny_r4"


def test_stopping_the_smoke_test_begins_nothing(benches):
    started = benches.start("--smoke", step_s=60)
    smoke = benches.project / "work/bench/smoke_tiny_full_tiny/events.jsonl"
    wait_for(lambda: smoke.exists() and "train_begin" in smoke.read_text())
    started.signal(signal.SIGTERM).end()
    assert started.code == 4, started
    assert "stopped (in the smoke test): there is no checkpoint yet, resume with:" in started.stdout
    assert "--smoke" in started.stdout
    assert not (benches.project / "work/training").exists()
    assert not benches.left()


def test_a_smoke_test_in_the_background_is_heard(benches):
    done = benches.run("--smoke", "--detach")
    assert done.code == 0, done
    assert "smoke test: two steps" in done.stderr
    wait_for(lambda: record(benches)["state"] == "done")
    refused = benches.run("--smoke", "--detach", "--name", "other", mode="refused")
    assert refused.code == 3, refused
    assert "the smoke test failed" in refused.stderr
