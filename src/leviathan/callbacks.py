"""Owns the Trainer callbacks: metrics, commits, stop, order, guards, disk; one concern each.

Imported only inside the training process, by ``plugin``. Rank 0 writes; what every rank
must agree on is agreed on by every rank. Limits come from the profile (``guards`` judges).
"""

import json
import math
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leviathan import checkpoints, files, machine, runs, sampler
from leviathan.config import Guards
from leviathan.guards import LossWatch

_SUPERVISOR_CHECK_S = 5.0
_STOP_PATIENCE = 60  # waits of a second


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


class Journal:
    """Writes the run's events and metrics; what a full disk refuses waits in memory.

    Training is worth more than its log lines: a full disk must not end it here.
    """

    def __init__(self, paths: runs.RunPaths, session: int) -> None:
        self.paths, self.session = paths, session
        self._waiting: list[tuple[Path, dict[str, Any]]] = []

    def metrics(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append(self.paths.metrics, {"time": time.time(), "session": self.session, **line})

    def event(self, kind: str, /, **facts: Any) -> None:
        """Append one event of this session."""
        line = {"time": time.time(), "event": kind, "session": self.session, **facts}
        self._append(self.paths.events, line)

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        self._waiting.append((path, line))
        try:
            while self._waiting:
                files.append_json(*self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if error.errno not in files.FULL:
                raise


class MetricsCallback(TrainerCallback):
    """Every log line of the Trainer, as one JSON line."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if not state.is_world_process_zero or not logs:
            return
        line = {"step": state.global_step, "epoch": state.epoch, "max_steps": state.max_steps}
        line |= {name: _plain(value) for name, value in logs.items() if name != "epoch"}
        self.journal.metrics(line)


def _plain(value: Any) -> Any:
    """A JSON value; NaN and infinity become text, which every JSON reader accepts."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


class CommitCallback(TrainerCallback):
    """Commits each checkpoint once it is whole, then lets retention run."""

    def __init__(self, journal: Journal, keep: int) -> None:
        self.journal, self.keep = journal, keep
        self._began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._began = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its part
        if not state.is_world_process_zero:
            return
        directory = self.journal.paths.directory / f"checkpoint-{state.global_step}"
        if not directory.is_dir():
            return
        saved = json.loads((directory / "trainer_state.json").read_bytes())
        checkpoints.commit(directory, checkpoints.facts_from_history(saved))
        seconds = round(time.monotonic() - self._began, 3)
        self.journal.event("save", step=state.global_step, seconds=seconds)
        for step in checkpoints.retain(self.journal.paths.directory, self.keep):
            self.journal.event("remove", step=step)


class DiskCallback(TrainerCallback):
    """Lets no save begin that the disk has no room for.

    When short: retention down to the last sound checkpoint and the best; when still
    short: training waits, saying so, until somebody frees space. A save cut off by a full
    disk would cost the work since the one before. Asked to stop while it waits, it waits
    a minute more for room, then training ends with what was committed last.
    """

    def __init__(self, journal: Journal, reserve: int, stop: "StopCallback") -> None:
        self.journal, self.reserve, self.stop = journal, reserve, stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        if not control.should_save:
            return
        needed = self._needed(parts)
        if not _any_rank(self._short(state, needed)):
            return
        if state.is_world_process_zero:
            for step in checkpoints.retain(self.journal.paths.directory, 1):
                self.journal.event("remove", step=step, reason="disk")
        told, patience = False, _STOP_PATIENCE
        while _any_rank(self._short(state, needed)):
            if not told and state.is_world_process_zero:
                told = True
                self._tell(state, needed)
            patience -= _any_rank(self.stop.asked())
            if patience < 0:
                self._give_up(state, control)
                return
            _wait(self.journal.paths)
        if told:
            text = "there is room again: training goes on"
            self.journal.event("unpause", kind="disk", step=state.global_step, text=text)

    def _give_up(self, state: TrainerState, control: TrainerControl) -> None:
        control.should_save, control.should_training_stop = False, True
        self.stop.stopping = True
        if state.is_world_process_zero:
            text = "stopped without saving: there was no room; the last save is what remains"
            self.journal.event("warning", kind="disk", step=state.global_step, text=text)

    def _tell(self, state: TrainerState, needed: int) -> None:
        free = machine.free_bytes(self.journal.paths.directory)
        text = (
            f"the disk has {free / 1e6:.1f} MB free and the next save wants {needed / 1e6:.1f}: "
            "training waits until there is room"
        )
        self.journal.event("pause", kind="disk", step=state.global_step, text=text)

    def _short(self, state: TrainerState, needed: int) -> bool:
        if not state.is_world_process_zero:
            return False
        return machine.free_bytes(self.journal.paths.directory) < needed

    def _needed(self, parts: dict[str, Any]) -> int:
        known = [c.bytes for c in checkpoints.scan(self.journal.paths.directory) if c.sound]
        return int(1.1 * max([*known[-1:], _save_bytes(parts)])) + self.reserve


def _save_bytes(parts: dict[str, Any]) -> int:
    """Bytes of trainable weights, optimizer state and tokenizer; a sharded part counts once."""
    model, optimizer = parts.get("model"), parts.get("optimizer")
    weights: int = sum(p.nbytes for p in model.parameters() if p.requires_grad) if model else 0
    states = getattr(optimizer, "state", {}).values()
    state: int = sum(t.nbytes for s in states for t in s.values() if isinstance(t, torch.Tensor))
    # tokenizer.json takes about 135 bytes a token (Llama 3: 17.2 MB for 128,256 tokens).
    tokenizer = 135 * len(parts.get("processing_class") or ())
    return weights + state + tokenizer + (1 << 16)


def _wait(paths: runs.RunPaths) -> None:
    """One second of waiting that is no standstill."""
    _alive(paths)
    time.sleep(1)


def _alive(paths: runs.RunPaths) -> None:
    with suppress(OSError):
        os.utime(paths.phase)


class PhaseCallback(TrainerCallback):
    """Tells what training is at, and gives a sign of life at every batch.

    Registered last: it must see what the others made of ``should_save``.
    """

    def __init__(self, paths: runs.RunPaths) -> None:
        self.paths = paths
        self._phase = ""

    def _enter(self, phase: str, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        if phase == self._phase:
            _alive(self.paths)
            return
        self._phase = phase
        with suppress(OSError):  # a full disk: the phase is a help, not a need
            self.paths.phase.write_text(json.dumps({"phase": phase, "step": state.global_step}))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._enter("eval" if args.eval_on_start else "train", state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._enter("train", state)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._enter("train", state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        after = "save" if control.should_save else "train"
        self._enter("eval" if control.should_evaluate else after, state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._enter("eval", state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._enter("save" if control.should_save else "train", state)


class NonFiniteError(RuntimeError):
    """The loss or a gradient is NaN or infinite: going on would ruin the adapter."""


class FiniteCallback(TrainerCallback):
    """Ends training before a NaN reaches the weights, and so before it can be saved.

    Gradients are the same on every rank here (they are all-reduced), so every rank raises.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        # fp16's loss scaler meets infinite gradients as a matter of course, and skips them.
        gradients = [p.grad for p in parts["model"].parameters() if p.grad is not None]
        if args.fp16 or not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            self._end("gradient", float(norm), state.global_step + 1, state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        loss = (logs or {}).get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            self._end("loss", loss, state.global_step, state)

    def _end(self, what: str, value: float, step: int, state: TrainerState) -> None:
        text = f"the {what} of step {step} is {value}"
        if state.is_world_process_zero:
            self.journal.event("guard", kind="nan", step=step, text=text)
        raise NonFiniteError(text)


class LossCallback(TrainerCallback):
    """Warns of a loss that jumps after a resume, and of one that diverges."""

    def __init__(self, journal: Journal, limits: Guards) -> None:
        self.journal, self.limits = journal, limits
        self._watch = LossWatch(limits)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        before = [e["loss"] for e in state.log_history if isinstance(e.get("loss"), float)]
        self._watch = LossWatch(self.limits, before)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        loss = (logs or {}).get("loss")
        if not state.is_world_process_zero or not isinstance(loss, float):
            return
        for kind, text in self._watch.feed(loss):
            self.journal.event("warning", kind=kind, step=state.global_step, text=text)
            if kind == "divergence" and self.limits.on_divergence == "stop":
                self.journal.paths.stop.write_text("the loss diverges")


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, when asked from outside.

    Asked by the stop file, by a signal to this process, or by the supervisor's death:
    a run nobody watches saves itself instead of training on as an orphan.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal, self.paths = journal, journal.paths
        self.signalled = False
        self.stopping = False
        self._supervisor = _Supervisor()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, self._note)
        if state.is_world_process_zero:
            self.journal.event(
                "train_begin", step=state.global_step, max_steps=state.max_steps,
                epochs=state.num_train_epochs,
            )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        while _any_rank(self.paths.pause.exists()) and not _any_rank(self.asked()):
            _wait(self.paths)
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
            self.journal.event(
                "train_end", step=state.global_step, max_steps=state.max_steps,
                stopped=self.stopping and state.global_step < state.max_steps,
            )  # fmt: skip

    def _note(self, *_: Any) -> None:
        # Only a flag: logging inside a handler can deadlock on Axolotl's tee.
        self.signalled = True

    def _stop_if_asked(self, control: TrainerControl) -> TrainerControl:
        if not self.stopping and _any_rank(self.asked()):
            self.stopping = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def asked(self) -> bool:
        """Whether anybody wants training to end."""
        return self.signalled or self.paths.stop.exists() or self._supervisor.died()


class _Supervisor:
    """The process that launched us, as the environment names it."""

    def __init__(self) -> None:
        self._identity = json.loads(os.environ.get(runs.SUPERVISOR_VARIABLE, "null"))
        self._next_check = 0.0
        self._died = False

    def died(self) -> bool:
        """Whether it is gone, as far as the last look told; there is one every few seconds."""
        now = time.monotonic()
        if self._identity and now >= self._next_check:
            self._next_check = now + _SUPERVISOR_CHECK_S
            self._died = not machine.is_alive(self._identity)
        return self._died


def _any_rank(asked: bool) -> bool:
    """Whether any rank says yes; every rank calls this at the same step."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return asked
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([int(asked)], device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())
