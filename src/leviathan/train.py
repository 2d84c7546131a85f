"""Owns what ``train`` decides: a new run, a resume and from where, or nothing to do.

Does not carry it out (``sessions``). Deciding only reads; ``draw`` writes the sample.
"""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from leviathan import (
    checkpoints,
    compatibility,
    corpus,
    launch,
    layers,
    machine,
    models,
    preflight,
    runs,
    samples,
    schema,
    scratch,
    trackers,
)
from leviathan import render as rendering
from leviathan.checkpoints import Checkpoint
from leviathan.checkup import Check
from leviathan.errors import BadInput, Refused
from leviathan.ladder import Change
from leviathan.layers import Config, run_name, whole_name
from leviathan.probe import Probe
from leviathan.rendezvous import Meeting
from leviathan.samples import Sample


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
    checks: tuple[Check, ...]
    machine: machine.Machine
    schema: schema.AxolotlSchema | None
    notes: tuple[str, ...] = ()
    """What differs from the session before, and was judged harmless enough to go on."""
    adjustments: tuple[dict[str, Any], ...] = ()
    """Rungs of the ladder that a smoke test took, for the new run's record."""
    probe: Probe | None = None
    """Makes it a run to be measured, on rows of its own."""
    track: tuple[str, ...] | None = None
    """The trackers asked for; None: the user's keys, or the default."""
    meeting: Meeting | None = None
    """Where several hosts meet; None for a single one."""

    @property
    def failed_checks(self) -> list[Check]:
        return [check for check in self.checks if check.state == "fail"]


def decide(
    config: Config,
    *,
    name: str | None = None,
    resume: str = "auto",
    track: tuple[str, ...] | None = None,
    meeting: Meeting | None = None,
) -> Decision:
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
    trackers.refuse_unusable(track, config.tree, trackers.look())
    scratch.path_or_hub(config)
    corpus.check_head(samples.readable(_wish(config)), layers.row_fields(config))
    record = runs.read(paths) if paths.record.exists() else None
    chosen, aside = resume_point(paths, resume)
    config = adjusted(config, record.adjustments if record else ())
    notes: list[str] = []
    if record and (chosen or record.state == "done") and resume != "never":
        notes = _judge_changes(record, config, here)
    if chosen and not record:
        raise Refused(
            f"{paths.directory} has checkpoints but no run.json: nobody knows what they were "
            "trained with", "restore run.json, or start over with --resume never",
        )  # fmt: skip
    if chosen and record:
        _refuse_foreign(chosen, record, config)
    subject = preflight.of_training(
        config, here, paths, samples.DIRECTORY, keys_read=keys is not None
    )
    found = tuple(preflight.checks(subject))
    if record and record.state == "done" and resume == "auto":
        return Decision(
            "nothing", config, paths, record, None, (), found, here, keys, track=track,
            meeting=meeting,
        )  # fmt: skip
    action = "resume" if chosen else "start"
    return Decision(
        action, config, paths, record, chosen, tuple(aside), found, here, keys, tuple(notes),
        track=track, meeting=meeting,
    )  # fmt: skip


def adjusted(config: Config, adjustments: Sequence[dict[str, Any]]) -> Config:
    """``config`` on the rung of the ladder where the run stands.

    A rung counts while the keys it changed still have the values that proved too large:
    what the user has changed since is the user's.
    """
    for change in (Change(**a) for a in adjustments):
        if change.applies_to(config.tree):
            config = layers.changed(config, change.after, f"out of memory: {change.why}")
    return config


def follow(decision: Decision, record: runs.RunRecord) -> Decision:
    """The decision for the smaller run that ``record`` was given up for (``--shrink``)."""
    successor = record.successor
    while successor:
        asked = decision.config
        config = layers.build(
            asked.recipe_asked, asked.profile_asked, asked.sample,
            [*asked.overrides, *successor["overrides"]],
        )  # fmt: skip
        decision = decide(
            config, name=successor["name"], track=decision.track, meeting=decision.meeting
        )
        successor = decision.record.successor if decision.record else None
    return decision


