"""Owns the Trainer callbacks: metrics, commits, stop, rates, order, counters; one concern each.

Imported only inside the training process. Rank 0 writes; what every rank must agree on is
agreed on by every rank. Those that guard against a bad end are ``safeguards``.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leviathan import checkpoints, files, machine, runs, sampler, slimming, structure
from leviathan.journal import Journal

_SUPERVISOR_CHECK_S = 5.0
_SEEN_WITHIN_S = 60.0
_POLL_S = 0.2
_OF_EVALUATION = ("eval_loss", "eval_reward", "eval_s")


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


class GroupsCallback(TrainerCallback):
    """Tells the questions that are answered for a reward which epoch begins.

    accelerate tells only samplers that it finds, not below what skips batches at a resume.
    """

    def __init__(self, order: Callable[[int], None]) -> None:
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.order(int(state.epoch or 0))


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


class Stopwatch(TrainerCallback):
    """Times what the Trainer does between two steps: evaluations, saves, and getting rows.

    Registered last: what the others wait for at the end of a step is no part of any.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._data_s = 0.0

    def lap_s(self) -> float:
        """Seconds since the last lap, or since the step ended."""
        since, self._since = self._since, time.monotonic()
        return round(self._since - since, 3)

    def data_s(self) -> float:
        """Seconds that steps waited for their rows since this was last asked."""
        waited, self._data_s = self._data_s, 0.0
        return round(waited, 3)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # The Trainer fetches the rows of all micro batches before it says that a step begins.
        self._data_s += self.lap_s()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.lap_s()

    on_step_end = on_epoch_end = on_train_begin


class MetricsCallback(TrainerCallback):
    """Every log line of the Trainer, as one JSON line; an evaluation's says how long it took."""

    def __init__(self, journal: Journal, stopwatch: Stopwatch) -> None:
        self.journal, self.stopwatch = journal, stopwatch

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if not state.is_world_process_zero or not logs:
            return
        line = {"step": state.global_step, "epoch": state.epoch, "max_steps": state.max_steps}
        line |= {name: _plain(value) for name, value in logs.items() if name != "epoch"}
        if any(name.startswith("eval_") for name in logs):
            line["eval_s"] = self.stopwatch.lap_s()
            # Evaluations are rare and wanted often: events.jsonl is read whole, this is not.
            told = {name: line[name] for name in _OF_EVALUATION if name in line}
            self.journal.event("eval", step=state.global_step, **told)
        if "loss" in logs:
            line["data_s"] = self.stopwatch.data_s()
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

    def __init__(
        self, journal: Journal, keep: int, fingerprint: str, stopwatch: Stopwatch,
        whole: int | None = None,
    ) -> None:  # fmt: skip
        self.journal, self.keep, self.fingerprint = journal, keep, fingerprint
        self.stopwatch, self.whole = stopwatch, whole

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        directory = self.journal.paths.directory / f"checkpoint-{state.global_step}"
        written = _written(directory)  # by every rank, once this returns
        if not state.is_world_process_zero or not directory.is_dir():
            return
        # Axolotl goes on where FSDP cannot save an optimizer (CheckpointSaveMixin).
        problem = _missing(directory, written) or structure.quick_problem(directory)
        if problem:
            text = f"checkpoint-{state.global_step} is not whole and counts as none: {problem}"
            self.journal.event("warning", kind="save", step=state.global_step, text=text)
            return
        # What led here must not be younger than the checkpoint, should the power go.
        for story in (self.journal.paths.metrics, self.journal.paths.events):
            if story.exists():
                files.fsync_file(story)
        saved = json.loads((directory / "trainer_state.json").read_bytes())
        facts = checkpoints.facts_from_history(saved)
        checkpoints.commit(directory, {**facts, "fingerprint": self.fingerprint})
        self.journal.event("save", step=state.global_step, save_s=self.stopwatch.lap_s())
        let_go(self.journal, self.keep, state.global_step, reason="keep")
        make_slim(self.journal, self.whole, state.global_step)


