#!/usr/bin/env python3
"""Write docs/guides.md: what the background guides claim, and what the planner says.

python scripts/make_guides.py          # rewrite the page
python scripts/make_guides.py --check  # exit 1 when it is out of date

Every figure under "ours" is computed by the planner from the shipped recipes and profiles,
without calibrations and without the corpora, so that it is the same on every machine.
"""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from leviathan import figures, layers, plan, scratch
from leviathan.plan import Plan, Range
from leviathan.speed import Speed

PAGE = Path(__file__).parents[1] / "docs" / "guides.md"
GB = 1e9
Row = tuple[str, str, str, str]
"""What, the guide's claim, ours, why they differ."""

HEAD = """\
# The guides and the planner

The recipes `nanochat`, `nanochat-d64`, `pure-transformer` and `leviathan` follow guides whose
authors each wrote a trainer by hand. Here is what the guides claim, what `leviathan plan` says,
and why the two differ.

Ours are formulas: none of these trainings has been run on its machine yet. Throughput is 35 to
50 % of a card's peak, the middle 42 %; a checkpoint is written at 100 MB/s; the corpora are not
at hand, so a token is 4 bytes. `leviathan bench` on the machine replaces pace and memory by
measurements ([planning](planning.md)). GB are 10^9 bytes, GiB 2^30.

Made by scripts/make_guides.py; not to be edited.
"""


@functools.cache
def planned(recipe: str, profile: str, *sets: str, sample: str = "full") -> Plan:
    """The plan of a shipped recipe, from what it says of its corpus."""
    config = layers.build(recipe, profile, sample, sets)
    size = config.recipe.corpus_size
    if size is None:
        raise ValueError(f"recipe {recipe} has no corpus_size for stage {config.stage}")
    statistics = figures.assumed(config.recipe.corpus, size.rows, size.bytes, sample)
    return plan.make(config, scratch.shape_of(config), statistics)


# --- how figures are told ------------------------------------------------------------------


def giga(number: float) -> str:
    """Parameters or tokens."""
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.0f} M"


def time(*hours: Range | None) -> str:
    """The sum of some intervals, in hours or days."""
    if None in hours:
        return "unknown"
    known = [one for one in hours if one]
    low, mid, high = (sum(getattr(one, end) for one in known) for end in ("low", "mid", "high"))
    if mid < 1:
        return f"{mid * 60:.0f} min ({low * 60:.0f} to {high * 60:.0f})"
    if mid < 72:
        return f"{mid:.1f} h ({low:.1f} to {high:.1f})"
    return f"{mid / 24:.1f} days ({low / 24:.1f} to {high / 24:.1f})"


def memory(made: Plan) -> str:
    """The peak on each GPU."""
    found = made.memory
    return f"{found.total_gib:.0f} GiB ({found.low_gib:.0f} to {found.high_gib:.0f})"


def speed(made: Plan) -> Speed:
    """Which every shipped profile of a GPU has."""
    if made.speed is None:
        raise ValueError(f"profile {made.config.profile_name} does not say how fast it is")
    return made.speed


def pace(made: Plan) -> str:
    """Tokens a second over all GPUs."""
    found = speed(made)
    return (
        f"{found.mid_tok_s:,.0f} tok/s ({found.low_tok_s:,.0f} to {found.high_tok_s:,.0f}); "
        f"all of the peak would be {made.ceiling_tok_s or 0:,.0f}"
    )


def dollars(made: Plan, provider: str) -> str:
    """What it costs there."""
    cost = made.usd[provider]
    return f"${cost.mid:,.0f} ({cost.low:,.0f} to {cost.high:,.0f})"


def at_rate(made: Plan, tokens: float) -> Range:
    """Hours that ``tokens`` take, saving and evaluating apart."""
    found = speed(made)
    rates = (found.high_tok_s, found.mid_tok_s, found.low_tok_s)
    return Range(*(tokens / rate / 3600 for rate in rates))


def parameters(recipe: str, profile: str, *sets: str) -> int:
    """Of the model that a recipe makes."""
    return scratch.shape_of(layers.build(recipe, profile, "full", sets)).parameters


