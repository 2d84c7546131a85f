"""Many sessions from one command, on the fake accelerate: restarts, the ladder, guards, budgets."""

import errno
import json
import os
import re
import runpy
import signal
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest
import yaml

import tiny
from fakes import fake_files
from fakes.processes import FAKES, listing, wait_for
from leviathan import checkpoints, layers, runs, sessions, train, watchdog

SMALL_LADDER = """
out_of_memory:
  ladder:
  - {halve: micro_batch_size}
  shrink:
  - {halve: sequence_len, down_to: 64}
  - {halve: lora_r, down_to: 4}
"""


def write_profile(trainings, *more, restarts=3, backoff_s=0, guards="disk_reserve_gib: 0", **keys):
    """The tiny profile with restarts on; ``keys`` replace Axolotl's."""
    text = tiny.PROFILE.replace(
        "recovery: {restarts: 0}", f"recovery: {{restarts: {restarts}, backoff_s: {backoff_s}}}"
    ).replace("guards: {disk_reserve_gib: 0}", f"guards: {{{guards}}}")
    for key, value in keys.items():
        text, count = re.subn(rf"^  {key}: .*$", f"  {key}: {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    (trainings.project / "configs/profiles/tiny.yaml").write_text(text + "".join(more))


def record(trainings, name="tiny_full_tiny"):
    return json.loads((trainings.project / "work/training" / name / "run.json").read_text())


def outcomes(trainings, name="tiny_full_tiny"):
    return [session["outcome"] for session in record(trainings, name)["sessions"]]


def events(trainings, kind):
    return [e for e in runs.events(runs.RunPaths(trainings.run_dir)) if e["event"] == kind]


def steps(trainings):
    return [line["step"] for line in runs.metrics(runs.RunPaths(trainings.run_dir))]


def launched(trainings, name="tiny_full_tiny"):
    return yaml.safe_load((trainings.project / "work/training" / name / "axolotl.yaml").read_text())


def error_line(training):
    (line,) = [x for x in training.stderr.splitlines() if x.startswith("leviathan: ")]
    return line


def warnings(training):
    return [x for x in training.stderr.splitlines() if x.startswith("warning: ")]


# --- restarts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("crash,finish", "the training process failed (ValueError: made up)"),
        ("killed,finish", "the training process died: somebody or something killed it (signal 9)"),
    ],
)
def test_a_crash_is_retried_from_the_newest_checkpoint(trainings, mode, why):
    write_profile(trainings)
    done = trainings.run(mode=mode)
    assert (done.code, done.stdout) == (0, "done: work/training/tiny_full_tiny, 12 steps\n")
    (told,) = warnings(done)
    assert told == f"warning: step 7: {why}; restart 1 of 3, going on from checkpoint-5"
    assert outcomes(trainings) == ["failed", "done"]
    assert steps(trainings) == list(range(1, 13))
    assert [e["step"] for e in events(trainings, "resume")] == [5]
    (restart,) = events(trainings, "restart")
    assert (restart["why"], restart["step"]) == (why, 7)
    assert trainings.left() == []


def test_a_crash_that_comes_again_and_again_is_given_up_with_its_diagnosis(trainings):
    write_profile(trainings, restarts=2)
    failed = trainings.run(mode="crash")
    assert failed.code == 1
    assert outcomes(trainings) == ["failed"] * 3
    line = error_line(failed)
    assert "training failed at step 7 (exit code 1: ValueError: made up)" in line
    assert "not tried again: it failed 3 times without progress; saved checkpoint-5" in line
    told = [warning.rpartition("; ")[2] for warning in warnings(failed)]
    assert told == [f"restart {n} of 2, going on from checkpoint-5" for n in (1, 2)]
    assert record(trainings)["state"] == "failed"


def test_crashes_with_progress_between_them_are_never_given_up(trainings):
    write_profile(trainings, restarts=1)
    done = trainings.run(mode="crash", crash_at="6,11,16,21,99", steps=25)
    assert done.code == 0
    assert outcomes(trainings) == ["failed"] * 4 + ["done"]
    assert steps(trainings) == list(range(1, 26))
    assert all("restart 1 of 1" in warning for warning in warnings(done))


