"""Owns two ends of training that its loop does not see: the last step's, and early stopping's.

Imported only inside the training process. Both are decided from the trainer's state, which a
checkpoint holds, so a resumed run ends where an undisturbed one does.
"""

import math
from collections.abc import Iterable
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from leviathan.journal import Journal


class EarlyStopCallback(TrainerCallback):
    """Ends training, with a checkpoint, after so many evaluations without a lower loss.

    In place of transformers' own, which counts in memory: after a resume it begins anew, and
    the run is trained further than one that nobody disturbed.
    """

    def __init__(self, journal: Journal, patience: int) -> None:
        self.journal, self.patience = journal, patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.is_over(state):
            control.should_training_stop = True
            control.should_save = control.should_save or state.global_step > 0
            if state.is_world_process_zero:
                text = f"{self.patience} evaluations in a row without a lower loss: training ends"
                self.journal.event("early_stop", step=state.global_step, text=text)
        return control

    def is_over(self, state: TrainerState) -> bool:
        """Whether the log says so."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        return without_gain(losses) >= self.patience


def without_gain(losses: Iterable[float]) -> int:
    """How many of the newest evaluations brought no loss lower than all before them."""
    best, count = math.inf, -1
    for loss in losses:
        if loss < best:
            best, count = loss, 0
        else:  # NaN, too; the very first is not worse than anything
            count += 1
    return max(count, 0)


def install(trainer: Any, early: EarlyStopCallback | None) -> None:
    """Let no batch be trained on after the end, and have one early stopping instead of two.

    The Trainer looks for its last step only behind a step: a run of ``max_steps`` that is resumed
    at its last checkpoint in the middle of an epoch would be trained one step more.
    """
    if early:
        trainer.remove_callback(EarlyStoppingCallback)
    fetch, begun = trainer.get_batch_samples, False

    def batches(*arguments: Any, **named: Any) -> Any:
        nonlocal begun
        state = trainer.state
        was_over = not begun and early is not None and early.is_over(state)  # where it resumed
        begun = True
        if was_over or state.global_step >= state.max_steps:
            trainer.control.should_training_stop = True
            return [], None
        return fetch(*arguments, **named)

    trainer.get_batch_samples = batches
