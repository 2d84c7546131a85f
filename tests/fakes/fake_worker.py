"""One fake training process, started by the fake accelerate.

It does to the run directory what Axolotl with our plugin does, in milliseconds
and without torch. How it behaves comes from the environment:

FAKE_MODE     finish (default)
              crash        a traceback after FAKE_CRASH_AT steps
              no-plugin    Axolotl's line that the plugin failed to load, then trains on
              silent       trains on without plugin and without that line
              deaf         never looks at the stop file, ignores every signal
              grandchild   deaf, and so is a process of its own group below it
              leave-child  crash, leaving such a process behind
              leave-rank   the same in a session of its own, as torchrun's other ranks are
              own-session  the worker leaves the launcher's session, as torchrun's do
FAKE_STEPS    steps of the whole training (12)
FAKE_STEP_S   seconds of one step (0.02)
FAKE_START_S  seconds before training begins (0)
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_files
import yaml

from leviathan import checkpoints, files, machine, runs

MODE = os.environ.get("FAKE_MODE", "finish")
STEPS = int(os.environ.get("FAKE_STEPS", "12"))
STEP_S = float(os.environ.get("FAKE_STEP_S", "0.02"))
CRASH_AT = int(os.environ.get("FAKE_CRASH_AT", "7"))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SLEEPER = (
    "import signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\ntime.sleep(90)"
)


def deafen() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Worker:
    """One training process: axolotl's prints and our plugin's files."""

    def __init__(self, config: dict) -> None:
        keys = config["leviathan"]
        self.paths = runs.RunPaths(Path(keys["run_dir"]))
        self.session, self.keep = keys["session"], keys["keep"]
        self.save_steps = config["save_steps"]
        resume = config.get("resume_from_checkpoint")
        self.step = checkpoints.step_of(Path(resume)) if resume else 0
        self.signalled = self.stopped = False
        self.supervisor = json.loads(os.environ["LEVIATHAN_SUPERVISOR"])

    def train(self) -> None:
        if MODE == "no-plugin":
            print("Failed to load plugin: leviathan.plugin.LeviathanPlugin", flush=True)
        elif MODE != "silent":
            files.write_json(
                self.paths.heartbeat, {"session": self.session, **machine.process_identity()}
            )
        time.sleep(float(os.environ.get("FAKE_START_S", "0")))
        print("Starting trainer...", flush=True)
        if MODE in {"no-plugin", "silent"}:
            time.sleep(60)
            return
        self.spawn_and_listen()
        self.event("train_begin", max_steps=STEPS)
        while self.step < STEPS and not self.stopped:
            self.one_step()
        self.event("train_end", max_steps=STEPS, stopped=self.stopped and self.step < STEPS)

    def spawn_and_listen(self) -> None:
        if MODE in {"grandchild", "leave-child"}:
            subprocess.Popen([sys.executable, "-c", SLEEPER], process_group=0)
        if MODE == "leave-rank":
            subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
        if MODE in {"deaf", "grandchild"}:
            deafen()
            return
        for number in SIGNALS:
            signal.signal(number, self.note)

    def note(self, *_) -> None:
        self.signalled = True

    def one_step(self) -> None:
        time.sleep(STEP_S)
        self.step += 1
        line = {"time": time.time(), "session": self.session, "step": self.step, "max_steps": STEPS}
        files.append_json(self.paths.metrics, {**line, "loss": 2.0 / self.step, "pid": os.getpid()})
        if MODE in {"crash", "leave-child", "leave-rank"} and self.step == CRASH_AT:
            raise ValueError("made up")
        if MODE not in {"deaf", "grandchild"} and self.asked():
            self.stopped = True
        if self.stopped or self.step % self.save_steps == 0 or self.step == STEPS:
            self.save()

    def asked(self) -> bool:
        return self.signalled or self.paths.stop.exists() or not machine.is_alive(self.supervisor)

    def save(self) -> None:
        path = fake_files.write_checkpoint(self.paths.directory, self.step, loss=2.0 / self.step)
        state = json.loads((path / "trainer_state.json").read_text())
        checkpoints.commit(path, checkpoints.facts_from_history(state))
        self.event("save")
        for old in checkpoints.removable(checkpoints.scan(self.paths.directory), self.keep):
            checkpoints.remove(old)

    def event(self, kind: str, **facts) -> None:
        runs.event(self.paths, kind, session=self.session, step=self.step, pid=os.getpid(), **facts)


if __name__ == "__main__":
    Worker(yaml.safe_load(Path(sys.argv[1]).read_text())).train()