def resume_point(paths: runs.RunPaths, resume: str) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """Where training goes on, and what has to be moved out of the line for it.

    A save cut off before its commit was never safe: after a crash in the very first save
    training begins anew without asking. Not so where a save was ever finished, even if
    every commit record is gone: work was lost then, and a person should know.

    Raises:
        BadInput: no such checkpoint.
        Refused: it is damaged; or saves were finished and no checkpoint is sound.
    """
    existing = checkpoints.scan(paths.directory) if paths.directory.is_dir() else []
    if resume == "never":
        return None, existing
    if resume == "auto":
        if existing and _first_save_was_cut(paths, existing):
            return None, [replace(c, problem=c.problem or checkpoints.UNFINISHED) for c in existing]
        chosen, damaged = checkpoints.newest_sound(paths.directory) if existing else (None, [])
        if damaged and chosen is None:
            told = "; ".join(f"{c.path.name}: {c.obstacle}" for c in damaged)
            raise Refused(
                f"no checkpoint of {paths.directory.name} can be resumed from ({told})"
                if any(c.slim for c in damaged)
                else f"no checkpoint of {paths.directory.name} is sound ({told})",
                "start over with --resume never, which keeps them aside",
            )
        return chosen, damaged
    chosen = checkpoints.choose(paths.directory, resume)
    if chosen.slim:
        raise Refused(
            f"{chosen.path.name} cannot be resumed from: {checkpoints.SLIMMED}",
            "leave out --resume to go on from the newest that is whole; merge and test take it",
        )
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


def _refuse_foreign(chosen: Checkpoint, record: runs.RunRecord, config: Config) -> None:
    """A checkpoint that was copied here from another run is whole, and still not this run's."""
    if chosen.fingerprint not in ("", compatibility.fingerprint(_settings(config, record))):
        raise Refused(
            f"{chosen.path.name} in {record.name} was trained with other settings: it is another "
            "run's", "move it away; train then resumes from the newest before it",
        )  # fmt: skip


def _judge_changes(record: runs.RunRecord, config: Config, here: machine.Machine) -> list[str]:
    """What differs from the run's beginning and is allowed, a line each.

    Raises:
        Refused: something differs that a checkpoint cannot be resumed with.
    """
    found = differences(record, config)
    refused = [f"{d} ({d.reason})" for d in found if d.verdict == "refused"]
    if refused:
        raise Refused(
            f"{record.name} was begun with other settings: {'; '.join(refused)}",
            "undo the change, start a new run with --name, or this one anew with --resume never",
        )
    batch = [d for d in found if d.verdict == "arithmetic"]
    notes = [f"{', '.join(map(str, batch))}: {batch[0].reason}"] if batch else []
    versions = list(compatibility.version_changes(record.versions, here.versions))
    if versions:
        notes.append(f"since the last session: {', '.join(versions)}; numbers may differ a little")
    return notes


def differences(record: runs.RunRecord, config: Config) -> list[compatibility.Difference]:
    """What is asked for now against what the run was begun with."""
    return compatibility.differences(
        {"sample": record.sample, "processes": record.processes, **record.tree},
        _settings(config, record),
    )


def _settings(config: Config, record: runs.RunRecord | None) -> dict[str, Any]:
    """What ``compatibility`` judges. A base model is its files, wherever they lie."""
    tree = config.tree
    begun = record.tree.get("base_model") if record and record.base else tree["base_model"]
    if record and begun != tree["base_model"] and base_digest(tree["base_model"]) == record.base:
        tree = {**tree, "base_model": begun}
    return {"sample": config.sample, "processes": config.profile.hardware.processes, **tree}


@cache
def base_digest(base_model: str) -> str | None:
    return models.fingerprint(models.local_or_hub(base_model))


def _wish(config: Config) -> samples.Wish:
    recipe = config.recipe
    return samples.Wish(Path(recipe.corpus), config.sample, recipe.seed, samples.DIRECTORY)


def draw(decision: Decision, progress: corpus.Progress | None = None) -> Sample:
    """The run's sample, drawn now or reused.

    Raises:
        BadInput: see ``samples.draw``.
        Refused: the corpus is not the one the run was begun with.
    """
    if decision.probe:
        return decision.probe.sample
    config = decision.config
    sample = samples.draw(_wish(config), layers.row_fields(config), progress)
    record = decision.record if decision.resume_from else None
    if record and record.corpus.get("digest") != sample.digest:
        raise Refused(
            f"the corpus of {record.name} has changed since it was begun "
            f"({record.corpus.get('rows')} rows then, {sample.rows} now)",
            "restore it, or start a new run with --name",
        )
    return sample


def render(decision: Decision, dataset: Path, record: runs.RunRecord) -> rendering.Rendered:
    """The Axolotl configuration of the record's newest session, with today's absolute paths."""
    config, resume, probe = decision.config, decision.resume_from, decision.probe
    random_base = probe.base_model if probe else None
    run_dir = decision.paths.directory.resolve()
    # A probe is no experiment to be tracked.
    tracking = None if probe else _tracking(config, run_dir, decision.track, record)
    target = rendering.Target(
        run_dir=run_dir,
        dataset=dataset.resolve(),
        base_model=random_base or scratch.path_or_hub(config),
        session=record.sessions[-1].number,
        resume_from=resume.path.resolve() if resume else None,
        fingerprint=compatibility.fingerprint(_settings(config, record)),
        probe=probe,
        tracking=tracking or trackers.Tracking(),
    )
    return rendering.render(
        config,
        target,
        flash_attn=decision.machine.flash_attn,
        gpu=bool(decision.machine.gpus),
        schema=decision.schema,
    )


