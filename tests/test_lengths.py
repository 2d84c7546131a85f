"""What row lengths mean for sequence_len; tests/real/test_stats_real.py has the real Axolotl."""

import random
import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leviathan import figures, knobs, lengths, packing, steps

LENGTHS = [20 + n * n * 7 % 180 for n in range(400)]


def statistics(tokens, masked=None, trainable=None, *, splits=False, rows=None):
    """Of rows that are all there is, or (with ``rows``) a part of them."""
    masked = masked or [0] * len(tokens)
    trainable = trainable or [t - m for t, m in zip(tokens, masked, strict=True)]
    source = figures.Source(Path("c.jsonl"), "full", 42, Path("data"), {})
    counted = figures.Counted(*(array("I", each) for each in (tokens, masked, trainable, tokens)))
    found = figures.whole(counted, source, splits=splits, error=0.0, how=" made up", exact=True)
    return replace(found, rows=rows, whole=False, exact=False) if rows else found


def describe(made, positions=None, **tree):
    tree = {"adapter": "lora", "lora_r": 8, "sequence_len": 256, "seed": 1, **tree}
    return lengths.describe(made, knobs.read(tree), steps.rules(tree), positions)


def fate(report, sequence_len):
    (found,) = (fate for fate in report.fates if fate.sequence_len == sequence_len)
    return found


# --- one sequence_len --------------------------------------------------------------------


def test_percentiles_are_lengths_of_rows():
    told = describe(statistics(random.Random(1).sample(range(1, 1001), 1000))).percentiles
    assert told == {"min": 1, "5": 50, "25": 250, "50": 500, "75": 750, "95": 950, "99": 990,
                    "max": 1000}  # fmt: skip
    assert describe(statistics([7])).percentiles == dict.fromkeys(told, 7)


@pytest.mark.parametrize(
    ("tree", "word", "lost"),
    [
        ({}, "dropped", 257 + 300 + 400),
        ({"excess_length_strategy": "truncate"}, "cut", 1 + 44 + 144),
        ({"excess_length_strategy": "raise"}, "too long", 257 + 300 + 400),
        # Packed, a row whose question alone fills sequence_len has nothing left to learn.
        ({"excess_length_strategy": "truncate", "sample_packing": True}, "cut", 1 + 44 + 400),
    ],
)
def test_what_is_lost_by_what_happens_to_long_rows(tree, word, lost):
    tokens, masked = [10, 255, 256, 257, 300, 400], [0, 0, 0, 0, 0, 300]
    report = describe(statistics(tokens, masked), **tree)
    assert report.fate == word
    own = fate(report, 256)
    assert own.over == lengths.Share(3 / 6, 3 / 6, 3 / 6)
    assert own.lost.value == pytest.approx(lost / sum(tokens))
    assert (fate(report, 1024).over.value, fate(report, 1024).lost.value) == (0, 0)


def test_rows_that_no_sequence_len_would_keep_are_not_lost_by_it():
    """Without an answer, or of one token: Axolotl drops them whatever sequence_len is."""
    made = statistics([100, 100, 1], [0, 100, 0])
    assert fate(describe(made, sample_packing=True), 256).lost.value == 0


def test_completions_texts_lose_what_is_behind_their_64th_piece():
    report = describe(statistics([100, 5000, 70_000], splits=True), sequence_len=10)
    assert report.fate == "split"
    assert fate(report, 10).over.value == 1
    assert fate(report, 10).lost.value == pytest.approx((5000 - 640 + 70_000 - 640) / 75_100)
    assert fate(report, 1024).over.value == pytest.approx(2 / 3)
    assert fate(report, 1024).lost.value == pytest.approx((70_000 - 65_536) / 75_100)


def test_what_axolotl_will_prepare():
    made = statistics([10, 200, 300, 1], [5, 200, 100, 0], [5, 0, 150, 1])
    assert describe(made).prepared == lengths.Prepared(2, 210, 5)
    assert describe(made, sample_packing=True).prepared == lengths.Prepared(1, 10, 5)
    cut = describe(made, excess_length_strategy="truncate").prepared
    assert cut == lengths.Prepared(3, 466, 155)
    few = describe(statistics([10, 300], rows=2000)).prepared
    assert few == lengths.Prepared(1000, 10_000, 10_000)


@pytest.mark.parametrize("tree", [
    {}, {"attn_implementation": "flash_attention_2"}, {"micro_batch_size": 4},
    {"sample_packing_bin_size": 2}, {"sample_packing_sequentially": True},
    {"excess_length_strategy": "truncate"}, {"pad_to_sequence_len": True},
])  # fmt: skip
@pytest.mark.parametrize("packed", [True, False])
def test_efficiency_is_that_of_the_plan(tree, packed):
    made = statistics(LENGTHS * 3)
    tree = {"adapter": "lora", "lora_r": 8, "sequence_len": 128, "micro_batch_size": 2, "seed": 1,
            **tree, "sample_packing": packed}  # fmt: skip
    planned = steps.predict(made, knobs.read(tree), steps.rules(tree)).packing_efficiency
    own = fate(describe(made, **tree), 128)
    assert (own.packed if packed else own.unpacked) == pytest.approx(planned, rel=0.02)


