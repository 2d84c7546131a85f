"""Owns what ``train`` decides: a new run, a resume and from where, or nothing to do.

Does not run processes (``launch``). Deciding only reads; ``run`` and ``draw`` write.
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import (
    checkpoints,
    corpus,
    launch,
    machine,
    models,
    preflight,
    runs,
    schema,
    supervise,
)
from leviathan import render as rendering
from leviathan.checkpoints import Checkpoint
from leviathan.corpus import REQUIRED_FIELDS, Sample
from leviathan.errors import BadInput, LeviathanError, Refused
from leviathan.layers import Config, dataset_entries, run_name

DATA = Path("work/data")

# What may change between sessions: how often to save, look and log, how to compute the
# same numbers faster or smaller, and the peak learning rate. Everything else gives
# another model, other data, or optimizer state that no longer belongs to what is trained.
FREE_KEYS = {"learning_rate", "save_steps", "eval_steps", "eval_batch_size", "logging_steps",
             "attn_implementation", "activation_offloading", "plugins", "strict", "debug",
             "dataset_num_proc", "include_tkps", "low_cpu_mem_usage"}  # fmt: skip
FREE_PREFIXES = ("dataloader_", "gradient_checkpointing", "liger_", "wandb_", "mlflow_", "trackio_",
                 "comet_", "use_", "hub_", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel",
                 "lora_embedding_kernel", "ddp_")  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """What one ``train`` will do, found out without writing anything."""

    action: str
    """start, resume, or nothing (the run is finished)."""
    config: Config
    paths: runs.RunPaths
    record: runs.RunRecord | None
    resume_from: Checkpoint | None
    aside: tuple[Checkpoint, ...]
    """Checkpoints to move out of the line first: damaged, or newer than the chosen one."""
    checks: tuple[preflight.Check, ...]
    machine: machine.Machine
    schema: schema.AxolotlSchema | None

    @property
    def failed_checks(self) -> list[preflight.Check]:
        return [check for check in self.checks if check.state == "fail"]


def decide(config: Config, *, name: str | None = None, resume: str = "auto") -> Decision:
    """Everything that can be known before spending: checks, run state, resume point.

    Raises:
        BadInput: wrong keys, names, corpus or checkpoint; nothing is written.
        Refused: the run exists with settings that cannot be resumed.
    """
    keys = schema.load()
    here = machine.probe()
    rendering.check_keys(config, keys)
    paths = runs.RunPaths(runs.TRAINING / run_name(config, name))
    _refuse_unwritable(paths.directory)
    models.local_or_hub(config.tree["base_model"])
    corpus.check_head(Path(config.recipe.corpus), _required(config))
    record = runs.read(paths) if paths.record.exists() else None
    chosen, aside = _resume_point(paths, resume)
    if record and (chosen or record.state == "done") and resume != "never":
        _refuse_changed(record, config)
    if chosen and not record:
        raise Refused(
            f"{paths.directory} has checkpoints but no run.json: nobody knows what they were "
            "trained with", "restore run.json, or start over with --resume never",
        )  # fmt: skip
    found = tuple(
        preflight.checks(config.profile, here, paths.directory, machine.free_gib(paths.directory))
    )
    if record and record.state == "done" and resume == "auto":
        return Decision("nothing", config, paths, record, None, (), found, here, keys)
    action = "resume" if chosen else "start"
    return Decision(action, config, paths, record, chosen, tuple(aside), found, here, keys)


def _resume_point(paths: runs.RunPaths, resume: str) -> tuple[Checkpoint | None, list[Checkpoint]]:
    existing = checkpoints.scan(paths.directory) if paths.directory.is_dir() else []
    if resume == "never":
        return None, existing
    if resume == "auto":
        if existing and _first_save_was_cut(paths, existing):
            return None, [replace(c, problem=c.problem or checkpoints.UNFINISHED) for c in existing]
        chosen, damaged = checkpoints.newest_sound(paths.directory) if existing else (None, [])
        if damaged and chosen is None:
            told = "; ".join(f"{c.path.name}: {c.problem}" for c in damaged)
            raise Refused(
                f"no checkpoint of {paths.directory.name} is sound ({told})",
                "start over with --resume never, which keeps them aside",
            )
        return chosen, damaged
    chosen = checkpoints.choose(paths.directory, resume)
    return chosen, [c for c in existing if c.step > chosen.step]


def _first_save_was_cut(paths: runs.RunPaths, existing: list[Checkpoint]) -> bool:
    """Whether this run never finished a save: what lies there is less than an interval's work.

    To begin anew loses no more than a crash between two saves does, and needs no human.
    """
    finished = {"save", "resume"} & {e["event"] for e in runs.events(paths)}
    return paths.record.exists() and not finished and not any(c.committed for c in existing)


def _refuse_unwritable(directory: Path) -> None:
    parent = directory
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"cannot write to {parent}", "runs live in work/ of this directory")


def _refuse_changed(record: runs.RunRecord, config: Config) -> None:
    changed = [text for key, text in _differences(record, config) if not _is_free(key)]
    if changed:
        raise Refused(
            f"{record.name} was begun with other settings: {'; '.join(changed)}",
            "undo the change, start a new run with --name, or this one anew with --resume never",
        )


def _differences(record: runs.RunRecord, config: Config) -> list[tuple[str, str]]:
    """Key and ``key: old -> new`` for all that differs from the run's beginning."""
    old = {"sample": record.sample, "processes": record.processes, **record.tree}
    new = {"sample": config.sample, "processes": config.profile.hardware.count, **config.tree}
    return [
        (key, f"{key}: {old.get(key)!r} -> {new.get(key)!r}")
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _is_free(key: str) -> bool:
    return key in FREE_KEYS or key.startswith(FREE_PREFIXES)


def draw(decision: Decision, progress: corpus.Progress | None = None) -> Sample:
    """The run's sample, drawn now or reused.

    Raises:
        BadInput: see ``corpus.draw``.
        Refused: the corpus is not the one the run was begun with.
    """
    recipe = decision.config.recipe
    sample = corpus.draw(
        Path(recipe.corpus), decision.config.sample, recipe.seed, DATA,
        _required(decision.config), progress,
    )  # fmt: skip
    record = decision.record if decision.resume_from else None
    if record and record.corpus.get("digest") != sample.digest:
        raise Refused(
            f"the corpus of {record.name} has changed since it was begun "
            f"({record.corpus.get('rows')} rows then, {sample.rows} now)",
            "restore it, or start a new run with --name",
        )
    return sample


def _required(config: Config) -> tuple[str, ...]:
    """Keys a row must have, where ``format``, not ``axolotl.datasets``, says what it holds."""
    standard = config.tree["datasets"] == dataset_entries(config.recipe.format)
    return REQUIRED_FIELDS[config.recipe.format] if standard else ()


def render(decision: Decision, dataset: Path, session: int) -> rendering.Rendered:
    """The Axolotl configuration of this launch, with today's absolute paths."""
    config, resume = decision.config, decision.resume_from
    target = rendering.Target(
        run_dir=decision.paths.directory.resolve(),
        dataset=dataset.resolve(),
        base_model=models.local_or_hub(config.tree["base_model"]),
        session=session,
        resume_from=resume.path.resolve() if resume else None,
    )
    return rendering.render(
        config,
        target,
        flash_attn=decision.machine.flash_attn,
        gpu=bool(decision.machine.gpus),
        schema=decision.schema,
    )


def run(
    decision: Decision,
    listener: supervise.Listener,
    progress: corpus.Progress | None = None,
) -> supervise.Outcome:
    """Carry the decision out: lock, sample, run directory, launch, record.

    Raises:
        Refused: another process trains this run, or the corpus changed.
    """
    sample = draw(decision, progress)
    paths = decision.paths
    paths.directory.mkdir(parents=True, exist_ok=True)
    with runs.locked(paths):
        _refuse_overtaken(decision)
        record = _record(decision, sample)
        session = _begin_session(decision, record)
        _set_aside(decision, session.number)
        rendered = render(decision, Path(sample.path), session.number)
        _drop_half_prepared(paths)
        launch.write_inputs(paths, decision.config.profile, rendered.yaml(), rendered.tree)
        runs.write(paths, record)
        _announce(decision, session, rendered, listener)
        outcome = supervise.supervise(paths, decision.config.profile, session.number, listener)
        session.ended, session.outcome = time.time(), outcome.kind
        record.state = {"killed": "stopped"}.get(outcome.kind, outcome.kind)
        runs.write(paths, record)
        runs.event(
            paths, "session_end", session=session.number, outcome=outcome.kind,
            step=outcome.step, reason=outcome.reason,
        )  # fmt: skip
    return outcome


def wait_for_orphan(decision: Decision, tell: Callable[[str], None]) -> bool:
    """Wait until a training process that lost its supervisor has saved and ended.

    Returns whether there was one: the decision is out of date then.
    """
    paths = decision.paths
    pid = runs.orphan(paths)
    if pid is None:
        return False
    tell(f"waiting for process {pid}: its supervisor was killed, it saves after its step and ends")
    paths.stop.touch()
    while runs.orphan(paths):
        time.sleep(0.5)
    return True


def _refuse_overtaken(decision: Decision) -> None:
    """Drawing a sample takes minutes: the run may have changed since it was decided on."""
    paths = decision.paths
    pid = runs.orphan(paths)
    if pid:
        raise Refused(
            f"the training process {pid} of {paths.directory.name} has lost its supervisor and is "
            "still saving",
            "it stops by itself after its step; run the same command again then",
        )
    now = runs.read(paths) if paths.record.exists() else None
    before = decision.record
    if (now and len(now.sessions)) != (before and len(before.sessions)):
        raise Refused(
            f"{paths.directory.name} was trained by another process meanwhile",
            "run the same command again",
        )


def _record(decision: Decision, sample: Sample) -> runs.RunRecord:
    """The run's record: what resumes must match; begun anew where training begins anew.

    Raises:
        Refused: the base model's files are not those the run was begun with.
    """
    config, old = decision.config, decision.record
    base = models.fingerprint(models.local_or_hub(config.tree["base_model"]))
    if old and decision.resume_from:
        if old.base != base:
            raise Refused(
                f"the base model {config.tree['base_model']} has changed since {old.name} was "
                "begun", "restore it, or start a new run with --name",
            )  # fmt: skip
        return old
    return runs.RunRecord(
        name=decision.paths.directory.name,
        recipe=config.recipe_name,
        profile=config.profile_name,
        sample=config.sample,
        overrides=list(config.overrides),
        settings=config.recipe.model_dump(exclude={"axolotl"}),
        tree=config.tree,
        processes=config.profile.hardware.count,
        corpus=asdict(sample),
        base=base,
        versions=decision.machine.versions,
        created=time.time(),
        sessions=old.sessions if old else [],
    )


def _begin_session(decision: Decision, record: runs.RunRecord) -> runs.Session:
    resume = decision.resume_from
    session = runs.Session(
        number=len(record.sessions) + 1,
        started=time.time(),
        supervisor=machine.process_identity(),
        resumed_from=resume.step if resume else None,
    )
    record.sessions.append(session)
    record.state = "running"
    record.versions = decision.machine.versions
    return session


def _set_aside(decision: Decision, session: int) -> None:
    for checkpoint in decision.aside:
        folder = "set-aside" if checkpoint.sound else "quarantine"
        target = checkpoints.set_aside(checkpoint, folder)
        runs.event(
            decision.paths, folder.replace("-", "_"), session=session, step=checkpoint.step,
            reason=checkpoint.problem or "newer than the checkpoint resumed from", to=str(target),
        )  # fmt: skip


def _drop_half_prepared(paths: runs.RunPaths) -> None:
    """A launch killed while tokenising leaves a dataset Axolotl would take for whole."""
    try:
        whole = set(json.loads(paths.prepared_mark.read_bytes()))
    except (OSError, ValueError, TypeError):
        whole = set()
    for directory in paths.prepared.glob("*"):
        if directory.name not in whole and directory.is_dir():
            shutil.rmtree(directory)


def _announce(
    decision: Decision,
    session: runs.Session,
    rendered: rendering.Rendered,
    listener: supervise.Listener,
) -> None:
    for checkpoint in decision.aside:
        why = checkpoint.problem or "newer than the checkpoint resumed from"
        folder = "set aside" if checkpoint.sound else "quarantined"
        listener("notice", {"text": f"{checkpoint.path.name} {folder}: {why}"})
    for note in rendered.notes:
        listener("notice", {"text": note})
    kind = "resume" if decision.resume_from else "start"
    runs.event(
        decision.paths, kind, session=session.number, step=session.resumed_from or 0,
        log=str(decision.paths.logs),
    )  # fmt: skip
    listener(kind, {"step": session.resumed_from or 0, "session": session.number})


def preview(config: Config, name: str | None = None) -> rendering.Rendered:
    """What ``train`` would launch for a fresh run, without drawing the sample.

    Raises:
        BadInput: wrong keys, values or run name.
    """
    here = machine.probe()
    recipe = config.recipe
    dataset = Path(recipe.corpus)
    if config.sample != "full":
        dataset = corpus.sample_path(dataset, config.sample, recipe.seed, DATA)
    base = Path(config.tree["base_model"])
    target = rendering.Target(
        run_dir=(runs.TRAINING / run_name(config, name)).resolve(),
        dataset=dataset.resolve(),
        base_model=str(base.resolve()) if base.is_dir() else str(base),
    )
    return rendering.render(
        config, target, flash_attn=here.flash_attn, gpu=bool(here.gpus), schema=schema.load()
    )


def plan_of_action(decision: Decision) -> dict[str, Any]:
    """What one ``train`` will do, for ``--dry-run``."""
    resume = decision.resume_from
    actions = {
        "start": "start from the base model",
        "resume": f"resume from {resume.path.name}" if resume else "",
        "nothing": "nothing: the run is finished",
    }
    record = decision.record
    changes = _differences(record, decision.config) if record and resume else []
    return {
        "run": str(decision.paths.directory),
        "state": runs.true_state(record) if record else "new",
        "action": actions[decision.action],
        "quarantine": [f"{c.path.name} ({c.problem})" for c in decision.aside if not c.sound],
        "set aside": [c.path.name for c in decision.aside if c.sound],
        "sample": f"{decision.config.sample} of {decision.config.recipe.corpus}",
        "changes": [text for _, text in changes],
        "checks": [f"{c.name} {c.state}: {c.evidence}" for c in decision.checks],
        "command": launch.command(runs.RunPaths(decision.paths.directory.resolve())),
    }


def resume_command(decision: Decision) -> str:
    """What to type to go on with this run."""
    config = decision.config
    parts = ["leviathan", "train", "--profile", config.profile_asked]
    parts += ["--recipe", config.recipe_asked, "--sample", config.sample]
    default = run_name(config, None)
    if decision.paths.directory.name != default:
        parts += ["--name", decision.paths.directory.name]
    for override in config.overrides:
        parts += ["--set", override]
    if decision.failed_checks:  # it runs although a check fails, so --force was given
        parts.append("--force")
    return shlex.join(parts)


def latest_saved(paths: runs.RunPaths) -> str | None:
    """Name of the newest sound checkpoint, if there is one."""
    newest, _ = checkpoints.newest_sound(paths.directory)
    return newest.path.name if newest else None


def failure(outcome: supervise.Outcome, saved: str, again: str) -> LeviathanError:
    """The error of a failed session: what, where the log is, how to go on."""
    return LeviathanError(
        f"training failed at step {outcome.step} ({outcome.reason}); {saved}; log: {outcome.log}",
        f"once the cause is gone, resume with: {again}",
    )
