"""Owns the Trainer callbacks that guard: NaN, loss, disk space, and the phase training is in.

Imported only inside the training process. The limits are the profile's, the judgements
on losses ``guards``'s; what a finding leads to is decided here.
"""

import json
import math
import time
from contextlib import suppress
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from leviathan import checkpoints, files, machine, runs
from leviathan.callbacks import StopCallback, alive, any_rank, let_go, wait
from leviathan.config import Guards
from leviathan.guards import LossWatch
from leviathan.journal import Journal

_STOP_PATIENCE = 60  # waits of a second


class DiskCallback(TrainerCallback):
    """Lets no save begin that the disk has no room for.

    When short: retention down to the last sound checkpoint and the best; when still
    short: training waits, saying so, until somebody frees space. A save cut off by a full
    disk would cost the work since the one before. Asked to stop while it waits, it waits
    a minute more for room, then training ends with what was committed last.
    """

    def __init__(self, journal: Journal, reserve: int, stop: StopCallback) -> None:
        self.journal, self.reserve, self.stop = journal, reserve, stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        if not control.should_save:
            return
        needed = self._needed(parts)
        if not any_rank(self._short(state, needed)):
            return
        if state.is_world_process_zero:
            let_go(self.journal, 1, state.global_step, reason="disk")
        told, patience, began = False, _STOP_PATIENCE, time.monotonic()
        while any_rank(self._short(state, needed)):
            if not told and state.is_world_process_zero:
                told = True
                self._tell(state, needed)
            patience -= any_rank(self.stop.asked())
            if patience < 0:
                self._give_up(state, control)
                return
            wait(self.journal.paths)
        if told:
            text, wait_s = "there is room again: training goes on", time.monotonic() - began
            self.journal.event("unpause", kind="disk", step=state.global_step, text=text,
                               wait_s=round(wait_s, 3))  # fmt: skip

    on_epoch_end = on_step_end  # with save_strategy: epoch a save begins there

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
        known = checkpoints.newest_bytes(checkpoints.scan(self.journal.paths.directory))
        return int(1.1 * max(known or 0, _save_bytes(parts))) + self.reserve


def _save_bytes(parts: dict[str, Any]) -> int:
    """Bytes of trainable weights, optimizer state and tokenizer; a sharded part counts once."""
    model, optimizer = parts.get("model"), parts.get("optimizer")
    weights: int = sum(p.nbytes for p in model.parameters() if p.requires_grad) if model else 0
    states = getattr(optimizer, "state", {}).values()
    state: int = sum(t.nbytes for s in states for t in s.values() if isinstance(t, torch.Tensor))
    # tokenizer.json takes about 135 bytes a token (Llama 3: 17.2 MB for 128,256 tokens).
    tokenizer = 135 * len(parts.get("processing_class") or ())
    return weights + state + tokenizer + (1 << 16)


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
            alive(self.paths)
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

    on_epoch_end = on_step_end

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
                with files.unless_full():  # a file left empty asks as well
                    self.journal.paths.stop.write_text("the loss diverges")
