"""One fake training process, started by the fake accelerate.

It does to the run directory what Axolotl with our plugin does, in milliseconds
and without torch. How it behaves comes from the environment:

FAKE_MODE     finish (default); of a comma-separated list, one a session, then the last
              crash        a traceback after FAKE_CRASH_AT steps
              refused      Axolotl refuses the configuration before training
              save-crash   dies in the middle of the save at or after FAKE_CRASH_AT
              killed       kills itself with signal 9 after FAKE_CRASH_AT steps
              oom          out of memory in phase FAKE_OOM_IN while it needs more than FAKE_FITS
              nan          the guard's event and exception after FAKE_CRASH_AT steps
              stall        gives no sign of life after FAKE_CRASH_AT steps, nor does a child
              enospc       torch's message about a full disk at the first save
              no-space     the system's message about a full disk after FAKE_CRASH_AT steps
              spike        the loss of the steps from FAKE_CRASH_AT on warns, as callbacks do
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
FAKE_CRASH_AT a step (7); a list as FAKE_MODE
FAKE_OOM_IN   load, train (default), eval or save
FAKE_FITS     rows of 256 tokens at rank 8 that the memory holds at once (0); a list as FAKE_MODE
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
from fake_mode import setting

from leviathan import checkpoints, files, machine, runs

STEPS = int(os.environ.get("FAKE_STEPS", "12"))
STEP_S = float(os.environ.get("FAKE_STEP_S", "0.02"))
OOM_IN = os.environ.get("FAKE_OOM_IN", "train")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SLEEPER = (
    "import signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\ntime.sleep(90)"
)
# As torch 2.13 words it on a card of 16 GB.
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.70 GiB of "
    "which 12.56 MiB is free. Including non-PyTorch memory, this process has 15.68 GiB memory in "
    "use. Of the allocated memory 14.91 GiB is allocated by PyTorch, and 511.59 MiB is reserved "
    "by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
DISK_FULL = "[enforce fail at inline_container.cc:672] . unexpected pos 3200 vs 3094"


def deafen() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def fail(name: str, message: str) -> None:
    """What Python prints of an exception that nobody caught, and its exit code."""
    trace = 'Traceback (most recent call last):\n  File "train.py", line 1, in <module>\n'
    print(f"{trace}    trainer.train()\n{name}: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


class Worker:
    """One training process: axolotl's prints and our plugin's files."""

    def __init__(self, path: Path) -> None:
        self.config = yaml.safe_load(path.read_text())
        keys = self.config["leviathan"]
        self.mode, self.crash_at = setting("mode", path), int(setting("crash_at", path))
        self.fits = float(setting("fits", path))
        self.paths = runs.RunPaths(Path(keys["run_dir"]))
        self.session, self.keep = keys["session"], keys["keep"]
        self.fingerprint = keys["fingerprint"]
        self.save_steps = self.config["save_steps"]
        self.is_probe = "probe" in keys
        self.steps = self.config["max_steps"] if self.is_probe else STEPS
        resume = self.config.get("resume_from_checkpoint")
        self.step = checkpoints.step_of(Path(resume)) if resume else 0
        self.signalled = self.stopped = self.save_wanted = False
        self.supervisor = json.loads(os.environ["LEVIATHAN_SUPERVISOR"])

    def train(self) -> None:
        if self.mode == "no-plugin":
            print("Failed to load plugin: leviathan.plugin.LeviathanPlugin", flush=True)
        elif self.mode != "silent":
            self.enter("start")
            files.write_json(
                self.paths.heartbeat, {"session": self.session, **machine.process_identity()}
            )
        time.sleep(float(os.environ.get("FAKE_START_S", "0")))
        if self.mode == "refused":
            fail("ValueError", "activation_offloading requires gradient_checkpointing")
        print("Starting trainer...", flush=True)
        if self.mode in {"no-plugin", "silent"}:
            time.sleep(60)
            return
        self.enter("load")
        self.spawn_and_listen()
        self.event("train_begin", max_steps=self.steps)
        self.measured("load", seconds=0.5)
        while self.step < self.steps and not self.stopped:
            self.one_step()
        stopped = self.stopped and self.step < self.steps
        self.event("train_end", max_steps=self.steps, stopped=stopped)

    def measured(self, phase: str, **facts) -> None:
        """As gauge.Gauge in a probe: every micro batch 0.1 s, the step's update 0.2."""
        if self.is_probe:
            gib = {"load": 1.0, "train": 3.0, "eval": 2.0, "save": 1.5}[phase]
            self.event("measured", phase=phase, resident_gib=gib, **facts)

    def measured_steps(self) -> dict:
        """Of as many micro batches as the configuration says, with 90 of 100 tokens real."""
        micro = self.config["gradient_accumulation_steps"]
        count = self.steps - self.config["leviathan"]["probe"]["warm_up"]
        step = {"seconds": 0.1 * micro + 0.2, "micro_batches": micro,
                "tokens": 90 * micro, "padded": 100 * micro}  # fmt: skip
        return {"steps": [step] * count, "micro_s": [0.1] * (micro - 1) * count}

    def spawn_and_listen(self) -> None:
        if self.mode in {"grandchild", "leave-child", "stall"}:
            subprocess.Popen([sys.executable, "-c", SLEEPER], process_group=0)
        if self.mode == "leave-rank":
            subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
        if self.mode in {"deaf", "grandchild"}:
            deafen()
            return
        for number in SIGNALS:
            signal.signal(number, self.note)

    def note(self, *_) -> None:
        self.signalled = True

    def enter(self, phase: str) -> None:
        """As callbacks.PhaseCallback: what training is at, and a sign of life."""
        self.paths.phase.write_text(json.dumps({"phase": phase, "step": self.step}))
        rows = self.config["micro_batch_size"]
        if phase == "eval":
            rows = self.config.get("eval_batch_size") or rows
        need = rows * self.config["sequence_len"] / 256 * self.config["lora_r"] / 8
        if self.mode == "oom" and phase == OOM_IN and need > self.fits:
            fail("torch.OutOfMemoryError", OUT_OF_MEMORY)

    def one_step(self) -> None:
        self.enter("train")
        time.sleep(STEP_S)
        self.step += 1
        line = {"time": time.time(), "session": self.session, "step": self.step,
                "max_steps": self.steps}  # fmt: skip
        files.append_json(self.paths.metrics, {**line, "loss": 2.0 / self.step, "pid": os.getpid()})
        if self.step == self.crash_at:
            self.misbehave()
        if self.mode not in {"deaf", "grandchild"}:
            self.look_outside()
        due = self.step % self.save_steps == 0 or self.step == self.steps
        if self.stopped or self.save_wanted or due:
            self.save_wanted = False
            if self.is_probe and not self.stopped:
                self.measured("train", **self.measured_steps())
            self.enter("eval")
            self.measured("eval", seconds_per_batch=0.05)
            self.enter("save")
            self.save()
            self.measured("save", seconds=0.3)

    def misbehave(self) -> None:
        if self.mode in {"crash", "leave-child", "leave-rank"}:
            fail("ValueError", "made up")
        elif self.mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.mode == "stall":
            time.sleep(60)
        elif self.mode == "nan":
            text = f"the gradient of step {self.step} is nan"
            self.event("guard", kind="nan", text=text)
            fail("leviathan.safeguards.NonFiniteError", text)
        elif self.mode == "no-space":
            fail("OSError", "[Errno 28] No space left on device: '/tmp/made-up'")
        elif self.mode == "spike":
            self.event("warning", kind="divergence", text="the loss diverges: made up")

    def look_outside(self) -> None:
        while self.paths.pause.exists() and not self.asked():
            os.utime(self.paths.phase)
            time.sleep(0.02)
        self.stopped = self.asked()
        if self.paths.save.exists():
            self.event("save_asked")
            self.paths.save.unlink()
            self.save_wanted = True

    def asked(self) -> bool:
        return self.signalled or self.paths.stop.exists() or not machine.is_alive(self.supervisor)

    def save(self) -> None:
        if self.mode == "enospc":
            fail("RuntimeError", DISK_FULL)
        path = fake_files.write_checkpoint(self.paths.directory, self.step, loss=2.0 / self.step)
        if self.mode == "save-crash" and self.step >= self.crash_at:
            (path / "optimizer.pt").write_bytes(b"half")
            fail("RuntimeError", "made up while saving")
        state = json.loads((path / "trainer_state.json").read_text())
        facts = checkpoints.facts_from_history(state)
        checkpoints.commit(path, {**facts, "fingerprint": self.fingerprint})
        self.event("save", save_s=0.01)
        checkpoints.retain(self.paths.directory, self.keep)

    def event(self, kind: str, /, **facts) -> None:
        runs.event(self.paths, kind, session=self.session, step=self.step, pid=os.getpid(), **facts)


if __name__ == "__main__":
    Worker(Path(sys.argv[1])).train()
