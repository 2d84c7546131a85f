"""Owns how many steps a training takes: rows into batches into optimizer steps.

Pure. Follows Axolotl 0.19, the Trainer and our own plugin; docs/planning.md derives it.
Does not read the corpus (``tokens``) nor say how long a step takes.
"""

import functools
import math
import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from leviathan import packing
from leviathan.errors import BadInput
from leviathan.figures import Statistics
from leviathan.knobs import Knobs
from leviathan.reinforcement import Groups

Lengths = npt.NDArray[np.uint32]
"""Tokens of rows: a corpus has millions of them, and none becomes an object here."""

# Attention that keeps packed rows apart without a mask (axolotl/utils/schemas/enums.py);
# with it a whole micro batch is packed as one bin.
_PACKING_ATTENTION = {
    "flash_attention_2", "flash_attention_3", "flash_attention_4", "flash_attention_torch",
    "flex_attention", "xformers", "sage", "kernels-community/flash-attn2",
    "kernels-community/flash-attn3", "kernels-community/sage-attention",
}  # fmt: skip
_LONGEST = 2**32 - 1
COMPLETION_PIECES = 64
"""Completion cuts a text after so many sequence lengths."""
_SIMULATED_ROWS = 5_000  # packed one by one in 0.03 s; more rows are scaled
_COUNTED_EPOCHS = 4  # Axolotl takes the least of so many shuffles, or of one from 4 ranks on


@dataclass(frozen=True)
class Rules:
    """Keys that decide about rows and batches and about nothing else."""

    excess_length: Literal["drop", "truncate", "raise"] = "drop"
    min_tokens: int = 2
    curriculum: bool = False
    drop_last: bool = False
    """An unpacked epoch's last micro batch, if it is not full."""
    shuffled: bool = True
    """Rows are shuffled once before some are held out."""
    real_batches: bool | None = None
    """Bins are single rows of a micro batch; None lets the attention decide."""
    group_size: int = 100_000
    bin_size: int = 200
    sequential: bool = False
    pad_to_sequence_len: bool | None = None
    """Unpacked rows are padded to ``sequence_len`` (packed ones always are)."""
    pad_to_multiple_of: int = 64
    efficiency: float | None = None
    """Axolotl counts steps by it where the order is not ours (curriculum_sampling)."""


def rules(tree: dict[str, Any]) -> Rules:
    """The rules of a merged Axolotl ``tree``; its schema's defaults where a key is absent.

    Raises:
        BadInput: a size below 1.
    """
    strategy = str(tree.get("excess_length_strategy") or "drop").lower()
    return Rules(
        excess_length=strategy,  # type: ignore[arg-type]  # checked against Axolotl's schema
        min_tokens=_whole(tree, "min_sample_len", 2),
        curriculum=bool(tree.get("curriculum_sampling")),
        drop_last=bool(tree.get("dataloader_drop_last")),
        shuffled=tree.get("shuffle_merged_datasets") is not False,
        real_batches=tree.get("multipack_real_batches"),
        group_size=_whole(tree, "sample_packing_group_size", 100_000),
        bin_size=_whole(tree, "sample_packing_bin_size", 200),
        sequential=bool(tree.get("sample_packing_sequentially")),
        pad_to_sequence_len=tree.get("pad_to_sequence_len"),
        pad_to_multiple_of=_whole(tree, "pad_to_multiple_of", 64),
        efficiency=tree.get("sample_packing_eff_est"),
    )


def _whole(tree: dict[str, Any], key: str, absent: int) -> int:
    value = int(tree.get(key) or absent)
    if value < 1:
        raise BadInput(f"{key} is {value}", "it needs a whole number, 1 or more")
    return value


@dataclass(frozen=True)
class Steps:
    """What a training will count. Rows are those after completion's splitting."""

    train_rows: int
    eval_rows: int
    dropped_rows: int
    """Too long, too short, or (packed) without a token to train on."""
    batches_per_epoch: int
    """Micro batches of each process."""
    steps_per_epoch: int
    steps: int
    """Optimizer steps of the whole run."""
    train_tokens: int
    """Of the whole run, without padding."""
    slots: int
    """Token positions computed in the whole run: ``train_tokens`` and padding."""
    eval_batches: int
    """Of one evaluation, of each process."""
    exact: bool

    @property
    def packing_efficiency(self) -> float:
        """Share of the computed positions that are tokens."""
        return self.train_tokens / self.slots


