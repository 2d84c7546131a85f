"""Owns the Trainer callbacks: metrics, commits, stop, rates, order, counters; one concern each.

Imported only inside the training process, by ``plugin``. Rank 0 writes; what every rank
must agree on is agreed on by every rank.
"""

import json
import math
import os
import signal
import threading
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leviathan import checkpoints, files, machine, runs, sampler

SUPERVISOR_VARIABLE = "LEVIATHAN_SUPERVISOR"
_SUPERVISOR_CHECK_S = 5.0


class LearningRateCallback(TrainerCallback):
    """Makes a changed ``learning_rate`` count on resume.

    The Trainer restores optimizer and scheduler whole, the old peak rate with them, so
    a new value would be ignored without a word. The schedule's shape and place stay.
    """

    def __init__(self, peak: float) -> None:
        self.peak = float(peak)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        scheduler: Any = parts.get("lr_scheduler")
        scheduler, optimizer = getattr(scheduler, "scheduler", scheduler), parts.get("optimizer")
        old = getattr(scheduler, "base_lrs", None)
        # Equal rates, or groups with rates of their own: nothing to do, or not ours to guess.
        if not old or optimizer is None or len(set(old)) != 1 or old[0] in (0, self.peak):
            return
        scale = self.peak / old[0]
        scheduler.base_lrs = [rate * scale for rate in old]
        scheduler._last_lr = [rate * scale for rate in scheduler._last_lr]
        for group in optimizer.param_groups:
            group["lr"] *= scale
            group["initial_lr"] = self.peak


class EpochCallback(TrainerCallback):
    """Tells the packed batches which epoch begins.

    accelerate's ``set_epoch`` does not reach them through what it wraps around them when
    an epoch is resumed in its middle, and with several processes resumes would repeat the
    first epoch's batches.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        batches = sampler.batches_of(parts.get("train_dataloader"))
        if batches is None:
            raise RuntimeError(
                "this Axolotl does not make its packed batches as Leviathan knows it, so a resumed "
                "run would see other batches; curriculum_sampling: true keeps one order instead"
            )
        # Whole at an epoch's end: the Trainer sets it to epoch + steps done / steps.
        batches.set_epoch(int(state.epoch or 0))


class TokensCallback(TrainerCallback):
    """Counts tokens in whole numbers.

    Axolotl begins with 32-bit floats, which lose single tokens beyond 2^24, but resumes
    with whole numbers: a resumed run would count differently.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not hasattr(state, "tokens"):  # else Axolotl has restored them
            zero = torch.zeros(1, dtype=torch.int64)
            state.tokens = {"trainable": zero, "total": zero.clone()}


class MetricsCallback(TrainerCallback):
    """Every log line of the Trainer, as one JSON line."""

    def __init__(self, paths: runs.RunPaths, session: int) -> None:
        self.paths, self.session = paths, session

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if not state.is_world_process_zero or not logs:
            return
        line = {"time": time.time(), "session": self.session, "step": state.global_step}
        line |= {"epoch": state.epoch, "max_steps": state.max_steps}
        line |= {name: _plain(value) for name, value in logs.items() if name != "epoch"}
        files.append_json(self.paths.metrics, line)


def _plain(value: Any) -> Any:
    """A JSON value; NaN and infinity become text, which every JSON reader accepts."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


class CommitCallback(TrainerCallback):
    """Commits each checkpoint once it is whole, then lets retention run."""

    def __init__(self, paths: runs.RunPaths, session: int, keep: int) -> None:
        self.paths, self.session, self.keep = paths, session, keep

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its part
        if not state.is_world_process_zero:
            return
        directory = self.paths.directory / f"checkpoint-{state.global_step}"
        if not directory.is_dir():
            return
        saved = json.loads((directory / "trainer_state.json").read_bytes())
        checkpoints.commit(directory, checkpoints.facts_from_history(saved))
        runs.event(self.paths, "save", session=self.session, step=state.global_step)
        found = checkpoints.scan(self.paths.directory)
        for old in checkpoints.removable(found, self.keep):
            checkpoints.remove(old)
            runs.event(self.paths, "remove", session=self.session, step=old.step)


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, when asked from outside.

    Asked by the stop file, by a signal to this process, or by the supervisor's death:
    a run nobody watches saves itself instead of training on as an orphan.
    """

    def __init__(self, paths: runs.RunPaths, session: int) -> None:
        self.paths, self.session = paths, session
        self.signalled = False
        self.stopping = False
        self._supervisor = json.loads(os.environ.get(SUPERVISOR_VARIABLE, "null"))
        self._next_check = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, self._note)
        if state.is_world_process_zero:
            runs.event(
                self.paths, "train_begin", session=self.session, step=state.global_step,
                max_steps=state.max_steps, epochs=state.num_train_epochs,
            )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        return self._stop_if_asked(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # Before the first step there is nothing to save; the step after will see it.
        return self._stop_if_asked(control) if state.global_step else control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            runs.event(
                self.paths, "train_end", session=self.session, step=state.global_step,
                max_steps=state.max_steps,
                stopped=self.stopping and state.global_step < state.max_steps,
            )  # fmt: skip

    def _note(self, *_: Any) -> None:
        # Only a flag: logging inside a handler can deadlock on Axolotl's tee.
        self.signalled = True

    def _stop_if_asked(self, control: TrainerControl) -> TrainerControl:
        if not self.stopping and _any_rank(self._asked()):
            self.stopping = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def _asked(self) -> bool:
        return self.signalled or self.paths.stop.exists() or self._supervisor_died()

    def _supervisor_died(self) -> bool:
        now = time.monotonic()
        if not self._supervisor or now < self._next_check:
            return False
        self._next_check = now + _SUPERVISOR_CHECK_S
        return not machine.is_alive(self._supervisor)


def _any_rank(asked: bool) -> bool:
    """Whether any rank says yes; every rank calls this at the same step."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return asked
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([int(asked)], device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())
