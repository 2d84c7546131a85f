"""What a run looks like from outside: truth about the dead, calm about damaged files."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import fake_files
from leviathan import checkpoints, files, machine, runs, status
from leviathan.errors import BadInput
from telling import Telling


def dead_identity():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return machine.process_identity(process.pid)


def make_run(directory, *, state="stopped", supervisor=None, resumed_from=None, **session):
    """A run of one or two sessions, of which the first took an hour."""
    directory.mkdir(parents=True)
    first = runs.Session(1, 1000.0, {"pid": 1}, None, 4600.0, "stopped")
    last = runs.Session(2, 5000.0, supervisor or {}, resumed_from, **session)
    record = runs.RunRecord(
        directory.name, "tiny", "tiny", "full", ["lora_r=4"], {}, {}, 1, {}, None, {}, 900.0,
        state=state, sessions=[first, last],
    )  # fmt: skip
    paths = runs.RunPaths(directory)
    runs.write(paths, record)
    return paths


def log(paths, session, *steps, each=2.0, began=5000.0, **facts):
    for number, step in enumerate(steps):
        line = {"time": began + each * number, "session": session, "step": step, "max_steps": 40}
        files.append_json(paths.metrics, {**line, "loss": 2.0 / step, **facts})


def commit(paths, step, eval_loss=None):
    path = fake_files.write_checkpoint(paths.directory, step, eval_loss=eval_loss)
    state = json.loads((path / "trainer_state.json").read_text())
    checkpoints.commit(path, checkpoints.facts_from_history(state))
    return path


# --- the whole of it --------------------------------------------------------------


def test_summary_of_a_running_run(tmp_path):
    paths = make_run(
        tmp_path / "r", state="running", supervisor=machine.process_identity(), resumed_from=10
    )
    log(paths, 1, *range(1, 14), began=1000.0)
    runs.event(paths, "resume", session=2, step=10)
    log(paths, 2, 11, 12, 13, 14, each=3.0, epoch=0.35, learning_rate=1e-4,
        **{"tokens/train_per_sec_per_gpu": 512.5})  # fmt: skip
    log(paths, 2, 15, began=5012.0, eval_loss=1.25, epoch=0.375)
    for step, eval_loss in ((5, 1.5), (10, 1.2), (15, 1.25)):
        commit(paths, step, eval_loss)
    (paths.directory / "checkpoint-15/optimizer.pt").write_bytes(b"half")

    found = status.summarize(paths)
    assert (found.state, found.why) == ("running", "")
    assert (found.step, found.max_steps, found.percent, found.epoch) == (15, 40, 37.5, 0.375)
    assert (found.loss, found.eval_loss) == (2.0 / 15, 1.25)
    assert (found.learning_rate, found.tok_s) == (1e-4, 512.5)
    assert (found.eta_s, found.eta_low_s) == (pytest.approx(25 * 2.0), pytest.approx(25 * 2.0))
    assert found.eta_high_s == found.eta_low_s
    assert found.eta_from == "session 1's 5 steps, this one has too few yet"
    assert (found.last_checkpoint, found.best_checkpoint) == ("checkpoint-10", "checkpoint-10")
    assert found.sessions == 2
    assert found.hours == pytest.approx(1 + (time.time() - 5000) / 3600, rel=1e-3)
    assert found.next == f"leviathan watch {paths.directory}"
    promised = {"state", "step", "max_steps", "loss", "eval_loss", "eta_s", "eta_low_s", "eta_high_s",
                "eta_from", "last_checkpoint", "best_checkpoint", "sessions"}  # fmt: skip
    assert promised <= found.to_json().keys()


def test_what_is_left_counts_the_saves_between_the_steps(tmp_path):
    paths = make_run(tmp_path / "r", state="running", supervisor=machine.process_identity())
    moment = 5000.0
    runs.event(paths, "train_begin", session=2, step=0, save_every=5, eval_every=0)
    for step in range(1, 31):  # 1 s a step, and 10 s more after each fifth
        moment += 1.0
        log(paths, 2, step, began=moment)
        if step % 5 == 0:
            moment += 10.0
            runs.event(paths, "save", session=2, step=step, save_s=10.0)
    found = status.summarize(paths)
    assert found.eta_s == pytest.approx(10 * 1.0 + 2 * 10.0)
    assert found.eta_from == "this session's 25 steps"


def test_a_resumed_session_stands_where_it_began_not_where_the_last_one_died(tmp_path):
    paths = make_run(
        tmp_path / "r", state="running", supervisor=machine.process_identity(), resumed_from=10
    )
    log(paths, 1, *range(1, 14), began=1000.0)
    runs.event(paths, "quarantine", session=2, step=12, reason="x")
    runs.event(paths, "resume", session=2, step=10)
    found = status.summarize(paths)
    assert (found.step, found.loss) == (10, 2.0 / 10)
    assert (found.eta_s, found.eta_from[:9]) == (pytest.approx(30 * 2.0), "session 1")


def test_hours_of_a_session_without_an_end_reach_to_its_last_line(tmp_path):
    paths = make_run(tmp_path / "r", state="running", supervisor=dead_identity())
    log(paths, 2, 1, 2, each=1800.0)
    found = status.summarize(paths)
    assert (found.hours, found.active) == (1.5, 6800.0)


def test_a_finished_run_says_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = make_run(runs.TRAINING / "r", state="done", ended=5600.0, outcome="done")
    found = status.summarize(paths)
    assert (found.state, found.why, found.next) == ("done", "", "leviathan merge r")
    assert found.hours == pytest.approx(1 + 1 / 6)


def test_the_way_on_is_the_command_the_run_was_begun_with_or_made_of_its_record(tmp_path):
    paths = make_run(tmp_path / "r")
    assert status.summarize(paths).next == (
        "leviathan train --profile tiny --recipe tiny --sample full --name r --set lora_r=4"
    )
    record = runs.read(paths)
    record.again = "leviathan train --profile my/own.yaml"
    runs.write(paths, record)
    assert status.summarize(paths).next == "leviathan train --profile my/own.yaml"


def test_warnings_and_quarantines_are_told_once(tmp_path):
    paths = make_run(tmp_path / "r")
    runs.event(paths, "warning", session=1, text="loss jumped by 0.7 after resuming")
    runs.event(paths, "quarantine", session=2, step=10, reason="optimizer.pt is missing")
    runs.event(paths, "warning", session=2, text="loss jumped by 0.7 after resuming")
    assert status.summarize(paths).warnings == (
        "loss jumped by 0.7 after resuming",
        "checkpoint-10 quarantined: optimizer.pt is missing",
    )


# --- why --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        ("SIGINT", "by Ctrl+C"),
        ("SIGTERM, before training began", "asked to (SIGTERM), before training began"),
        ("exit code 1: ValueError: a, b", "exit code 1: ValueError: a, b"),
        ("", "stopped"),
        (None, "stopped"),
    ],
)
def test_why_is_how_the_last_session_ended(tmp_path, reason, why):
    paths = make_run(tmp_path / "r", ended=5600.0, outcome="stopped")
    runs.event(paths, "session_end", session=1, reason="of another session")
    runs.event(paths, "session_end", session=2, reason=reason)
    assert status.summarize(paths).why == why


def test_a_killed_supervisor_is_named(tmp_path):
    gone = dead_identity()
    paths = make_run(tmp_path / "r", state="running", supervisor=gone)
    found = status.summarize(paths)
    assert found.state == "crashed"
    assert found.why == f"its process {gone['pid']} is gone: killed or power loss"
    assert found.next.startswith("leviathan train ")


def test_a_reboot_is_told_even_where_the_pid_is_in_use_again(tmp_path):
    here = machine.process_identity()
    paths = make_run(tmp_path / "r", state="running", supervisor={**here, "boot": "before"})
    files.write_json(paths.heartbeat, {**here, "boot": "before"})
    found = status.summarize(paths)
    assert (found.state, found.why) == (
        "crashed",
        "the machine was rebooted, or another host trains it: ask there",
    )


def test_a_training_that_outlived_its_supervisor_is_said_to_be_saving(tmp_path):
    paths = make_run(tmp_path / "r", state="running", supervisor=dead_identity())
    here = machine.process_identity()
    files.write_json(paths.heartbeat, here)
    found = status.summarize(paths)
    assert found.state == "crashed"
    assert found.why.endswith(f"; its training process {here['pid']} is still saving")


def test_a_run_asked_to_stop_says_so(tmp_path):
    paths = make_run(tmp_path / "r", state="running", supervisor=machine.process_identity())
    paths.stop.touch()
    assert status.summarize(paths).why == "asked to stop: it saves after its step"


# --- damage -----------------------------------------------------------------------

HOSTILE = [
    b"",
    b"\n\n",
    b"\0" * 100,
    b"\xff\xfe",
    b"[1, 2]\n5\nnull\n",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"session": 2, "step": "7", "time": "now", "loss": [], "event": {}}\n',
    b'{"session": [2], "step": {}, "event": ["start"]}\n',
    b'{"session": 2, "step": NaN, "max_steps": "many", "loss": "low"}\n',
    b'{"session": 2, "step": 7, "max_steps": -1, "time": null, "epoch": true}\n',
    b'{"session": 2, "event": "start", "step": null}\n{"session": {}, "event": "resume"}\n',
    b'{"session": 2, "event": "warning", "text": {}}\n{"event": "session_end", "session": 2}\n',
    b'{"session": 2, "step": 1' + b"0" * 30 + b', "loss": 1e308, "eval_loss": -1e308}\n',
    b'{"session": 2, "step": 1, "time": 1e999, "loss": 1' + b"0" * 4000 + b"}\n",
]  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("file", ["events.jsonl", "metrics.jsonl"])
def test_hostile_lines_are_passed_over(tmp_path, file, content):
    paths = make_run(tmp_path / "r")
    log(paths, 2, 1, 2, 3)
    with (paths.directory / file).open("ab") as out:
        out.write(content)
    found = status.summarize(paths)
    assert (found.state, found.max_steps) == ("stopped", 40)
    assert found.step in {3, 7}
    json.dumps(found.to_json())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["nan", "inf", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["session", "step", "time", "max_steps", "loss", "epoch", "text", "reason"])
KINDS = st.sampled_from(
    ["start", "resume", "save", "warning", "quarantine", "session_end", "remove"]
)
LINES = st.lists(st.tuples(KINDS | JSON, st.dictionaries(NAMES, JSON | st.just(2))), max_size=5)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=LINES)
def test_no_line_of_any_shape_raises(tmp_path, lines):
    directory = tmp_path / "r"
    paths = runs.RunPaths(directory) if directory.exists() else make_run(directory)
    text = "".join(json.dumps({**facts, "event": kind}) + "\n" for kind, facts in lines)
    paths.events.write_text(text)
    paths.metrics.write_text(text)
    status.summarize(paths)


def test_a_diverged_loss_is_shown_and_is_no_json_number(tmp_path, run_cli):
    paths = make_run(runs.TRAINING / "r")
    log(paths, 2, 1, 2)
    files.append_json(paths.metrics, {"session": 2, "step": 3, "time": 5006.0, "loss": "nan"})
    assert "loss         nan\n" in run_cli("status").stdout
    assert json.loads(run_cli("status", "--json").stdout)["loss"] is None


@pytest.mark.parametrize("facts", [{"eval_loss": "low"}, {"epoch": []}, {"loss": {}, "time": "x"},
                                   {"time": math.nan}, {"time": 1e300}])  # fmt: skip
def test_strange_facts_of_a_commit_record_are_none(tmp_path, facts):
    paths = make_run(tmp_path / "r")
    path = fake_files.write_checkpoint(paths.directory, 5)
    checkpoints.commit(path, {})
    record = json.loads((path / checkpoints.COMMIT).read_text())
    (path / checkpoints.COMMIT).write_text(json.dumps({**record, **facts}))
    found = status.summarize(paths)
    assert (found.last_checkpoint, found.best_checkpoint) == ("checkpoint-5", None)
    assert time.localtime(found.last_saved)


def test_a_damaged_record_is_bad_input(tmp_path):
    paths = make_run(tmp_path / "r")
    paths.record.write_text("{")
    with pytest.raises(BadInput, match="is damaged"):
        status.summarize(paths)


# --- commands ---------------------------------------------------------------------


SNAPSHOTS = Path(__file__).parent / "snapshots"


def a_run_of_an_a4000(**record):
    """Trained to step 110, resumed at 100, now at 140."""
    told = Telling(runs.TRAINING / "leviathan_10pct_a4000", began=time.time() - 15_965, **record)
    told.plan()
    told.begin()
    told.train(1, 110)
    told.end(step=110)
    told.begin(100)
    told.train(101, 140)
    return told


def screen(shown):
    """Without what the clock and this machine's disk add to it."""
    text = re.sub(r"\d+ [smhd]( \d+ [smh])? ago|just now", "AGO", shown.stdout)
    return re.sub(r"disk( +)[\d.]+ [kMGT]B free", r"disk\1ROOM free", text)


