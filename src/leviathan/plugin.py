"""Owns the Axolotl hooks: heartbeat, seeds, Trainer settings, and which callbacks run.

Imported only inside the training process, by the name ``leviathan.plugin.LeviathanPlugin``
in the rendered YAML. Does not watch the training (``callbacks``). Everything told to the
outside goes through files in the run directory.
"""

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback, set_seed

from leviathan import (
    endings,
    files,
    gauge,
    launch,
    machine,
    models,
    reinforcement,
    reporters,
    runs,
    sampler,
)
from leviathan.callbacks import (
    CommitCallback,
    EpochCallback,
    GroupsCallback,
    LearningRateCallback,
    MetricsCallback,
    SaveCallback,
    StopCallback,
    Stopwatch,
    TokensCallback,
)
from leviathan.config import Guards
from leviathan.gathering import WholeAdapterCallback
from leviathan.journal import Journal
from leviathan.safeguards import DiskCallback, FiniteCallback, LossCallback, PhaseCallback


class ProbeKeys(BaseModel):
    """What makes a run one that is measured (``probe``)."""

    model_config = ConfigDict(extra="forbid")

    warm_up: int
    """Steps before those that count."""
    worst_rows: int
    """So many of the longest rows come first."""
    limit_gib: float | None = None
    """No more of the GPU may be in use than this, by anybody, or memory has run out."""


class LeviathanKeys(BaseModel):
    """The ``leviathan:`` block of the rendered YAML."""

    model_config = ConfigDict(extra="forbid")

    run_dir: str
    """Run directory, absolute."""
    session: int
    """Which launch of the run this is, from 1."""
    keep: int
    """Newest checkpoints to keep, besides the best and the pinned."""
    whole: int | None = None
    """Newest of those that keep their optimizer; None: all."""
    every_hours: float | None = None
    """Save at least so often."""
    fingerprint: str = ""
    """Of the settings that a resume must not change; goes into the commit records."""
    guards: Guards = Guards()
    """The profile's limits for loss, gradients and disk."""
    probe: ProbeKeys | None = None
    """Only in a bench or smoke test."""


class LeviathanArgs(BaseModel):
    """What Axolotl merges into its own schema for this plugin."""

    leviathan: LeviathanKeys