def test_efficiency_by_hand():
    own = fate(describe(statistics([100, 100, 100, 56]), sequence_len=256), 256)
    assert own.packed == pytest.approx(356 / 512)
    assert own.unpacked == pytest.approx(356 / (3 * 128 + 64))
    rules = packing.Rules(256, 1, 200, 100_000, sequential=False)
    assert packing.bins([100, 100, 100, 56], rules) == 2


def test_where_no_row_is_left_there_is_no_efficiency():
    own = fate(describe(statistics([300, 400]), sequence_len=64), 64)
    assert (own.packed, own.unpacked, own.lost.value) == (None, None, 1)


# --- intervals ---------------------------------------------------------------------------


def test_intervals_hold_the_truth_19_times_of_20():
    """Of files whose sources lie one after the other, looked at in evenly spread blocks."""
    inside = {"over": 0, "lost": 0}
    for seed in range(60):
        chance = np.random.default_rng(seed)
        sources = [chance.lognormal(mean, 0.8, 40_000) for mean in (4.5, 5.5, 5.0)]
        every = np.concatenate(sources).astype(np.uint32) + 2
        blocks = [every[start : start + 30] for start in range(17, len(every) - 30, 940)]
        seen = statistics(np.concatenate(blocks).tolist(), rows=len(every))
        own = fate(describe(seen, sequence_len=500), 500)
        truth = {"over": (every > 500).mean(), "lost": every[every > 500].sum() / every.sum()}
        for name, share in truth.items():
            found = getattr(own, name)
            assert found.low < found.value < found.high
            inside[name] += found.low <= share <= found.high
    assert 52 <= inside["over"] <= 60, inside
    assert 50 <= inside["lost"] <= 60, inside


def test_rows_that_lie_together_count_for_less():
    """100 blocks of like rows say as much about the share as 100 rows, not as 3,000."""
    alike = [1000 if block * 7 % 10 < 3 else 100 for block in range(100) for _ in range(30)]
    mixed = random.Random(1).sample(alike, len(alike))
    wide, narrow = (
        fate(describe(statistics(rows, rows=99_999)), 256).over for rows in (alike, mixed)
    )
    assert wide.value == narrow.value == 0.3
    assert (wide.high - wide.low) / (narrow.high - narrow.low) > 3


def test_what_was_never_seen_may_still_be():
    none = fate(describe(statistics(LENGTHS, rows=100_000)), 256).over
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(3.84 / 400, rel=0.02)
    low, high = describe(replace(statistics([100] * 9), total_error=0.02)).tokens_interval
    assert (low, high) == pytest.approx((900 * (1 - 0.0392), 900 * (1 + 0.0392)))


# --- which to use ------------------------------------------------------------------------

SHORT = [100] * 9900 + [900] * 100
LONG = [100] * 9000 + [3000] * 1000
PACKED = {"sample_packing": True}


@pytest.mark.parametrize(
    ("made", "tree", "chosen", "reason"),
    [
        # 1 % of the rows, but 8 % of the tokens.
        (statistics(SHORT), {**PACKED, "sequence_len": 512}, 1024, "no row is longer (at 512: 1.0 % with 8.3 %); a micro batch has 1,024 tokens then, not 512"),
        (statistics([100] * 9950 + [300] * 50), {"sequence_len": 2048}, 128, "0.50 % of the rows are dropped with 1.5 % of the tokens; a micro batch takes 16 times the rows in the same memory"),
        (statistics(LONG), {"sequence_len": 4096}, 4096, "no row is longer (at 2,048: 10 % with 77 %)"),
        # The profile's own need be no power of two.
        (statistics(LONG), {"sequence_len": 3000}, 3000, "no row is longer (at 2,048: 10 % with 77 %)"),
        # Packed, 128 would leave bins half empty.
        (statistics([70] * 5000), {**PACKED, "sequence_len": 2048}, 512, "no row is longer; 128 would do, but packs 55 %; a micro batch takes 4 times the rows in the same memory"),
        (statistics([70] * 5000), {"sequence_len": 2048}, 128, "no row is longer; a micro batch takes 16 times the rows in the same memory"),
        # Never longer than asked for, only to be fuller.
        (statistics([70] * 5000), {**PACKED, "sequence_len": 128}, 128, "no row is longer"),
        (statistics(SHORT), {**PACKED, "excess_length_strategy": "raise", "sequence_len": 512}, 1024, "no row is longer (at 512: 1.0 % with 8.3 %); a micro batch has 1,024 tokens then, not 512"),
        (statistics([60, 700] * 500), {"sequence_len": 1024, "micro_batch_size": 8}, 1024, "no row is longer (at 512: 50 % with 92.1 %); sample_packing=true would compute 74 % tokens, not 54 %"),
        # Pieces of a text: nothing is lost, whatever the length.
        (statistics([5000] * 100, splits=True), {"sequence_len": 512}, 512, "100 % of the rows are split (at 256: 100 %)"),
        (statistics([100] * 1000, splits=True), {"sequence_len": 512}, 128, "no row is longer; a micro batch takes 4 times the rows in the same memory"),
        (statistics([500_000] * 10, splits=True), {"sequence_len": 4096}, 8192, "100 % of the rows are split (at 4,096: 100 % with 48 %); a micro batch has 8,192 tokens then, not 4,096"),
    ],
)  # fmt: skip
def test_the_recommended_length_and_why(made, tree, chosen, reason):
    advice = describe(made, **tree).advice
    assert (advice.sequence_len, advice.reason, advice.certain) == (chosen, reason, True)


