"""Owns the out-of-memory ladder: which settings to lower after which failure.

Pure: a tree of Axolotl keys in, changes of it out. Does not tell an out-of-memory from
another failure (``diagnosis``) nor restart anything (``sessions``).
"""

from dataclasses import asdict, dataclass
from typing import Any

from leviathan.config import OutOfMemory, Rung


@dataclass(frozen=True)
class Change:
    """One rung taken: the keys it changed, each with the value before and after."""

    before: dict[str, Any]
    after: dict[str, Any]
    why: str

    def __str__(self) -> str:
        return ", ".join(f"{k} {self.before.get(k)!r} -> {v!r}" for k, v in self.after.items())

    def applies_to(self, tree: dict[str, Any]) -> bool:
        """Whether the keys still have the values that proved too large."""
        return all(tree.get(key) == value for key, value in self.before.items())

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` keeps it."""
        return asdict(self)


def next_rung(policy: OutOfMemory, tree: dict[str, Any], phase: str, why: str) -> Change | None:
    """The first rung that is meant for ``phase`` and still changes something; None at the end."""
    rungs = (rung for rung in policy.ladder if phase in rung.when)
    return _first(rungs, tree, why)


def next_shrink(policy: OutOfMemory, tree: dict[str, Any], why: str) -> Change | None:
    """The first shrinking that still changes something. It makes another training."""
    return _first(policy.shrink, tree, why)


def _first(rungs: Any, tree: dict[str, Any], why: str) -> Change | None:
    for rung in rungs:
        after = _after(rung, tree)
        changed = {key: value for key, value in after.items() if tree.get(key) != value}
        if changed:
            return Change({key: tree.get(key) for key in changed}, changed, why)
    return None


def _after(rung: Rung, tree: dict[str, Any]) -> dict[str, Any]:
    if rung.halve is None:
        return rung.set
    size = tree.get(rung.halve)
    if not isinstance(size, int) or size // 2 < rung.down_to:
        return {}
    if rung.halve == "micro_batch_size":
        # An odd size cannot be halved with the effective batch kept: go to its largest
        # divisor below the half.
        size_after = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        steps = int(tree.get("gradient_accumulation_steps") or 1)
        return {
            "micro_batch_size": size_after,
            "gradient_accumulation_steps": steps * (size // size_after),
        }
    if rung.halve == "lora_r":
        alpha = tree.get("lora_alpha")
        scaled = {"lora_alpha": alpha // 2} if isinstance(alpha, int) and alpha > 1 else {}
        return {"lora_r": size // 2, **scaled}
    return {rung.halve: size // 2}


def advice(changes: list[Change]) -> str:
    """What to put into the profile so that the next run begins where this one arrived."""
    final: dict[str, Any] = {}
    for change in changes:
        final |= change.after
    keys = ", ".join(f"{key}: {_yaml(value)}" for key, value in final.items())
    return f"put into the profile's axolotl block: {{{keys}}}"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
