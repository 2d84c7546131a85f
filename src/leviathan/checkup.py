"""Owns what a check is: the subject it looks at and the verdict it gives.

Does not judge (``check_*``), nor gather the subject or put the checks in order (``preflight``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from leviathan.basemodel import Located
from leviathan.config import Profile
from leviathan.disk import Forecast, Volume
from leviathan.machine import Gpu, Machine

State = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One verdict: a line of evidence and, unless it passed, a line of what to do."""

    name: str
    state: State
    evidence: str
    fix: str = ""


@dataclass(frozen=True)
class Inputs:
    """What a training would read and write."""

    corpus: Path | None
    """None where rows are made up (``bench``)."""
    fields: tuple[str, ...]
    """Keys every row must have."""
    base: Located | None
    """None where a model of the same shape is made up."""
    volumes: tuple[Volume, ...]
    forecast: Forecast
    source: str
    """Where the forecast of a checkpoint's size was taken from."""
    run_dir: Path


@dataclass(frozen=True)
class Subject:
    """What is judged. Without a profile and inputs: the machine alone."""

    machine: Machine
    environment: Mapping[str, str]
    profile: Profile | None = None
    tree: Mapping[str, Any] = field(default_factory=dict)
    """Raw Axolotl keys."""
    inputs: Inputs | None = None
    keys_read: bool | None = None
    """Whether Axolotl told its keys; None where it was not asked."""
    needed_gib: float | None = None
    """GPU memory that training will take, where somebody has predicted it."""

    @property
    def on_gpu(self) -> bool:
        """Whether a profile wants to train on a GPU."""
        return self.profile is not None and self.profile.hardware.device == "cuda"

    @property
    def processes(self) -> int:
        """How many a training would launch."""
        return self.profile.hardware.count if self.profile else 1

    @property
    def visible(self) -> tuple[Gpu, ...]:
        """The GPUs that CUDA would show to a training."""
        return visible(self.machine.gpus, self.environment.get("CUDA_VISIBLE_DEVICES"))

    @property
    def used(self) -> tuple[Gpu, ...]:
        """The GPUs that a training would use."""
        return self.visible[: self.processes]


def visible(gpus: tuple[Gpu, ...], wanted: str | None) -> tuple[Gpu, ...]:
    """What ``CUDA_VISIBLE_DEVICES`` leaves of ``gpus``.

    Numbers up to the first that is none (CUDA C Programming Guide, environment variables).
    Names (``GPU-...``, ``MIG-...``) are counted, not looked up.
    """
    if wanted is None:
        return gpus
    found: list[Gpu] = []
    for word in (word.strip() for word in wanted.split(",")):
        if word.startswith(("GPU-", "MIG-")):
            found += gpus[len(found) : len(found) + 1]
        elif word.isdigit() and int(word) < len(gpus):
            found.append(gpus[int(word)])
        else:
            break
    return tuple(found)