def test_a_crash_in_the_very_first_save_is_retried_from_the_beginning(trainings):
    """No checkpoint was ever committed: nothing that was safe is lost."""
    write_profile(trainings)
    done = trainings.run(mode="save-crash,finish", crash_at=5)
    assert done.code == 0, done
    assert "going on from the beginning" in done.stderr
    (aside,) = (trainings.run_dir / "quarantine").iterdir()
    assert aside.name.startswith("checkpoint-5.")
    assert [c.step for c in checkpoints.scan(trainings.run_dir)] == [5, 10, 12]


def test_a_half_written_checkpoint_is_set_aside_on_the_way(trainings):
    write_profile(trainings)
    done = trainings.run(mode="save-crash,finish", crash_at=10)
    assert done.code == 0
    assert "checkpoint-10 quarantined" in done.stderr
    assert [e["step"] for e in events(trainings, "resume")] == [5]


def test_what_would_fail_the_same_way_again_is_not_retried(trainings):
    write_profile(trainings)
    blind = trainings.run(mode="no-plugin")
    assert blind.code == 1
    assert outcomes(trainings) == ["failed"]
    assert "not tried again: it would fail the same way again" in error_line(blind)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_waiting_for_a_restart_stops_at_once(trainings, number):
    write_profile(trainings, backoff_s=200)
    waiting = trainings.start(mode="crash")
    wait_for(lambda: "restart 1 of 3, going on from checkpoint-5 in 200 s" in waiting.stderr)
    assert waiting.signal(number).end() == 4
    assert f"stopped ({number.name}): saved checkpoint-5, resume with: " in waiting.stdout
    assert record(trainings)["state"] == "stopped"
    assert trainings.run().code == 0
    assert outcomes(trainings)[-1] == "done"
    assert steps(trainings) == list(range(1, 13))


def test_restarts_leave_one_json_document(trainings):
    write_profile(trainings)
    done = trainings.run("--json", mode="crash,finish")
    found = json.loads(done.stdout)
    assert (found["outcome"], found["step"], found["diagnosis"]) == ("done", 12, None)
    assert len(warnings(done)) == 1


# --- out of memory ----------------------------------------------------------------


def test_out_of_memory_walks_the_ladder_and_says_what_to_put_into_the_profile(trainings):
    write_profile(trainings)
    done = trainings.run(mode="oom", fits=1)
    assert done.code == 0, done
    taken = record(trainings)["adjustments"]
    assert [(c["before"], c["after"]) for c in taken] == [
        ({"micro_batch_size": 4, "gradient_accumulation_steps": 1},
         {"micro_batch_size": 2, "gradient_accumulation_steps": 2}),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 2},
         {"micro_batch_size": 1, "gradient_accumulation_steps": 4}),
    ]  # fmt: skip
    assert "in phase train of session 1" in taken[0]["why"]
    assert [e["changes"] for e in events(trainings, "ladder")] == [c["after"] for c in taken]
    assert (
        "memory was short; put into the profile's axolotl block: "
        "{micro_batch_size: 1, gradient_accumulation_steps: 4}"
    ) in done.stderr
    assert launched(trainings)["micro_batch_size"] == 1
    assert outcomes(trainings) == ["failed", "failed", "done"]


@pytest.mark.parametrize("phase", ["eval", "save"])
def test_evaluation_and_saving_have_rungs_of_their_own(trainings, phase):
    rungs = """
out_of_memory:
  ladder:
  - {set: {eval_batch_size: 1}, when: [eval]}
  - {halve: micro_batch_size, when: [save]}
"""
    write_profile(trainings, rungs)
    done = trainings.run(mode="oom", oom_in=phase, fits=2)
    assert done.code == 0, done
    (taken,) = record(trainings)["adjustments"]
    halved = {"micro_batch_size": 2, "gradient_accumulation_steps": 2}
    assert taken["after"] == ({"eval_batch_size": 1} if phase == "eval" else halved)


def test_the_next_command_starts_on_the_rung_reached(trainings):
    write_profile(trainings)
    running = trainings.start(mode="oom", fits=2, step_s=0.1, steps=40).reached(5)
    assert running.signal(signal.SIGTERM).end() == 4
    again = trainings.run(mode="oom", fits=2, steps=12)
    assert again.code == 0, again
    assert outcomes(trainings)[:3] == ["failed", "stopped", "done"]
    assert len(record(trainings)["adjustments"]) == 1
    assert launched(trainings)["micro_batch_size"] == 2
    assert "memory was short; put into the profile" in again.stderr


