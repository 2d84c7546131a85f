"""Plans: what they are made of, where their figures come from, what the command prints."""

import contextlib
import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import termios
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fakes.processes import LEVIATHAN
from leviathan import calibrations, figures, knobs, layers, machine, plan, runs, shapes, speed
from leviathan.calibrations import Calibration
from test_bad_input import SHAPE
from test_speed import LLAMA_8B

ROWS, BYTES = 5_597_680, 12_700_000_000
TINY = ["-p", "tiny", "-r", "tiny", "-s", "full"]


@pytest.fixture(scope="module")
def llama():
    return shapes.from_config(LLAMA_8B, "Llama-3.1-8B")


def planned(llama, profile, *sets, sample="10pct", **options):
    config = layers.build("leviathan", profile, sample, list(sets))
    return plan.make(config, llama, figures.assumed("c.jsonl", ROWS, BYTES, sample), **options)


def measured(llama, profile, *sets, **changed):
    """A bench of exactly what is planned, on the profile's card."""
    config = layers.build("leviathan", profile, "10pct", list(sets))
    chosen = knobs.read(config.tree, config.profile.hardware.count)
    found = Calibration(
        time=1.0, kind="bench", devices=("NVIDIA RTX A4000",), memory_gib=16.0,
        model="meta-llama/Llama-3.1-8B", parameters=llama.parameters, random=True,
        knobs=calibrations.essential(chosen), fits=True, phase="", problem="", steps=10,
        tok_s=690.0, padded_tok_s=700.0, step_s=93.6, step_low_s=92.0, step_high_s=95.0,
        eval_s_per_batch=1.5, save_s=3.0, load_s=60.0, peaks_gib={"train": 9.0},
        allocated_gib={}, versions={},
    )  # fmt: skip
    return replace(found, **changed)


# --- time -------------------------------------------------------------------------


def test_hours_are_tokens_over_speed_and_the_rest(llama):
    made = planned(llama, "a4000")
    alone = made.steps.slots / made.speed.mid_tok_s / 3600
    evaluations = made.evaluations * 256 * 2048 / made.speed.eval_tok_s / 3600
    assert made.evaluations == 1 + made.steps.steps // 25
    assert alone < made.hours.mid < alone + evaluations + made.saves * 5 / 3600 + 0.1
    assert made.hours.low < made.hours.mid < made.hours.high


def test_two_hosts_are_counted_in_everything(llama):
    one, two = planned(llama, "h100x8"), planned(llama, "h100x8", "hardware.nodes=2")
    assert (one.knobs.processes, two.knobs.processes) == (8, 16)
    assert two.knobs.tokens_per_step == 2 * one.knobs.tokens_per_step
    assert two.steps.steps == pytest.approx(one.steps.steps / 2, rel=0.01)
    assert plan.prices(two.profile) == {"guide": 64.0}
    assert plan.watts_of(two.profile) == 2 * plan.watts_of(one.profile)
    assert "the network between hosts is not in it" in two.evidence["time"]
    slow = planned(llama, "h100x8", "hardware.nodes=2", "hardware.network_gb_s=3")
    assert "the network" not in slow.evidence["time"]
    assert slow.speed.mid_tok_s < two.speed.mid_tok_s
    fast = planned(llama, "h100x8", "hardware.nodes=2", "hardware.network_gb_s=5000")
    assert fast.speed.mid_tok_s == two.speed.mid_tok_s  # then the GPUs' own links are slower


def test_a_calibration_replaces_the_formula(llama):
    known = [measured(llama, "a4000")]
    made = planned(llama, "a4000", known=known, device="RTX A4000")
    assert made.speed.source == "calibration"
    assert made.speed.mid_tok_s == 700.0
    assert "calibration: bench on NVIDIA RTX A4000: 690 tok/s" in made.evidence["time"]
    assert (made.speed.high_tok_s - made.speed.low_tok_s) / 700 < 0.15
    elsewhere = planned(llama, "a100", known=known, device="A100 80GB")
    assert elsewhere.speed.source == "formula"


def test_saves_by_the_hour_are_counted_where_those_at_steps_are_rarer(llama):
    known = [measured(llama, "a4000")]
    plain = planned(llama, "a4000", known=known, device="RTX A4000")
    often = planned(llama, "a4000", "checkpoints.every_hours=0.01", known=known, device="RTX A4000")
    without = plain.hours.mid - plain.saves * 3 / 3600
    assert often.saves == math.ceil(without / 0.01) > plain.saves
    longer = (often.hours.mid - plain.hours.mid) * 3600
    assert longer == pytest.approx((often.saves - plain.saves) * 3, rel=0.01)
    rarely = planned(llama, "a4000", "checkpoints.every_hours=9999", known=known)
    assert rarely.saves == plain.saves