# --- the guides ----------------------------------------------------------------------------


def d64() -> Iterator[Row]:
    """nanochat-d64-8xh100."""
    recipe, profile = "nanochat-d64", "h100x8"
    made = planned(recipe, profile)
    whole = made.shape.parameters
    for depth, claim in ((24, "680 M"), (48, "2.4 G"), (64, "4.3 G"), (80, "6.7 G")):
        ours = giga(parameters(recipe, profile, f"model.depth={depth}"))
        why = "12 x layers x width^2, width 64 x layers; the guide's do not grow with the cube"
        yield f"parameters of depth {depth}", claim, ours, why if depth == 64 else ""
    step = made.knobs.micro_batch_size * made.knobs.sequence_len * 8
    yield ("tokens a step", "8 x 4 x 2048 = 524,288", f"8 x 4 x 2048 = {step:,}",
           f"{524_288 // step} micro batches are accumulated; the recipe does")  # fmt: skip
    yield ("memory of a GPU, d64", "75 GB", f"{memory(made)}, sharded over 8 (FSDP2)",
           f"weights, gradients and Adam of {giga(whole)} in fp32 are {16 * whole / GB:.0f} GB; "
           "a copy on each GPU (DDP) cannot be")  # fmt: skip
    deeper = planned(recipe, profile, "model.depth=80")
    yield ("d80", "95 GB, out of memory", f"{memory(deeper)}: {deeper.verdict.replace('_', ' ')}",
           f"{giga(deeper.shape.parameters)}; sharded, too")  # fmt: skip
    yield ("pace", "over 50,000 tok/s", pace(made),
           f"{made.flops_per_token / 1e9:.0f} GFLOP a token, more with checkpointing")  # fmt: skip
    guides = 12_000_000_000
    yield ("12 G tokens", "about 23,000 steps, 31 h, $992",
           f"{guides // 524_288:,} steps, {time(at_rate(made, guides))}, "
           f"${at_rate(made, guides).mid * 32:,.0f}",
           "the steps are right; a model three times as large takes three times as "
           "long")  # fmt: skip
    hourly = speed(made).mid_tok_s * 3600 / 524_288
    yield "steps in an hour", "730", f"{hourly:.0f}", "as the pace"
    yield ("what $1000 buys", "12 G tokens",
           f"{giga(made.steps.slots)} planned: {time(made.hours)}, {dollars(made, 'guide')}",
           "`budget_usd: 1000` stops the run, resumable, before it is more")  # fmt: skip
    yield ("passes over 350 M tokens", "34", f"{made.steps.slots / 350e6:.1f}",
           "12 G would be 34, that is right; early stopping and the best checkpoint, "
           "as it advises")  # fmt: skip
    size = made.disk.checkpoint or 0
    yield ("a checkpoint", "17 GB (10.7 + 8 x 0.8)", f"{size / GB:.0f} GB",
           f"fp32 weights, two states of Adam: {size / whole:.0f} bytes a parameter")  # fmt: skip
    yield ("31 of them", "527 GB", f"{31 * size / GB:,.0f} GB",
           "only the newest stays whole (`whole: 1`), three are kept: see the recipe")  # fmt: skip