def test_what_the_user_has_put_into_the_profile_since_wins(trainings):
    write_profile(trainings)
    running = trainings.start(mode="oom", fits=2, step_s=0.1, steps=40).reached(5)
    assert running.signal(signal.SIGTERM).end() == 4
    write_profile(trainings, micro_batch_size=1, gradient_accumulation_steps=4)
    again = trainings.run()
    assert again.code == 0, again
    assert launched(trainings)["micro_batch_size"] == 1
    assert "memory was short" not in again.stderr


def test_out_of_memory_while_loading_the_base_model_is_hopeless(trainings):
    write_profile(trainings)
    failed = trainings.run(mode="oom", oom_in="load")
    assert failed.code == 1
    assert outcomes(trainings) == ["failed"]
    assert "out of memory" in error_line(failed)
    assert "not tried again: no rung makes the base model smaller" in error_line(failed)


def test_out_of_memory_only_after_a_resume_is_waited_out(trainings):
    """What trained before fits: something else took the memory."""
    write_profile(trainings)
    done = trainings.run(mode="crash,oom,finish", oom_in="load")
    assert done.code == 0, done
    assert record(trainings)["adjustments"] == []
    assert outcomes(trainings) == ["failed", "failed", "done"]


def test_rungs_use_up_no_restarts(trainings):
    write_profile(trainings, restarts=1)
    done = trainings.run(mode="oom,oom,crash,finish", fits=1, crash_at=4)
    assert done.code == 0, done
    assert outcomes(trainings) == ["failed"] * 3 + ["done"]


OFFLOADING_FIRST = """
out_of_memory:
  ladder:
  - {set: {activation_offloading: true}}
  - {halve: micro_batch_size}
"""


def test_a_rung_that_axolotl_refuses_is_taken_back_and_passed_over(trainings):
    write_profile(trainings, OFFLOADING_FIRST)
    done = trainings.run(mode="oom,refused,finish")
    assert done.code == 0, done
    assert "the rung activation_offloading None -> True is refused here" in done.stderr
    assert "activation_offloading" not in launched(trainings)
    assert launched(trainings)["micro_batch_size"] == 2
    assert "axolotl block: {micro_batch_size: 2, gradient_accumulation_steps: 2}" in done.stderr
    # Nor does the next command stand on it.
    again = trainings.run("--resume", "latest", mode="oom,finish")
    assert again.code == 0, again
    assert "activation_offloading" not in launched(trainings)
    assert [a["refused"] for a in record(trainings)["adjustments"]][:2] == [True, False]


def test_a_ladder_of_nothing_but_refused_rungs_ends(trainings):
    write_profile(trainings, OFFLOADING_FIRST.replace("  - {halve: micro_batch_size}\n", ""))
    failed = trainings.run(mode="oom,refused,finish")
    assert failed.code == 1
    assert "the out-of-memory ladder is at its end" in error_line(failed)
    assert "put into the profile" not in failed.stderr


def test_at_the_end_of_the_ladder_the_way_out_is_named(trainings):
    write_profile(trainings, SMALL_LADDER)
    failed = trainings.run(mode="oom", fits=0.5)
    assert failed.code == 1
    assert "not tried again: the out-of-memory ladder is at its end" in error_line(failed)
    assert "--shrink" in error_line(failed)
    assert outcomes(trainings) == ["failed"] * 3
    assert record(trainings)["successor"] is None


def test_with_consent_a_smaller_run_is_begun_and_gone_on_with(trainings):
    write_profile(trainings, SMALL_LADDER)
    done = trainings.run("--shrink", mode="oom", fits=0.5)
    small = "tiny_full_tiny_seq128"
    assert (done.code, done.stdout) == (0, f"done: work/training/{small}, 12 steps\n"), done
    assert f"going on with the smaller run work/training/{small}" in done.stderr
    assert record(trainings)["successor"]["name"] == small
    assert record(trainings)["state"] == "failed"
    found = launched(trainings, small)
    assert (found["sequence_len"], found["micro_batch_size"]) == (128, 1)
    assert outcomes(trainings, small) == ["done"]

    again = trainings.run("--shrink")
    assert again.stdout == f"work/training/{small} is finished; nothing to do\n"