def _written(directory: Path) -> set[str]:
    """Names of what lies there, as the ranks see it that wrote it; all ranks call this."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return set()
    names = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    everybody: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everybody, names)
    return set().union(*everybody)


def _missing(directory: Path, names: set[str], patience_s: float = _SEEN_WITHIN_S) -> str | None:
    """Which of ``names`` is not to be seen here; None once all are.

    A network file system may show what another host wrote only after some seconds.
    """
    end = time.monotonic() + patience_s
    while True:
        hidden = sorted(name for name in names if not (directory / name).is_file())
        if not hidden:
            return None
        if time.monotonic() > end:
            return f"{hidden[0]}, written by another rank, is not to be seen by the first"
        time.sleep(_POLL_S)


def let_go(journal: Journal, keep: int, step: int, *, reason: str) -> None:
    """Have retention run at ``step``, and tell what it removed, why, and what would not go."""
    retention = checkpoints.retain(journal.paths.directory, keep)
    for removed in retention.removed:
        journal.event("remove", step=removed, reason=reason)
    if retention.problem:
        journal.event("warning", kind="retention", step=step, text=retention.problem)


def make_slim(journal: Journal, whole: int | None, step: int) -> None:
    """Have older checkpoints slimmed at ``step``, and tell which, and what would not be."""
    done = slimming.retain(journal.paths.directory, whole)
    for slimmed, freed in done.slimmed:
        journal.event("slim", step=slimmed, bytes=freed, reason="whole")
    if done.problem:
        journal.event("warning", kind="retention", step=step, text=done.problem)


class StopCallback(TrainerCallback):
    """Ends training after the current step, with a checkpoint, when asked from outside.

    Asked by the stop file, by a signal to this process, or by the supervisor's death:
    a run nobody watches saves itself instead of training on as an orphan.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal, self.paths = journal, journal.paths
        self.signalled = ""
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
                eval_every=_every(args.eval_strategy, state.eval_steps, state),
                save_every=_every(args.save_strategy, state.save_steps, state),
            )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        began, waited = time.monotonic(), False
        while any_rank(self.paths.pause.exists()) and not any_rank(self.asked()):
            waited = True
            wait(self.paths)
        if waited and state.is_world_process_zero:
            wait_s = round(time.monotonic() - began, 3)
            self.journal.event("waited", step=state.global_step, wait_s=wait_s)
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
                why=self.signalled,
            )  # fmt: skip

    def _note(self, number: int, *_: Any) -> None:
        # Only a mark: logging inside a handler can deadlock on Axolotl's tee.
        self.signalled = signal.Signals(number).name

    def _stop_if_asked(self, control: TrainerControl) -> TrainerControl:
        if not self.stopping and any_rank(self.asked()):
            self.stopping = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def asked(self) -> bool:
        """Whether anybody wants training to end."""
        return bool(self.signalled) or self.paths.stop.exists() or self._supervisor.died()


class SaveCallback(TrainerCallback):
    """Saves after the current step when asked through the save file, or when hours have passed."""

    def __init__(
        self, journal: Journal, every_hours: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.journal, self.paths = journal, journal.paths
        self._every_s = math.inf if every_hours is None else every_hours * 3600
        self._clock, self._since = clock, clock()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._since = self._clock()

    on_save = on_train_begin

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        asked, due = self.paths.save.exists(), self._clock() - self._since >= self._every_s
        if any_rank(asked or due):
            control.should_save = True
            if asked and state.is_world_process_zero:
                # In this order: who asked waits for the save after this event.
                self.journal.event("save_asked", step=state.global_step)
                self.paths.save.unlink(missing_ok=True)
        return control


def _every(strategy: str, steps: float | None, state: TrainerState) -> int:
    """How many steps lie between two saves or evaluations; 0 where there are none."""
    if strategy == "steps":
        return int(steps or 0)
    if strategy == "epoch":
        return -(-int(state.max_steps) // max(int(state.num_train_epochs), 1))
    return 0


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


def any_rank(asked: bool) -> bool:
    """Whether any rank says yes; every rank calls this at the same step."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return asked
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor([int(asked)], device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def wait(paths: runs.RunPaths) -> None:
    """One second of waiting that is no standstill."""
    alive(paths)
    time.sleep(1)


def alive(paths: runs.RunPaths) -> None:
    """Give a sign of life."""
    with suppress(OSError):
        os.utime(paths.phase)
