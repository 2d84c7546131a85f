"""Owns the checks before a launch: can this machine run this profile at all.

Does not ask the hardware itself (``machine``) nor predict memory or time.
"""

from dataclasses import dataclass
from pathlib import Path

from leviathan.config import Profile
from leviathan.machine import Machine


@dataclass(frozen=True)
class Check:
    """One verdict with its evidence and, unless it passed, what to do."""

    name: str
    state: str
    evidence: str
    fix: str = ""


_NEEDED = ("axolotl", "torch", "transformers", "peft", "accelerate")


def checks(profile: Profile, machine: Machine, run_dir: Path, free_gib: float) -> list[Check]:
    """Packages, GPU against profile, and disk, each pass, warn or fail."""
    return [_packages(machine), _gpu(profile, machine), _disk(run_dir, free_gib)]


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


def _disk(run_dir: Path, free_gib: float) -> Check:
    evidence = f"{free_gib:.1f} GiB free for {run_dir}"
    if free_gib < 1:
        return Check("disk", "fail", evidence, "free some space: a save must never be cut short")
    return Check("disk", "pass" if free_gib >= 10 else "warn", evidence, "")