def _tracking(
    config: Config,
    run_dir: Path,
    track: tuple[str, ...] | None,
    record: runs.RunRecord | None = None,
) -> trackers.Tracking:
    """Where a run's curves go; before it has a record, all but its identity is known."""
    begun = record.created if record else None
    beginning = sum(s.resumed_from is None for s in record.sessions) if record else 1
    run = trackers.Run(
        run_dir.name, run_dir, config.recipe_name, config.profile_name, config.sample, begun,
        beginning,
    )  # fmt: skip
    return trackers.of(track, config, run, trackers.look())


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


def preview(
    config: Config, name: str | None = None, track: tuple[str, ...] | None = None
) -> rendering.Rendered:
    """What ``train`` would launch for a fresh run, without drawing the sample.

    The trackers' keys are there only for those asked for by name: what ``train`` chooses by
    itself depends on the machine.

    Raises:
        BadInput: wrong keys, values or run name.
    """
    here = machine.probe()
    dataset, wish = Path(config.recipe.corpus), _wish(config)
    if config.sample != "full" or (dataset.exists() and not samples.in_place(wish)):
        dataset = wish.path
    base = Path(config.tree["base_model"])
    is_directory = base.is_dir() or scratch.planned(config)
    run_dir = (runs.TRAINING / run_name(config, name)).resolve()
    tracking = trackers.Tracking() if track is None else _tracking(config, run_dir, track)
    target = rendering.Target(
        run_dir=run_dir,
        dataset=dataset.resolve(),
        base_model=str(base.resolve()) if is_directory else str(base),
        tracking=tracking,
    )
    return rendering.render(
        config, target, flash_attn=here.flash_attn, gpu=bool(here.gpus), schema=schema.load()
    )


def plan_of_action(decision: Decision) -> dict[str, Any]:
    """What one ``train`` will do, for ``--dry-run``."""
    resume = decision.resume_from
    actions = {
        "start": "start from the base model, which is made first"
        if decision.config.lacks_base
        else "start from the base model",
        "resume": f"resume from {resume.path.name}" if resume else "",
        "nothing": "nothing: the run is finished",
    }
    record = decision.record
    changes = differences(record, decision.config) if record and resume else []
    config, run_dir = decision.config, decision.paths.directory.resolve()
    tracking = _tracking(config, run_dir, decision.track, record)
    return {
        "run": str(decision.paths.directory),
        "state": runs.true_state(record) if record else "new",
        "action": actions[decision.action],
        "quarantine": [f"{c.path.name} ({c.problem})" for c in decision.aside if not c.sound],
        "set aside": [c.path.name for c in decision.aside if c.sound],
        "sample": f"{config.sample} of {config.recipe.corpus}",
        "changes": [f"{d} ({d.verdict}: {d.reason})" for d in changes],
        "trackers": [f"{', '.join(tracking.on)} ({tracking.why})"] if tracking.on else [],
        "notes": list(decision.notes),
        "checks": [f"{c.name} {c.state}: {c.evidence}" for c in decision.checks],
        "command": launch.command(runs.RunPaths(run_dir), config.profile, decision.meeting),
    }


def resume_command(decision: Decision, extra: Sequence[str] = ()) -> str:
    """What to type to go on with this run; ``extra`` are options of the command to repeat."""
    config = decision.config
    parts = ["leviathan", "train", "--profile", config.profile_asked]
    parts += ["--recipe", config.recipe_asked, "--sample", config.sample]
    name = decision.paths.directory.name
    if name != run_name(config, None):
        parts += ["--name", whole_name(config, name)]
    if config.mode:
        parts += ["--mode", config.mode]
    for override in config.overrides:
        if not override.startswith(("mode=", "stage=")):
            parts += ["--set", override]
    if decision.failed_checks:  # it runs although a check fails, so --force was given
        parts.append("--force")
    return shlex.join([*parts, *extra])


def latest_saved(paths: runs.RunPaths) -> str | None:
    """Name of the newest sound checkpoint, if there is one."""
    if not paths.directory.is_dir():  # stopped in the smoke test
        return None
    newest, _ = checkpoints.newest_sound(paths.directory)
    return newest.path.name if newest else None
