"""A real project for the real Axolotl: a tiny model, a few hundred rows, one launch about 20 s."""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from forked.client import ForkServer

LEVIATHAN = str(Path(sys.executable).with_name("leviathan"))
ROWS = 400


@dataclass
class Done:
    code: int
    out: str
    err: str


def environment(**extra):
    """Offline, and one thread: tiny matrices on several threads mostly wait for each other."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        **extra,
    }


class Project:
    """A working directory; runs the real command line in it."""

    def __init__(
        self, directory: Path, server: ForkServer | None = None, prefix: tuple[str, ...] = ()
    ) -> None:
        self.directory = directory
        self.server = server
        """Where launches of ``train`` go; None for the genuine accelerate."""
        self.prefix = prefix
        """A command that runs ours, and goes to the directory itself."""

    def spawn(self, *arguments: str, env: dict | None = None, **popen) -> subprocess.Popen:
        """The command as a process of its own."""
        # Only these launch anything; merge and test import the real accelerate.
        launches = self.server and arguments[0] in {"train", "bench"}
        launch = self.server.environment() if launches else {}
        return subprocess.Popen(
            [*self.prefix, LEVIATHAN, *arguments],
            cwd="/" if self.prefix else self.directory,
            env=environment(**{**launch, **(env or {})}),
            stdin=subprocess.DEVNULL,
            **popen,
        )

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return self.spawn(*arguments, env=env, **pipes)

    def run(self, *arguments: str, **env: str) -> Done:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=900)
        return Done(process.returncode, out, err)

    def path(self, run: str) -> Path:
        return self.directory / "work/training" / run

    def metrics(self, run: str) -> list[dict]:
        """Metrics as the project itself reads them: repeated steps replace lost ones."""
        from leviathan import runs

        return runs.metrics(runs.RunPaths(self.path(run)))

    def events(self, run: str, kind: str) -> list[dict]:
        lines = (self.path(run) / "events.jsonl").read_text().splitlines()
        return [e for e in map(json.loads, lines) if e["event"] == kind]

    def curve(self, run: str) -> list[tuple]:
        """What must be identical after a resume: step, loss, gradient norm, learning rate."""
        return [
            (m["step"], m["loss"], m["grad_norm"], m["learning_rate"])
            for m in self.metrics(run)
            if "loss" in m
        ]

    def exact(self, run: str) -> list[tuple]:
        """The curve with the token counters and the number of steps to come."""
        names = ("tokens/trainable", "tokens/total", "max_steps", "epoch")
        lines = [m for m in self.metrics(run) if "loss" in m]
        assert all(name in line for name in names for line in lines)
        tokens = [tuple(line[name] for name in names) for line in lines]
        return list(zip(self.curve(run), tokens, strict=True))

    def steps_per_epoch(self, run: str) -> int:
        """Of a run of two epochs."""
        return self.metrics(run)[0]["max_steps"] // 2

    def reshuffled(self, run: str) -> bool:
        """Whether the second of two epochs has as many steps with other tokens in them."""
        lines = [m for m in self.metrics(run) if "loss" in m]
        steps = self.steps_per_epoch(run)
        assert [m["step"] for m in lines] == list(range(1, 2 * steps + 1))
        assert lines[steps - 1]["epoch"] == 1
        counts = [0, *(m["tokens/trainable"] for m in lines)]
        each = [after - before for before, after in itertools.pairwise(counts)]
        return sorted(each[:steps]) != sorted(each[steps:])

    def saved(self, run: str) -> list[int]:
        """Steps of the checkpoints there are."""
        return sorted(int(path.name[11:]) for path in self.path(run).glob("checkpoint-*"))

    def commit(self, run: str, step: int) -> dict:
        """The commit record of a checkpoint."""
        path = self.path(run) / f"checkpoint-{step}" / "leviathan-commit.json"
        return json.loads(path.read_bytes())

    def adapter(self, run: str) -> bytes:
        return (self.path(run) / "adapter_model.safetensors").read_bytes()

    def signal_at(self, run: str, step: int, *signals: int, arguments: tuple[str, ...]) -> Done:
        """Start a training, wait for a step, send the signals, wait for the end."""
        process = self.start(*arguments)
        metrics = self.path(run) / "metrics.jsonl"
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and any(m["step"] >= step for m in self.metrics(run)):
                break
            time.sleep(0.05)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.3)
        out, err = process.communicate(timeout=180)
        return Done(process.returncode, out, err)

    def trainers(self) -> list[int]:
        """The training process, if there is one."""
        from leviathan import machine, runs

        beat = runs.identity_in(self.path(RUN) / ".plugin.json")
        return [beat["pid"]] if beat and machine.is_alive(beat) else []

    def processes(self) -> list[int]:
        """Every process that works in this project's directory: the command lines are relative."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    directory = (entry / "cwd").readlink()  # fails for a zombie
                except OSError:
                    continue
                if directory == self.directory.resolve():
                    found.append(int(entry.name))
        return found


TINY = ("train", "--profile", "tiny", "--recipe", "tiny", "--sample", "full",
        "--set", "save_steps=20", "--set", "eval_steps=20")  # fmt: skip
RUN = "tiny_full_tiny"
# Packing in one process is quick to start; without evaluations a run is little but steps.
PACKED = ("--set", "sample_packing=true", "--set", "save_steps=10", "--set", "eval_steps=null",
          "--set", "micro_batch_size=2", "--set", "gradient_accumulation_steps=2",
          "--set", "dataset_num_proc=1")  # fmt: skip
HEALING = "recovery: {restarts: 3, backoff_s: 0.1}\nguards: {disk_reserve_gib: 0}\n"
"""The end of a profile whose runs restart by themselves."""
