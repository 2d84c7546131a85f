"""Owns the trackers' callbacks inside the training process: none may end the training.

Imported only there (``plugin``). Which trackers there are is decided before (``trackers``);
transformers and Axolotl make their callbacks.
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from leviathan import diagnosis
from leviathan.journal import Journal
from leviathan.redaction import redact

_NAMES = ("tensorboard", "wandb", "trackio", "mlflow", "comet")
_EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


class Guarded(TrainerCallback):
    """A callback of a tracker, which is off for the session from its first error on."""

    def __init__(self, inner: TrainerCallback, tracker: str, off: "Failures") -> None:
        self.inner, self.tracker, self._failures = inner, tracker, off

    def attempt(self, step: int, what: Callable[[], Any]) -> Any:
        """Do ``what`` while nothing of this tracker has failed yet."""
        if self.tracker in self._failures.off:
            return None
        try:
            return what()
        except Exception as error:  # whatever it is: training is worth more
            self._failures.note(self.tracker, error, step)
            return None


class Failures:
    """Which trackers have failed; told once, by the first process."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self.off: set[str] = set()

    def note(self, tracker: str, error: Exception, step: int) -> None:
        """Turn the tracker off and say why."""
        self.off.add(tracker)
        lines = str(error).splitlines() or [""]
        why = diagnosis.short(redact(f"{type(error).__name__}: {lines[0]}"))
        text = f"{tracker} failed and is off for this session: {why}"
        if self._journal:
            self._journal.event("warning", kind="tracker", step=step, text=text)


def _passing(event: str) -> Callable[..., Any]:
    def call(self: Guarded, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self.attempt(
            state.global_step, lambda: getattr(self.inner, event)(args, state, control, **kwargs)
        )

    return call


for _event in _EVENTS:
    setattr(Guarded, _event, _passing(_event))


def install(trainer: Any, journal: Journal, resume_from: str | None) -> None:
    """Guard the trackers of this trainer, and have a resumed curve replace what it repeats."""
    first = trainer.is_world_process_zero()
    failures = Failures(journal if first else None)
    handler = trainer.callback_handler
    for number, callback in enumerate(handler.callbacks):
        tracker = _tracker(callback)
        if tracker is None:
            continue
        handler.callbacks[number] = guarded = Guarded(callback, tracker, failures)
        if type(callback).__name__ == "TensorBoardCallback" and first:
            guarded.attempt(0, partial(_go_on, callback, resume_from))
        if type(callback).__name__ == "TrackioCallback":
            guarded.attempt(0, partial(_make_callable, callback))


def _tracker(callback: TrainerCallback) -> str | None:
    kind = type(callback)
    if not kind.__module__.startswith(("transformers.integrations", "axolotl.utils.callbacks")):
        return None
    return next((name for name in _NAMES if name in kind.__name__.lower()), None)


def _go_on(callback: Any, resume_from: str | None) -> None:
    """Give TensorBoard's callback the writer it would make, and the step it goes on from.

    All sessions write into one folder. Steps trained again after a crash would stand there
    twice; with the mark of a restart, readers take the newer ones.
    """
    if not callback.logging_dir:
        return
    found = re.search(r"checkpoint-(\d+)/*$", resume_from or "")
    step = int(found[1]) + 1 if found else 0
    has_older = any(Path(callback.logging_dir).glob("events.out.tfevents.*"))
    callback.tb_writer = callback._SummaryWriter(
        log_dir=callback.logging_dir, purge_step=step if has_older else None
    )


def _make_callable(callback: Any) -> None:
    """Let transformers 5.16 use the trackio 0.19 that Axolotl 0.19 pins.

    It gives ``init`` a bucket_id, None by default, that came with later versions.
    """
    if "bucket_id" not in inspect.signature(callback._trackio.init).parameters:
        callback._trackio = _OlderTrackio(callback._trackio)


class _OlderTrackio:
    def __init__(self, module: Any) -> None:
        self._module = module

    def init(self, *, bucket_id: Any = None, **arguments: Any) -> Any:
        """Without what it does not know."""
        return self._module.init(**arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
