"""Owns the proof of a merge: the merged model against base + adapter, by their logits.

Runs as ``python -m leviathan.proof SPEC OUT`` so that the models' memory goes back
before anything else happens. Does not merge; ``merge`` writes what is proven here.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import child, models

MAX_PROBE_TOKENS = 256


@dataclass(frozen=True)
class Comparison:
    """How the three models differ over every position of every probe."""

    positions: int
    argmax_agreement: float
    """Share of positions where merged and trained model favour the same token."""
    max_abs_diff: float
    """Largest |merged - trained| over all logits."""
    relative_error: float
    """|merged - trained| / |trained - base|, L2 norms over all logits."""
    kl: float
    """Mean KL(trained || merged) per position, in nats."""
    adapter_effect: float
    """Largest |trained - base| over all logits."""
    differs_from_base: bool
    """Whether the merged model gives other logits than the base."""
    computed: str = ""
    """Device and number format of the trained and of the merged model's logits."""


def verdict(found: Comparison, argmax_agreement: float, relative_error: float) -> tuple[str, str]:
    """``equal``, ``different`` or ``unproven``, and why in one line."""
    if found.adapter_effect == 0:
        return "unproven", "the adapter changes nothing: trained and base model are the same"
    figures = (v for v in asdict(found).values() if isinstance(v, float))
    if not all(math.isfinite(figure) for figure in figures):
        return "unproven", "a model gives NaN or infinite logits"
    if not found.differs_from_base:
        return "different", "the merged model is the base model: the adapter is not in it"
    if found.argmax_agreement < argmax_agreement:
        return "different", (
            f"only {found.argmax_agreement:.1%} of positions favour the same token "
            f"({argmax_agreement:.1%} needed)"
        )
    if found.relative_error > relative_error:
        return "different", (
            f"the merge is off by {found.relative_error:.1%} of the adapter's effect "
            f"({relative_error:.1%} allowed)"
        )
    return "equal", "merged equals base + adapter and differs from the base"


class _Sums:
    """Running sums over probes, so that no probe's logits outlive it."""

    def __init__(self) -> None:
        self.positions = self.agreed = 0
        self.max_diff = self.max_effect = self.max_from_base = 0.0
        self.diff2 = self.effect2 = self.kl = 0.0

    def add(self, base: Any, trained: Any, merged: Any) -> None:
        """One probe: logits [T, vocabulary] of the three models."""
        size = min(base.shape[-1], trained.shape[-1], merged.shape[-1])
        base, trained, merged = base[:, :size], trained[:, :size], merged[:, :size]
        self.positions += trained.shape[0]
        self.agreed += int((trained.argmax(-1) == merged.argmax(-1)).sum())
        self.max_diff = _max(self.max_diff, (merged - trained).abs().max())
        self.max_effect = _max(self.max_effect, (trained - base).abs().max())
        self.max_from_base = _max(self.max_from_base, (merged - base).abs().max())
        self.diff2 += float((merged - trained).double().square().sum())
        self.effect2 += float((trained - base).double().square().sum())
        log_p, log_q = trained.log_softmax(-1), merged.log_softmax(-1)
        self.kl += float((log_p.exp() * (log_p - log_q)).sum())

    def comparison(self) -> Comparison:
        return Comparison(
            positions=self.positions,
            argmax_agreement=self.agreed / max(self.positions, 1),
            max_abs_diff=self.max_diff,
            relative_error=math.sqrt(self.diff2 / self.effect2) if self.effect2 else math.inf,
            kl=self.kl / max(self.positions, 1),
            adapter_effect=self.max_effect,
            differs_from_base=self.max_from_base > 0,
        )


def _max(so_far: float, value: Any) -> float:
    number = float(value)
    return number if math.isnan(number) else max(so_far, number)


def compare(trained: models.Source, merged: models.Source, probes: list[str]) -> Comparison:
    """Run the probes through trained model, base (adapter off) and merged model."""
    model = models.Model(trained, precise=True)
    kept = []
    for probe in probes:
        ids = model.token_ids(probe)[:, :MAX_PROBE_TOKENS]
        with model.without_adapter():
            base = model.logits(ids)
        kept.append((ids, base, model.logits(ids)))
    computed = model.computed
    del model
    sums, whole = _Sums(), models.Model(merged, precise=True)
    for ids, base, wanted in kept:
        sums.add(base, wanted, whole.logits(ids))
    return replace(sums.comparison(), computed=f"{computed} / {whole.computed}")


def read(document: dict[str, Any]) -> Comparison:
    """A comparison from its JSON."""
    return Comparison(**document)


def _work(specification: dict[str, Any], _tell: child.Tell) -> dict[str, Any]:
    adapter = Path(specification["trained"]["adapter"])
    trained = models.Source(**{**specification["trained"], "adapter": adapter})
    merged = models.Source(**specification["merged"])
    return asdict(compare(trained, merged, specification["probes"]))


if __name__ == "__main__":
    child.serve(_work)
