"""Owns how rows are packed: in which order, and into how many batches.

The order is the one that training takes; the packing is a simulation of Axolotl's, which
needs torch and numba. Does not know what a row is, only its length.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """What packs rows into bins and bins into batches."""

    capacity: int
    """Tokens a bin takes."""
    bins_per_batch: int
    """1 where a whole micro batch is one bin."""
    bin_size: int
    """Most rows in a bin."""
    group_size: int
    """Rows packed together; the next group begins with empty bins."""
    sequential: bool
    """Each bin takes the rows that come next, instead of whatever fits."""


def order(rows: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 to ``rows - 1``, shuffled by nothing but ``seed`` and ``epoch``."""
    import numpy as np  # comes with the training stack

    # numpy keeps RandomState's stream the same for good (NEP 19); torch promises no such
    # thing, and a run may be resumed with another torch.
    words = [seed % 2**32, seed // 2**32 % 2**32, epoch]
    return [int(row) for row in np.random.RandomState(words).permutation(rows)]


def merged_order(rows: int, seed: int) -> list[int]:
    """How Axolotl shuffles a dataset before it holds rows out (``datasets``' shuffle)."""
    import numpy as np

    return [int(row) for row in np.random.default_rng(seed).permutation(rows)]


def bins(lengths: Sequence[int], rules: Rules) -> int:
    """How many bins rows of these lengths need, in this order (axolotl/utils/samplers)."""
    if rules.sequential:
        return _next_fit(lengths, rules.capacity)
    groups = range(0, len(lengths), rules.group_size)
    return sum(_first_fit(lengths[start : start + rules.group_size], rules) for start in groups)


def batches(lengths: Sequence[int], rules: Rules) -> int:
    """How many full batches; a last one that is not full is dropped."""
    return bins(lengths, rules) // rules.bins_per_batch


def _next_fit(lengths: Sequence[int], capacity: int) -> int:
    opened, space = 0, 0
    for length in lengths:
        if length > space:
            opened, space = opened + 1, capacity
        space -= length
    return opened


def _first_fit(lengths: Sequence[int], rules: Rules) -> int:
    """Each row into the first bin with room for it, found in a tree of the largest rooms."""
    width = 1
    while width < len(lengths):
        width *= 2
    room = [rules.capacity] * (2 * width)
    held = [0] * width
    opened = 0
    for length in lengths:
        node = 1
        while node < width:
            node *= 2
            if room[node] < length:
                node += 1
        held[node - width] += 1
        opened = max(opened, node - width + 1)
        room[node] = 0 if held[node - width] == rules.bin_size else room[node] - length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return opened
