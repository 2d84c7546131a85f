"""Writes what a run of an A4000 tells, line by line, as supervisor and plugin write it."""

import math
import random
import time

from fakes import fake_files
from leviathan import checkpoints, files, machine, runs

GPU = {
    "index": 0, "used_gib": 13.2, "total_gib": 15.99, "busy_pct": 98.0, "temperature_c": 78.0,
    "power_w": 139.6, "power_limit_w": 140.0, "sm_mhz": 1410.0, "throttle": ["power cap"],
}  # fmt: skip
PLAN = {
    "steps": 400, "hours": {"low": 8.0, "mid": 10.0, "high": 14.0},
    "tok_s": {"low": 575.0, "mid": 685.0, "high": 810.0},
    "memory_gib": {"total": 9.0, "low": 7.7, "high": 10.1, "card": 16.0},
    "disk_bytes": {"checkpoint": 3e8}, "flops_per_token": 31.9e9, "peak_tflops": 76.7,
    "evidence": {"time": "formula: 46.5 GFLOP a token at 35-50 % of 76.7 TFLOPS"},
}  # fmt: skip
STEP_S, STEP_TOKENS = 95.0, 65_536


class Telling:
    """A run directory that grows; the clock is the caller's, and no second passes meanwhile."""

    def __init__(self, directory, began=None, **record):
        directory.mkdir(parents=True)
        self.paths = runs.RunPaths(directory)
        self.clock = time.time() - 86_400 if began is None else began
        self.chance = random.Random(1)
        self.session = 0
        self.max_steps = record.pop("max_steps", 400)
        self.record = runs.RunRecord(
            directory.name, "leviathan", "a4000", "10pct", [], {}, {"learning_rate": 2e-4}, 1, {},
            None, {"axolotl": "0.19.0"}, self.clock,
            again="leviathan train --profile a4000 --sample 10pct", state="stopped", **record,
        )  # fmt: skip
        runs.write(self.paths, self.record)

    def plan(self):
        files.write_json(self.paths.plan, PLAN)

    def begin(self, resumed_from=None):
        self.session += 1
        supervisor = machine.process_identity()
        session = runs.Session(self.session, self.clock, supervisor, resumed_from)
        self.record.sessions.append(session)
        kind = "start" if resumed_from is None else "resume"
        self.event(kind, step=resumed_from or 0)
        self.event("train_begin", step=resumed_from or 0, max_steps=self.max_steps,
                   eval_every=25, save_every=25)  # fmt: skip
        self.clock += 60
        self.write()

    def write(self):
        runs.write(self.paths, self.record)

    def event(self, kind, **facts):
        line = {"time": self.clock, "monotonic_s": self.clock, "event": kind}
        files.append_json(self.paths.events, {**line, "session": self.session, **facts})

    def metrics(self, step, **facts):
        line = {
            "time": self.clock,
            "monotonic_s": self.clock,
            "session": self.session,
            "step": step,
        }
        line |= {"epoch": step / 200, "max_steps": self.max_steps}
        files.append_json(self.paths.metrics, {**line, **facts})

    def train(self, first, last, *, seconds=STEP_S, floor=1.0, gpu=None, **facts):
        for step in range(first, last + 1):
            self.clock += seconds * self.chance.uniform(0.98, 1.02)
            loss = floor + 1.2 * math.exp(-step / 80) + self.chance.gauss(0, 0.02)
            rate = 2e-4 * min(1, step / 12) * (1 + math.cos(math.pi * step / self.max_steps)) / 2
            self.metrics(step, loss=loss, grad_norm=0.4 + self.chance.gauss(0, 0.03),
                         learning_rate=rate, **{"tokens/total": step * STEP_TOKENS, "data_s": 0.2,
                         "memory/max_allocated (GiB)": 11.9, **facts})  # fmt: skip
            self.sample(gpu or {})
            if step % 25 == 0:
                self.evaluate(step, floor + 0.05 + 1.1 * math.exp(-step / 80))
                self.save(step)

    def sample(self, gpu, free_gib=312.0):
        line = {"time": self.clock, "monotonic_s": self.clock, "session": self.session}
        line |= {"gpus": [GPU | gpu], "resident_gib": 6.1, "free_disk_gib": free_gib}
        files.append_json(self.paths.telemetry, line)

    def evaluate(self, step, loss, seconds=40.0):
        self.clock += seconds
        self.metrics(step, eval_loss=loss, eval_s=seconds)
        self.event("eval", step=step, eval_loss=loss, eval_s=seconds)

    def save(self, step, seconds=3.0, keep=3):
        self.clock += seconds
        path = fake_files.write_checkpoint(self.paths.directory, step)
        losses = [e for e in runs.events(self.paths) if e["event"] == "eval"]
        facts = {
            "step": step,
            "epoch": step / 200,
            "loss": 1.0,
            "eval_loss": losses[-1]["eval_loss"],
        }
        checkpoints.commit(path, facts)
        self.event("save", step=step, save_s=seconds)
        for removed in checkpoints.retain(self.paths.directory, keep).removed:
            self.event("remove", step=removed, reason="keep")

    def end(self, outcome="stopped", reason="SIGINT", step=0):
        session = self.record.sessions[-1]
        session.ended, session.outcome = self.clock, outcome
        session.seconds = self.clock - session.started
        self.record.state = outcome
        self.event("session_end", outcome=outcome, step=step, reason=reason)
        self.write()
