"""``cloud export --target ssh``, carried out: another host, real sshd, rsync, tmux and Axolotl."""

import json
import shutil
import time
from pathlib import Path

import pytest
from project import Project, environment
from sshhost import SshHost, write_environment

pytestmark = pytest.mark.real

OPTIONS = ("--profile", "tiny", "--recipe", "tiny", "--sample", "90pct", "--name", "far.run",
           "--set", "save_steps=10", "--set", "eval_steps=null")  # fmt: skip
RUN = "far.run"
HOSTILE = 'it\'s "far" $(touch /tmp/leviathan-pwned) ü;& -x\n2'


@pytest.fixture
def host(tmp_path):
    directory = tmp_path / "ssh"
    directory.mkdir()
    with SshHost(directory) as host:
        yield host


class Remote:
    """The exported bundle, driven as a person would."""

    def __init__(self, bundle: Path, host: SshHost, directory: Path, venv: Path, cwd: Path) -> None:
        self.bundle, self.host, self.cwd = bundle, host, cwd
        self.options = ["--host", f"root@{host.address}", "--port", host.port, "--key", host.key,
                        "--dir", directory, "--venv", venv]  # fmt: skip

    def __call__(self, verb: str, code: int = 0) -> str:
        script = self.bundle / "remote.sh"
        done = self.host.command(script, verb, *self.options, cwd=self.cwd)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


def until(path: Path, text: str) -> None:
    """Wait for a text in a file of the far side."""
    end = time.monotonic() + 90
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, (path.parents[0] / "run.log").read_text()
        time.sleep(0.05)


def test_a_bundle_is_pushed_trained_stopped_resumed_and_pulled(
    forked_project, host, tmp_path, fork_server
):
    """What comes back is, byte for byte, what an undisturbed run here gives."""
    project = forked_project
    weights = project.directory / "base/model.safetensors"
    weights.rename(tmp_path / "a blob")  # as in the hub's cache
    weights.symlink_to(tmp_path / "a blob")
    bundle, far = tmp_path / f"bundle {HOSTILE}", tmp_path / f"far {HOSTILE}"
    done = project.run("cloud", "export", *OPTIONS, "--target", "ssh", "-o", str(bundle))
    assert done.code == 0, done.err
    reference = Project(shutil.copytree(project.directory, tmp_path / "reference"), fork_server)
    undisturbed = reference.start("train", *OPTIONS)
    (project.directory / "rows.jsonl").unlink()  # the sample goes there, not its corpus
    venv = write_environment(tmp_path / "the venv", {**environment(), **fork_server.environment()})
    remote = Remote(bundle, host, far, venv, project.directory)

    assert "pushed to" in remote("push")
    assert {path.name for path in far.glob("*.jsonl")} == set()
    assert "leviathan 0" in remote("setup")
    assert "started in tmux" in remote("start")
    assert "already running" in remote("start")
    metrics, log = far / "work/training" / RUN / "metrics.jsonl", far / "work/run.log"
    until(metrics, '"step":25')
    remote("stop")
    until(log, "ended with exit code 4")
    assert "started in tmux" in remote("start")
    until(log, "ended with exit code 0")
    assert "tmux: ended" in remote("status")
    assert f"pulled to {project.directory}/work/training/{RUN}" in remote("pull")

    record = json.loads((project.path(RUN) / "run.json").read_text())
    assert [s["outcome"] for s in record["sessions"]] == ["stopped", "done"]
    assert record["sessions"][1]["resumed_from"] > 20
    verified = project.run("checkpoints", "verify", RUN)
    assert (verified.code, "all sound" in verified.out) == (0, True), verified.err
    _, err = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, err
    assert project.curve(RUN) == reference.curve(RUN)
    assert project.adapter(RUN) == reference.adapter(RUN)
    assert not Path("/tmp/leviathan-pwned").exists()

    remote("push")  # again: nothing that was trained there is touched
    assert metrics.read_text() == (project.path(RUN) / "metrics.jsonl").read_text()
    assert "pulled to" in remote("pull")
    (project.path(RUN) / "run.json").write_text("{}")  # as a session here would change it
    assert "was trained here" in remote("pull", code=3)