class LeviathanPlugin(BasePlugin):
    """Connects one training process to its run directory."""

    def __init__(self) -> None:
        super().__init__()
        self._gauge: gauge.Gauge | None = None
        self._early: endings.EarlyStopCallback | None = None
        self._load_began = self._load_ended = 0.0

    def register(self, cfg: Any) -> None:
        """Prove to the supervisor that this plugin is loaded."""
        keys = LeviathanKeys.model_validate(dict(cfg["leviathan"]))
        sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
        if _on_cpus():
            # Axolotl asks the driver whether the ranks' GPUs reach each other; a torch built
            # for CUDA then fails for want of one.
            torch.cuda.can_device_access_peer = lambda *_: False
        if _rank() == 0:
            paths = runs.RunPaths(Path(keys.run_dir))
            files.write_json(
                paths.heartbeat, {"session": keys.session, **machine.process_identity()}
            )
            _enter(paths, "start")
        _join_processes()

    def get_input_args(self) -> str:
        """Where Axolotl finds the schema of the ``leviathan:`` block."""
        return "leviathan.plugin.LeviathanArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Nothing is loaded here: this is the last hook before Axolotl counts the steps."""
        # It counts packed batches of random orders, and derives the default warm-up from them.
        set_seed(cfg.seed)
        if _on_cpus():
            cfg.device_map = None  # Axolotl would put rank N on GPU N

    def pre_model_load(self, cfg: Any) -> None:
        """The tokenised dataset is whole by now; seed before weights are made."""
        if _rank() == 0:
            paths = runs.RunPaths(Path(_keys(cfg).run_dir))
            os.sync()  # a mark that survives a power cut must not outlive its dataset
            files.write_json(paths.prepared_mark, sorted(p.name for p in paths.prepared.glob("*")))
            _enter(paths, "load")
        set_seed(cfg.seed)
        probe = _keys(cfg).probe
        if probe and probe.limit_gib:
            gauge.limit(probe.limit_gib)
        self._load_began = time.perf_counter()

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Seed adapter initialisation: axolotl 0.19 leaves it to chance (0.21 does not)."""
        set_seed(cfg.seed)

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Keep evaluations from changing 4-bit weights on a CPU."""
        models.keep_4bit_weights(model)
        self._load_ended = time.perf_counter()

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Trainer settings Axolotl has no key for."""
        # The filter shows the last finite loss while the model is already NaN.
        wanted: dict[str, Any] = {"logging_nan_inf_filter": False}
        if cfg.resume_from_checkpoint or _keys(cfg).probe:
            # Axolotl evaluates before the first step: wanted once, wasted on each resume, and
            # no measure of memory while there is no optimizer state yet.
            wanted["eval_on_start"] = False
        if _shuffles_packed(cfg):
            # Axolotl's estimates come from other shuffles than those trained: whole epochs,
            # and a share of them, are counted by the Trainer from the real batches.
            if not cfg.max_steps:
                wanted["max_steps"] = -1
            if cfg.warmup_steps is None and cfg.warmup_ratio:
                wanted["warmup_steps"] = cfg.warmup_ratio
        if cfg.use_trackio:
            # Axolotl leaves it to a variable that nobody reads: all would be "huggingface".
            wanted["project"] = cfg.trackio_project_name or "huggingface"
        return wanted

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        """One callback per concern, in an order that matters.

        Log lines are written before a guard may end training over them; who asks for a
        save does so before the disk is judged; the phase tells what all of them decided, and
        what all of them waited for is over when a step's time ends.
        """
        keys = _keys(cfg)
        journal = Journal(runs.RunPaths(Path(keys.run_dir)), keys.session)
        stop, stopwatch = StopCallback(journal), Stopwatch()
        if cfg.early_stopping_patience:
            self._early = endings.EarlyStopCallback(journal, int(cfg.early_stopping_patience))
        if keys.probe:
            self._gauge = gauge.Gauge(journal, keys.probe.warm_up)
            self._gauge.load_s = self._load_ended - self._load_began
        return [
            MetricsCallback(journal, stopwatch),
            FiniteCallback(journal),
            *([self._early] if self._early else []),
            *([] if reinforcement.rewarded(cfg) else [LossCallback(journal, keys.guards)]),
            *([WholeAdapterCallback(journal)] if cfg.fsdp_config else []),
            CommitCallback(journal, keys.keep, keys.fingerprint, stopwatch, keys.whole),
            stop,
            SaveCallback(journal, keys.every_hours),
            LearningRateCallback(cfg.learning_rate),
            TokensCallback(),
            *([EpochCallback()] if _shuffles_packed(cfg) else []),
            DiskCallback(journal, int(keys.guards.disk_reserve_gib * 2**30), stop),
            PhaseCallback(journal.paths),
            stopwatch,
            *([self._gauge] if self._gauge else []),
        ]

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Put the packed order in place; keep a resume on the CPU where training is."""
        keys = _keys(cfg)
        probe = keys.probe
        reporters.install(trainer, Journal(runs.RunPaths(Path(keys.run_dir)), keys.session),
                          cfg.resume_from_checkpoint)  # fmt: skip
        if probe and self._gauge:
            gauge.order(trainer, probe.worst_rows)
            self._gauge.install(trainer)
        endings.install(trainer, self._early)
        if _shuffles_packed(cfg):
            sampler.install(trainer)
        if _on_cpus():
            # The property would name a GPU for rank N, and optimizer state be loaded there.
            trainer.args.__dict__["_setup_devices"] = torch.device("cpu")
        if reinforcement.rewarded(cfg):
            trainer.add_callback(GroupsCallback(sampler.GroupOrder(trainer).set_epoch))


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


def _shuffles_packed(cfg: Any) -> bool:
    """Whether Axolotl would shuffle packed rows (``_get_train_sampler``) by chance."""
    other = ("curriculum_sampling", "pretraining_dataset", "streaming", "rl", "reward_model",
             "process_reward_model")  # fmt: skip
    return bool(cfg.sample_packing) and not any(cfg.get(key) for key in other)


def _join_processes() -> None:
    """Meet the other processes of a CPU run through a file.

    Left to itself, torch meets through a TCP port that it opens on every network interface.
    """
    store = os.environ.get(launch.STORE_VARIABLE)
    if store and not torch.distributed.is_initialized():
        size = int(os.environ["WORLD_SIZE"])
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.FileStore(store, size), rank=_rank(), world_size=size
        )


def _on_cpus() -> bool:
    """Whether this is one of several processes on CPUs."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several and os.environ.get("ACCELERATE_USE_CPU") == "true"


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
