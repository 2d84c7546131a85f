"""Owns finding what fits a card: the largest knobs, the change that costs least.

Pure: tries variations against ``memory``. Does not predict anything itself; what fits into
hours and money is for ``offers``.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from leviathan import knobs as reading
from leviathan import memory
from leviathan.decoder import Shape
from leviathan.knobs import Knobs
from leviathan.memory import Memory
from leviathan.plan import Plan

_LARGEST_BATCH = 256
_RANKS = (4, 8, 16, 32, 64, 128, 256, 512)
_LEAST_RANK = 8
_LEAST_LENGTH = 512
_LENGTH_STEP = 256
_WORTH_GIB = 0.05
_LIGER = "axolotl.integrations.liger.LigerPlugin"


@dataclass(frozen=True)
class Card:
    """What must hold a training: the model's shape on one card's memory."""

    shape: Shape
    device: str
    memory_gib: float
    processes: int

    def needs(self, tree: dict[str, Any]) -> Memory:
        """The memory one process takes with the Axolotl keys of ``tree``."""
        knobs = reading.read(tree, self.processes)
        return memory.estimate(self.shape, knobs, device=self.device)

    def holds(self, tree: dict[str, Any]) -> bool:
        """Whether it fits even at the high end of the estimate."""
        return self.needs(tree).verdict_for(self.memory_gib) == "fits"


@dataclass(frozen=True)
class Change:
    """Axolotl keys to set, and what that costs."""

    sets: dict[str, Any]
    costs: str
    same_model: bool = True
    """Whether what is trained stays the same but for the order of additions."""

    @property
    def text(self) -> str:
        """As options to type."""
        sets = (f"{key}={_shown(value)}" for key, value in self.sets.items())
        return " ".join(f"--set {shlex.quote(text)}" for text in sets)


@dataclass(frozen=True)
class Reach:
    """How far each knob goes on a card while the others stay; None: it never fits."""

    micro_batch_size: int | None
    sequence_len: int | None
    lora_r: int | None


def card_of(plan: Plan) -> Card | None:
    """What ``plan`` has to fit in; None where the memory is not known."""
    if plan.card_gib is None:
        return None
    hardware = plan.profile.hardware
    return Card(plan.shape, hardware.device, plan.card_gib, hardware.processes)


def cheapest_change(card: Card, tree: dict[str, Any]) -> Change | None:
    """The change of ``tree`` that fits ``card`` and costs least; None where nothing does.

    Changes that leave the model alone come first, one of them or several; then a single
    one that does not; then whatever it takes.
    """
    single = [step for step in _steps_down(tree, card) if card.holds({**tree, **step.sets})]
    same = next((step for step in single if step.same_model), None)
    return (
        same
        or _gathered(card, tree, same_model=True)
        or next(iter(single), None)
        or _gathered(card, tree, same_model=False)
    )


def _gathered(card: Card, tree: dict[str, Any], *, same_model: bool) -> Change | None:
    """Changes on top of each other until it fits, without those that were not needed."""
    taken: list[Change] = []
    while not card.holds(_after(tree, taken)):
        now = _after(tree, taken)
        total = card.needs(now).total_gib
        step = next(
            (
                s
                for s in _steps_down(now, card)
                if (s.same_model or not same_model)
                and card.needs({**now, **s.sets}).total_gib < total - _WORTH_GIB
            ),
            None,
        )
        if step is None:
            return None
        taken.append(step)
    for step in reversed(list(taken)):
        later = taken[taken.index(step) + 1 :]
        built_upon = any(step.sets.keys() & other.sets.keys() for other in later)
        fewer = [other for other in taken if other is not step]
        if not built_upon and card.holds(_after(tree, fewer)):
            taken = fewer
    sets = {key: value for step in taken for key, value in step.sets.items()}
    costs = dict.fromkeys(step.costs for step in taken)
    return Change(sets, "; ".join(costs), all(step.same_model for step in taken))


def _after(tree: dict[str, Any], steps: Iterable[Change]) -> dict[str, Any]:
    for step in steps:
        tree = {**tree, **step.sets}
    return tree


def _steps_down(tree: dict[str, Any], card: Card) -> Iterator[Change]:
    """Single changes that may save memory, those that cost least first."""
    knobs = reading.read(tree, card.processes)
    micro, accumulation = knobs.micro_batch_size, knobs.gradient_accumulation_steps
    if not knobs.fused_cross_entropy and card.device == "cuda":
        plugins = [*(tree.get("plugins") or [])]
        fused: dict[str, Any] = {"plugins": [*plugins, _LIGER]} if _LIGER not in plugins else {}
        fused |= {"liger_fused_linear_cross_entropy": True}
        yield Change(fused, "nothing, and it is faster")
    if knobs.eval_batch_size > 1:
        yield Change({"eval_batch_size": max(1, knobs.eval_batch_size // 2)}, "slower evaluations")
    if micro % 2 == 0:
        halved = {"micro_batch_size": micro // 2, "gradient_accumulation_steps": accumulation * 2}
        yield Change(halved, "some speed; the effective batch stays")
    if not knobs.gradient_checkpointing:
        yield Change({"gradient_checkpointing": True}, "a third to a half more compute")
    yield from _steps_to_another_training(tree, knobs)


def _steps_to_another_training(tree: dict[str, Any], knobs: Knobs) -> Iterator[Change]:
    if knobs.quantised and not knobs.skip_upcast:
        yield Change({"embeddings_skip_upcast": True}, "16-bit embeddings", False)
    if "8bit" not in knobs.optimizer:
        yield Change({"optimizer": "paged_adamw_8bit"}, "8-bit optimizer state", False)
    if knobs.method == "full":
        adapter = "qlora" if tree.get("load_in_4bit") else "lora"
        lora = {"adapter": adapter, "lora_r": 64, "lora_alpha": 128, "lora_target_linear": True}
        yield Change(lora, "an adapter instead of the whole model", False)
    if knobs.method == "lora":
        four = {"adapter": "qlora", "load_in_4bit": True, "embeddings_skip_upcast": True}
        yield Change(four, "the base model in 4 bits, which is slower", False)
    if knobs.sequence_len >= 2 * _LEAST_LENGTH:
        yield Change({"sequence_len": knobs.sequence_len // 2}, "longer rows are lost", False)
    if knobs.rank >= 2 * _LEAST_RANK:
        alpha = tree.get("lora_alpha")
        smaller: dict[str, Any] = {"lora_r": knobs.rank // 2}
        if isinstance(alpha, int):
            smaller["lora_alpha"] = alpha // 2
        yield Change(smaller, "a smaller adapter", False)


def reach(card: Card, tree: dict[str, Any]) -> Reach:
    """The largest micro batch, sequence length and rank that fit, each alone."""

    knobs = reading.read(tree, card.processes)
    tree = {**tree, "eval_batch_size": knobs.eval_batch_size}  # else it would grow along

    def largest(key: str, candidates: Sequence[int]) -> int | None:
        return last_that(lambda value: card.holds({**tree, key: value}), candidates)

    longest = max(card.shape.max_positions, _LENGTH_STEP)
    lora = knobs.method != "full"
    return Reach(
        largest("micro_batch_size", range(1, _LARGEST_BATCH + 1)),
        largest("sequence_len", range(_LENGTH_STEP, longest + 1, _LENGTH_STEP)),
        largest("lora_r", _RANKS) if lora else None,
    )


def best(card: Card, tree: dict[str, Any]) -> Change | None:
    """The largest micro batch that fits with the effective batch kept; else what does fit.

    Larger micro batches use a card better; one that does not divide the effective batch
    would train another schedule.
    """
    knobs = reading.read(tree, card.processes)
    rows = knobs.micro_batch_size * knobs.gradient_accumulation_steps

    def split(micro: int) -> dict[str, Any]:
        return {
            "micro_batch_size": micro,
            "gradient_accumulation_steps": rows // micro,
            "eval_batch_size": knobs.eval_batch_size,  # else it would grow along
        }

    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    micro = last_that(lambda n: card.holds({**tree, **split(n)}), divisors)
    if micro is None:
        return cheapest_change(card, tree)
    return Change(split(micro), "nothing: the effective batch stays")


def last_that(holds: Callable[[int], bool], candidates: Sequence[int]) -> int | None:
    """The last of ascending ``candidates`` that holds, where all before it do."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if holds(candidates[middle]) else (low, middle)
    return candidates[low - 1] if low else None


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | list) else str(value)
