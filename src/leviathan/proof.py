"""Owns the proof of a merge: the merged model against base + adapter, by logits and by tokens.

Twice: in float32, which takes rounding out and tells whether the arithmetic is right; and in
the type that is served, which tells whether that type's rounding spoils it. Runs as
``python -m leviathan.proof``, a ``child``, so that the models' memory goes back, and has
``parity`` look at the files in the same process. Does not merge; ``merge`` writes what is
proven here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leviathan import child, models, parity, shards

MAX_PROBE_TOKENS = 256
MAX_PROMPT_TOKENS = 128
NEW_TOKENS = 16
_ACCUMULATED = 64
"""float32 roundings that add up on the way to a logit: 3 to 8 measured on two layers."""


@dataclass(frozen=True)
class Serving:
    """Trained and merged model in the type that is served.

    Two models in the same type round differently, so where the trained model has two favourites
    as close as rounding alone moves them, either may win: a near tie. ``rounding`` is measured on
    the trained model itself, and no fault of the merge can widen it.
    """

    computed: str
    """Device and number format of the trained and of the merged model's logits."""
    positions: int
    argmax_agreement: float
    """Share of positions where both favour the same token, near ties counted as they are."""
    disagreements: int
    """Positions where they do not, and ..."""
    near_ties: int
    """... those of them where the trained model's two tokens are within twice ``rounding``."""
    max_abs_diff: float
    kl: float
    """Mean KL(trained || merged) per position, in nats."""
    rounding: float
    """Largest |trained in this type - trained in float32| over all logits."""
    greedy_tokens: int
    """Tokens generated, over all probes."""
    greedy_agreement: float
    """Share of them before merged and trained model part for the first time."""
    base_greedy_agreement: float
    """The same for the base model: how far it goes along with the trained one."""
    greedy_partings: int
    """Probes on which they part, and ..."""
    greedy_near_ties: int
    """... those of them that part at a near tie."""

    @property
    def disputed(self) -> float:
        """Share of positions with another favourite that rounding does not explain."""
        return (self.disagreements - self.near_ties) / max(self.positions, 1)


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
    serving: Serving | None = None
    """The same in the type that is served."""


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
    if found.serving and (reason := _fault_in_serving(found.serving, argmax_agreement)):
        return "different", reason
    return "equal", "merged equals base + adapter and differs from the base"


def _fault_in_serving(found: Serving, argmax_agreement: float) -> str | None:
    """What is wrong in the type that is served, if anything is."""
    if not (math.isfinite(found.max_abs_diff) and math.isfinite(found.rounding)):
        return f"computed as served ({found.computed}), a model gives NaN or infinite logits"
    if found.disputed > 1 - argmax_agreement:
        return (
            f"as served, {found.disputed:.1%} of positions favour another token, and rounding "
            f"does not explain it ({1 - argmax_agreement:.1%} allowed)"
        )
    parted = found.greedy_partings - found.greedy_near_ties
    if parted:
        return (
            f"as served, {parted} greedy answers leave the trained model's where that one was sure"
        )
    return None


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


@dataclass(frozen=True)
class _Greedy:
    """Tokens a model gives greedily, and their scores, [new tokens, vocabulary]."""

    tokens: list[int]
    scores: Any


@dataclass(frozen=True)
class _Answers:
    """What a model says to the probes."""

    computed: str
    logits: list[Any]
    base_logits: list[Any]
    greedy: list[_Greedy]
    base_greedy: list[_Greedy]


def compare(
    trained: models.Source, merged: models.Source, probes: list[str],
    base: models.Source | None = None,
) -> Comparison:  # fmt: skip
    """Run the probes through trained model, base and merged model.

    The base is the trained model with its adapter off, else ``base``. Of a model that was made
    from nothing it is what knows nothing: the same logit for every token.
    """
    import torch

    dtype = serving_dtype(Path(merged.model))
    ids, first = _ask(trained, probes, None, dtype)
    if trained.adapter is None:
        first = replace(first, base_logits=_base_logits(base, ids, first, dtype))
    _, second = _ask(merged, ids, None, dtype)
    sums = _Sums()
    for before, wanted, got in zip(first.base_logits, first.logits, second.logits, strict=True):
        sums.add(before, wanted, got)
    found = replace(sums.comparison(), computed=f"{first.computed} / {second.computed}")
    if _is_served_as(dtype, first, second):
        # Where float32 did not fit, that type's own step stands for what it would have shown.
        steps = _ACCUMULATED if dtype == "float32" else 1
        rounding = steps * torch.finfo(getattr(torch, dtype)).eps * _largest(first.logits)
        return replace(found, serving=_serving(first, second, rounding))
    precise = first.logits
    del first, second
    _, first = _ask(trained, ids, dtype, dtype)
    rounding = max(float((a - b).abs().max()) for a, b in zip(first.logits, precise, strict=True))
    del precise
    _, second = _ask(merged, ids, dtype, dtype)
    return replace(found, serving=_serving(first, second, rounding))


def _base_logits(
    base: models.Source | None, ids: list[Any], trained: _Answers, dtype: str
) -> list[Any]:
    if base is None:
        return [one * 0 for one in trained.logits]
    _, answers = _ask(base, ids, None, dtype)
    return answers.logits