def test_hours_of_a_calibration_to_the_second(llama):
    """700 tokens a second, 1.5 s an evaluation batch, 3 s a save, a minute to load and one more."""
    made = planned(llama, "a4000", known=[measured(llama, "a4000")], device="RTX A4000")
    evaluation = made.steps.eval_batches * 1.5
    seconds = made.steps.slots / 700 + made.evaluations * evaluation + made.saves * 3 + 120
    assert made.hours.mid * 3600 == pytest.approx(seconds, abs=1)
    assert made.saves == 1 + made.steps.steps // 25
    doubt = made.statistics.total_error
    assert made.hours.high * 3600 > made.steps.slots * (1 + doubt) / made.speed.low_tok_s
    assert made.hours.low * 3600 > made.steps.slots * (1 - doubt) / made.speed.high_tok_s
    assert made.hours.low / made.hours.mid < (1 - doubt) / 0.97


def test_a_calibration_of_a_larger_rank_is_scaled_by_the_work(llama):
    known = [measured(llama, "a100", "lora_r=512", devices=("A100 80GB",))]
    made = planned(llama, "a100", known=known, device="A100 80GB")
    chosen = made.knobs
    there, here = (
        speed.train_flops_per_token(llama, replace(chosen, rank=rank), 1000) for rank in (512, 64)
    )
    assert made.speed.mid_tok_s == pytest.approx(700 * there / here, rel=0.01)
    assert there / here > 1.1


def test_a_calibration_of_other_sizes_is_scaled_and_doubted(llama):
    known = [measured(llama, "a4000", "sequence_len=1024")]
    made = planned(llama, "a4000", known=known, device="RTX A4000")
    exact = planned(llama, "a4000", known=[measured(llama, "a4000")], device="RTX A4000")
    assert "of other sizes" in made.evidence["time"]
    assert made.speed.mid_tok_s == pytest.approx(700, rel=0.03)
    spread = [p.speed.high_tok_s / p.speed.low_tok_s for p in (exact, made)]
    assert spread[0] < spread[1]


def test_what_ran_out_of_memory_does_not_fit(llama):
    failed = measured(llama, "a4000", fits=False, phase="eval", tok_s=None, padded_tok_s=None)
    made = planned(llama, "a4000", known=[failed], device="RTX A4000")
    assert made.verdict == "does_not_fit"
    assert made.evidence["memory"] == "bench on NVIDIA RTX A4000: out of memory in phase eval"


def test_what_a_bench_went_through_with_fits(llama):
    """Whatever the formula says: here it wants more than the card's 16 GiB."""
    sets = ("micro_batch_size=8", "gradient_accumulation_steps=4")
    assert planned(llama, "a4000", *sets).verdict == "does_not_fit"
    known = [measured(llama, "a4000", *sets, peaks_gib={"train": 15.2})]
    made = planned(llama, "a4000", *sets, known=known, device="RTX A4000")
    assert made.verdict == "fits"
    assert made.evidence["memory"].startswith("calibration: bench on NVIDIA RTX A4000")
    assert "peak 15.2 GiB" in made.evidence["memory"]
    near = planned(llama, "a4000", "micro_batch_size=16", known=known, device="RTX A4000")
    assert near.verdict == "does_not_fit"


def test_a_bench_without_a_speed_leaves_the_formula(llama):
    known = [measured(llama, "a4000", tok_s=None, padded_tok_s=None, step_s=None)]
    made = planned(llama, "a4000", known=known, device="RTX A4000")
    assert made.speed.source == "formula"
    assert made.evidence["time"].startswith("formula: ")


def test_a_bench_that_fell_back_to_other_attention_refutes_all_the_same(llama):
    """Without flash-attn the same profile trains with sdpa: what ran out then, runs out."""
    failed = measured(llama, "a4000", "attn_implementation=sdpa", fits=False, phase="train")
    assert planned(llama, "a4000", known=[failed], device="RTX A4000").verdict == "does_not_fit"
    assert (
        planned(llama, "a4000", "lora_r=16", known=[failed], device="RTX A4000").verdict == "fits"
    )


