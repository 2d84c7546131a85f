"""Real ``leviathan train`` processes on a fake accelerate: endings, signals, resuming."""

import gzip
import json
import multiprocessing
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.config import config_args

import tiny
from fakes.processes import FAKES, listing, wait_for
from leviathan import checkpoints, diagnosis, launch, layers, runs, sessions, train
from leviathan.config import Profile
from leviathan.errors import LeviathanError
from leviathan.rendezvous import Meeting


def record(trainings):
    return json.loads((trainings.run_dir / "run.json").read_text())


def steps(trainings):
    return [line["step"] for line in runs.metrics(runs.RunPaths(trainings.run_dir))]


def events(trainings, kind):
    return [e for e in runs.events(runs.RunPaths(trainings.run_dir)) if e["event"] == kind]


def error_lines(training):
    return [line for line in training.stderr.splitlines() if line.startswith("leviathan: ")]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


# --- endings ----------------------------------------------------------------------


def test_finished_run_says_so_and_a_second_train_does_nothing(trainings):
    first = trainings.run()
    assert (first.code, first.stdout) == (0, "done: work/training/tiny_full_tiny, 12 steps\n")
    assert "next: leviathan merge tiny_full_tiny" in first.stderr
    assert record(trainings)["state"] == "done"
    assert [c.step for c in checkpoints.scan(trainings.run_dir)] == [5, 10, 12]
    before = listing(trainings.project)

    second = trainings.run()
    assert second.code == 0
    assert second.stdout == "work/training/tiny_full_tiny is finished; nothing to do\n"
    assert listing(trainings.project) == before


def test_dry_run_writes_nothing_and_shows_the_command(trainings):
    before = listing(trainings.project)
    dry = trainings.run("--dry-run")
    assert dry.code == 0
    assert "action       start from the base model" in dry.stdout
    command = shlex.split(re.search(r"^command +(.*)$", dry.stdout, re.MULTILINE)[1])
    assert command[1:4] == ["-m", "accelerate.commands.launch", "--config_file"]
    assert command[-1] == str(trainings.run_dir / "axolotl.yaml")
    assert listing(trainings.project) == before


def test_crash_is_one_line_with_the_cause_the_log_and_the_way_on(trainings):
    crashed = trainings.run(mode="crash")
    assert crashed.code == 1
    (line,) = error_lines(crashed)
    log = next(trainings.run_dir.glob("logs/*.log"))
    assert "training failed at step 7 (exit code 1: ValueError: made up)" in line
    assert "saved checkpoint-5" in line
    assert f"log: {log.relative_to(trainings.project)}" in line
    assert line.endswith("resume with: leviathan train --profile tiny --recipe tiny --sample full")
    assert "Traceback" not in crashed.stderr
    assert "Traceback" in log.read_text()
    assert record(trainings)["state"] == "failed"


def test_crash_before_training_says_that_nothing_was_trained(trainings):
    crashed = trainings.run(mode="crash", crash_at=1)
    assert crashed.code == 1
    assert "there is no checkpoint yet" in crashed.stderr


@pytest.mark.parametrize("mode", ["no-plugin", "silent"])
def test_training_without_the_plugin_is_killed(trainings, mode):
    blind = trainings.run(mode=mode)
    assert blind.code == 1
    (line,) = error_lines(blind)
    assert "the plugin leviathan.plugin.LeviathanPlugin is not running" in line
    assert trainings.left() == []


@pytest.mark.parametrize("mode", ["leave-child", "leave-rank"])
def test_a_crash_that_leaves_a_process_ends_without_it(trainings, mode):
    """A hung data loader, or a rank of torchrun's, must not outlive a dead training."""
    crashed = trainings.run(mode=mode)
    assert crashed.code == 1
    assert trainings.left() == []