def test_a_stopped_smaller_run_goes_on_with_the_command_that_is_printed(trainings):
    write_profile(trainings, SMALL_LADDER)
    running = trainings.start("--shrink", mode="oom", fits=0.5, steps=200, step_s=0.05)
    metrics = trainings.project / "work/training/tiny_full_tiny_seq128/metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"step":6,' in metrics.read_text())
    assert running.signal(signal.SIGTERM).end() == 4
    command = running.stdout.partition("resume with: leviathan train ")[2].split()
    assert "--shrink" in command
    assert "--name" in command
    again = trainings.run(*command[6:], mode="oom", fits=0.5)
    assert again.code == 0, again
    assert outcomes(trainings, "tiny_full_tiny_seq128") == ["stopped", "done"]


def test_a_smaller_rank_halves_alpha(trainings):
    write_profile(trainings, SMALL_LADDER.replace("down_to: 64", "down_to: 256"))
    done = trainings.run("--shrink", mode="oom", fits=0.5)
    assert done.code == 0, done
    found = launched(trainings, "tiny_full_tiny_r4")
    assert (found["lora_r"], found["lora_alpha"]) == (4, 8)


def test_without_consent_the_smaller_run_is_only_mentioned(trainings):
    write_profile(trainings, SMALL_LADDER)
    assert trainings.run("--shrink", mode="oom", fits=0.5).code == 0
    again = trainings.run()
    assert again.code == 0
    assert "the smaller run tiny_full_tiny_seq128 was begun instead of this one" in again.stderr
    assert again.stdout == "done: work/training/tiny_full_tiny, 12 steps\n"


def test_shrinking_starts_from_what_was_tried_last_not_from_old_rungs(trainings):
    """The user went below the ladder's rung since: the smaller run must not go back up."""
    write_profile(trainings, SMALL_LADDER)
    running = trainings.start(mode="oom", fits=2, step_s=0.1, steps=40).reached(5)
    assert running.signal(signal.SIGTERM).end() == 4
    write_profile(trainings, SMALL_LADDER, micro_batch_size=1, gradient_accumulation_steps=4)
    done = trainings.run("--shrink", mode="oom", fits=0.5)
    assert done.code == 0, done
    found = launched(trainings, "tiny_full_tiny_seq128")
    assert (found["micro_batch_size"], found["gradient_accumulation_steps"]) == (1, 4)


@pytest.mark.parametrize(
    ("rung", "problem"),
    [
        ("{halve: sequence_len}", "sequence_len cannot be resumed; it belongs under shrink"),
        ("{set: {lora_r: 4}}", "lora_r cannot change within a run"),
        ("{halve: micro_batch_size, set: {eval_batch_size: 1}}", "either halve or set"),
        ("{when: [eval]}", "either halve or set"),
        ("{set: {eval_batch_sise: 1}}", "eval_batch_sise"),
        ("{set: {gradient_checkpointing_kwarg: {}}}", "gradient_checkpointing_kwarg is not a key"),
        ("{set: {eval_batch_size: many}}", "eval_batch_size"),
        ("{half: micro_batch_size}", "half is not a known key"),
    ],
)
def test_a_bad_ladder_is_refused_with_its_place(trainings, rung, problem):
    write_profile(trainings, f"out_of_memory:\n  ladder:\n  - {rung}\n")
    before = listing(trainings.project)
    refused = trainings.run()
    assert refused.code == 2
    first = next(x for x in refused.stderr.splitlines() if x.startswith("leviathan: "))
    assert re.search(r"configs/profiles/tiny\.yaml:\d+: ", first), first
    assert problem in first
    assert listing(trainings.project) == before


# --- guards -----------------------------------------------------------------------


def test_a_nan_is_tried_once_more_and_then_told(trainings):
    write_profile(trainings)
    failed = trainings.run(mode="nan")
    assert failed.code == 1
    assert outcomes(trainings) == ["failed", "failed"]
    assert "the loss or a gradient became NaN or infinite" in error_line(failed)
    assert "lower learning_rate" in error_line(failed)
    assert "restart 1 of 1" in failed.stderr
    assert [c.step for c in checkpoints.scan(trainings.run_dir)] == [5]


