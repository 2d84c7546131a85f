"""Owns the prediction of a training's memory on each GPU: phases, total, interval, verdict.

Pure. What stays between steps is ``residents``, what a step adds ``activations``. Derivations,
sources and errors against published measurements: docs/planning.md, "Memory".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from leviathan.activations import Activations, activations
from leviathan.decoder import Shape
from leviathan.knobs import Knobs
from leviathan.residents import AXOLOTL, Residents, Stack, known, residents

Verdict = Literal["fits", "tight", "does_not_fit"]

_GIB = 1024**3
_CONTEXT_GIB = (0.14, 0.7, 1.1)
"""CUDA context, kernels and libraries (low, middle, high): a T4's 141 MiB, what A100 runs
held beyond torch's reserve, and the constant that published 8 to 24 GB limits ask for."""
_FRAGMENTATION = (0.0, 0.11, 0.25)
"""Reserved beyond allocated, as a share of what a step allocates and frees: none at the limit
of a card (torch then returns what it cached), A100 runs, the worst group's mean on a T4."""
_PEERS_GIB, _PEERS_FRAGMENTATION = 1.3, 0.09
"""Added with several processes: NCCL's buffers, and what collectives cut out of the pool."""
_TENSOR_ERROR = 0.05
"""Worst error of the tensors' sum against the published measurements that tests hold."""
_USABLE = 0.97
"""Of the nominal size: torch reports 15.61 GiB on a 16 GB A4000, 7.78 on an 8 GB RTX 3070."""


@dataclass(frozen=True)
class Memory:
    """What one GPU holds at the peak of a training."""

    components_gib: dict[str, float]
    """At the peak; they add up to ``total_gib``."""
    total_gib: float
    """The driver's view (nvidia-smi): tensors, allocator and CUDA context."""
    tensors_gib: float
    """torch's view (max_memory_allocated): tensors alone."""
    low_gib: float
    high_gib: float
    peak: str
    """The phase with the peak, as ``backward pass, first layer``."""
    phases_gib: dict[str, float]
    """Every phase's total."""
    evidence: tuple[str, ...]

    def verdict_for(self, card_gib: float) -> Verdict:
        """Whether a card of this nominal size holds it."""
        usable = card_gib * _USABLE
        if self.high_gib <= usable:
            return "fits"
        return "tight" if self.total_gib <= usable else "does_not_fit"


def estimate(shape: Shape, knobs: Knobs, *, device: str = "cuda", stack: Stack = AXOLOTL) -> Memory:
    """Predicts the peak memory of one process; on ``cpu`` that is tensors alone.

    Every row is taken as full: ``sequence_len`` tokens. ``stack`` is for predicting what other
    programs than Axolotl were measured at.
    """
    stays, step = residents(shape, knobs, stack), activations(shape, knobs, stack)
    phases = _phases(shape, knobs, stays, step)
    bare = device == "cpu"
    loaded = {name: _loaded(x, knobs, 1, bare) for name, x in phases.items()}
    totals = {name: sum(parts.values()) for name, parts in loaded.items()}
    peak = max(totals, key=lambda name: totals[name])
    tensors = {name: sum(parts.values()) for name, parts in phases.items()}
    low, high = (
        max(sum(_loaded(x, knobs, end, bare).values()) + sign * _TENSOR_ERROR * tensors[name]
            for name, x in phases.items())
        for end, sign in ((0, -1), (2, 1))
    )  # fmt: skip
    return Memory(
        components_gib={name: size / _GIB for name, size in loaded[peak].items()},
        total_gib=totals[peak] / _GIB,
        tensors_gib=max(tensors.values()) / _GIB,
        low_gib=(low - stays.paged) / _GIB,
        high_gib=high / _GIB,
        peak=peak,
        phases_gib={name: total / _GIB for name, total in totals.items()},
        evidence=tuple(_evidence(knobs, stays, bare)),
    )


def _loaded(parts: dict[str, float], knobs: Knobs, end: int, bare: bool) -> dict[str, float]:
    """``parts`` with what the allocator and the driver add; ``end``: 0 low, 1 middle, 2 high."""
    if bare:
        return parts
    share, context = _FRAGMENTATION[end], _CONTEXT_GIB[end]
    if knobs.processes > 1:
        share, context = share + _PEERS_FRAGMENTATION, context + _PEERS_GIB
    passing = sum(parts.get(x, 0) for x in ("activations", "logits"))
    return {**parts, "allocator": passing * share, "context": context * _GIB}


def _phases(
    shape: Shape, knobs: Knobs, stays: Residents, step: Activations
) -> dict[str, dict[str, float]]:
    """What each phase holds, in bytes. The layers run backward from the last to the first:
    checkpoints go as gradients come."""
    names = ("gradients", "activations", "logits", "gathered")
    steady: dict[str, float] = {"weights": stays.weights, "adapter": stays.adapter}
    steady |= {"optimizer": stays.optimizer, **dict.fromkeys(names, 0)}
    nothing = dict.fromkeys(steady, 0.0)
    phases = {
        "loading": nothing | {"weights": stays.weights, "casts": stays.loading},
        "optimizer step": steady
        | {"gradients": stays.gradients, "optimizer": stays.optimizer + stays.step},
    }
    steady["gathered"] = stays.gathered
    earlier = stays.gradients if knobs.gradient_accumulation_steps > 1 else 0
    phases |= {
        "loss": steady
        | {"gradients": earlier, "activations": step.kept + step.head, "logits": step.logits},
        "backward pass, last layer": steady
        | {"gradients": earlier, "activations": step.kept + step.layer},
        "backward pass, first layer": steady
        | {"gradients": stays.gradients, "activations": step.kept / shape.layers + step.layer},
    }
    if knobs.eval_steps and knobs.val_set_size:
        phases["evaluation"] = steady | {"logits": step.evaluated}
    return phases


def _evidence(knobs: Knobs, stays: Residents, bare: bool) -> Iterator[str]:
    if bare:
        yield "formula: tensors alone, as on a CPU"
    else:
        yield (
            f"formula: tensors within {_TENSOR_ERROR:.0%} of published T4 and A100 measurements, "
            "not measured on this card (docs/planning.md)"
        )
    if not known(knobs.optimizer):
        yield f"optimizer {knobs.optimizer}: its states are not derived, counted as AdamW's in fp32"
    if stays.paged:
        yield (
            f"optimizer: {stays.paged / _GIB:.2f} GiB of it may move to RAM when the card is "
            "full (paged)"
        )
    if knobs.strategy in {"zero1", "zero2", "zero3"}:
        yield f"{knobs.strategy}: derived from DeepSpeed's defaults, no measurement to compare with"
    if knobs.activation_offloading:
        yield "activation offloading: two layers' tensors on their way, derived, not measured"
