"""Owns the checks before a launch: what is looked at, and the order it is told in.

Does not ask the hardware itself (``machine``), nor judge (``check_*``).
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from leviathan import (
    basemodel,
    check_gpu,
    check_inputs,
    check_rewards,
    check_shell,
    check_software,
    checkpoints,
    disk,
    knobs,
    machine,
    memory,
    samples,
    scratch,
)
from leviathan.checkup import Check, Inputs, Subject
from leviathan.config import Profile
from leviathan.disk import Need, Volume
from leviathan.errors import BadInput
from leviathan.layers import Config, row_fields
from leviathan.machine import Gpu, Machine
from leviathan.runs import RunPaths

CHECKS: tuple[Callable[[Subject], Check | None], ...] = (
    check_software.packages,
    check_software.axolotl,
    check_gpu.driver,
    check_gpu.gpu,
    check_gpu.memory,
    check_gpu.health,
    check_software.precision,
    check_software.attention,
    check_inputs.base_model,
    check_inputs.rows,
    check_rewards.rewards,
    check_inputs.disk,
    check_inputs.ram,
    check_shell.terminal,
    check_shell.accelerate,
    check_shell.environment,
    check_shell.clock,
    check_shell.limits,
    check_shell.notify,
)
"""Every check, in the order it is told; one that has nothing to look at says nothing."""


def checks(subject: Subject) -> list[Check]:
    """Every verdict on ``subject`` that can be given."""
    return [found for check in CHECKS if (found := check(subject))]


def of_machine(
    here: Machine, profile: Profile | None = None, *, keys_read: bool | None = None
) -> Subject:
    """The machine alone, against a profile where one is given."""
    tree = profile.axolotl if profile else {}
    return Subject(here, dict(os.environ), profile, tree, keys_read=keys_read)


def of_training(
    config: Config, here: Machine, paths: RunPaths, data: Path, *, keys_read: bool | None
) -> Subject:
    """A training as it is configured, with what it will read and write.

    Args:
        config: merged layers.
        here: the machine.
        paths: the run's directory, existing or not.
        data: where samples are drawn to.
        keys_read: whether Axolotl told its keys; None where it was not asked.
    """
    environment = dict(os.environ)
    existing = checkpoints.scan(paths.directory) if paths.directory.is_dir() else []
    base = _base(config, environment)
    forecast = _forecast(config, existing)
    sound = [c.bytes for c in existing if c.sound]
    kept = len(sound)
    needs = _needs(config, paths, data, forecast, (kept, sum(sound)), environment)
    if base and base.to_be_made:
        needs.append(Need("the new model", Path(base.name), base.weight_bytes, soon=True))
    wish = samples.Wish(Path(config.recipe.corpus), config.sample, config.recipe.seed, data)
    inputs = Inputs(
        samples.readable(wish), row_fields(config), base,
        _volumes(needs), forecast, "this run's newest" if kept else "arithmetic", paths.directory,
    )  # fmt: skip
    needed = _needed_gib(config)
    return Subject(here, environment, config.profile, config.tree, inputs, keys_read, needed)


def _base(config: Config, environment: Mapping[str, str]) -> basemodel.Located | None:
    """Where the base model lies; None for that of a stage that is not begun."""
    made, found = scratch.planned(config), basemodel.locate(config.tree, environment)
    if made:
        return replace(found, weight_bytes=scratch.weight_bytes(made), to_be_made=True)
    return None if config.lacks_base else found


def _forecast(config: Config, existing: list[checkpoints.Checkpoint]) -> disk.Forecast:
    """What will be written; of a base model that is yet to be made, its plan is known."""
    shape = None
    if config.lacks_base or scratch.planned(config):
        with suppress(BadInput):  # of another architecture, which may train
            shape = scratch.shape_of(config)
    return disk.forecast(config.tree, str(config.tree["base_model"]), existing, shape)


def _needed_gib(config: Config) -> float | None:
    """What one GPU will hold, by formula; None for a model of unknown shape, which may train."""
    try:
        shape = scratch.shape_of(config)
        chosen = knobs.read(config.tree, config.profile.hardware.processes)
        return memory.estimate(shape, chosen, device=config.profile.hardware.device).total_gib
    except BadInput:
        return None


def of_bench(config: Config, here: Machine, paths: RunPaths, *, keys_read: bool) -> Subject:
    """A short trial of this configuration: rows and base model are made up where they lack."""
    forecast = _forecast(config, [])
    volumes = _volumes([_one_checkpoint(paths, forecast)])
    inputs = Inputs(None, (), None, volumes, forecast, "arithmetic", paths.directory)
    return Subject(here, dict(os.environ), config.profile, config.tree, inputs, keys_read)


def _one_checkpoint(paths: RunPaths, forecast: disk.Forecast) -> Need:
    one = forecast.checkpoint or 0
    return Need("one checkpoint", paths.directory, one + one // 10, soon=True)


def _needs(
    config: Config, paths: RunPaths, data: Path, forecast: disk.Forecast,
    existing: tuple[int, int], environment: Mapping[str, str],
) -> list[Need]:  # fmt: skip
    """What this run has yet to write; ``existing`` are its sound checkpoints: count and bytes."""
    kept, held = existing
    one, merged = forecast.checkpoint or 0, forecast.merged or 0
    # The newest few and the best are kept; another is written before one is let go.
    policy = config.profile.checkpoints
    more = max(policy.keep + 1 - kept, 0)
    if policy.whole is None:
        later, told = more * one, f"{more} more checkpoints"
    else:  # as they are, existing ones become slim before others are added
        later = max((forecast.kept(policy) or 0) - held, 0)
        told = f"{more} more checkpoints, {policy.whole} of all whole"
    source = Path(config.recipe.corpus)
    wish = samples.Wish(source, config.sample, config.recipe.seed, data)
    size = samples.expected_bytes(source, config.sample) if source.exists() else 0
    copied = 0 if not size or wish.path.exists() or samples.in_place(wish) else size
    tokenised = 0 if paths.prepared_mark.exists() else size
    packed = bool(config.tree.get("sample_packing"))
    return [
        Need("sample", data, copied, soon=True),
        Need("the rows' cache", basemodel.datasets_cache(environment),
             disk.cached_bytes(tokenised), soon=True),
        Need("prepared data", paths.prepared, disk.prepared_bytes(tokenised, packed=packed),
             soon=True),
        _one_checkpoint(paths, forecast),
        Need(told, paths.directory, later, soon=False),
        Need("merged model", Path("models"), merged, soon=False),
    ]  # fmt: skip


def _volumes(needs: list[Need]) -> tuple[Volume, ...]:
    """The needs by file system, the run's own first."""
    found: dict[int, list[Need]] = {}
    for need in sorted(needs, key=lambda need: "checkpoint" not in need.what):
        found.setdefault(machine.file_system(need.path), []).append(need)
    return tuple(
        Volume(group[0].path, machine.free_bytes(group[0].path), tuple(group))
        for group in found.values()
    )


def suited(gpus: tuple[Gpu, ...], profiles: Mapping[str, Profile]) -> str | None:
    """The profile that makes most of these GPUs; the first for the CPU where there is none.

    None where no profile is small enough.
    """
    best: tuple[tuple[float, ...], str] | None = None
    for name, profile in profiles.items():
        wanted = profile.hardware
        if not gpus and wanted.device == "cpu":
            return name
        used = gpus[: wanted.count]
        if wanted.device == "cpu" or len(used) < wanted.count:
            continue
        smallest = min(gpu.memory_gib for gpu in used)
        if smallest < check_gpu.OF_NOMINAL * (wanted.memory_gib or 0):
            continue
        alike = used[0].compute_capability == wanted.compute_capability
        rank = (wanted.count, wanted.memory_gib or 0, float(alike))
        if best is None or rank > best[0]:
            best = rank, name
    return best[1] if best else None