def test_status_of_a_running_run_is_this_screen(run_cli):
    told = a_run_of_an_a4000(budget={"max_hours": 120, "budget_usd": 9.5, "usd_hour": 0.032})
    told.record.state = "running"
    told.write()
    told.event("warning", text="a GPU is at 86 C")
    shown = run_cli("status")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert screen(shown) == (SNAPSHOTS / "status-running.txt").read_text()


def test_status_of_a_crashed_run_is_this_screen(run_cli):
    told = a_run_of_an_a4000()
    gone = dead_identity()
    told.record.sessions[-1].supervisor, told.record.state = gone, "running"
    told.write()
    for number in range(7):
        told.event("warning", text=f"warning {number}")
    shown = run_cli("status")
    text = screen(shown).replace(f" {gone['pid']} ", " PID ")
    assert text == (SNAPSHOTS / "status-crashed.txt").read_text()


def test_status_of_a_cpu_run_that_has_just_begun_is_this_screen(run_cli):
    told = Telling(runs.TRAINING / "r", began=time.time() - 100, max_steps=0)
    told.begin()
    assert screen(run_cli("status")) == (SNAPSHOTS / "status-begun.txt").read_text()


def test_figures_of_speed_machine_and_money(project):
    told = a_run_of_an_a4000(budget={"max_hours": None, "budget_usd": 9.5, "usd_hour": 2.0})
    found = status.summarize(told.paths)
    assert found.tok_s == pytest.approx(65_536 / 95, rel=0.02)
    # Of the card's 76.7 TFLOPS, at 31.9 GFLOP a token.
    assert found.mfu_pct == pytest.approx(100 * found.tok_s * 31.9e9 / 76.7e12)
    assert found.step_s == pytest.approx(95, rel=0.02)
    assert found.usd == pytest.approx(2.0 * found.hours)
    assert found.budget == {"max_hours": None, "budget_usd": 9.5, "usd_hour": 2.0}
    assert [gpu.temperature_c for gpu in found.gpus] == [78.0]
    assert (found.loss_trend.direction, found.lowest_eval_step) == ("falling", 125)
    assert found.eval_change < 0