@pytest.mark.parametrize("packed", ["true", "false"])
def test_an_evaluation_takes_as_long_in_batches_of_twice_the_rows(llama, packed):
    """They are half as many; packed, they are of the training batch's size whatever is asked."""
    sets = f"eval_sample_packing={packed}"
    known = [measured(llama, "a4000", sets)]
    one, two = (
        planned(llama, "a4000", sets, f"eval_batch_size={size}", known=known, device="RTX A4000")
        for size in (1, 2)
    )
    evaluated = [
        made.hours.mid * 3600 - made.steps.slots / made.speed.mid_tok_s - made.saves * 3 - 120
        for made in (one, two)
    ]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=0.1)


def test_without_a_known_size_nothing_is_judged(llama):
    made = planned(llama, "a4000", "hardware.memory_gib=null")
    assert made.evidence["memory"].endswith("not judged: the profile names no memory_gib")


def test_of_a_cpu_nothing_is_known_before_a_bench(llama):
    made = planned(llama, "cpu", ram_gib=64.0)
    assert made.hours is None
    assert made.usd == {}
    assert "no bench" in made.evidence["time"]


# --- money ------------------------------------------------------------------------


def test_money_is_hours_times_price(llama):
    made = planned(llama, "a100", "price_usd_hour=2")
    assert made.usd["yours"].mid == pytest.approx(2 * made.hours.mid)
    assert made.usd["runpod"].mid == pytest.approx(1.5 * made.hours.mid)
    home = planned(llama, "a4000", "electricity_usd_kwh=0.5")
    assert home.kwh.mid == pytest.approx(0.2 * home.hours.mid)  # 140 W and 60 W
    eight = planned(llama, "h100x8")
    assert eight.kwh.mid == pytest.approx(5.6 * eight.hours.mid)  # 8 x 700 W
    assert home.energy_usd.mid == pytest.approx(0.1 * home.hours.mid)


def test_eight_gpus_take_an_eighth_at_the_same_batch(llama):
    one, eight = planned(llama, "h100-80gb"), planned(llama, "h100x8")
    assert one.knobs.tokens_per_step == eight.knobs.tokens_per_step
    assert one.steps.steps == pytest.approx(eight.steps.steps, rel=0.01)
    assert 7 < one.hours.mid / eight.hours.mid < 8.5


# --- the command ------------------------------------------------------------------


@pytest.fixture
def base(project):
    (project / "base").mkdir()
    (project / "base/config.json").write_text(json.dumps(SHAPE))
    return project


def test_json_has_what_others_rely_on(run_cli, base):
    done = run_cli("plan", *TINY, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["verdict"] == "fits"
    assert {"total", "weights", "adapter", "optimizer"} <= set(found["memory_gib"])
    assert found["steps"] == 16  # 64 rows of 4
    assert found["tokens"] > 1000
    assert found["hours"] is None
    assert found["usd"] == {}
    assert {"memory", "tokens", "time"} <= set(found["evidence"])


def test_plan_writes_no_run(run_cli, base):
    assert run_cli("plan", *TINY).exit_code == 0
    assert not runs.TRAINING.exists()


def test_a_bench_of_this_machine_is_used(run_cli, base, llama):
    config = layers.build("tiny", "tiny", "full", [])
    parameters = shapes.load("base").parameters
    found = measured(
        llama, "a4000", devices=(machine.cpu_name(),), model="base", parameters=parameters,
        knobs=calibrations.essential(knobs.read(config.tree)),
    )  # fmt: skip
    calibrations.append(found)
    done = run_cli("plan", *TINY, "--json")
    document = json.loads(done.stdout)
    assert document["evidence"]["time"].startswith("calibration: bench on")
    assert 0 < document["hours"]["mid"] < 1


def test_the_guides_plan_on_the_screen(run_cli, project):
    """Days, the limit that 36 hours would break, and what does fit in them."""
    done = run_cli("plan", "-p", "a4000", "-s", "10pct")
    assert done.exit_code == 0, done.output
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines() if line[:1].strip())
    assert "days" in lines["time"]
    assert lines["tokens"].startswith("614 M in 2 epochs, 98 % of")
    assert "times the card's limit" in lines["expected"]
    assert "in 36 h      --sample" in done.stdout


