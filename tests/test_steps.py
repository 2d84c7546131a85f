"""Steps without Axolotl; tests/real/test_step_counts.py compares them with its own."""

from array import array
from dataclasses import replace

import pytest

from leviathan import figures, knobs, steps
from leviathan.errors import BadInput

LENGTHS = [20 + n * n * 7 % 180 for n in range(400)]


def statistics(lengths, masked=None, *, rows=None, splits=False, exact=True):
    return figures.Statistics(
        rows=rows or len(lengths), rows_error=0.0,
        tokens=array("I", lengths), masked=array("I", masked or [0] * len(lengths)),
        mean_tokens=sum(lengths) / len(lengths), mean_error=0.0, total_error=0.0, trainable_share=1.0,
        bytes_per_token=4.0, splits=splits, source="made up", whole=exact, exact=exact,
    )  # fmt: skip


def predict(made, processes=1, **tree):
    tree = {"adapter": "lora", "lora_r": 8, "sequence_len": 256, "seed": 1, **tree}
    return steps.predict(made, knobs.read(tree, processes), steps.rules(tree))


@pytest.mark.parametrize(
    ("rows", "processes", "tree", "batches", "per_epoch", "expected", "evaluation"),
    [
        (10, 1, {}, 10, 10, 10, 0),
        (10, 1, {"micro_batch_size": 4}, 3, 3, 3, 0),
        # Axolotl counts over all epochs at once: 2.5 steps an epoch, 5 in two, not 6.
        (10, 1, {"micro_batch_size": 4, "num_epochs": 2}, 3, 3, 5, 0),
        (10, 1, {"gradient_accumulation_steps": 4, "num_epochs": 1.5}, 10, 3, 4, 0),
        (10, 2, {"micro_batch_size": 2, "gradient_accumulation_steps": 2}, 3, 2, 2, 0),
        (10, 1, {"micro_batch_size": 4, "dataloader_drop_last": True}, 2, 2, 3, 0),
        (10, 1, {"max_steps": 7}, 10, 10, 7, 0),
        (10, 1, {"val_set_size": 0.25}, 7, 7, 7, 3),  # a share is rounded up
        (10, 1, {"val_set_size": 4, "eval_batch_size": 3}, 6, 6, 6, 2),
        (10, 2, {"val_set_size": 5}, 3, 3, 3, 3),
    ],
)
def test_unpacked(rows, processes, tree, batches, per_epoch, expected, evaluation):
    found = predict(statistics([50] * rows), processes, **tree)
    assert (found.batches_per_epoch, found.steps_per_epoch) == (batches, per_epoch)
    assert (found.steps, found.eval_batches) == (expected, evaluation)
    assert found.train_rows + found.eval_rows == rows
    assert found.exact


@pytest.mark.parametrize(
    ("tree", "kept"),
    [
        ({}, [2, 255, 256, 200]),
        ({"min_sample_len": 201}, [255, 256]),
        ({"excess_length_strategy": "truncate"}, [2, 255, 256, 256, 200]),
        # Packed, what has no token to train on is dropped, also for being cut.
        ({"sample_packing": True}, [2, 255, 256]),
        ({"sample_packing": True, "excess_length_strategy": "truncate"}, [2, 255, 256]),
        ({"sequence_len": 300}, [2, 255, 256, 257, 200]),
    ],
)
def test_rows_that_are_dropped(tree, kept):
    made = statistics([1, 2, 255, 256, 257, 200], [0, 0, 0, 0, 256, 200])
    tree = {"sequence_len": 256, **tree}
    prepared = steps.prepare(made, knobs.read({"adapter": None, **tree}), steps.rules(tree))
    assert list(filter(None, prepared)) == kept
    assert len(prepared) == 6


def test_a_completions_text_is_split():
    made = statistics([25, 20, 21, 0, 10_000], splits=True)
    tree = {"sequence_len": 10, "sample_packing": True}
    prepared = list(steps.prepare(made, knobs.read(tree), steps.rules(tree)))
    assert prepared == [10, 10, 5, 10, 10, 10, 10, 0] + [10] * 64  # one token is too few


PACKED = {"sample_packing": True, "micro_batch_size": 2}