def test_a_worker_in_its_own_session_does_not_outlive_a_killed_launcher(trainings):
    """torchrun's workers have sessions of their own; the OOM killer takes the launcher."""
    training = trainings.start(mode="own-session", steps=100, step_s=0.1).reached(2)
    assert record(trainings)["state"] == "running"
    worker = runs.events(runs.RunPaths(trainings.run_dir))[-1]["pid"]
    psutil.Process(worker).parent().kill()
    training.end()
    assert trainings.left() == []


# --- being stopped ----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_saves_stops_and_the_command_it_prints_goes_on(trainings, number):
    stopped = trainings.start(step_s=0.1).reached(3).signal(number)
    assert stopped.end() == 4
    assert trainings.left() == []
    *_, saved = checkpoints.scan(trainings.run_dir)
    assert saved.committed
    assert 3 <= saved.step < 12
    assert record(trainings)["state"] == "stopped"
    if number == signal.SIGHUP:
        return  # the terminal is gone by then, nothing is printed
    shown = re.fullmatch(
        rf"stopped \({number.name}\): saved checkpoint-{saved.step}, resume with: (.*)\n",
        stopped.stdout,
    )
    _, command, *arguments = shlex.split(shown[1])
    assert command == "train"
    if number != signal.SIGINT:
        return  # one of them is enough to prove that the printed command works
    resumed = trainings.run(*arguments[6:])
    assert resumed.code == 0
    assert events(trainings, "resume")[0]["step"] == saved.step
    assert steps(trainings) == list(range(1, 13))


def test_ctrl_c_of_a_terminal_reaches_only_the_supervisor(trainings):
    """It goes to the whole foreground group; accelerate would die of it while its child saves."""
    stopped = trainings.start(popen={"process_group": 0}, step_s=0.1).reached(2)
    os.killpg(stopped.process.pid, signal.SIGINT)
    assert stopped.end() == 4
    (log,) = trainings.run_dir.glob("logs/*.log")
    assert log.read_text() == "Starting trainer...\n"


def test_second_interrupt_kills_at_once(trainings):
    deaf = trainings.start(mode="grandchild", steps=500).reached(6)
    deaf.signal(signal.SIGINT)
    wait_for(lambda: "Ctrl+C again kills at once" in deaf.stderr)
    time.sleep(0.2)  # two within 0.1 s are one Ctrl+C that came twice
    deaf.signal(signal.SIGINT)
    assert deaf.end() == 130
    assert deaf.stdout.startswith("killed: saved checkpoint-")
    assert "resume with: leviathan train" in deaf.stdout
    assert trainings.left() == []


def test_a_deaf_training_is_waited_for_after_one_interrupt(trainings):
    """One Ctrl+C never kills: a step of a large model takes minutes."""
    deaf = trainings.start(mode="deaf", steps=40).reached(2).signal(signal.SIGINT)
    assert deaf.end() == 0
    assert steps(trainings)[-1] == 40


def test_interrupt_before_training_begins_loses_nothing_and_does_not_wait(trainings):
    slow = trainings.start(start_s=60)
    wait_for((trainings.run_dir / ".plugin.json").exists)
    assert slow.signal(signal.SIGINT).end() == 4
    assert "before training began" in slow.stdout
    assert "there is no checkpoint yet" in slow.stdout
    assert trainings.left() == []


def test_a_stop_file_from_outside_stops_the_run(trainings):
    training = trainings.start(step_s=0.1).reached(2)
    (trainings.run_dir / ".stop").touch()
    assert training.end() == 4
    assert "stopped (stop file): saved checkpoint-" in training.stdout