def test_a_standstill_is_killed_and_restarted(trainings):
    write_profile(trainings, guards="disk_reserve_gib: 0, stall_min_s: 0.6, stall_factor: 2")
    done = trainings.run(mode="stall,finish")
    assert done.code == 0, done
    assert outcomes(trainings) == ["failed", "done"]
    (kill,) = events(trainings, "kill")
    assert kill["kind"] == "stall"
    assert "training stood still (nothing happened in phase train)" in done.stderr
    assert trainings.left() == []


def test_a_warning_of_the_training_process_is_printed_once(trainings):
    write_profile(trainings)
    done = trainings.run(mode="spike")
    assert warnings(done) == ["warning: the loss diverges: made up"]


PYNVML = '''
"""A driver with one card whose temperature is in a file."""
import os
from pathlib import Path

NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    pass


class Memory:
    total = free = 16 << 30


def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetCudaComputeCapability(handle): return 8, 6
def nvmlDeviceGetName(handle): return "Fake A4000"
def nvmlDeviceGetTemperature(handle, kind):
    return int(Path(os.environ["FAKE_CELSIUS"]).read_text())
'''


@pytest.fixture
def card(tmp_path_factory, monkeypatch):
    """A fake GPU: set its temperature by calling the fixture."""
    directory = tmp_path_factory.mktemp("driver")
    (directory / "pynvml.py").write_text(PYNVML)
    celsius = directory / "celsius"
    monkeypatch.setenv("FAKE_CELSIUS", str(celsius))
    monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)

    def heat(degrees):
        celsius.with_suffix(".new").write_text(str(degrees))
        celsius.with_suffix(".new").replace(celsius)

    heat(60)
    heat.directory = directory
    return heat


def test_heat_is_warned_of(trainings, card):
    write_profile(trainings)
    card(85)
    done = trainings.run()
    assert warnings(done) == ["warning: a GPU is at 85 C"]


def test_a_stop_while_paused_for_heat_still_saves(trainings, card):
    write_profile(trainings, guards="disk_reserve_gib: 0, pause_above_c: 90")
    card(95)
    running = trainings.start(steps=500)
    wait_for(lambda: "a GPU is at 95 C: paused until 75 C" in running.stderr)
    running.reached(1)
    assert running.signal(signal.SIGTERM).end() == 4
    assert "saved checkpoint-1," in running.stdout


def test_training_waits_until_a_hot_card_has_cooled_down(trainings, card, monkeypatch):
    """In process, where the ten seconds between two looks can be shortened."""
    monkeypatch.setattr(watchdog, "_HEAT_EVERY_S", 0.05)
    driver = SimpleNamespace(**runpy.run_path(str(card.directory / "pynvml.py")))
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setenv("PYTHONPATH", str(FAKES), prepend=os.pathsep)
    write_profile(trainings, guards="disk_reserve_gib: 0, pause_above_c: 90")
    card(95)
    told = []
    paused = threading.Event()

    def listener(kind, facts):
        if kind == "event" and facts["event"] in {"pause", "unpause"}:
            told.append((facts["event"], facts["text"]))
            paused.set()

    threading.Timer(1.0, lambda: paused.wait(10) and card(70)).start()
    ending = sessions.run(train.decide(layers.build("tiny", "tiny", "full")), listener)
    assert ending.outcome.kind == "done"
    assert told == [
        ("pause", "a GPU is at 95 C: paused until 75 C"),
        ("unpause", "cooled to 70 C: training goes on"),
    ]
    assert not runs.RunPaths(trainings.run_dir).pause.exists()


# --- budgets ----------------------------------------------------------------------