@pytest.mark.parametrize(
    ("phase", "idle_s", "stalled"),
    [("train", 1000, True), ("eval", 1000, True), ("train", 900, False), ("load", 9000, False)],
)
def test_a_run_without_a_sign_of_life_is_stalled(project, phase, idle_s, stalled):
    """A step takes 95 s: ten of them."""
    told = a_run_of_an_a4000()
    told.record.state = "running"
    told.write()
    told.paths.phase.write_text(json.dumps({"phase": phase, "step": 140}))
    moment = time.time() - idle_s
    os.utime(told.paths.phase, (moment, moment))
    found = status.summarize(told.paths)
    assert found.state == ("stalled" if stalled else "running")
    assert ("no sign of life" in found.why) == stalled
    told.paths.pause.touch()
    assert status.summarize(told.paths).state == "running"


def test_a_metrics_file_of_garbage_is_one_warning(run_cli):
    paths = make_run(runs.TRAINING / "r")
    paths.metrics.write_bytes(b"\x00garbage\n" * 1000)
    shown = run_cli("status")
    assert (shown.exit_code, shown.stderr) == (0, "")
    told = [line for line in shown.stdout.splitlines() if line.startswith("warning")]
    assert told == ["warning      no line of work/training/r/metrics.jsonl can be read"]


