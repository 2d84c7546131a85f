"""Owns what was expected of a run when it began: its plan, kept beside it as plan.json.

Does not predict (``plan``), write it (``survey``) nor compare (``report``, ``status``).
"""

import json
from dataclasses import dataclass
from typing import Any

from leviathan import files, runs


@dataclass(frozen=True)
class Expected:
    """The plan's figures that a run can be held against; None where it had none."""

    steps: int | None
    hours: tuple[float, float, float] | None
    """Low, middle, high: wall clock of the whole training."""
    tok_s: tuple[float, float, float] | None
    """Computed tokens a second over all processes."""
    memory_gib: tuple[float, float, float] | None
    """Peak of each GPU."""
    card_gib: float | None
    checkpoint_bytes: int | None
    flops_per_token: float | None
    """The model's own, without recomputation: what MFU counts (Chowdhery et al. 2022, app. B)."""
    peak_tflops: float | None
    """Dense bf16 peak of all GPUs together."""
    evidence: dict[str, str]

    def mfu_pct(self, tok_s: float | None) -> float | None:
        """Model FLOPs utilisation: what of the cards' peak went into the model's own work."""
        if tok_s is None or not self.flops_per_token or not self.peak_tflops:
            return None
        return 100 * tok_s * self.flops_per_token / (self.peak_tflops * 1e12)


def read(paths: runs.RunPaths) -> Expected | None:
    """What was expected; None of a run without a plan, or with a damaged one."""
    try:
        told = json.loads(paths.plan.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    memory, disk, evidence = (told.get(n) for n in ("memory_gib", "disk_bytes", "evidence"))
    memory = memory if isinstance(memory, dict) else {}
    steps, disk = told.get("steps"), disk if isinstance(disk, dict) else {}
    size = files.number(disk.get("checkpoint"))
    return Expected(
        steps=steps if runs.is_whole(steps) else None,
        hours=_range(told.get("hours")),
        tok_s=_range(told.get("tok_s")),
        memory_gib=_range({**memory, "mid": memory.get("total")}),
        card_gib=files.number(memory.get("card")),
        checkpoint_bytes=int(size) if size is not None else None,
        flops_per_token=files.number(told.get("flops_per_token")),
        peak_tflops=files.number(told.get("peak_tflops")),
        evidence=dict(evidence) if isinstance(evidence, dict) else {},
    )


def _range(value: Any) -> tuple[float, float, float] | None:
    if not isinstance(value, dict):
        return None
    low, mid, high = (files.number(value.get(name)) for name in ("low", "mid", "high"))
    return None if low is None or mid is None or high is None else (low, mid, high)
