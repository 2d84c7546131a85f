"""Push and pull over a network: real sshd in another namespace, real rsync; and a full disk."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import LEVIATHAN
from smalldisk import SmallDisk
from sshhost import SshHost

from leviathan import runs, writer
from leviathan.errors import LeviathanError
from test_transfer import HOSTILE, add_checkpoint, change, digests, make_run, push, sound

pytestmark = pytest.mark.real


@pytest.fixture
def host(tmp_path):
    (tmp_path / "ssh").mkdir()
    with SshHost(tmp_path / "ssh") as host:
        yield host


def options(host: SshHost) -> list[str]:
    known = f"UserKnownHostsFile={host.directory}/known"
    return ["--port", str(host.port), "--key", str(host.key), "--ssh-option", known]


def cloud(host: SshHost, cwd: Path, *words: str, code: int = 0) -> str:
    done = host.command(LEVIATHAN, "cloud", *words, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_over_ssh_killed_and_gone_on_with(host, tmp_path):
    """Names that a shell would read; the connection and we are killed; the rest is sent later."""
    here, far = tmp_path / "here", tmp_path / HOSTILE
    run = make_run(here, steps=(10,))
    to = f"root@{host.address}:{far}"
    cloud(host, here, "push", "r", to, "--no-sample", *options(host))
    there = far / "work/training/r"
    assert sound(there) == [10]
    add_checkpoint(run, 30, 300_000, random.Random(3))
    words = ["push", "r", to, "--no-sample", "--bwlimit", "1m", *options(host)]
    command = ["ip", "netns", "exec", host.here, LEVIATHAN, "cloud", *words]
    shown = digests(there)
    for begun in (0.0, 0.3):
        child = subprocess.Popen(command, cwd=here, start_new_session=True,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        end = time.monotonic() + 20
        while not list(there.glob(".transfer-*/checkpoint-30")) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(begun)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert {n: d for n, d in digests(there).items() if not n.startswith(".transfer-")} == shown
    cloud(host, here, *words)
    assert sound(there) == [10, 30]
    assert digests(there / "checkpoint-30") == digests(run / "checkpoint-30")
    assert not list(there.glob(".transfer-*"))

    source = f"root@{host.address}:{there}"
    cloud(host, tmp_path, "pull", source, "back", "--for", "resume", *options(host))
    assert digests(tmp_path / "back/work/training/r/checkpoint-30") == digests(
        run / "checkpoint-30"
    )
    with writer.locked(runs.RunPaths(there)):
        assert "is being trained there" in cloud(host, here, *words, code=3)
    assert not (here / "pwned").exists()


def test_what_is_wrong_with_the_connection_is_one_line(host, tmp_path):
    run = make_run(tmp_path)
    to = f"root@{host.address}:far"
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    cases = (
        (["--key", str(other)], "Permission denied"),
        (["--port", "2223"], "Connection refused"),
        (["--ssh-option", "UserKnownHostsFile=/dev/null"], "Host key verification failed"),
    )
    given = dict(zip(options(host)[::2], options(host)[1::2], strict=True))
    for (option, value), line in cases:
        words = [word for pair in {**given, option: value}.items() for word in pair]
        said = cloud(host, tmp_path, "push", "r", to, "--no-sample", *words, code=1)
        assert line in said
        assert len(said.strip().splitlines()) == 1
    assert not list(run.glob(".outgoing-*"))


def test_a_full_disk_there_leaves_what_was_there(tmp_path, monkeypatch):
    run = make_run(tmp_path / "here", steps=(10,), size=100_000)
    with SmallDisk(tmp_path / "disk", 3) as disk:
        if not disk.shared:
            pytest.fail("this test mounts a tmpfs: run it as root")
        far = disk.directory / "far"
        push(run, far)
        there = far / "work/training/r"
        add_checkpoint(run, 30, 1_000_000, random.Random(3))
        change(run, sessions=[runs.Session(1, 0.0, {}), runs.Session(2, 5.0, {})])
        shown = digests(there)
        command = [LEVIATHAN, "cloud", "push", "r", str(far), "--no-sample"]
        refused = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True,
                                 check=False)  # fmt: skip
        assert (refused.returncode, "do not fit" in refused.stderr) == (3, True)
        monkeypatch.setattr("leviathan.transfer._demand_room", lambda *_: None)
        with pytest.raises(LeviathanError, match="is full"):
            push(run, far)  # somebody else filled it meanwhile
        left = {n: d for n, d in digests(there).items() if not n.startswith(".transfer-")}
        assert left == shown
        assert sound(there) == [10]