def test_terminal_death_saves_and_stops(trainings):
    master, slave = pty.openpty()

    def take_terminal():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    streams = {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": take_terminal}
    training = trainings.start(popen=streams, step_s=0.1, steps=200)
    os.close(slave)
    training.reached(3)
    os.close(master)
    assert training.end() == 4
    newest = checkpoints.scan(trainings.run_dir)[-1]
    assert newest.committed
    assert 3 <= newest.step == steps(trainings)[-1] < 200
    assert record(trainings)["state"] == "stopped"
    assert trainings.left() == []


# --- going on ---------------------------------------------------------------------


def test_damaged_newest_is_quarantined_said_so_and_an_older_one_resumed(crashed):
    truncate(crashed.run_dir / "checkpoint-10/optimizer.pt")
    dry = crashed.run("--dry-run")
    assert "action       resume from checkpoint-5" in dry.stdout
    assert re.search(r"quarantine +checkpoint-10 \(optimizer.pt has \d+ bytes", dry.stdout)

    resumed = crashed.run()
    assert resumed.code == 0
    assert "checkpoint-10 quarantined: optimizer.pt has" in resumed.stderr
    assert "resuming from checkpoint-5" in resumed.stderr
    (aside,) = (crashed.run_dir / "quarantine").iterdir()
    assert aside.name.startswith("checkpoint-10.")
    assert (aside / "optimizer.pt").exists()
    assert events(crashed, "quarantine")[0]["step"] == 10
    assert steps(crashed) == list(range(1, 13))


def test_resume_from_an_older_checkpoint_sets_the_newer_aside(crashed):
    resumed = crashed.run("--resume", "checkpoint-5")
    assert resumed.code == 0
    assert "checkpoint-10 set aside: newer than the checkpoint resumed from" in resumed.stderr
    assert len(list((crashed.run_dir / "set-aside").iterdir())) == 1
    launched = yaml.safe_load((crashed.run_dir / "axolotl.yaml").read_text())
    assert launched["resume_from_checkpoint"] == str(crashed.run_dir / "checkpoint-5")
    assert launched["leviathan"]["session"] == 2


def test_resume_from_a_damaged_checkpoint_is_refused(crashed):
    """design.md: exit 3 is a check's no, an unsound checkpoint among them."""
    truncate(crashed.run_dir / "checkpoint-10/optimizer.pt")
    before = listing(crashed.project)
    refused = crashed.run("--resume", "checkpoint-10")
    (line,) = error_lines(refused)
    assert "checkpoint-10 is damaged: optimizer.pt has" in line
    assert refused.code == 3
    assert listing(crashed.project) == before


def test_another_runs_checkpoint_is_not_resumed_from(crashed):
    """Copied in by hand it is whole, committed and newer; only its settings tell."""
    other = crashed.run("--name", "other", "--set", "lora_r=4")
    assert other.code == 0, other
    runs_of = crashed.run_dir.parent
    shutil.copytree(runs_of / "other/checkpoint-12", crashed.run_dir / "checkpoint-12")
    refused = crashed.run()
    assert refused.code == 3
    assert "checkpoint-12 in tiny_full_tiny was trained with other settings" in refused.stderr
    shutil.rmtree(crashed.run_dir / "checkpoint-12")
    assert (
        crashed.run("--set", "micro_batch_size=2", "--set", "gradient_accumulation_steps=2").code
        == 0
    )


def test_resume_never_starts_over_and_keeps_the_old(crashed):
    again = crashed.run("--resume", "never")
    assert again.code == 0
    assert "starting from the base model" in again.stderr
    assert steps(crashed) == list(range(1, 13))
    aside = sorted(
        path.name.partition(".")[0] for path in (crashed.run_dir / "set-aside").iterdir()
    )
    assert aside == ["checkpoint-10", "checkpoint-5"]


def test_changed_rank_is_refused_and_nothing_changes(crashed):
    before = listing(crashed.project)
    refused = crashed.run("--set", "lora_r=64")
    assert refused.code == 3
    (line,) = error_lines(refused)
    assert "tiny_full_tiny was begun with other settings: lora_r: 8 -> 64" in line
    assert listing(crashed.project) == before


def test_changed_corpus_is_refused(crashed):
    with (crashed.project / "rows.jsonl").open("a") as out:
        out.write('{"instruction": "new", "output": "row"}\n')
    refused = crashed.run()
    assert refused.code == 3
    assert "(72 rows then, 73 now)" in error_lines(refused)[0]


# --- one writer -------------------------------------------------------------------


def test_second_train_is_refused_and_told_who_trains(trainings):
    first = trainings.start(steps=500).reached(2)
    second = trainings.run()
    assert second.code == 3
    (line,) = error_lines(second)
    assert f"already being trained by process {first.process.pid}" in line
    assert len(record(trainings)["sessions"]) == 1
    assert first.signal(signal.SIGTERM).end() == 4


def test_of_twenty_launches_one_wins_and_the_others_say_who(trainings):
    launches = [trainings.start(steps=5000, step_s=0.05) for _ in range(20)]
    losers = wait_for(lambda: [t for t in launches if t.process.poll() is not None][18:], 90)
    assert losers
    (winner,) = [t for t in launches if t.process.poll() is None]
    for loser in launches:
        if loser is not winner:
            assert loser.code == 3
            (line,) = error_lines(loser)
            assert line.startswith(
                "leviathan: tiny_full_tiny is already being trained by process "
                f"{winner.process.pid}; "
            )
    assert len(record(trainings)["sessions"]) == 1
    trainings.reached(1)
    assert winner.signal(signal.SIGTERM).end() == 4
    assert checkpoints.newest_sound(trainings.run_dir)[0]


def train_after(barrier, answers):
    """One launch that has decided while nobody trained, and then draws with all the others."""
    decision = train.decide(layers.build("tiny", "tiny", "50pct"), name="contended")
    barrier.wait(60)
    try:
        ending = sessions.run(decision, lambda *_: None)
        answers.put((os.getpid(), ending.outcome.kind))
    except LeviathanError as error:
        answers.put((os.getpid(), error.exit_code, error.line))


def test_of_twenty_that_draw_the_sample_at_once_one_wins(trainings, monkeypatch):
    """None of them could see another when it decided; the lock is taken after drawing."""
    for name, value in trainings.environment({"steps": 5000, "step_s": 0.05}).items():
        monkeypatch.setenv(name, value)
    fork = multiprocessing.get_context("fork")
    barrier, answers = fork.Barrier(20), fork.Queue()
    racers = [
        fork.Process(target=train_after, args=(barrier, answers), daemon=True) for _ in range(20)
    ]
    for racer in racers:
        racer.start()
    lost = [answers.get(timeout=90) for _ in range(19)]
    directory = runs.TRAINING / "contended"
    (winner,) = {racer.pid for racer in racers} - {pid for pid, *_ in lost}
    for _, code, line in lost:
        assert code == 3
        assert line.startswith(f"contended is already being trained by process {winner}; ")
    (directory / ".stop").touch()
    assert answers.get(timeout=30) == (winner, "stopped")
    for racer in racers:
        racer.join(20)
    assert len(json.loads((directory / "run.json").read_text())["sessions"]) == 1
    (sample,) = (trainings.project / "work/data").glob("*.jsonl")
    assert len(sample.read_text().splitlines()) == 36


def test_after_a_killed_supervisor_no_second_writer_joins_the_orphan(trainings):
    """kill -9 frees the lock at once, but the training process ends only after its step."""
    first = trainings.start(step_s=1.0).reached(1)
    orphan = events(trainings, "train_begin")[0]["pid"]
    first.signal(signal.SIGKILL).end()
    second = trainings.run(step_s=0.02)
    began = [e for e in events(trainings, "train_begin") if e["pid"] != orphan]
    if second.code == 3:  # refusing while the orphan lives is as good as waiting for it
        assert not began
        return
    orphan_ended = [e for e in events(trainings, "train_end") if e["pid"] == orphan]
    assert orphan_ended
    assert orphan_ended[0]["time"] <= began[0]["time"]


def test_a_decision_that_another_process_overtook_loses_no_session(trainings, monkeypatch):
    """Between deciding and locking a 13 GB sample may be drawn: minutes."""
    merged = layers.build("tiny", "tiny", "full")
    stale = train.decide(merged)
    assert trainings.run().code == 0
    monkeypatch.setenv("PYTHONPATH", str(FAKES), prepend=os.pathsep)
    with suppress(LeviathanError):  # refusing is as right as finding nothing to do
        sessions.run(stale, lambda *_: None)
    assert [s["outcome"] for s in record(trainings)["sessions"]][:1] == ["done"]
    assert checkpoints.newest_sound(trainings.run_dir)[0].step == 12


# --- parts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "the log is empty"),
        ("just\ntext\n\n", "text"),
        ("Traceback:\n  x\nValueError: bad\nsomething later\n", "ValueError: bad"),
        ("a.b.CustomError: first\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("ValueError: cause\nsubprocess.CalledProcessError: Command x\n", "ValueError: cause"),
        ("torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("see this Error: no exception name\nlast\n", "last"),
    ],
)  # fmt: skip
def test_last_error_is_the_line_that_says_why(tmp_path, log, line):
    (tmp_path / "log").write_text(log)
    assert diagnosis.last_error(tmp_path / "log") == line


def test_last_error_reads_a_log_that_is_no_text(tmp_path):
    (tmp_path / "log").write_bytes(b"\xff\xfe\x00 \nRuntimeError: \xff\n")
    assert diagnosis.last_error(tmp_path / "log").startswith("RuntimeError: ")


@pytest.mark.parametrize(
    ("hardware", "tree", "wanted"),
    [
        ({"device": "cpu"}, {}, {"use_cpu": True, "distributed_type": "NO", "mixed_precision": "no"}),
        ({"count": 2}, {"bf16": True}, {"num_processes": 2, "distributed_type": "MULTI_GPU", "mixed_precision": "bf16", "main_process_port": 0}),
        ({}, {"bf16": "auto"}, {"mixed_precision": "bf16", "use_cpu": False}),
        ({}, {"fp16": True}, {"mixed_precision": "fp16", "num_processes": 1}),
    ],
)  # fmt: skip
def test_accelerate_configuration_follows_the_profile(hardware, tree, wanted):
    profile = Profile.model_validate({"hardware": hardware})
    written = yaml.safe_load(launch.accelerate_config(profile, tree))
    assert {name: written[name] for name in wanted} == wanted
    assert (written["num_machines"], written["machine_rank"]) == (1, 0)


MEETING = Meeting("10.0.0.1", 29400, 2, 1)


@pytest.mark.parametrize("name", ["a100x8", "h100x8"])
@pytest.mark.parametrize(
    "more",
    [{}, {"fsdp_version": 2, "fsdp_config": {"offload_params": True}}, {"deepspeed": "zero3.json"}],
    ids=["ddp", "fsdp", "deepspeed"],
)
@pytest.mark.parametrize("meeting", [None, MEETING], ids=["one", "two"])
def test_whole_accelerate_configuration_of_eight_gpus(tmp_path, name, more, meeting):
    """How the model is sharded stands in Axolotl's YAML alone: nothing here can contradict it.

    accelerate itself reads the file, and refuses keys that it does not know.
    """
    hosts = meeting.nodes if meeting else 1
    merged = layers.build("leviathan", name, "full", [f"hardware.nodes={hosts}"])
    path = tmp_path / "accelerate.yaml"
    path.write_text(launch.accelerate_config(merged.profile, {**merged.tree, **more}, meeting))
    place = "main_process_ip: 10.0.0.1\nrdzv_backend: static\nsame_network: true\n"
    assert path.read_text() == (
        "compute_environment: LOCAL_MACHINE\n"
        "distributed_type: MULTI_GPU\n"
        f"num_machines: {hosts}\n"
        f"num_processes: {8 * hosts}\n"
        "machine_rank: 0\n"
        f"{place if meeting else ''}"
        f"main_process_port: {29401 if meeting else 0}\n"
        "mixed_precision: bf16\n"
        "use_cpu: false\n"
        "main_training_function: main\n"
    )
    read = config_args.load_config_from_file(str(path))
    assert (read.num_machines, read.num_processes) == (hosts, 8 * hosts)
    assert (read.fsdp_config, read.deepspeed_config) == ({}, {})


def test_each_host_has_its_rank_in_the_command(tmp_path):
    paths = runs.RunPaths(tmp_path)
    gpus = Profile.model_validate({"hardware": {"count": 8, "nodes": 2}})
    assert launch.command(paths, gpus, MEETING)[5:7] == ["--machine_rank", "1"]
    cpus = Profile.model_validate({"hardware": {"device": "cpu", "nodes": 2}})
    command = launch.command(paths, cpus, MEETING)
    options = dict(zip(command[3:-3:2], command[4:-3:2], strict=True))
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert options == {
        "--nnodes": "2", "--nproc_per_node": "1", "--max_restarts": "0", "--rdzv_id": tmp_path.name,
        "--rdzv_backend": "static", "--node_rank": "1", "--master_addr": "10.0.0.1",
        "--master_port": "29401",
    }  # fmt: skip


def test_hosts_talk_over_the_interface_that_leads_to_the_head(tmp_path, monkeypatch):
    cpus = Profile.model_validate({"hardware": {"device": "cpu", "nodes": 2}})
    here = Meeting("127.0.0.1", 29400, 2, 1)
    found = launch.environment(runs.RunPaths(tmp_path), cpus, meeting=here)
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("lo", "=lo")
    assert found["ACCELERATE_USE_CPU"] == "true"
    assert "LEVIATHAN_STORE" not in found
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    found = launch.environment(runs.RunPaths(tmp_path), cpus, meeting=here)
    assert found["GLOO_SOCKET_IFNAME"] == "ib0"


def test_environment_lets_the_users_own_values_win(monkeypatch, tmp_path):
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    paths = runs.RunPaths(tmp_path)
    cuda = launch.environment(paths, Profile())
    assert (cuda["AXOLOTL_DO_NOT_TRACK"], cuda["CUDA_VISIBLE_DEVICES"]) == ("0", "3")
    cpu = launch.environment(paths, Profile.model_validate({"hardware": {"device": "cpu"}}))
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert json.loads(cpu["LEVIATHAN_SUPERVISOR"])["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("count", "shown", "visible"),
    [
        (1, None, "0"),
        (2, None, "0,1"),
        (1, "3", "3"),
        (2, "5,3,1", "5,3"),
        (2, "7", "7"),
        (1, "GPU-8f1a,GPU-77b2", "GPU-8f1a"),
        (1, "", ""),
    ],
)
def test_a_run_sees_as_many_gpus_as_its_profile_has(monkeypatch, tmp_path, count, shown, visible):
    """One process that sees several would spread the model, or the batch, over all of them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    profile = Profile.model_validate({"hardware": {"count": count}})
    found = launch.environment(runs.RunPaths(tmp_path), profile)
    assert (found["CUDA_VISIBLE_DEVICES"], found["CUDA_DEVICE_ORDER"]) == (visible, "PCI_BUS_ID")


def test_accelerate_itself_starts_a_process_for_each_gpu(tmp_path):
    """The real launcher, and two at once: each has a port of its own."""
    profile = Profile.model_validate({"hardware": {"count": 2}})
    (tmp_path / "accelerate.yaml").write_text(launch.accelerate_config(profile, {"bf16": True}))
    (tmp_path / "told.py").write_text(
        "import os, pathlib\n"
        "names = ('LOCAL_RANK', 'WORLD_SIZE', 'ACCELERATE_MIXED_PRECISION', 'MASTER_PORT')\n"
        "told = pathlib.Path(os.environ['TOLD'])\n"
        "told.with_suffix('.' + os.environ['RANK']).write_text(\n"
        "    ' '.join(os.environ[name] for name in names))\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
               str(tmp_path / "accelerate.yaml"), "-m", "told"]  # fmt: skip
    both = [
        subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(tmp_path), "TOLD": str(tmp_path / name)}
        )
        for name in ("one", "two")
    ]
    assert [launched.wait(120) for launched in both] == [0, 0]
    told = {path.name: path.read_text().split() for path in tmp_path.glob("*.[01]")}
    assert {name: words[:3] for name, words in told.items()} == {
        f"{name}.{rank}": [rank, "2", "bf16"] for name in ("one", "two") for rank in ("0", "1")
    }
    ports = {name: words[3] for name, words in told.items()}
    assert ports["one.0"] == ports["one.1"] != ports["two.0"] == ports["two.1"]


TWO_ON_CPU = Profile.model_validate({"hardware": {"device": "cpu", "count": 2}})


def test_several_processes_on_cpus_are_torchruns_and_meet_without_a_port(tmp_path):
    """accelerate launch --cpu --num_processes 2 starts one process and says nothing."""
    paths = runs.RunPaths(tmp_path)
    command = launch.command(paths, TWO_ON_CPU)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert command[command.index("--nproc_per_node") + 1] == "2"
    assert command[command.index("--rdzv_conf") + 1] == "store_type=file"
    assert command[command.index("--rdzv_endpoint") + 1].startswith(str(tmp_path))
    assert command[-3:] == ["-m", "axolotl.cli.train", str(paths.config)]
    environment = launch.environment(paths, TWO_ON_CPU)
    assert environment["ACCELERATE_USE_CPU"] == "true"
    assert environment["LEVIATHAN_STORE"] == str(paths.store.resolve())
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize("hardware", [{"count": 2}, {"device": "cpu"}])
def test_gpus_and_single_processes_are_launched_by_accelerate(tmp_path, hardware):
    profile = Profile.model_validate({"hardware": hardware})
    paths = runs.RunPaths(tmp_path)
    assert launch.command(paths, profile)[1:3] == ["-m", "accelerate.commands.launch"]
    assert not {"LEVIATHAN_STORE", "ACCELERATE_USE_CPU"} & {*launch.environment(paths, profile)}


def test_a_killed_sessions_meeting_place_is_not_used_again(tmp_path):
    paths = runs.RunPaths(tmp_path)
    paths.store.write_text("rank 0 was here")
    paths.launcher_store.write_text("and its launcher")
    launch.write_inputs(paths, TWO_ON_CPU, "", {})
    assert not paths.store.exists()
    assert not paths.launcher_store.exists()


def test_resume_command_repeats_everything_that_was_given(project):
    merged = layers.build("tiny", "tiny", "50pct", ["learning_rate=1e-3", "lora_r=4"])
    decision = train.decide(merged, name="my-run")
    assert train.resume_command(decision) == (
        "leviathan train --profile tiny --recipe tiny --sample 50pct --name my-run "
        "--set learning_rate=1e-3 --set lora_r=4"
    )


def test_json_of_a_training_is_one_document(trainings):
    done = trainings.run("--json")
    assert done.code == 0
    found = json.loads(done.stdout)
    assert (found["outcome"], found["step"], found["checkpoint"]) == ("done", 12, "checkpoint-12")
    again = trainings.run("--json")
    assert json.loads(again.stdout)["action"] == "nothing: the run is finished"


def test_a_run_without_any_sound_checkpoint_is_not_quietly_begun_again(crashed):
    for path in crashed.run_dir.glob("checkpoint-*"):
        truncate(path / "optimizer.pt")
    before = listing(crashed.project)
    refused = crashed.run()
    assert refused.code == 3
    assert "no checkpoint of tiny_full_tiny is sound" in refused.stderr
    assert listing(crashed.project) == before
    assert crashed.run("--resume", "never").code == 0
    assert len(list((crashed.run_dir / "quarantine").glob("checkpoint-*"))) == 2


def test_a_first_launch_that_failed_does_not_lock_the_run_name(trainings):
    assert trainings.run(mode="crash", crash_at=1).code == 1
    again = trainings.run("--set", "lora_r=4")
    assert again.code == 0
    assert record(trainings)["tree"]["lora_r"] == 4


def test_a_base_model_that_changed_is_not_resumed_on(crashed):
    tiny.write_hollow_model(crashed.project / "base")
    refused = crashed.run()
    assert refused.code == 3
    assert "the base model base has changed since tiny_full_tiny was begun" in refused.stderr


@pytest.mark.parametrize("change", ["train_on_inputs=true", "lora_dropout=0.5", "max_steps=3",
                                    "weight_decay=0.1", "hardware.count=2"])  # fmt: skip
def test_what_makes_another_model_is_not_resumed_with(crashed, change):
    refused = crashed.run("--set", change)
    assert refused.code == 3
    assert "was begun with other settings" in refused.stderr


@pytest.mark.parametrize(
    "change", ["learning_rate=1e-5", "save_steps=50", "dataloader_num_workers=2"]
)
def test_what_is_free_to_change_is_shown_and_resumed_with(crashed, change):
    planned = crashed.run("--dry-run", "--json", "--set", change)
    assert planned.code == 0
    (told,) = json.loads(planned.stdout)["changes"]
    assert told.startswith(change.partition("=")[0])


def test_under_nohup_a_hangup_does_not_stop_the_training(trainings):
    nohup = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    running = trainings.start(popen=nohup, step_s=0.1).reached(2).signal(signal.SIGHUP)
    assert running.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_dies_alone_is_a_failure_and_not_a_stop(trainings, number):
    """Training saves itself, and goes on: nobody asked the run to end."""
    profile = trainings.project / "configs/profiles/tiny.yaml"
    text = profile.read_text().replace("{restarts: 0}", "{restarts: 3, backoff_s: 0}")
    profile.write_text(text)
    training = trainings.start(steps=30, step_s=0.1).reached(7)
    launcher = runs.identity_in(runs.RunPaths(trainings.run_dir).launcher)
    os.kill(launcher["pid"], number)
    assert training.end() == 0, training
    assert (
        f"somebody or something killed it (signal {int(number)}); restart 1 of 3" in training.stderr
    )
    assert [s["outcome"] for s in record(trainings)["sessions"]] == ["failed", "done"]
    assert record(trainings)["sessions"][1]["resumed_from"] >= 7


@pytest.mark.parametrize("form", ["gz", "directory"])
def test_what_is_not_plain_is_copied_plain_before_it_is_trained_on(trainings, form):
    """Axolotl is given one JSONL file, whatever the corpus is."""
    rows = Path(yaml.safe_load((trainings.project / "configs/recipes/tiny.yaml").read_text())["corpus"])  # fmt: skip
    data = (trainings.project / rows).read_bytes()
    if form == "gz":
        (trainings.project / "packed.jsonl.gz").write_bytes(gzip.compress(data))
        name = "packed.jsonl.gz"
    else:
        (trainings.project / "shards").mkdir()
        for number, line in enumerate(data.splitlines(keepends=True)):
            (trainings.project / f"shards/{number:04d}.jsonl").write_bytes(line)
        name = "shards"
    done = trainings.run("--set", f"corpus={name}")
    assert done.code == 0, done
    launched = yaml.safe_load((trainings.run_dir / "axolotl.yaml").read_text())
    path = Path(launched["datasets"][0]["path"])
    assert path.read_bytes() == data
    assert path.is_relative_to(trainings.project / "work/data")
    assert record(trainings)["corpus"]["rows"] == len(data.splitlines())
