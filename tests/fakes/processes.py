"""The CLI as real processes, and what is left of them: used by tests of several modules."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

LEVIATHAN = str(Path(sys.executable).with_name("leviathan"))
FAKES = Path(__file__).parent
MARK = "LEVIATHAN_TEST_MARK"


def listing(directory: Path) -> dict[str, tuple]:
    """Every path below ``directory`` with what changes when it is written."""
    return {
        str(path.relative_to(directory)): (
            path.is_dir(), path.stat().st_size, path.stat().st_mtime_ns,
        )
        for path in sorted(directory.rglob("*"))
    }  # fmt: skip


def wait_for(what, seconds: float = 15.0):
    """The first true value of ``what()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not so after {seconds} s")


class Trainings:
    """Real ``leviathan train`` processes on the fake accelerate, all with one mark."""

    def __init__(self, project: Path, logs: Path) -> None:
        self.project, self.logs, self.mark = project, logs, uuid.uuid4().hex
        self.run_dir = project / "work/training/tiny_full_tiny"
        self.started: list[Training] = []

    def start(self, *arguments, popen=None, **fake) -> "Training":
        """``leviathan train`` on the tiny project; ``fake`` is read by the fake accelerate."""
        command = [LEVIATHAN, "train", "-p", "tiny", "-r", "tiny", "-s", "full", *arguments]
        training = Training(command, self, self.environment(fake), popen or {})
        self.started.append(training)
        return training

    def environment(self, fake: dict) -> dict[str, str]:
        """With the fake accelerate first, our mark, and how the fake shall behave."""
        path = [str(FAKES), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ, "PYTHONPATH": os.pathsep.join(path), MARK: self.mark,
            **{f"FAKE_{name.upper()}": str(value) for name, value in fake.items()},
        }  # fmt: skip

    def command(self, *arguments, popen=None, **fake) -> "Training":
        """Another ``leviathan`` command in the project, as from another shell."""
        other = Training([LEVIATHAN, *arguments], self, self.environment(fake), popen or {})
        self.started.append(other)
        return other

    def run(self, *arguments, **fake) -> "Training":
        """Start one and wait for its end."""
        training = self.start(*arguments, **fake)
        training.end()
        return training

    def reached(self, step: int) -> None:
        """Wait until this step was trained, by whomever."""
        metrics = self.run_dir / "metrics.jsonl"
        needle = f'"step":{step},'
        wait_for(lambda: metrics.exists() and needle in metrics.read_text())

    def left(self) -> list[int]:
        """Processes that carry our mark and still live."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for process in psutil.process_iter():
            try:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue
            if needle in environ.split(b"\0"):
                found.append(process.pid)
        return found

    def kill_left(self) -> None:
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Training:
    """One ``leviathan`` process."""

    def __init__(self, command, owner: Trainings, environment, popen) -> None:
        number = len(owner.started)
        self.owner = owner
        self.out, self.err = owner.logs / f"{number}.out", owner.logs / f"{number}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            self.process = subprocess.Popen(
                command, cwd=owner.project, env=environment, **{**streams, **popen}
            )

    def end(self, seconds: float = 20.0) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def reached(self, step: int) -> "Training":
        """Wait until this step was trained."""
        self.owner.reached(step)
        return self

    def signal(self, number: signal.Signals) -> "Training":
        self.process.send_signal(number)
        return self

    def __repr__(self) -> str:
        return f"<exit code {self.code}\n{self.stdout}\n{self.stderr}>"

    @property
    def code(self) -> int | None:
        return self.process.returncode

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()
