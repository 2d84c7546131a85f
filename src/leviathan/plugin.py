"""Owns the Axolotl hooks: heartbeat, seeds, Trainer settings, and which callbacks run.

Imported only inside the training process, by the name ``leviathan.plugin.LeviathanPlugin``
in the rendered YAML. Does not watch the training (``callbacks``). Everything told to the
outside goes through files in the run directory.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback, set_seed

from leviathan import files, machine, models, runs
from leviathan.callbacks import (
    CommitCallback,
    DiskCallback,
    FiniteCallback,
    Journal,
    LearningRateCallback,
    LossCallback,
    MetricsCallback,
    PhaseCallback,
    StopCallback,
)
from leviathan.config import Guards


class LeviathanKeys(BaseModel):
    """The ``leviathan:`` block of the rendered YAML."""

    model_config = ConfigDict(extra="forbid")

    run_dir: str
    """Run directory, absolute."""
    session: int
    """Which launch of the run this is, from 1."""
    keep: int
    """Newest checkpoints to keep, besides the best and the pinned."""
    guards: Guards = Guards()
    """The profile's limits for loss, gradients and disk."""


class LeviathanArgs(BaseModel):
    """What Axolotl merges into its own schema for this plugin."""

    leviathan: LeviathanKeys


class LeviathanPlugin(BasePlugin):
    """Connects one training process to its run directory."""

    def register(self, cfg: Any) -> None:
        """Prove to the supervisor that this plugin is loaded."""
        keys = LeviathanKeys.model_validate(dict(cfg["leviathan"]))
        sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
        if _rank() == 0:
            paths = runs.RunPaths(Path(keys.run_dir))
            _enter(paths, "start")
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
            _enter(paths, "load")
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
        """One callback per concern, in an order that matters.

        Log lines are written before a guard may end training over them; a stop asks for a
        save before the disk is judged; the phase tells what all of them decided.
        """
        keys = _keys(cfg)
        journal = Journal(runs.RunPaths(Path(keys.run_dir)), keys.session)
        return [
            MetricsCallback(journal),
            FiniteCallback(journal),
            LossCallback(journal, keys.guards),
            CommitCallback(journal, keys.keep),
            StopCallback(journal),
            LearningRateCallback(cfg.learning_rate),
            DiskCallback(journal, int(keys.guards.disk_reserve_gib * 2**30)),
            PhaseCallback(journal.paths),
        ]


class Unbreakable(io.TextIOBase):
    """A stream whose writer survives a full disk: what cannot be written is dropped.

    The log lies on the disk that fills up; a progress bar must not end a training.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop."""
        with files.unless_full():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        with files.unless_full():
            self._stream.flush()

    def fileno(self) -> int:
        """The file below, for those who write to it directly."""
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        """Whether a person reads along."""
        return bool(self._stream.isatty())

    def writable(self) -> bool:
        """Always: what cannot be written is dropped."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As the stream's."""
        return str(self._stream.encoding)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own: ``buffer``, ``reconfigure``, ..."""
        return getattr(self._stream, name)


def _enter(paths: runs.RunPaths, phase: str) -> None:
    with files.unless_full():  # a help, not a need
        paths.phase.write_text(json.dumps({"phase": phase, "step": 0}))


def _keys(cfg: Any) -> LeviathanKeys:
    found = cfg.leviathan
    values = found if isinstance(found, dict) else found.model_dump()
    return LeviathanKeys.model_validate(dict(values))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