def test_a_budget_stops_with_a_checkpoint_and_shows_what_is_left(trainings):
    write_profile(trainings)
    stopped = trainings.run("--max-hours", "0.002", steps=1000, step_s=0.05)
    assert stopped.code == 4, stopped
    assert "stopping (the budget is used up)" in stopped.stderr
    newest = checkpoints.scan(trainings.run_dir)[-1]
    assert newest.committed
    shown = f"stopped (the budget is used up): saved checkpoint-{newest.step}, resume with: "
    assert stopped.stdout.startswith(shown)
    assert stopped.stdout.endswith("--max-hours 0.002\n")
    assert re.search(rf"to finish: {1000 - newest.step} steps to go, about \d+ min, by this session's \d+ steps?",
                     stopped.stderr)  # fmt: skip


def test_a_spent_budget_starts_nothing_and_writes_nothing(trainings):
    """All sessions count, those that crashed too."""
    write_profile(trainings, restarts=0)
    assert trainings.run(mode="crash", step_s=0.1).code == 1
    document = record(trainings)
    document["sessions"][0]["seconds"] += 3600
    (trainings.run_dir / "run.json").write_text(json.dumps(document))
    before = listing(trainings.project)
    refused = trainings.run("--max-hours", "1")
    assert refused.code == 3
    assert "the budget (1 h) of tiny_full_tiny is spent, over 1 session" in error_line(refused)
    assert listing(trainings.project) == before
    assert trainings.run("--max-hours", "2").code == 0


@pytest.mark.parametrize("place", ["profile", "flag"])
def test_money_needs_a_price(trainings, place):
    write_profile(trainings, "price_usd_hour: 2.5\n" if place == "profile" else "")
    flag = ["--usd-hour", "2.5"] if place == "flag" else []
    stopped = trainings.run("--budget-usd", "0.01", *flag, steps=2000, step_s=0.05)
    assert stopped.code == 4, stopped
    assert re.search(r"to finish: \d+ steps to go, about \d+ min, \$0\.\d\d, by ", stopped.stderr)


def test_money_without_a_price_is_refused(trainings):
    before = listing(trainings.project)
    refused = trainings.run("--budget-usd", "5")
    assert refused.code == 2
    assert "--budget-usd needs the price of an hour" in error_line(refused)
    assert listing(trainings.project) == before


# --- resuming with other settings -------------------------------------------------


def test_the_same_effective_batch_is_resumed_with_a_notice(crashed):
    resumed = crashed.run("--set", "micro_batch_size=2", "--set", "gradient_accumulation_steps=2")
    assert resumed.code == 0, resumed
    assert "micro_batch_size: 4 -> 2: the effective batch stays 4 rows" in resumed.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("micro_batch_size=2", "the effective batch would be 2 rows instead of 4; gradient_accumulation_steps=2 keeps it"),
        ("micro_batch_size=3", "the effective batch would be 3 rows instead of 4)"),
        ("lora_r=16", "the saved adapter has another shape"),
        ("sequence_len=128", "the rows, or their order, would be others"),
        ("num_epochs=2", "the learning rate schedule is computed from it"),
        ("optimizer=adamw_torch_fused", "the saved optimizer state belongs to the old one"),
    ],
)  # fmt: skip
def test_a_change_that_cannot_be_resumed_is_refused_with_the_reason(crashed, change, reason):
    before = listing(crashed.project)
    refused = crashed.run("--set", change)
    assert refused.code == 3
    line = error_line(refused)
    assert reason in line
    assert "start a new run with --name, or this one anew with --resume never" in line
    assert listing(crashed.project) == before


def test_other_package_versions_are_told(crashed):
    document = record(crashed)
    document["versions"]["torch"] = "1.0.0"
    (crashed.run_dir / "run.json").write_text(json.dumps(document))
    resumed = crashed.run()
    assert resumed.code == 0
    assert re.search(r"since the last session: torch 1\.0\.0 -> \S+; numbers may", resumed.stderr)


# --- disk -------------------------------------------------------------------------


def test_a_full_disk_is_waited_for_and_a_signal_ends_the_waiting(trainings):
    write_profile(trainings, guards=f"disk_reserve_gib: {1 << 30}")
    refused = trainings.run()
    assert refused.code == 3
    assert "GiB free for" in error_line(refused)
    waiting = trainings.start("--force", mode="enospc")
    wait_for(lambda: "waiting for free space, then going on" in waiting.stderr)
    assert waiting.signal(signal.SIGTERM).end() == 4
    assert record(trainings)["state"] == "stopped"
    assert trainings.left() == []


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_waiting(trainings):
    write_profile(trainings)
    first = trainings.start(step_s=0.1).reached(6)
    assert first.signal(signal.SIGTERM).end() == 4
    fake_files.refuse_removal(trainings.run_dir / "checkpoint-5")
    done = trainings.run(mode="finish,no-space,finish", crash_at=11)
    assert done.code == 0, done
    assert any(x.startswith("warning: checkpoint-5 could not be removed: ") for x in warnings(done))


