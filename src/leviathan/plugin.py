"""Owns what Leviathan does inside the training process: heartbeat, seeds, metrics, commits, stop.

Imported only there, by the name ``leviathan.plugin.LeviathanPlugin`` in the rendered
YAML. Everything it tells the outside goes through files in the run directory.
"""

import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from leviathan import checkpoints, files, machine, models, runs

SUPERVISOR_VARIABLE = "LEVIATHAN_SUPERVISOR"
_SUPERVISOR_CHECK_S = 5.0


class LeviathanKeys(BaseModel):
    """The ``leviathan:`` block of the rendered YAML."""

    model_config = ConfigDict(extra="forbid")

    run_dir: str
    """Run directory, absolute."""
    session: int
    """Which launch of the run this is, from 1."""
    keep: int
    """Newest checkpoints to keep, besides the best and the pinned."""


class LeviathanArgs(BaseModel):
    """What Axolotl merges into its own schema for this plugin."""

    leviathan: LeviathanKeys


class LeviathanPlugin(BasePlugin):
    """Connects one training process to its run directory."""

    def register(self, cfg: Any) -> None:
        """Prove to the supervisor that this plugin is loaded."""
        keys = LeviathanKeys.model_validate(dict(cfg["leviathan"]))
        if _rank() == 0:
            paths = runs.RunPaths(Path(keys.run_dir))
            files.write_json(
                paths.heartbeat, {"session": keys.session, **machine.process_identity()}
            )

    def get_input_args(self) -> str:
        """Where Axolotl finds the schema of the ``leviathan:`` block."""
        return "leviathan.plugin.LeviathanArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """The tokenised dataset is whole by now; seed before weights are made."""
        if _rank() == 0:
            paths = runs.RunPaths(Path(_keys(cfg).run_dir))
            os.sync()  # a mark that survives a power cut must not outlive its dataset
            files.write_json(paths.prepared_mark, sorted(p.name for p in paths.prepared.glob("*")))
        set_seed(cfg.seed)

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Seed adapter initialisation: axolotl 0.19 leaves it to chance (0.21 does not)."""
        set_seed(cfg.seed)

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Keep evaluations from changing 4-bit weights on a CPU."""
        models.keep_4bit_weights(model)

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Trainer settings Axolotl has no key for."""
        # The filter shows the last finite loss while the model is already NaN.
        wanted: dict[str, Any] = {"logging_nan_inf_filter": False}
        if cfg.resume_from_checkpoint:
            # Axolotl evaluates before the first step: wanted once, wasted on each resume.
            wanted["eval_on_start"] = False
        return wanted

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        """One callback per concern; commit before stop, so that a stop names its checkpoint."""
        keys = _keys(cfg)
        paths = runs.RunPaths(Path(keys.run_dir))
        return [
            MetricsCallback(paths, keys.session),
            CommitCallback(paths, keys.session, keys.keep),
            StopCallback(paths, keys.session),
            LearningRateCallback(cfg.learning_rate),
        ]


def _keys(cfg: Any) -> LeviathanKeys:
    found = cfg.leviathan
    values = found if isinstance(found, dict) else found.model_dump()
    return LeviathanKeys.model_validate(dict(values))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


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
