"""Owns the out-of-memory ladder: which settings to lower after which failure.

Pure: a tree of Axolotl keys in, changes of it out. Does not tell an out-of-memory from
another failure (``diagnosis``) nor restart anything (``sessions``).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leviathan.config import OutOfMemory, Rung


@dataclass(frozen=True)
class Change:
    """One rung taken: the keys it changed, each with the value before and after."""

    before: dict[str, Any]
    after: dict[str, Any]
    why: str
    refused: bool = False
    """The training could not begin with it (Axolotl or the device says no): taken back."""

    def __str__(self) -> str:
        return ", ".join(f"{k} {self.before.get(k)!r} -> {v!r}" for k, v in self.after.items())

    def applies_to(self, tree: dict[str, Any]) -> bool:
        """Whether the keys still have the values that proved too large."""
        same = all(tree.get(key) == value for key, value in self.before.items())
        return same and not self.refused

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` keeps it."""
        return asdict(self)


def next_rung(
    policy: OutOfMemory, tree: dict[str, Any], phase: str, why: str, taken: Sequence[Change] = ()
) -> Change | None:
    """The first rung that is meant for ``phase`` and still changes something; None at the end.

    Of the rungs ``taken`` those that were refused are passed over.
    """
    refused = [change.after for change in taken if change.refused]
    return _first(policy.ladder, phase, tree, why, refused)


def next_shrink(policy: OutOfMemory, tree: dict[str, Any], why: str) -> Change | None:
    """The first shrinking that still changes something. It makes another training."""
    return _first(policy.shrink, None, tree, why, [])


def _first(
    rungs: Sequence[Rung],
    phase: str | None,
    tree: dict[str, Any],
    why: str,
    refused: Sequence[dict[str, Any]],
) -> Change | None:
    for number, rung in enumerate(rungs):
        if phase is not None and phase not in rung.when:
            continue
        after = _halved(rung, tree) if rung.halve else _set(rungs[number:], tree)
        changed = {key: value for key, value in after.items() if tree.get(key) != value}
        if changed and changed not in refused:
            return Change({key: tree.get(key) for key in changed}, changed, why)
    return None


def _set(rungs: Sequence[Rung], tree: dict[str, Any]) -> dict[str, Any]:
    """What the first of ``rungs`` sets, less what is set already by it or one further down.

    Without that two rungs for one key would take turns for ever.
    """
    return {
        key: value
        for key, value in rungs[0].set.items()
        if not any(key in r.set and r.set[key] == tree.get(key) for r in rungs)
        and not _is_no_less(key, value, tree)
    }


def _is_no_less(key: str, value: Any, tree: dict[str, Any]) -> bool:
    """The one size that rungs may set as well as halve is never raised."""
    size = _size(key, tree) if key == "eval_batch_size" else None
    return size is not None and size <= value


def _size(key: str, tree: dict[str, Any]) -> int | None:
    # Axolotl evaluates with the training's batch where none is given.
    fallback = tree.get("micro_batch_size") if key == "eval_batch_size" else None
    size = tree.get(key, fallback)
    return size if isinstance(size, int) else None


def _halved(rung: Rung, tree: dict[str, Any]) -> dict[str, Any]:
    size = _size(str(rung.halve), tree)
    if size is None or size // 2 < rung.down_to:
        return {}
    if rung.halve == "micro_batch_size":
        # An odd size cannot be halved with the effective batch kept: go to its largest
        # divisor below the half.
        size_after = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        if size_after < rung.down_to:
            return {}
        steps = int(tree.get("gradient_accumulation_steps") or 1)
        return {
            "micro_batch_size": size_after,
            "gradient_accumulation_steps": steps * (size // size_after),
        }
    if rung.halve == "lora_r":
        alpha = tree.get("lora_alpha")
        scaled = {"lora_alpha": alpha // 2} if isinstance(alpha, int) and alpha > 1 else {}
        return {"lora_r": size // 2, **scaled}
    return {str(rung.halve): size // 2}


def advice(adjusted: dict[str, Any]) -> str:
    """What to put into the profile so that the next run begins where this one arrived."""
    keys = ", ".join(f"{key}: {json.dumps(value)}" for key, value in adjusted.items())
    return f"put into the profile's axolotl block: {{{keys}}}"