def predict(statistics: Statistics, knobs: Knobs, rules: Rules = Rules()) -> Steps:
    """The steps of one training.

    Args:
        statistics: of the sample.
        knobs: of the profile and recipe; ``epochs``, ``max_steps`` and ``val_set_size`` too.
        rules: of the same configuration.

    Raises:
        BadInput: no row is left to train on, or the rows held out are not fewer than all.
    """
    rows = _Rows.made(statistics, knobs, rules)
    held_out = _held_out(knobs.val_set_size, rows.kept)
    train_rows = rows.kept - held_out
    plan = _packed if knobs.packing else _unpacked
    return plan(rows, train_rows, held_out, knobs, rules)


# --- rows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """The rows that Axolotl prepares."""

    prepared: Lengths
    """Tokens of those seen, in the order of the file; 0 for one that is dropped."""
    lengths: Lengths
    """The same without those dropped."""
    kept: int
    dropped: int
    mean_tokens: float
    all_seen: bool

    @classmethod
    def made(cls, statistics: Statistics, knobs: Knobs, rules: Rules) -> "_Rows":
        longest = int(np.max(statistics.tokens))
        if (
            rules.excess_length == "raise"
            and longest > knobs.sequence_len
            and not statistics.splits
        ):
            raise BadInput(
                f"excess_length_strategy is raise, and a row has {longest:,} tokens, "
                f"sequence_len is {knobs.sequence_len:,}",
                "raise sequence_len, or set excess_length_strategy=drop",
            )
        prepared = prepare(statistics, knobs, rules)
        lengths = prepared[prepared > 0]
        dropped = len(prepared) - len(lengths)
        if not len(lengths):
            raise _nothing_left(statistics, knobs, rules)
        mean = float(lengths.mean())
        if statistics.exact:
            return cls(prepared, lengths, len(lengths), dropped, mean, all_seen=True)
        # What is unseen is like what is seen, but for the mean, which is known better.
        times = statistics.rows / len(statistics.tokens)
        mean *= statistics.mean_tokens * len(statistics.tokens) / int(np.sum(statistics.tokens))
        mean = min(mean, knobs.sequence_len)
        kept = max(1, round(times * len(lengths)))
        return cls(prepared, lengths, kept, round(times * dropped), mean, all_seen=False)


def _nothing_left(statistics: Statistics, knobs: Knobs, rules: Rules) -> BadInput:
    shortest, longest = int(np.min(statistics.tokens)), int(np.max(statistics.tokens))
    said, limit = "no row is left to train on", knobs.sequence_len
    if rules.min_tokens > min(longest, limit):
        return BadInput(
            f"{said}: min_sample_len is {rules.min_tokens:,}, the longest row has {longest:,} "
            f"tokens, sequence_len is {limit:,}", "lower min_sample_len, or raise sequence_len",
        )  # fmt: skip
    if shortest > limit:
        return BadInput(
            f"{said}: the shortest has {shortest:,} tokens, sequence_len is {limit:,}",
            "raise sequence_len, or set excess_length_strategy=truncate",
        )
    return BadInput(
        f"{said}: none of those within sequence_len {limit:,} has an answer to learn",
        "look at the corpus' answers, raise sequence_len, or set train_on_inputs=true",
    )


def prepare(statistics: Statistics, knobs: Knobs, rules: Rules) -> Lengths:
    """Tokens of every row seen, after splitting and truncating; 0 for one that is dropped."""
    limit = min(knobs.sequence_len, _LONGEST)
    pieces = np.asarray(statistics.tokens)
    if statistics.splits:
        pieces = _pieces(pieces, limit)
    lengths = np.minimum(pieces, limit) if rules.excess_length == "truncate" else pieces
    kept = (pieces >= rules.min_tokens) & (lengths <= limit)
    if knobs.packing and not statistics.splits:  # a row without a token to train on
        kept &= np.asarray(statistics.masked) < lengths
    return np.where(kept, lengths, np.uint32(0))