def test_on_a_terminal_of_80_columns_nothing_runs_over(project):
    """What is too long goes on under itself, in whole words."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [LEVIATHAN, "plan", "-p", "a4000", "--fit-hours", "36"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "dumb"}
    ) as running:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(ours, 65536):
                shown += more
    os.close(ours)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert running.returncode == 0
    assert len(lines) > 20
    assert max(map(len, lines)) <= 80
    evidence = next(n for n, line in enumerate(lines) if line.startswith("evidence"))
    assert all(line.startswith(" " * 13) for line in lines[evidence + 1 :] if line)


def test_a_few_steps_on_the_screen(run_cli, project):
    """Their number is known, whatever the corpus holds; and small figures are not 0."""
    done = run_cli("plan", "-p", "a4000", "--set", "max_steps=10")
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines() if line[:1].strip())
    assert lines["steps"].startswith("10, ")
    assert lines["tokens"].startswith("641 k in 10 steps")
    assert not lines["energy"].startswith("0 kWh")


def test_what_does_not_fit_is_refused_with_a_way_out(run_cli, project):
    done = run_cli("plan", "-p", "a4000", "--set", "adapter=lora", "--set", "load_in_4bit=null")
    assert done.exit_code == 3, done.output
    assert "does_not_fit" in done.stdout
    assert "--set adapter=qlora --set load_in_4bit=true" in done.stdout


def test_matrix(run_cli, project):
    done = run_cli("plan", "-s", "full", "--compare", "a4000, a100,h100x8", "--json")
    document = json.loads(done.stdout)
    assert [o["profile"] for o in document["options"]] == ["a4000", "a100-80gb", "h100x8"]
    assert document["choice"] == "h100x8"
    shown = run_cli("plan", "-s", "full", "--compare", "a4000,a100,h100x8").stdout
    assert f"take h100x8: {document['reason']}" in shown


def test_a_matrix_without_a_way_is_refused(run_cli, project):
    sets = [word for text in ("adapter=null", "hardware.memory_gib=4") for word in ("--set", text)]
    done = run_cli("plan", "--compare", "a4000,rtx3090", *sets)
    assert done.exit_code == 3, done.output
    assert "none of them fits" in done.stdout


def test_limits_in_json(run_cli, project):
    done = run_cli("plan", "-p", "a4000", "--fit-hours", "36", "--fit", "--json")
    document = json.loads(done.stdout)
    assert [share["epochs"] for share in document["fits_in_limit"]] == [2.0, 1.0]
    assert all(share["hours"]["high"] <= 36 for share in document["fits_in_limit"])
    assert document["reach"]["micro_batch_size"] >= document["best"]["sets"]["micro_batch_size"]
    assert "h100-80gb" in [other["profile"] for other in document["elsewhere"]]


def test_a_budget_is_hours_of_the_cheapest(run_cli, project):
    done = run_cli("plan", "-p", "a100", "--budget-usd", "22", "--json")
    document = json.loads(done.stdout)
    assert document["limit_hours"] == pytest.approx(20)  # Lambda's 1.10 of the guide


def test_calibrations_round_trip(base, llama):
    found = measured(llama, "a4000")
    calibrations.append(found)
    with Path("work/calibrations.jsonl").open("a") as out:
        out.write('{"schema": 1}\nnot json\n')
    assert [asdict(c) for c in calibrations.read()] == [asdict(found)]


def test_a_run_knows_its_own_pace_best(run_cli, base, llama):
    """Sixteen steps of 2 s with evaluations of 3 s and saves of 1 s at each fifth."""
    paths = runs.RunPaths(runs.TRAINING / "tiny_full_tiny")
    config = layers.build("tiny", "tiny", "full", [])
    paths.directory.mkdir(parents=True)
    record = runs.RunRecord(
        "tiny_full_tiny", "tiny", "tiny", "full", [], {}, config.tree, 1, {}, None, {}, 0.0, "stopped",
    )  # fmt: skip
    runs.write(paths, record)
    events = [{"event": "start", "session": 1, "step": 0},
              {"event": "train_begin", "session": 1, "step": 0, "eval_every": 5, "save_every": 5}]  # fmt: skip
    metrics, now = [], 0.0
    for step in range(1, 11):
        now += 2.0
        metrics.append({"session": 1, "step": step, "loss": 1.0, "monotonic_s": now})
        if step % 5 == 0:
            metrics.append({"session": 1, "step": step, "eval_loss": 1.0, "eval_s": 3.0})
            events.append({"event": "save", "session": 1, "step": step, "save_s": 1.0})
            now += 4.0
    for path, lines in ((paths.events, events), (paths.metrics, metrics)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = json.loads(run_cli("plan", *TINY, "--json").stdout)
    assert document["evidence"]["time"].startswith("history: this session's")
    assert document["hours"]["mid"] * 3600 == pytest.approx(16 * 2 + 4 * 3 + 4 * 1, abs=1)
    other = json.loads(run_cli("plan", *TINY, "--set", "lora_r=4", "--json").stdout)
    assert other["hours"] is None