def test_nothing_of_a_run_gives_the_terminal_orders(run_cli):
    told = Telling(runs.TRAINING / "r\x1b[2Jun", began=time.time() - 100)
    told.begin()
    told.event("warning", text="\x1b]0;title\x07 \x9b31m hot\r\x7f")
    told.end(reason="\x1b[31mexit code 1")
    for command in (("status",), ("runs", "list"), ("status", "nope\x1b[2J")):
        done = run_cli(*command)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", done.output), command
    assert "?]0;title? ?31m hot??" in run_cli("status").stdout.replace("\n", " ")


def test_keys_that_a_later_version_adds_to_the_record_are_passed_over(run_cli):
    told = a_run_of_an_a4000()
    document = json.loads(told.paths.record.read_bytes())
    document |= {"later": {"x": 1}}
    document["sessions"][0]["later"] = True
    told.paths.record.write_text(json.dumps(document))
    assert run_cli("status").exit_code == 0


def test_runs_list_goes_on_past_a_damaged_run(run_cli):
    for name in ("a", "b", "c"):
        log(make_run(runs.TRAINING / name), 2, 1, 2)
    (runs.TRAINING / "b/run.json").write_text('{"schema": 1, "na')
    listed = run_cli("runs", "list")
    assert listed.exit_code == 0
    rows = [line.split()[:3] for line in listed.stdout.splitlines()]
    assert rows == [
        ["run", "state", "step"], ["a", "stopped", "2/40"], ["b", "damaged", "-"],
        ["c", "stopped", "2/40"],
    ]  # fmt: skip
    assert listed.stderr.startswith("warning: work/training/b/run.json is damaged: ")
    found = json.loads(run_cli("runs", "list", "--json").stdout)
    assert [(r["name"], r["state"]) for r in found] == [
        ("a", "stopped"), ("b", "damaged"), ("c", "stopped"),
    ]  # fmt: skip


