"""Owns the Axolotl hooks: heartbeat, seeds, Trainer settings, and which callbacks run.

Imported only inside the training process, by the name ``leviathan.plugin.LeviathanPlugin``
in the rendered YAML. Does not watch the training (``callbacks``). Everything told to the
outside goes through files in the run directory.
"""

import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback, set_seed

from leviathan import files, machine, models, runs
from leviathan.callbacks import (
    CommitCallback,
    LearningRateCallback,
    MetricsCallback,
    StopCallback,
)


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