def _pieces(tokens: Lengths, limit: int) -> Lengths:
    """Completion's texts, each cut to at most 64 pieces of ``sequence_len``."""
    tokens = np.minimum(tokens, min(COMPLETION_PIECES * limit, _LONGEST))
    each = -(-tokens.astype(np.int64) // limit)
    ends = np.cumsum(each)
    pieces = np.full(int(ends[-1]), limit, np.uint32)
    has_text = each > 0
    pieces[ends[has_text] - 1] = (tokens[has_text] - 1) % limit + 1
    return pieces


def _held_out(val_set_size: float, rows: int) -> int:
    """Rows held out: a number above 1, else a share, rounded up (``train_test_split``).

    Raises:
        BadInput: not fewer than there are.
    """
    held_out = int(val_set_size) if val_set_size > 1 else math.ceil(val_set_size * rows)
    if held_out >= rows or val_set_size == 1:
        raise BadInput(
            f"val_set_size is {val_set_size:g}, and {rows:,} rows are left to train on",
            "use a share below 1, or a number of rows from 2 to fewer than there are",
        )
    return held_out


# --- answers for a reward ----------------------------------------------------------------


def answered(statistics: Statistics, knobs: Knobs, groups: Groups) -> Steps:
    """The steps of a training by rewards (GRPO); ``statistics`` are of the questions.

    As trl 1.9 counts (trl/trainer/utils.py, RepeatSampler): questions that do not fill a batch of
    answers are left out of an epoch, none is for its length. Tokens are those of the questions,
    once for each of their answers, and of answers as long as they may be: at most so many.

    Raises:
        BadInput: fewer questions than one batch of answers takes.
    """
    held_out = _held_out(knobs.val_set_size, statistics.rows)
    train = statistics.rows - held_out
    batches = train // groups.questions * groups.iterations * groups.per_generation
    if not batches:
        raise BadInput(
            f"{train:,} questions are fewer than the {groups.questions:,} that one step answers",
            "lower gradient_accumulation_steps, or raise trl.num_generations",
        )
    per_epoch = math.ceil(batches / knobs.gradient_accumulation_steps)
    steps = knobs.max_steps or math.ceil(knobs.epochs * per_epoch)
    answers = steps * knobs.rows_per_step
    each = statistics.mean_tokens + groups.completion
    eval_rows = math.ceil(held_out * groups.generations / knobs.processes)
    return Steps(
        train_rows=train,
        eval_rows=held_out,
        dropped_rows=0,
        batches_per_epoch=batches,
        steps_per_epoch=per_epoch,
        steps=steps,
        train_tokens=round(answers * each),
        slots=round(answers * each),
        eval_batches=math.ceil(eval_rows / knobs.eval_batch_size),
        exact=statistics.exact,
    )


# --- unpacked ----------------------------------------------------------------------------


def _unpacked(rows: _Rows, train: int, held_out: int, knobs: Knobs, rules: Rules) -> Steps:
    each = knobs.micro_batch_size * knobs.processes
    batches = train // each if rules.drop_last else math.ceil(train / each)
    per_epoch = max(1, math.ceil(batches / knobs.gradient_accumulation_steps))
    # Axolotl's own number, which it hands to the Trainer as max_steps.
    steps = knobs.max_steps or math.ceil(train * knobs.epochs / knobs.rows_per_step)
    passes = _passes(steps, per_epoch, batches, knobs)
    tokens = rows.mean_tokens * train * passes
    computed = batches * each if rules.drop_last else train
    slots = _padded(rows.lengths, knobs, rules) * computed * passes
    return Steps(
        train_rows=train,
        eval_rows=held_out,
        dropped_rows=rows.dropped,
        batches_per_epoch=batches,
        steps_per_epoch=per_epoch,
        steps=steps,
        train_tokens=round(tokens),
        slots=max(round(tokens), round(slots)),
        eval_batches=_eval_batches(rows, train, held_out, knobs, rules),
        exact=rows.all_seen,
    )


def _passes(steps: int, per_epoch: int, batches: int, knobs: Knobs) -> float:
    """Epochs that so many steps go through; the last may end inside."""
    whole, rest = divmod(steps, per_epoch)
    begun = min(rest * knobs.gradient_accumulation_steps, batches)
    return whole + begun / max(1, batches)


def _padded(lengths: Lengths, knobs: Knobs, rules: Rules) -> float:
    """Mean positions an unpacked row takes, padded to the longest of its micro batch or further.

    As ``pad_to_multiple_of`` says (axolotl/core/builders/causal.py).
    """
    if rules.pad_to_sequence_len:
        return _up(knobs.sequence_len, rules)
    drawn = _drawn(lengths, min(len(lengths), _SIMULATED_ROWS), knobs.seed)
    size = knobs.micro_batch_size
    batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    padded = sum(_up(max(batch), rules) * len(batch) for batch in batches)
    return padded / len(drawn)


def _drawn(lengths: Lengths, number: int, seed: int) -> tuple[int, ...]:
    """So many of ``lengths`` at random; where there are fewer, some several times."""
    chance = random.Random(seed)  # noqa: S311 - a sample, not a secret
    every = range(len(lengths))
    enough = len(lengths) >= number
    rows = chance.sample(every, number) if enough else chance.choices(every, k=number)
    return tuple(lengths[rows].tolist())


def _up(tokens: int, rules: Rules) -> int:
    if rules.pad_to_sequence_len is False:
        return tokens
    return math.ceil(tokens / rules.pad_to_multiple_of) * rules.pad_to_multiple_of


# --- packed ------------------------------------------------------------------------------


def _packed(rows: _Rows, train: int, held_out: int, knobs: Knobs, rules: Rules) -> Steps:
    counted, all_bins, exact = _packed_batches(rows, train, knobs, rules)
    batches = counted // knobs.processes
    if not batches:
        raise BadInput(
            f"{train:,} packed rows make {counted} micro batches, too few for "
            f"{knobs.processes} processes",
            "use fewer processes, a smaller micro_batch_size or sequence_len, or more rows",
        )
    per_epoch = max(1, math.ceil(batches / knobs.gradient_accumulation_steps))
    steps = knobs.max_steps or _packed_steps(counted, per_epoch, rows, train, knobs, rules)
    used = _passes(steps, per_epoch, batches, knobs) * batches * knobs.processes
    pack = _packing(knobs, rules)
    slots = used * pack.bins_per_batch * _bin_slots(pack, knobs, rules)
    per_batch = rows.mean_tokens * train / all_bins * pack.bins_per_batch
    return Steps(
        train_rows=train,
        eval_rows=held_out,
        dropped_rows=rows.dropped,
        batches_per_epoch=batches,
        steps_per_epoch=per_epoch,
        steps=steps,
        train_tokens=round(used * per_batch),
        slots=round(slots),
        eval_batches=_eval_batches(rows, train, held_out, knobs, rules),
        exact=exact,
    )


def _bin_slots(pack: packing.Rules, knobs: Knobs, rules: Rules) -> int:
    """Positions computed for one bin, be it full or not."""
    row = math.ceil(knobs.sequence_len / rules.pad_to_multiple_of) * rules.pad_to_multiple_of
    return math.ceil(pack.capacity / row) * row


def _packing(knobs: Knobs, rules: Rules) -> packing.Rules:
    real = rules.real_batches
    if real is None:
        name = knobs.attention.split(":", 1)[0].split("@", 1)[0].strip()
        real = name not in _PACKING_ATTENTION
    return packing.Rules(
        capacity=knobs.sequence_len * (1 if real else knobs.micro_batch_size),
        bins_per_batch=knobs.micro_batch_size if real else 1,
        bin_size=rules.bin_size,
        group_size=rules.group_size,
        sequential=rules.sequential,
    )


def _packed_batches(rows: _Rows, train: int, knobs: Knobs, rules: Rules) -> tuple[int, float, bool]:
    """Batches of an epoch over all processes, bins before any is dropped, and if exact."""
    pack = _packing(knobs, rules)
    if rows.all_seen and train <= _SIMULATED_ROWS:
        lengths = _in_training_order(rows, knobs, rules)[:train]
        orders = _epoch_orders(train, knobs, rules)
        found = [packing.bins([lengths[row] for row in order], pack) for order in orders]
        return min(found) // pack.bins_per_batch, sum(found) / len(found), True
    bins = _simulated_bins(rows.lengths, rows.mean_tokens * train, train, knobs.seed, pack)
    return max(1, int(bins)) // pack.bins_per_batch, bins, False


def _in_training_order(rows: _Rows, knobs: Knobs, rules: Rules) -> list[int]:
    """Lengths as the prepared dataset has them; those held out are its last."""
    if rules.curriculum or not rules.shuffled:
        return list(map(int, rows.lengths))
    shuffled = packing.merged_order(len(rows.prepared), knobs.seed)  # before rows are dropped
    lengths = rows.prepared[shuffled]
    return list(map(int, lengths[lengths > 0]))


def _epoch_orders(train: int, knobs: Knobs, rules: Rules) -> list[list[int]]:
    """The shuffles that Axolotl counts: ours has moved on by one when it begins."""
    if rules.curriculum:
        return [list(range(train))]
    counted = _COUNTED_EPOCHS if knobs.processes < _COUNTED_EPOCHS else 1
    return [packing.order(train, knobs.seed, epoch) for epoch in range(1, counted + 1)]


def _simulated_bins(
    seen: Lengths, tokens: float, rows: int, seed: int, pack: packing.Rules
) -> float:
    """Bins that ``rows`` rows like those seen fill: as many as can be packed quickly, scaled."""
    drawn = _drawn(seen, min(rows, _SIMULATED_ROWS), seed)
    return _bins(drawn, pack) * tokens / sum(drawn)


@functools.lru_cache(maxsize=64)  # who looks for what fits plans the same rows many times
def _bins(lengths: tuple[int, ...], pack: packing.Rules) -> int:
    return packing.bins(lengths, pack)


def _packed_steps(
    counted: int, per_epoch: int, rows: _Rows, train: int, knobs: Knobs, rules: Rules
) -> int:
    """All steps: counted by the Trainer where the order is ours, else by Axolotl's estimate."""
    if not rules.curriculum:
        return math.ceil(knobs.epochs * per_epoch)
    if rules.efficiency:
        tokens = rows.mean_tokens * train
        full = 0.99 * tokens / rules.efficiency / knobs.sequence_len // knobs.rows_per_step
        return max(1, int((math.floor(full) - 1) * knobs.epochs))
    each = knobs.gradient_accumulation_steps * knobs.processes
    steps = math.floor(max(1, counted // each) * knobs.epochs)
    return max(1, steps - math.ceil(knobs.epochs) * rules.drop_last)


# --- how full ----------------------------------------------------------------------------


def efficiency(lengths: Lengths, knobs: Knobs, rules: Rules) -> float:
    """Share of the positions computed for these rows that are tokens, packed or not."""
    if not knobs.packing:
        return float(lengths.mean()) / _padded(lengths, knobs, rules)
    pack = _packing(knobs, rules)
    tokens = float(lengths.sum())
    bins = math.ceil(_simulated_bins(lengths, tokens, len(lengths), knobs.seed, pack))
    return tokens / (bins * _bin_slots(pack, knobs, rules))


# --- evaluation --------------------------------------------------------------------------


def _eval_batches(rows: _Rows, train: int, held_out: int, knobs: Knobs, rules: Rules) -> int:
    """Micro batches of one evaluation, of each process."""
    if not held_out:
        return 0
    if not (knobs.packing and knobs.eval_packing):
        batches = math.ceil(held_out / knobs.eval_batch_size)
        drops = rules.drop_last or knobs.packing  # Axolotl's default where only training packs
        return (
            held_out // knobs.eval_batch_size // knobs.processes
            if drops
            else math.ceil(batches / knobs.processes)
        )
    pack = _packing(knobs, rules)
    if rows.all_seen and rows.kept <= _SIMULATED_ROWS:
        lengths = _in_training_order(rows, knobs, rules)[train:]
        return packing.batches(lengths, pack) // knobs.processes
    tokens = rows.mean_tokens * held_out
    bins = _simulated_bins(rows.lengths, tokens, held_out, knobs.seed, pack)
    return int(bins / pack.bins_per_batch / knobs.processes)
