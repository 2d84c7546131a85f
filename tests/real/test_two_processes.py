"""Two processes on this machine's CPU: what several GPUs do, with gloo instead of NCCL."""

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from project import PACKED, Project

pytestmark = pytest.mark.real

RUN = "two-epochs_full_two"
COMMAND = ("train", "--profile", "two", "--recipe", "two-epochs", "--sample", "full",
           "--set", "save_steps=10", "--set", "eval_steps=null", "--set", "micro_batch_size=8")  # fmt: skip
COMMAND_PACKED = (*COMMAND[:7], *PACKED)


def ranks(project: Project) -> dict[int, int]:
    """The pid of every rank: torchrun's own children, not what a rank has started."""
    launched = [psutil.Process(pid) for pid in project.processes()]
    (launcher,) = (p for p in launched if "torch.distributed.run" in p.cmdline())
    return {int(p.environ()["RANK"]): p.pid for p in launcher.children()}


def start(project: Project, command: tuple[str, ...], step: int):
    """A training that has come to a step."""
    process = project.start(*command)
    metrics = project.path(RUN) / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (metrics.exists() and any(m["step"] >= step for m in project.metrics(RUN))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def end(project: Project, process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=180)
    assert project.processes() == [], err
    return process.returncode, out, err


def stopped_in(project: Project, epoch: int) -> int:
    """The step of a clean stop in this epoch: its checkpoint, committed with every rank's part."""
    step = project.saved(RUN)[-1]
    assert project.events(RUN, "train_end")[-1]["step"] == step
    steps = project.steps_per_epoch(RUN)
    assert (epoch - 1) * steps < step < epoch * steps
    committed = project.commit(RUN, step)["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= {*committed}
    return step


@pytest.fixture(scope="session")
def whole(make_project) -> Project:
    """Unpacked, never interrupted; each of its processes says on stderr who it is."""
    project = make_project("two")
    hook = project.directory / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        # In one piece: print would write its words one by one, between the other rank's.
        "import os\nos.write(2, f\"rank {os.environ.get('RANK')} speaks\\n\".encode())\n"
    )
    path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = project.run(*COMMAND, PYTHONPATH=path)
    assert done.code == 0, done.err
    return project


@pytest.fixture(scope="session")
def whole_packed(make_project) -> Project:
    """Packed, never interrupted."""
    project = make_project("two-packed")
    done = project.run(*COMMAND_PACKED)
    assert done.code == 0, done.err
    return project


def test_both_ranks_train_and_are_heard(whole):
    (log,) = whole.path(RUN).glob("logs/*.log")
    text = log.read_text()
    assert "rank 0 speaks" in text
    assert "rank 1 speaks" in text
    assert whole.steps_per_epoch(RUN) == 25  # 400 rows, 2 x 8 a step


def test_packing_reshuffles_between_epochs_here_too(whole_packed):
    assert whole_packed.reshuffled(RUN)


def test_unpacked_resumes_in_both_epochs_are_exact(whole, tmp_path):
    """The second by SIGTERM to rank 0 alone: what one rank is told, all agree on."""
    shutil.copytree(whole.directory, tmp_path / "project")
    project = Project(tmp_path / "project")
    process = start(project, (*COMMAND, "--resume", "checkpoint-10"), 10)
    while not any(m["session"] == 2 and m["step"] >= 30 for m in project.metrics(RUN)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(ranks(project)[0], signal.SIGTERM)
    code, out, err = end(project, process)
    assert code == 4, err
    assert f"saved checkpoint-{stopped_in(project, 2)}," in out
    done = project.run(*COMMAND)
    assert done.code == 0, done.err
    assert project.exact(RUN) == whole.exact(RUN)
    assert project.adapter(RUN) == whole.adapter(RUN)


ONE = ("--set", "hardware.count=1", "--set")


@pytest.mark.parametrize(
    ("command", "accumulation"), [(COMMAND, "2"), (COMMAND_PACKED, "4")], ids=["rows", "packed"]
)
def test_one_process_takes_over_from_two_and_two_from_one(
    whole, whole_packed, tmp_path, command, accumulation
):
    """The same tokens make every step; only the order in which gradients are summed differs."""
    before = whole if command is COMMAND else whole_packed
    shutil.copytree(before.directory, tmp_path / "project")
    project = Project(tmp_path / "project")
    alone = (*command, *ONE, f"gradient_accumulation_steps={accumulation}")
    process = start(project, (*alone, "--resume", "checkpoint-10"), 10)
    while not any(m["session"] == 2 and m["step"] >= 30 for m in project.metrics(RUN)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    lines = [psutil.Process(pid).cmdline() for pid in project.processes()]
    assert not any("torch.distributed.run" in line for line in lines)
    process.send_signal(signal.SIGINT)
    code, _, err = end(project, process)
    assert code == 4, err
    assert "processes: 2 -> 1: the effective batch stays" in err
    done = project.run(*command)
    assert done.code == 0, done.err
    for (old, old_tokens), (new, tokens) in zip(before.exact(RUN), project.exact(RUN), strict=True):
        assert tokens == old_tokens
        assert new == pytest.approx(old, rel=1e-3)


def test_packed_stopped_signalled_and_killed_it_still_ends_exactly(whole_packed, make_project):
    project = make_project("two-stopped")

    process = start(project, COMMAND_PACKED, 7)
    for pid in project.processes():
        for connection in psutil.Process(pid).net_connections("inet"):
            heard = connection.status == psutil.CONN_LISTEN
            assert not heard or connection.laddr.ip in {"127.0.0.1", "::1"}, connection
    process.send_signal(signal.SIGINT)
    code, _, err = end(project, process)
    assert code == 4, err
    step = stopped_in(project, 1)
    assert project.saved(RUN) in ([step], [10, step])

    process = start(project, COMMAND_PACKED, 32)
    os.kill(ranks(project)[1], signal.SIGINT)
    code, _, err = end(project, process)
    assert code == 4, err
    step = stopped_in(project, 2)

    process = start(project, COMMAND_PACKED, step + 2)
    os.kill(ranks(project)[1], signal.SIGKILL)
    code, _, err = end(project, process)
    assert code == 1, err
    assert "training failed at step" in err

    done = project.run(*COMMAND_PACKED)
    assert done.code == 0, done.err
    assert project.exact(RUN) == whole_packed.exact(RUN)
    assert project.adapter(RUN) == whole_packed.adapter(RUN)


FSDP = """axolotl:
  plugins: [fsdp_on_cpu.Plugin]
  fsdp_version: 2
  fsdp_config:
    state_dict_type: SHARDED_STATE_DICT
    auto_wrap_policy: TRANSFORMER_BASED_WRAP
    transformer_layer_cls_to_wrap: LlamaDecoderLayer
    reshard_after_forward: true
"""
PIECES = {f"{folder}/{name}" for folder in ("pytorch_model_fsdp_0", "optimizer_0")
          for name in (".metadata", "__0_0.distcp", "__1_0.distcp")}  # fmt: skip


def test_a_model_sharded_over_two_processes_resumes_exactly(whole, make_project):
    """FSDP2, of which no rank has a whole copy: its weights are those of DDP all the same."""
    project = make_project("sharded")
    profile = project.directory / "configs/profiles/two.yaml"
    profile.write_text(profile.read_text().replace("axolotl:\n", FSDP))
    plugins = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = project.start(*COMMAND, PYTHONPATH=plugins)
    end = time.monotonic() + 180
    while not project.saved(RUN) or project.metrics(RUN)[-1]["step"] < 13:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    step = project.saved(RUN)[-1]
    committed = {*project.commit(RUN, step)["files"]}
    assert {*PIECES, "rng_state_0.pth", "rng_state_1.pth", "adapter_model.safetensors",
            "tokenizer.json"} <= committed  # fmt: skip
    done = project.run(*COMMAND, PYTHONPATH=plugins)
    assert done.code == 0, done.err
    assert [e["step"] for e in project.events(RUN, "resume")] == [step]
    losses = [[line[1] for line in of.curve(RUN)] for of in (project, whole)]
    assert losses[0] == losses[1]
    last = project.path(RUN) / f"checkpoint-{project.saved(RUN)[-1]}" / "adapter_model.safetensors"
    assert last.read_bytes() == whole.adapter(RUN)
