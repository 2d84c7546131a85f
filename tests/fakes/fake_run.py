"""A run directory as `train` and our plugin write it, without a training: for views of runs."""

import json
import math
import random
import shutil
from pathlib import Path

from fakes import fake_files
from leviathan import checkpoints, files, machine, runs

EVAL_EVERY, SAVE_EVERY = 25, 50


class FakeRun:
    """Writes the files of a run step by step, at times that the caller chooses."""

    def __init__(self, directory: Path, began: float, max_steps: int = 1000) -> None:
        self.paths = runs.RunPaths(directory)
        self.paths.logs.mkdir(parents=True)
        self.now, self.max_steps, self.step = began, max_steps, 0
        self.chance = random.Random(1)
        self.record = runs.RunRecord(
            directory.name, "leviathan", "a4000", "10pct", [], {}, {}, 1, {}, None, {}, began,
            state="running",
        )  # fmt: skip
        self.session = 0

    def begin(self, step: int = 0, supervisor: dict | None = None) -> None:
        """A session, from the base model or from a checkpoint."""
        self.session += 1
        self.step = step
        if self.record.sessions:
            self.record.sessions[-1].ended = self.now
            self.record.sessions[-1].outcome = "failed"
        session = runs.Session(self.session, self.now, supervisor or machine.process_identity(),
                               step or None)  # fmt: skip
        self.record.sessions.append(session)
        runs.write(self.paths, self.record)
        log = self.paths.logs / f"training_20261125T0{self.session}0000_{self.session}.log"
        log.write_text("Loading the model\nStarting trainer...\n")
        self.event("resume" if step else "start")
        self.event("train_begin", max_steps=self.max_steps, eval_every=EVAL_EVERY,
                   save_every=SAVE_EVERY)  # fmt: skip

    def event(self, kind: str, /, **facts) -> None:
        line = {"time": self.now, "monotonic_s": self.now, "event": kind, "session": self.session}
        files.append_json(self.paths.events, {**line, "step": self.step, **facts})

    def train(self, steps: int, step_s: float = 1.0, saves: bool = True) -> None:
        """So many steps of a loss that falls, with evaluations and checkpoints."""
        for _ in range(steps):
            self.now += step_s
            self.step += 1
            loss = 1.2 + 1.6 * math.exp(-self.step / 120) + self.chance.gauss(0, 0.05)
            self.metrics(
                loss=round(loss, 4), grad_norm=1.0,
                learning_rate=2e-4 * (1 + math.cos(math.pi * self.step / self.max_steps)) / 2,
                **{"tokens/total": 2300 * self.step},
            )  # fmt: skip
            if self.step % EVAL_EVERY == 0:
                self.now += 2.0
                loss = 1.3 + 1.5 * math.exp(-self.step / 110) + 0.0004 * max(self.step - 150, 0)
                self.metrics(eval_loss=round(loss, 4), eval_s=2.0)
                self.event("eval", eval_loss=round(loss, 4), eval_s=2.0)
            if saves and self.step % SAVE_EVERY == 0:
                self.save()

    def metrics(self, **facts) -> None:
        line = {"time": self.now, "monotonic_s": self.now, "session": self.session,
                "step": self.step, "epoch": 3 * self.step / self.max_steps,
                "max_steps": self.max_steps}  # fmt: skip
        files.append_json(self.paths.metrics, {**line, **facts})

    def save(self) -> None:
        """A committed checkpoint of this step."""
        shutil.rmtree(self.paths.directory / f"checkpoint-{self.step}", ignore_errors=True)
        path = fake_files.write_checkpoint(self.paths.directory, self.step, eval_loss=None)
        state = json.loads((path / "trainer_state.json").read_text())
        eval_loss = 1.3 + 1.5 * math.exp(-self.step / 110) + 0.0004 * max(self.step - 150, 0)
        facts = checkpoints.facts_from_history(state) | {"eval_loss": round(eval_loss, 4)}
        checkpoints.commit(path, facts)
        record = json.loads((path / checkpoints.COMMIT).read_text())
        (path / checkpoints.COMMIT).write_text(json.dumps({**record, "time": self.now}))
        self.now += 1.0
        self.event("save", save_s=1.0)

    def sample(self, gpus: int = 1, **facts) -> None:
        """A line of gpu.jsonl."""
        each = [
            {"index": n, "used_gib": 14.2 + n / 10, "total_gib": 16.0, "busy_pct": 97.0,
             "temperature_c": 71.0 + n, "power_w": 131.0, "power_limit_w": 140.0,
             "sm_mhz": 1500.0, "throttle": [], **facts}
            for n in range(gpus)
        ]  # fmt: skip
        line = {"time": self.now, "session": self.session, "gpus": each, "resident_gib": 6.25,
                "free_disk_gib": 412.0}  # fmt: skip
        files.append_json(self.paths.telemetry, line)

    def log(self, text: str) -> None:
        """Something that the training prints."""
        with max(self.paths.logs.iterdir()).open("a") as out:
            out.write(text)
