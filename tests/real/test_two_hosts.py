"""Two hosts, as network namespaces with a cable between them, each with one process on gloo."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from netns import Cable
from project import Done, Project

from fakes.processes import wait_for

pytestmark = pytest.mark.real

RUN = "hosts"
OPTIONS = ("--recipe", "two-epochs", "--sample", "full", "--name", RUN, "--set", "save_steps=10",
           "--set", "eval_steps=null", "--set", "micro_batch_size=8")  # fmt: skip
SILENT_S = 5
COMMAND = ("train", "--profile", "long", *OPTIONS, "--set", f"recovery.silent_s={SILENT_S}",
           "--nodes", "2", "--rdzv", "10.77.0.1:29400")  # fmt: skip


class Two:
    """The same command on both hosts, in a directory that both see."""

    def __init__(self, project: Project, cable: Cable) -> None:
        self.project, self.cable = project, cable
        self.sessions = 0

    def start(self, step: int = 0) -> list[subprocess.Popen]:
        """Both supervisors, once this session has trained as far as ``step``."""
        self.sessions += 1
        started = [self._on(host).start(*COMMAND) for host in self.cable.hosts]
        end = time.monotonic() + 180
        while step and not any(line["session"] == self.sessions and line["step"] >= step
                               for line in self._metrics()):  # fmt: skip
            over = [p.communicate() for p in started if p.poll() is not None]
            assert not over, over
            assert time.monotonic() < end
            time.sleep(0.05)
        return started

    def _metrics(self) -> list[dict]:
        path = self.project.path(RUN)
        return self.project.metrics(RUN) if (path / "metrics.jsonl").exists() else []

    def _on(self, host) -> Project:
        prefix = (*host.prefix, "env", "-C", str(self.project.directory))
        return Project(self.project.directory, prefix=prefix)

    def ends(self, started: list[subprocess.Popen], within_s: float = 120) -> list[Done]:
        """How both ended; nothing of them is left."""
        end, done = time.monotonic() + within_s, []
        for process in started:
            out, err = process.communicate(timeout=max(end - time.monotonic(), 1))
            done.append(Done(process.returncode, out, err))
        assert self.project.processes() == [], done
        return done

    def of_host(self, number: int) -> list[psutil.Process]:
        """Every process on a host."""
        here = Path(f"/proc/{self.cable.hosts[number].pid}/ns/net").stat().st_ino
        found = []
        for pid in self.project.processes():
            try:
                if Path(f"/proc/{pid}/ns/net").stat().st_ino == here:
                    found.append(psutil.Process(pid))
            except (OSError, psutil.Error):
                continue
        return found

    def steps(self) -> list[int]:
        """Those of the committed checkpoints, which hold both ranks' parts."""
        for step in (saved := self.project.saved(RUN)):
            committed = self.project.commit(RUN, step)["files"]
            assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= {*committed}
        return saved


def failure(done: Done) -> str:
    """The one line of a training that failed."""
    assert done.code == 1, done.err
    (line,) = [x for x in done.err.splitlines() if x.startswith("leviathan: ")]
    assert "Traceback" not in done.err
    return line


@pytest.fixture(scope="module")
def cable():
    with Cable() as both:
        yield both


@pytest.fixture(scope="module")
def one_machine(make_project) -> Project:
    """The same training by two processes of one machine, never interrupted."""
    project = make_project("one-machine")
    done = project.run("train", "--profile", "two", *OPTIONS)
    assert done.code == 0, done.err
    return project


def test_stopped_killed_and_cut_off_two_hosts_end_as_one_machine_does(
    one_machine, make_project, cable
):
    project = make_project("two-hosts")
    two = Two(project, cable)

    # A signal on the host that decides nothing stops both, with a checkpoint of both.
    started = two.start(7)
    assert len(two.of_host(0)) > 2  # supervisor, launcher, rank
    assert len(two.of_host(1)) > 2
    started[1].send_signal(signal.SIGTERM)
    for done in two.ends(started):
        assert done.code == 4, done.err
        assert f"stopped (SIGTERM on host 1 ({os.uname().nodename}, 10.77.0.2))" in done.out
    stopped = two.steps()[-1]
    assert 7 <= stopped < 25

    # One host dies with everything on it.
    started = two.start(stopped + 5)
    for process in two.of_host(1):
        process.kill()
    began = time.monotonic()
    head, other = two.ends(started)
    assert time.monotonic() - began < SILENT_S + 15
    assert other.code == -signal.SIGKILL
    line = failure(head)
    assert f"host 1 ({os.uname().nodename}, 10.77.0.2) was lost: its supervisor ended" in line
    assert "--rdzv 10.77.0.1:29400" in line
    two.steps()

    # The network between them goes.
    started = two.start()
    log = project.path(RUN) / "logs"
    wait_for(lambda: list(log.glob(f"node1_*_{two.sessions}.log")), 60)
    cable.hosts[1].cut()
    began = time.monotonic()
    head, other = two.ends(started)
    assert time.monotonic() - began < SILENT_S + 20
    assert f"was lost: not a word for {SILENT_S} s" in failure(head)
    assert f"the head (10.77.0.1:29400) was lost: not a word for {SILENT_S} s" in failure(other)
    cable.hosts[1].mend()

    started = two.start()
    for done in two.ends(started):
        assert (done.code, done.out) == (0, "done: work/training/hosts, 50 steps\n"), done.err
    two.steps()
    resumed = [event["step"] for event in project.events(RUN, "resume")]
    assert resumed[0] == stopped
    assert resumed == sorted(resumed)
    assert project.exact(RUN) == one_machine.exact(RUN)
    assert project.adapter(RUN) == one_machine.adapter(RUN)


def test_a_host_with_other_settings_is_refused_by_both(make_project, cable):
    project = make_project("two-minds")
    two = Two(project, cable)
    hosts = [two._on(host) for host in cable.hosts]
    head = hosts[0].start(*COMMAND)
    other = hosts[1].start(*COMMAND, "--set", "learning_rate=0.5")
    for done in two.ends([head, other], 60):
        assert done.code == 3
        (line,) = [x for x in done.err.splitlines() if x.startswith("leviathan: ")]
        assert "learning_rate is 0.5, 0.01 on the head" in line
    assert not (project.path(RUN) / "run.json").exists()