def test_what_a_full_disk_refuses_to_note_between_sessions_is_noted_later(trainings, monkeypatch):
    write_profile(trainings)
    monkeypatch.setenv("PYTHONPATH", str(FAKES), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_MODE", "oom")
    monkeypatch.setenv("FAKE_FITS", "2")

    def write(paths, record, write=runs.write):
        if record.sessions[-1].outcome == "failed":
            raise OSError(errno.ENOSPC, "made up")
        write(paths, record)

    monkeypatch.setattr(runs, "write", write)
    ending = sessions.run(train.decide(layers.build("tiny", "tiny", "full")), lambda *_: None)
    assert ending.outcome.kind == "done"
    assert outcomes(trainings) == ["failed", "done"]
    assert len(record(trainings)["adjustments"]) == 1


def test_another_full_file_system_does_not_restart_for_ever(trainings):
    """/tmp or a cache may be full while the run's disk is not: waiting there never ends."""
    write_profile(trainings, restarts=2)
    failed = trainings.run(mode="no-space")
    assert failed.code == 1
    assert outcomes(trainings) == ["failed"] * 3
    assert "the disk is full" in error_line(failed)


def test_nothing_is_left_of_a_killed_worker(trainings):
    write_profile(trainings)
    running = trainings.start(steps=60, step_s=0.05).reached(7)
    worker = events(trainings, "train_begin")[0]["pid"]
    psutil.Process(worker).kill()
    assert running.end(30) == 0
    assert outcomes(trainings) == ["failed", "done"]
    assert trainings.left() == []


# --- a record that goes missing ---------------------------------------------------


def test_a_record_deleted_while_training_is_written_again(trainings):
    """It names what the checkpoints were trained with: without it they cannot be resumed."""
    write_profile(trainings)
    training = trainings.start(mode="crash,finish", steps=25, step_s=0.1).reached(3)
    (trainings.run_dir / "run.json").unlink()
    assert training.end() == 0, training
    assert outcomes(trainings) == ["failed", "done"]


def test_a_budget_ends_the_wait_for_disk_space(trainings):
    """Nobody may come to free space, and the machine costs money while it waits."""
    write_profile(trainings, guards="disk_reserve_gib: 1000000")
    stopped = trainings.start("--force", "--max-hours", "0.003", mode="no-space")
    assert stopped.end(60) == 4, stopped
    assert "stopped (the budget is used up): saved checkpoint-5" in stopped.stdout
    assert record(trainings)["state"] == "stopped"


def test_one_interrupt_after_the_budget_asked_to_stop_does_not_kill(trainings):
    """Who presses Ctrl+C once wants a checkpoint, whoever asked for it before."""
    write_profile(trainings)
    training = trainings.start("--max-hours", "0.0015", steps=99, step_s=3)
    wait_for(lambda: "the budget is used up" in training.stderr)
    training.signal(signal.SIGINT)
    assert training.end() == 4, training
    assert "Ctrl+C twice kills at once" in training.stderr
    assert "saved checkpoint-" in training.stdout


@pytest.mark.parametrize("days", [-365, 365])
def test_a_clock_that_was_set_costs_and_gives_no_budget(trainings, days):
    """What a session took is measured by a clock that nobody sets."""
    write_profile(trainings)
    training = trainings.start(steps=99, step_s=0.1).reached(3)
    assert training.signal(signal.SIGTERM).end() == 4
    path = trainings.run_dir / "run.json"
    told = json.loads(path.read_text())
    (session,) = told["sessions"]
    session["started"] -= days * 86400  # as if it had been set while training
    path.write_text(json.dumps(told))
    kept = runs.read(runs.RunPaths(trainings.run_dir))
    assert 0.1 < runs.seconds(kept, {1: session["ended"]}) < 3600