def single_a100() -> Iterator[Row]:
    """single-a100-realistic."""
    supervised = ("base", "mid", "sft")
    base, mid, sft = (planned("nanochat", "a100-40gb", f"stage={stage}") for stage in supervised)
    tokens = 71_680 * 524_288
    yield ("base: 11.2 G tokens", "71,680 iterations of 524 K", f"{base.steps.steps:,} steps",
           f"71,680 x 524,288 are {giga(tokens)} tokens")  # fmt: skip
    yield ("parameters of d20", "(not told)", giga(base.shape.parameters),
           f"11.2 G tokens are {11.2e9 / base.shape.parameters:.0f} for each")  # fmt: skip
    yield ("pace", "(not told)", pace(base), "")
    yield ("base", "50 to 100 h", time(base.hours),
           "right for 11.2 G tokens; its 71,680 iterations would be "
           f"{time(at_rate(base, tokens))}")  # fmt: skip
    yield ("mid: 850 K conversations", "1,700 iterations of 500, 10 to 20 h",
           f"{mid.steps.steps:,} steps of 524,288 tokens, {time(mid.hours)}",
           "850,000 / 500 is right; we pack rows and assume 2.6 KB a conversation")  # fmt: skip
    yield ("sft: 23 K conversations", "460 iterations of 50, 2 to 4 h",
           f"{sft.steps.steps:,} steps of 32,768 tokens, {time(sft.hours)}",
           "13.8 M tokens are minutes; 2 h would be 1,900 tok/s")  # fmt: skip
    yield ("all of it", "60 to 120 h", time(base.hours, mid.hours, sft.hours),
           "without rl, which the guide has not either")  # fmt: skip
    caps = (
        ("DEMO", 500, "30 to 60 min"),
        ("SMALL", 2000, "2 to 4 h"),
        ("MEDIUM", 5000, "6 to 10 h"),
    )
    for mode, cap, claim in caps:
        made = planned("nanochat", "a100-40gb", "stage=base", f"max_steps={cap}")
        other = "; our `--mode demo` is another: minutes on a CPU" if cap == 500 else ""
        yield (f"{mode}: base, {cap:,} iterations", claim, time(made.hours),
               f"{giga(cap * 524_288)} tokens{other}")  # fmt: skip
    for mode, claim in (("small", "3 to 6 h"), ("medium", "9 to 13 h")):
        all_three = [planned("nanochat", "a100-40gb", f"mode={mode}", f"stage={stage}").hours
                    for stage in supervised]  # fmt: skip
        yield f"{mode.upper()}: all stages", claim, time(*all_three), "`--mode` " + mode
    yield ("memory", "10 to 25 GB, by mode", memory(base),
           "the modes train the same model, so need the same; its batch is not told")  # fmt: skip
    size = base.disk.checkpoint or 0
    yield "a checkpoint", "(not told)", f"{size / GB:.1f} GB", "weights and Adam in bf16"


def pure_transformer() -> Iterator[Row]:
    """pure-transformer-8xa100."""
    recipe, profile = "pure-transformer", "a100x8"
    base, rl = (planned(recipe, profile, f"stage={stage}") for stage in ("base", "rl"))
    claims = {"tiny": "85 M", "small": "178 M", "medium": "374 M", "medium-large": "401 M",
              "large": "763 M", "xlarge": "1.46 G"}  # fmt: skip
    for size, claim in claims.items():
        ours = giga(parameters(recipe, profile, f"model.size={size}"))
        yield f"parameters of {size}", claim, ours, ""
    whole = base.shape.parameters
    yield ("tokens for a parameter", "8.5, \"Chinchilla-optimal\"", f"{11e9 / whole:.1f}",
           f"11 / 1.46; Chinchilla's optimum is about 20, {giga(20 * whole)} tokens")  # fmt: skip
    yield ("a batch of 131,072 tokens", "micro batch 16 x 2048 on 8 GPUs",
           f"{base.knobs.micro_batch_size} x 2048 on 8, {base.knobs.gradient_accumulation_steps} "
           "accumulated", f"16 x 2048 x 8 = {16 * 2048 * 8:,} is twice the batch")  # fmt: skip
    yield "steps", "(not told)", f"{base.steps.steps:,}", "11 G / 131,072, rounded up"
    yield ("warm-up of 100 M tokens", "(not told)",
           f"{base.config.tree['warmup_steps']:,} steps", "")  # fmt: skip
    yield ("the mix", "45/25/20/10, headed \"50-30-20-10\"", "45/25/20/10",
           "the heading adds up to 110; its token counts are those of 45/25/20/10")  # fmt: skip
    share = 79_200 * base.flops_per_token / (8 * 312e12)
    yield ("pace", "79,200 tok/s, 11,000 a GPU less 10 %", pace(base),
           f"plausible: {100 * share:.0f} % of the peak for the model's own work")  # fmt: skip
    yield ("base", "38.6 h, with overhead 40 to 42", time(base.hours),
           f"its own pace gives {11e9 / 79_200 / 3600:.1f} h; ours saves and evaluates, "
           "too")  # fmt: skip
    yield ("what that costs", "(not told)",
           f"{dollars(base, 'lambda')} at $8.80 an hour",
           "the A4000 guide's price of one, times eight")  # fmt: skip
    yield ("memory of a GPU", "44 GB", memory(base),
           "fp32 in both; here an eighth of it on each GPU (FSDP2), and half the rows")  # fmt: skip
    minutes = 1000 * 131_072 / 79_200 / 60
    ours = at_rate(base, 1000 * 131_072).mid * 60
    yield ("1,000 steps", "about 20 minutes", f"{ours:.0f} min",
           f"131 M tokens at its own pace are {minutes:.0f}")  # fmt: skip
    size = base.disk.checkpoint or 0
    yield ("a checkpoint", "5.8 GB", f"{size / GB:.1f} GB",
           "5.8 is the weights in fp32; without Adam's states a run cannot be resumed")  # fmt: skip
    yield ("disk", "500 GB", f"{size * (base.config.profile.checkpoints.keep + 1) / GB:.0f} GB of "
           "checkpoints", "six are kept; the corpus and its tokens come on top")  # fmt: skip
    yield ("GRPO", "8 h", f"{rl.steps.steps:,} steps, {memory(rl)}; no time",
           "10 K questions once; most of it is writing the answers, which no formula of ours "
           "covers")  # fmt: skip