def test_among_several_the_only_running_one_is_meant(run_cli):
    make_run(runs.TRAINING / "a")
    make_run(runs.TRAINING / "b", state="running", supervisor=machine.process_identity())
    (runs.TRAINING / "c").mkdir()
    (runs.TRAINING / "c/run.json").write_text("")
    assert json.loads(run_cli("status", "--json").stdout)["name"] == "b"
    make_run(runs.TRAINING / "d", state="running", supervisor=machine.process_identity())
    asked = run_cli("status")
    assert asked.exit_code == 2
    assert asked.stderr == ("leviathan: which run? name it; runs in work/training: a, b, c, d\n")


def wrong(**changes):
    return lambda record: json.dumps({**record, **changes})


DAMAGE = {
    "half": lambda record: json.dumps(record)[:60],
    "empty": lambda _: "",
    "not an object": lambda _: "[1]",
    "newer": wrong(schema=2),
    "deep": lambda _: "[" * 100_000,
    "sessions a string": wrong(sessions="two"),
    "session a number": wrong(sessions=[1]),
    "supervisor null": lambda r: json.dumps({**r, "sessions": [{**r["sessions"][0], "supervisor": None}]}),
    "step a string": lambda r: json.dumps({**r, "sessions": [{**r["sessions"][0], "resumed_from": "10"}]}),
    "number a truth": lambda r: json.dumps({**r, "sessions": [{**r["sessions"][0], "number": True}]}),
    "name null": wrong(name=None),
    "tree a list": wrong(tree=[]),
    "overrides numbers": wrong(overrides=[1]),
    "created a string": wrong(created="x"),
    "versions of numbers": wrong(versions={"torch": 2}),
}  # fmt: skip
READING = [
    "status r", "status r --json", "watch r", "logs r", "stop r", "stop r --now",
    "checkpoints list r", "checkpoints show r", "checkpoints latest r", "checkpoints best r",
    "checkpoints verify r", "checkpoints cleanup r", "checkpoints pin r", "checkpoints unpin r",
    "train -p tiny -r tiny -s full --name r --dry-run", "report r", "report r --json",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_one_line_of_every_reading_command(run_cli, damage):
    paths = make_run(runs.TRAINING / "r")
    commit(paths, 5)
    paths.record.write_text(damage(json.loads(paths.record.read_text())))
    for command in READING:
        done = run_cli(*command.split())
        assert (done.exit_code, done.stdout) == (2, ""), command
        (line,) = done.stderr.splitlines()
        assert line.startswith("leviathan: work/training/r/run.json "), command


def test_half_written_companions_are_no_damage(run_cli):
    """Heartbeat, launcher and lock holder are written by processes that get killed."""
    paths = make_run(runs.TRAINING / "r", state="running", supervisor={"pid": "nonsense"})
    for path in (paths.heartbeat, paths.launcher, paths.holder):
        for content in (b"", b"{", b"[]", b'{"pid": "x"}', b'{"pid": null, "started": []}'):
            path.write_bytes(content)
            done = run_cli("status")
            assert (done.exit_code, done.stderr) == (0, ""), content
            assert "r  crashed  " in done.stdout


# --- what a running run waits for -------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "facts", "why"),
    [
        ("pause", {"text": "the disk is full"}, "paused: the disk is full"),
        ("restart", {"why": "it crashed", "reason": "restart 1 of 3"},
         "between two sessions: it crashed; restart 1 of 3"),
        ("ladder", {"why": "out of memory", "reason": "next rung: a"},
         "between two sessions: out of memory; next rung: a"),
        ("warning", {"text": "it is hot"}, ""),
    ],
)  # fmt: skip
def test_a_run_that_waits_says_for_what_until_it_goes_on(tmp_path, kind, facts, why):
    paths = make_run(tmp_path / "r", state="running", supervisor=machine.process_identity())
    runs.event(paths, "resume", session=2, step=10)
    runs.event(paths, kind, session=None, step=11, **facts)
    assert status.summarize(paths).why == why
    runs.event(paths, "unpause" if kind == "pause" else "resume", session=2, step=11)
    assert status.summarize(paths).why == ""


def test_the_next_command_of_a_renamed_run_goes_on_with_it(tmp_path):
    """As it was recorded, it would begin another run under the old name."""
    paths = make_run(tmp_path / "old")
    record = runs.read(paths)
    record.again = "leviathan train --profile tiny"
    runs.write(paths, record)
    assert status.summarize(paths).next == record.again
    renamed = runs.RunPaths(paths.directory.rename(tmp_path / "new"))
    assert "--name new --set lora_r=4" in status.summarize(renamed).next
