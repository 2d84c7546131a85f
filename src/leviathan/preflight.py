"""Owns the checks before a launch: can this machine run this profile at all.

Does not ask the hardware itself (``machine``) nor predict memory or time.
"""

from dataclasses import dataclass
from pathlib import Path

from leviathan.config import Profile
from leviathan.disk import Forecast
from leviathan.machine import Machine


@dataclass(frozen=True)
class Check:
    """One verdict with its evidence and, unless it passed, what to do."""

    name: str
    state: str
    evidence: str
    fix: str = ""


_FEW_GIB = 10.0
_NEEDED = ("axolotl", "torch", "transformers", "peft", "accelerate")


def checks(
    profile: Profile, machine: Machine, run_dir: Path, free_gib: float, forecast: Forecast
) -> list[Check]:
    """Packages, GPU against profile, and disk against forecast, each pass, warn or fail."""
    return [_packages(machine), _gpu(profile, machine), _disk(profile, run_dir, free_gib, forecast)]


def _packages(machine: Machine) -> Check:
    missing = [package for package in _NEEDED if package not in machine.versions]
    if missing:
        return Check(
            "packages", "fail", f"not installed: {', '.join(missing)}",
            "pip install 'leviathan-train[train]'",
        )  # fmt: skip
    return Check("packages", "pass", f"axolotl {machine.versions['axolotl']}")


def _gpu(profile: Profile, machine: Machine) -> Check:
    hardware = profile.hardware
    if hardware.device == "cpu":
        return Check("gpu", "pass", "the profile trains on the CPU")
    wanted = f"{hardware.count} x {hardware.gpu or 'CUDA GPU'}"
    if len(machine.gpus) < hardware.count:
        return Check(
            "gpu", "fail", f"the profile wants {wanted}, this machine has {len(machine.gpus)}",
            "use --profile cpu for a trial, or --force",
        )  # fmt: skip
    smallest = min(gpu.memory_gib for gpu in machine.gpus[: hardware.count])
    # NVML reports a few per cent less than the nominal size (ECC, reserved pages).
    if hardware.memory_gib and smallest < 0.9 * hardware.memory_gib:
        return Check(
            "gpu", "fail",
            f"the profile wants {hardware.memory_gib:g} GiB, {machine.gpus[0].name} has "
            f"{smallest:.1f}",
            "choose a profile for this card, or --force",
        )  # fmt: skip
    return Check("gpu", "pass", f"{machine.gpus[0].name}, {smallest:.1f} GiB")


def _disk(profile: Profile, run_dir: Path, free_gib: float, forecast: Forecast) -> Check:
    """Fail when not even one save fits, warn when what the run will write does not."""
    reserve, keep = profile.guards.disk_reserve_gib, profile.checkpoints.keep
    one = (forecast.checkpoint or 0) / 2**30
    # The newest few, the best, and the one being written.
    whole = one * (keep + 2) + (forecast.merged or 0) / 2**30 + reserve
    evidence = f"{free_gib:.3g} GiB free for {run_dir}; a checkpoint takes {_gib(forecast)}"
    if free_gib < 1.1 * one + reserve:
        return Check("disk", "fail", evidence, "free some space: a save must never be cut short")
    if free_gib < whole:
        return Check(
            "disk", "warn", f"{evidence}, all that is kept and the merged model {whole:.3g} GiB",
            "free some space, or lower checkpoints.keep",
        )  # fmt: skip
    if forecast.checkpoint is None and free_gib < _FEW_GIB:
        return Check("disk", "warn", evidence, "free some space: the base model is not here yet")
    return Check("disk", "pass", evidence)


def _gib(forecast: Forecast) -> str:
    if forecast.checkpoint is None:
        return "an unknown size"
    return f"{forecast.checkpoint / 2**30:.2g} GiB"
