"""Owns the settings given in tokens: a batch, a training, a warm-up, as Axolotl's whole steps.

Pure. ``global_batch_tokens`` / (micro batch x sequence length x processes) are the micro
batches of a step; ``total_tokens`` and ``warmup_tokens`` over the batch are steps.
"""

import math
from dataclasses import dataclass
from typing import Any

from leviathan import knobs
from leviathan.errors import BadInput


@dataclass(frozen=True)
class Step:
    """An Axolotl key that follows from tokens."""

    source: str
    """The recipe's key."""
    key: str
    value: int
    why: str
    """The arithmetic, to be read."""


def batch(tree: dict[str, Any], processes: int, tokens: int, where: str) -> Step:
    """Micro batches of one step that take exactly ``tokens`` (over all processes).

    Raises:
        BadInput: ``where`` is named: rows are not filled, or the batch is not whole.
    """
    chosen = knobs.read({**tree, "gradient_accumulation_steps": 1}, processes)
    if not chosen.packing:
        raise BadInput(f"{where}: global_batch_tokens counts full sequences",
                       "set sample_packing: true, or gradient_accumulation_steps")  # fmt: skip
    once = chosen.tokens_per_step
    arithmetic = (
        f"{chosen.micro_batch_size} x {chosen.sequence_len:,} x {processes} "
        f"process{'es' if processes > 1 else ''} = {once:,}"
    )
    if tokens % once:
        down, up = tokens // once * once, math.ceil(tokens / once) * once
        near = f"{down:,} or {up:,}" if down else f"{up:,}"
        raise BadInput(
            f"{where}: global_batch_tokens {tokens:,} is no multiple of micro batch x sequence "
            f"length x processes: {arithmetic}", f"set it to {near}, or change micro_batch_size",
        )  # fmt: skip
    count = tokens // once
    return Step("global_batch_tokens", "gradient_accumulation_steps", count,
                f"{tokens:,} / ({arithmetic}) = {count:,}")  # fmt: skip


def total(tree: dict[str, Any], processes: int, tokens: int, where: str) -> Step:
    """Steps that take at least ``tokens``: the last one is whole, too."""
    per_step = _per_step(tree, processes, "total_tokens", where)
    count = math.ceil(tokens / per_step)
    rounded = "" if tokens % per_step == 0 else f" ({tokens / per_step:,.2f} rounded up)"
    return Step("total_tokens", "max_steps", count,
                f"{tokens:,} / {per_step:,} a step = {count:,}{rounded}")  # fmt: skip


def warm_up(tree: dict[str, Any], processes: int, tokens: int, where: str) -> Step:
    """Steps nearest to ``tokens``, one at least."""
    per_step = _per_step(tree, processes, "warmup_tokens", where)
    count = max(1, round(tokens / per_step))
    rounded = "" if tokens % per_step == 0 else f" ({tokens / per_step:,.2f} rounded)"
    return Step("warmup_tokens", "warmup_steps", count,
                f"{tokens:,} / {per_step:,} a step = {count:,}{rounded}")  # fmt: skip


def _per_step(tree: dict[str, Any], processes: int, source: str, where: str) -> int:
    chosen = knobs.read(tree, processes)
    if not chosen.packing:
        raise BadInput(f"{where}: {source} counts full sequences",
                       "set axolotl.sample_packing: true, or give steps")  # fmt: skip
    return chosen.tokens_per_step