def test_no_more_than_the_base_model_takes():
    advice = describe(statistics(LONG), 2000, sequence_len=1024).advice
    assert advice.sequence_len == 2000
    assert advice.reason.endswith("; the base model takes at most 2,000")
    assert describe(statistics(LONG), 4096, sequence_len=1024).advice.sequence_len == 4096
    advice = describe(statistics([70] * 9), 2000, sequence_len=4096).advice
    assert advice.sequence_len == 128
    assert advice.reason.endswith("; the base model takes at most 2,000")


def test_a_part_may_be_too_little_to_tell():
    clear = [100] * 900 + [600] * 100
    close = [100] * 991 + [150] * 9
    shuffle = random.Random(3).sample
    sure, unsure = (
        describe(statistics(shuffle(rows, 1000), rows=10**6), sequence_len=1024).advice
        for rows in (clear, close)
    )
    assert (sure.sequence_len, unsure.sequence_len) == (1024, 128)
    assert (sure.certain, unsure.certain) == (True, False)
    assert describe(statistics(close)).advice.certain


# --- in words and pictures ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "ends", "text"),
    [
        (0, None, "0 %"),
        (1, None, "100 %"),
        (0.5, None, "50 %"),
        (0.0173, None, "1.7 %"),
        (0.000173, None, "0.017 %"),
        (1e-9, None, "<0.0001 %"),
        (1 - 1e-9, None, ">99.9999 %"),
        (0.9731, None, "97.3 %"),
        (0.99876, None, "99.88 %"),
        (0.1061, (0.0992, 0.1134), "10.6 % (9.9 to 11.3)"),
        (0, (0, 0.000443), "0 % (0 to 0.044)"),
        (0.0017, (0.001, 0.0029), "0.17 % (0.10 to 0.29)"),
        (1, (0.9993, 1), "100 % (99.930 to 100)"),
    ],
)
def test_a_share_in_words(share, ends, text):
    assert lengths.percent(share, ends) == text


@pytest.mark.parametrize("mark", [1, 64, 500, 2048, 10**6])
@pytest.mark.parametrize("tokens", [[0], [7] * 9, LENGTHS, [1, 10**6], list(range(1, 3000))])
def test_every_row_and_the_mark_are_in_the_histogram(tokens, mark):
    drawn = lengths.histogram(np.array(tokens, np.uint32), mark, 71)
    assert len(drawn.shares) == 71
    assert sum(drawn.shares) == pytest.approx(1)
    assert all(drawn.shares[drawn.column(length)] > 0 for length in tokens)
    assert 0 <= drawn.column(mark) < 71
    assert drawn.edges[drawn.column(mark)] <= mark < drawn.edges[drawn.column(mark) + 1]


def test_columns_of_a_few_lengths_make_no_comb():
    """Two or three whole numbers in a column of 2.5: their rows are evened."""
    chance = np.random.default_rng(2)
    tokens = np.exp(chance.uniform(np.log(20), np.log(400), 200_000)).astype(np.uint32)
    shares = lengths.histogram(tokens, 100, 71).shares[10:-3]
    assert max(shares) / min(shares) < 1.35


BIG = """
import re
from array import array
import numpy as np
from pathlib import Path
from leviathan import figures, knobs, lengths, steps
tokens = np.random.default_rng(1).lognormal(6, 0.85, 5_597_680).astype(np.uint32) + 2
rows = [array("I", each.tobytes()) for each in (tokens, tokens // 5, tokens - tokens // 5, tokens)]
del tokens
source = figures.Source(Path("c"), "full", 1, Path("data"), {})
made = figures.whole(figures.Counted(*rows), source, splits=False, error=0.0, how="", exact=True)
tree = {"adapter": "lora", "lora_r": 8, "sequence_len": 2048, "sample_packing": True}
report = lengths.describe(made, knobs.read(tree), steps.rules(tree))
lengths.histogram(np.asarray(made.tokens), 2048, 71)
steps.predict(made, knobs.read(tree), steps.rules(tree))
# ru_maxrss would begin with that of the process that started this one.
peak_mib = int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(report.advice.sequence_len, peak_mib)
"""


def test_five_million_rows_take_little_memory():
    """16 bytes a row, 85 MiB, are kept; objects would be 200 MiB for each number of a row."""
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=True)
    advised, peak_mib = done.stdout.split()
    assert advised == "8192"
    assert float(peak_mib) < 400  # measured: 235