def a4000() -> Iterator[Row]:
    """leviathan-a4000."""
    small = planned("leviathan", "a4000", sample="10pct")
    peak = small.config.profile.hardware.bf16_tflops or 0.0
    yield ("peak of an A4000", "19 TFLOPS", f"{peak} TFLOPS",
           "19 is fp32; training runs on the tensor cores")  # fmt: skip
    yield "pace", "(not told)", pace(small), "4-bit weights, recomputed activations"
    yield ("10 %, 2 epochs", "24 to 36 h", time(small.hours),
           f"{giga(small.steps.slots)} tokens: 36 h would be "
           f"{small.needed_tok_s(36):,.0f} tok/s")  # fmt: skip
    for sample, claim_a4000, claim_a100 in (("10pct", "", "4 to 6 h"),
                                            ("full", "10 to 15 days", "48 to 72 h")):  # fmt: skip
        what = "10 %, 2 epochs" if sample == "10pct" else "all rows, 3 epochs"
        if claim_a4000:
            yield what, claim_a4000, time(planned("leviathan", "a4000").hours), "as above"
        made = planned("leviathan", "a100-80gb", sample=sample)
        yield (f"{what}, A100 80 GB", claim_a100, time(made.hours),
               f"{giga(made.steps.slots)} tokens at {pace(made)}")  # fmt: skip
        costs = {"10pct": "about $10", "full": "$80 to 120"}[sample]
        yield f"{what}, cost", costs, f"{dollars(made, 'runpod')} at $1.50 an hour", "as the hours"
    yield "memory", "14 to 15 GB of 16", memory(small), "the adapter is on all seven matrices here"


PAGES = (
    ("nanochat-d64 on eight H100", d64, "nanochat-d64", "h100x8"),
    ("nanochat on one A100 40 GB", single_a100, "nanochat", "a100-40gb"),
    ("pure-transformer on eight A100", pure_transformer, "pure-transformer", "a100x8"),
    ("leviathan on an A4000", a4000, "leviathan", "a4000"),
)


def page() -> str:
    """The whole page."""
    text = HEAD
    for title, rows, recipe, profile in PAGES:
        text += f"\n## {title}\n\n    leviathan plan --recipe {recipe} --profile {profile}\n\n"
        text += "| | guide | ours | why |\n|-|-|-|-|\n"
        text += "".join(f"| {' | '.join(row)} |\n" for row in rows())
    return text


def main() -> None:
    """Write or compare."""
    if "--check" in sys.argv[1:]:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