def serving_dtype(directory: Path) -> str:
    """torch's name of the type that most of a model's bytes are stored in, or computed in."""
    told = json.loads((directory / "config.json").read_bytes())
    if "quantization_config" in told:
        return str(told.get("dtype") or told.get("torch_dtype") or "bfloat16")
    sizes: dict[str, int] = {}
    for tensor in shards.stored(directory).values():
        if tensor.dtype in shards.FLOATS:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    return str(shards.torch_dtype(max(sizes, key=lambda name: sizes[name]))).split(".")[-1]


def _is_served_as(dtype: str, *answers: _Answers) -> bool:
    return all(one.computed.endswith(f" {dtype}") for one in answers)


def _largest(logits: Sequence[Any]) -> float:
    return max(float(one.abs().max()) for one in logits)


def _ask(
    source: models.Source, probes: Sequence[Any], dtype: str | None, serving: str
) -> tuple[list[Any], _Answers]:
    """Token ids of the probes, and a model's answers; greedy ones only in the serving type."""
    model = models.Model(source, precise=dtype is None, dtype=dtype)
    ids = [
        model.token_ids(probe)[:, :MAX_PROBE_TOKENS] if isinstance(probe, str) else probe
        for probe in probes
    ]
    is_served = model.computed.endswith(f" {serving}")
    logits, greedy = [model.logits(one) for one in ids], []
    if is_served:
        greedy = [_greedy(model, one) for one in ids]
    base_logits, base_greedy = [], []
    if source.adapter:
        with model.without_adapter():
            base_logits = [model.logits(one) for one in ids]
            base_greedy = [_greedy(model, one) for one in ids] if is_served else []
    return ids, _Answers(model.computed, logits, base_logits, greedy, base_greedy)


def _greedy(model: models.Model, ids: Any) -> _Greedy:
    """How the model goes on from the first half of a probe."""
    prompt = ids[:, : max(1, min(ids.shape[1] // 2, MAX_PROMPT_TOKENS))]
    tokens, scores = model.greedy(prompt, NEW_TOKENS)
    return _Greedy(tokens, scores)


def _serving(trained: _Answers, merged: _Answers, rounding: float) -> Serving:
    sums = _Sums()
    disagreements = near_ties = 0
    for wanted, got in zip(trained.logits, merged.logits, strict=True):
        sums.add(wanted, wanted, got)
        size = min(wanted.shape[-1], got.shape[-1])
        ours, theirs = wanted[:, :size].argmax(-1), got[:, :size].argmax(-1)
        gaps = _gaps(wanted, ours, theirs)[ours != theirs]
        disagreements += gaps.numel()
        near_ties += int((gaps <= 2 * rounding).sum())
    seen = sums.comparison()
    agreed, partings, parting_ties = _walk(trained.greedy, merged.greedy, rounding)
    with_base = 0
    if trained.base_greedy:  # not asked of a model that was trained whole
        with_base, _, _ = _walk(trained.greedy, trained.base_greedy, rounding)
    total = sum(len(one.tokens) for one in trained.greedy)
    return Serving(
        computed=f"{trained.computed} / {merged.computed}",
        positions=seen.positions,
        argmax_agreement=seen.argmax_agreement,
        disagreements=disagreements,
        near_ties=near_ties,
        max_abs_diff=seen.max_abs_diff,
        kl=seen.kl,
        rounding=rounding,
        greedy_tokens=total,
        greedy_agreement=agreed / max(total, 1),
        base_greedy_agreement=with_base / max(total, 1),
        greedy_partings=partings,
        greedy_near_ties=parting_ties,
    )


def _gaps(logits: Any, ours: Any, theirs: Any) -> Any:
    """How much higher the first token stands than the second, at each position."""
    return (logits.gather(-1, ours[:, None]) - logits.gather(-1, theirs[:, None]))[:, 0]


def _walk(
    trained: Sequence[_Greedy], others: Sequence[_Greedy], rounding: float
) -> tuple[int, int, int]:
    """Tokens until they part, how many answers part, and how many of those at a near tie."""
    agreed = partings = ties = 0
    for wanted, got in zip(trained, others, strict=True):
        pairs = list(zip(wanted.tokens, got.tokens, strict=True))
        at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        agreed += len(pairs) if at is None else at
        if at is not None:
            ours, theirs = pairs[at]
            partings += 1
            ties += bool(wanted.scores[at, ours] - wanted.scores[at, theirs] <= 2 * rounding)
    return agreed, partings, ties


def read(document: dict[str, Any]) -> Comparison:
    """A comparison from its JSON."""
    serving = document.get("serving")
    return Comparison(**{**document, "serving": Serving(**serving) if serving else None})


def _work(specification: dict[str, Any], _tell: child.Tell) -> dict[str, Any]:
    models.quiet()
    # First: what it puts right is what is loaded then.
    findings = parity.check(parity.subject_of(specification["subject"]))
    trained, merged = (_source(specification[name]) for name in ("trained", "merged"))
    base = _source(specification["base"]) if specification.get("base") else None
    compared = compare(trained, merged, specification["probes"], base)
    return {"comparison": asdict(compared), "parity": [asdict(one) for one in findings]}


def _source(document: dict[str, Any]) -> models.Source:
    adapter = document["adapter"]
    return models.Source(**{**document, "adapter": Path(adapter) if adapter else None})


if __name__ == "__main__":
    child.serve(_work)