@pytest.mark.parametrize("tree", [
    {}, {"attn_implementation": "flash_attention_2"}, {"val_set_size": 0.1},
    {"sample_packing_bin_size": 2}, {"sample_packing_sequentially": True},
])  # fmt: skip
@pytest.mark.parametrize("processes", [1, 2])
def test_a_sampled_packing_is_within_3_percent_of_the_exact_one(tree, processes):
    """Of 40,000 rows 400 are seen: what is simulated is scaled."""
    whole = statistics(LENGTHS * 10)
    exact = predict(whole, processes, **PACKED, **tree)
    sampled = replace(whole, tokens=whole.tokens[:400], masked=whole.masked[:400], exact=False)
    found = predict(replace(sampled, rows=40_000), processes, **PACKED, **tree)
    assert exact.exact
    assert not found.exact
    assert found.steps == pytest.approx(10 * exact.steps, rel=0.03)
    assert found.train_tokens == pytest.approx(10 * exact.train_tokens, rel=0.03)
    assert found.packing_efficiency == pytest.approx(exact.packing_efficiency, rel=0.03)


def test_packing_follows_the_known_mean():
    """Rows seen are too short by a quarter, and the mean says so."""
    seen = replace(statistics(LENGTHS, exact=False), rows=4000)
    longer = replace(seen, mean_tokens=seen.mean_tokens * 1.25)
    assert predict(longer, **PACKED).steps == pytest.approx(
        1.25 * predict(seen, **PACKED).steps, rel=0.01
    )


def test_tokens_and_positions():
    found = predict(statistics([50] * 9), micro_batch_size=3, num_epochs=2)
    assert (found.train_tokens, found.slots) == (900, 18 * 64)
    found = predict(statistics([50] * 9), pad_to_sequence_len=True, sequence_len=100)
    assert found.slots == 9 * 128
    found = predict(statistics([100] * 8), **PACKED, sequence_len=200)
    assert (found.steps, found.train_tokens, found.slots) == (2, 800, 4 * 256)
    assert found.packing_efficiency == pytest.approx(800 / 1024)


def test_a_run_that_ends_within_an_epoch_trains_on_part_of_the_rows():
    assert predict(statistics([50] * 10), max_steps=15).train_tokens == 750
    assert predict(statistics([256] * 10), max_steps=4, sample_packing=True).train_tokens == 1024


@pytest.mark.parametrize(
    ("made", "tree", "line"),
    [
        (statistics([300] * 5), {}, "no row is left to train on: the shortest has 300 tokens, sequence_len is 256; raise sequence_len"),
        (statistics([9, 300]), {"excess_length_strategy": "raise"}, "excess_length_strategy is raise, and a row has 300 tokens, sequence_len is 256"),
        (statistics([300] * 5), {"min_sample_len": 999}, "no row is left to train on: min_sample_len is 999, the longest row has 300 tokens"),
        (statistics([9] * 5, [9] * 5), {**PACKED}, "no row is left to train on: none of those within sequence_len 256 has an answer"),
        (statistics([9] * 5), {"val_set_size": -1}, "val_set_size is -1; it needs a share below 1"),
        (statistics([9] * 5), {"val_set_size": float("nan")}, "val_set_size is nan"),
        (statistics([9] * 5), {"val_set_size": float("inf")}, "val_set_size is inf"),
        (statistics([9] * 5), {"sample_packing_group_size": -1}, "sample_packing_group_size is -1; it needs a whole number"),
        (statistics([9] * 5), {"sample_packing_bin_size": -1}, "sample_packing_bin_size is -1"),
        (statistics([9] * 5), {"pad_to_multiple_of": -64}, "pad_to_multiple_of is -64"),
        (statistics([9] * 5), {"num_epochs": 1e9}, "num_epochs is 1000000000.0; it needs a number above 0, below a million"),
        (statistics([9] * 5), {"val_set_size": 5}, "val_set_size is 5, and 5 rows are left"),
        (statistics([9] * 5), {"val_set_size": 1}, "val_set_size is 1, and 5 rows are left"),
        (statistics([9] * 5), {**PACKED}, "5 packed rows make 0 micro batches, too few for 1 processes"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained(made, tree, line):
    with pytest.raises(BadInput) as caught:
        predict(made, **tree)
    assert caught.value.line.startswith(line)
