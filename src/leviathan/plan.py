"""Owns the plan: what one training takes in memory, steps, time, disk, energy and money.

Pure: shape, corpus statistics, configuration and calibrations in, ``Plan`` out. Does not
read files, ask the machine, nor search for better knobs (``fit``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leviathan import calibrations, disk, knobs, memory, reinforcement, speed, steps
from leviathan.calibrations import Calibration
from leviathan.config import Profile
from leviathan.decoder import Shape
from leviathan.eta import History
from leviathan.figures import Statistics
from leviathan.knobs import Knobs
from leviathan.layers import Config
from leviathan.memory import Memory
from leviathan.reinforcement import Groups
from leviathan.speed import Speed
from leviathan.steps import Steps

# Seconds from the command to the first step where no bench has measured it: imports, loading
# and quantising 15 GiB, compiling kernels. Assumed; it matters to trials of minutes only.
_START_S = (60.0, 180.0, 600.0)
# A checkpoint is written, synced and hashed at no less than this on a disk worth using. Assumed.
_SAVE_BYTES_S = 100e6


@dataclass(frozen=True)
class Range:
    """An estimate with its interval."""

    low: float
    mid: float
    high: float

    def scaled(self, factor: float) -> "Range":
        """The same interval in another unit."""
        return Range(self.low * factor, self.mid * factor, self.high * factor)


@dataclass(frozen=True)
class Plan:
    """The prediction for one configuration on one machine class."""

    config: Config
    shape: Shape
    knobs: Knobs
    memory: Memory
    card_gib: float | None
    """Memory of one card (of the machine on a CPU); None where the profile names none."""
    verdict: str
    """fits, tight or does_not_fit."""
    statistics: Statistics
    steps: Steps
    speed: Speed | None
    """None where neither a data sheet nor a bench says how fast this machine is."""
    ceiling_tok_s: float | None
    """What the cards cannot exceed: all of their peak, nothing else to do."""
    flops_per_token: float
    """The model's own work for a trained token, without recomputation."""
    evaluations: int
    saves: int
    hours: Range | None
    disk: disk.Forecast
    evidence: dict[str, str]
    """Where each figure came from, a line each."""

    @property
    def profile(self) -> Profile:
        """The machine class planned for."""
        return self.config.profile

    @property
    def expected_hours(self) -> float | None:
        """What the recipe's owner expects for this sample on this profile."""
        settings = self.config.recipe.samples.get(self.config.sample)
        return settings.expected_hours.get(self.config.profile_name) if settings else None

    @property
    def usd(self) -> dict[str, Range]:
        """What it costs by provider, and as ``yours`` at the profile's price_usd_hour."""
        if self.hours is None:
            return {}
        return {name: self.hours.scaled(price) for name, price in prices(self.profile).items()}

    @property
    def kwh(self) -> Range | None:
        """Energy: the cards at their power limit, and the rest of the machine."""
        watts = watts_of(self.profile)
        return self.hours.scaled(watts / 1000) if self.hours and watts else None

    @property
    def energy_usd(self) -> Range | None:
        """What that costs where the machine is your own."""
        price = self.profile.electricity_usd_kwh
        return self.kwh.scaled(price) if self.kwh and price is not None else None

    @property
    def save_minutes(self) -> float | None:
        """Work between two saves: the most that a power cut costs, at the slow end."""
        if not self.hours:
            return None
        return self.hours.high * 60 / max(self.saves, 1)

    def needed_tok_s(self, hours: float) -> float:
        """Tokens per second (padding included) at which training alone takes ``hours``."""
        return self.steps.slots / (hours * 3600)


def prices(profile: Profile) -> dict[str, float]:
    """Dollars an hour for all hosts, by provider; what the user pays is called ``yours``."""
    found = dict(profile.prices.usd_hour) if profile.prices else {}
    if profile.price_usd_hour is not None:
        found["yours"] = profile.price_usd_hour
    return {name: price * profile.hardware.nodes for name, price in found.items()}


def watts_of(profile: Profile) -> float | None:
    """What the machine draws while training; None where the profile does not say."""
    hardware = profile.hardware
    if not hardware.power_w:
        return None
    return hardware.nodes * (hardware.power_w * hardware.count + (hardware.system_power_w or 0.0))


def make(
    config: Config,
    shape: Shape,
    statistics: Statistics,
    *,
    known: Sequence[Calibration] = (),
    device: str = "",
    ram_gib: float | None = None,
    history: History | None = None,
) -> Plan:
    """The plan for a merged configuration.

    Args:
        config: what is trained, on which machine class.
        shape: of its base model.
        statistics: of its sample.
        known: calibrations measured by ``bench``, of any machine.
        device: what calibrations of this machine class are called.
        ram_gib: this machine's memory, the limit of a CPU profile.
        history: of a run with these very settings on this machine.

    Raises:
        BadInput: see ``knobs.read`` and ``steps.predict``.
    """
    hardware = config.profile.hardware
    chosen, counted, groups = _counted(config, statistics)
    attended = _attended(statistics, chosen)
    digest = calibrations.shape_digest(str(config.tree["base_model"]), shape.parameters)
    measured = calibrations.find(known, device, digest, chosen)
    told = history.whole(counted.steps) if history else None
    shown = speed.by_history(told, counted.slots) if told else None
    benched = speed.by_calibration(measured, shape, chosen, attended) if measured else None
    pace = shown or benched or speed.by_formula(shape, chosen, hardware, attended)
    pace = shown if groups else pace  # nothing but a run's own past knows what answers take
    needed = memory.estimate(shape, chosen, device=hardware.device)
    card = hardware.memory_gib if hardware.device == "cuda" else ram_gib
    refuted = calibrations.refuting(known, device, digest, chosen)
    proven = _proven(measured, chosen, card) if hardware.device == "cuda" else None
    forecast = disk.planned(shape, chosen)
    evaluations, saves = _evaluations(counted, chosen), _saves(counted, chosen)

    def lasting(saves: int) -> Range | None:
        return _hours(pace, counted, statistics, chosen, evaluations, saves, forecast, measured)

    saves = max(saves, _hourly(lasting(0), config.profile.checkpoints.every_hours))
    return Plan(
        config=config,
        shape=shape,
        knobs=chosen,
        memory=needed,
        card_gib=card,
        verdict=_verdict(needed, card, refuted, proven),
        statistics=statistics,
        steps=counted,
        speed=pace,
        ceiling_tok_s=speed.ceiling_tok_s(shape, chosen, hardware, attended),
        flops_per_token=_model_flops(shape, chosen, attended),
        evaluations=evaluations,
        saves=saves,
        hours=lasting(saves),
        disk=forecast,
        evidence=_evidence(needed, card, refuted, proven, statistics, pace)
        | (_of_answers(shape, chosen, groups, pace) if groups else {}),
    )


def _counted(config: Config, statistics: Statistics) -> tuple[Knobs, Steps, Groups | None]:
    """Knobs and steps; the groups of answers of a training by rewards."""
    processes = config.profile.hardware.processes
    chosen = knobs.read(config.tree, processes)
    if not reinforcement.rewarded(config.tree):
        return chosen, steps.predict(statistics, chosen, steps.rules(config.tree)), None
    groups = reinforcement.groups(config.tree, processes)
    chosen = _with_answers(chosen, statistics, groups)
    return chosen, steps.answered(statistics, chosen, groups), groups


def _with_answers(chosen: Knobs, statistics: Statistics, groups: Groups) -> Knobs:
    """Knobs of the rows that are trained on: the longest question, and the longest answer.

    TRL makes the logits of the answers itself: no fused loss is used.
    """
    longest = int(np.max(statistics.tokens)) + groups.completion
    return replace(chosen, sequence_len=longest, packing=False, fused_cross_entropy=False)


def _of_answers(
    shape: Shape, chosen: Knobs, groups: Groups, pace: Speed | None
) -> dict[str, str]:  # fmt: skip
    """What a plan of a training by rewards does not know, said plainly."""
    written = groups.answers // chosen.processes
    values = 2 if chosen.dtype in {"bf16", "fp16"} else 4
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * values * chosen.sequence_len
    gib = written * cache / 2**30
    told = {
        "answers": f"{groups.generations} to a question, {groups.questions:,} questions a step, "
        f"up to {groups.completion:,} tokens each",
        "answers' memory": f"not in the figure above: it is of training on answers; {written:,} "
        f"written at once keep some {gib:.2g} GiB of keys and values besides",
    }
    if chosen.method == "full":
        told["second model"] = "not in the figure above: Axolotl loads the weights once more"
    if pace is None:
        told["time"] = (
            "not planned: writing answers takes most of it and cannot be told beforehand; once it "
            "has trained some steps, plan and status tell it from them"
        )
    return told


def _model_flops(shape: Shape, chosen: Knobs, attended: float) -> float:
    once = replace(chosen, gradient_checkpointing=False)
    return speed.train_flops_per_token(shape, once, attended)


def _proven(
    measured: Calibration | None, chosen: Knobs, card_gib: float | None
) -> Calibration | None:
    """``measured``, where its worst rows went through such a card with these knobs."""
    if measured is None or measured.peak_gib is None or not card_gib:
        return None
    same = calibrations.holds_as_much(measured, chosen)
    return measured if same and measured.peak_gib <= card_gib else None


def _verdict(
    needed: Memory, card_gib: float | None, refuted: Calibration | None, proven: Calibration | None
) -> str:
    if refuted:
        return "does_not_fit"
    return needed.verdict_for(card_gib) if card_gib and not proven else "fits"


def _evidence(
    needed: Memory, card_gib: float | None, refuted: Calibration | None,
    proven: Calibration | None, statistics: Statistics, pace: Speed | None,
) -> dict[str, str]:  # fmt: skip
    unknown = [] if card_gib else ["not judged: the profile names no memory_gib"]
    memory_from = "; ".join([*needed.evidence, *unknown])
    if refuted:
        memory_from = refuted.text
    elif proven:
        memory_from = f"calibration: {proven.text}; its parts by formula"
    return {
        "memory": memory_from,
        "tokens": statistics.source,
        "time": pace.evidence if pace else "nothing: no data-sheet peak, no bench",
    }


def _attended(statistics: Statistics, chosen: Knobs) -> float:
    """Tokens a token's row holds, on average over tokens: packed rows do not see each other."""
    lengths = np.minimum(np.asarray(statistics.tokens, float), chosen.sequence_len)
    return float(lengths @ lengths) / max(1.0, float(lengths.sum()))


def _eval_batch_tokens(essential: dict[str, Any]) -> int:
    """Slots of one evaluation batch: packed, it is of a training batch's size (Axolotl 0.19,
    core/trainers/base.py, ``_create_multipack_sampler``)."""
    packed = essential["packing"] and essential["eval_packing"]
    rows = essential["micro_batch_size" if packed else "eval_batch_size"]
    return int(rows * essential["sequence_len"])


def _hourly(hours: Range | None, every_hours: float | None) -> int:
    """Saves that ``checkpoints.every_hours`` asks for, where those at steps are rarer.

    ``hours`` without any: the hour begins anew when a save has ended.
    """
    return math.ceil(hours.mid / every_hours) if hours and every_hours else 0


def _hours(
    pace: Speed | None, counted: Steps, statistics: Statistics, chosen: Knobs, evaluations: int,
    saves: int, forecast: disk.Forecast, measured: Calibration | None,
) -> Range | None:  # fmt: skip
    """Training, evaluations, saves and the start; the tokens' own doubt in both ends."""
    if pace is None:
        return None
    doubt = min(statistics.total_error, 0.9)
    batch = _eval_batch_tokens(calibrations.essential(chosen))
    evaluation = counted.eval_batches * chosen.processes * batch / pace.eval_tok_s
    save = (forecast.checkpoint or 0) / _SAVE_BYTES_S
    start = _START_S
    if measured and measured.eval_s_per_batch is not None:
        larger = batch / max(_eval_batch_tokens(measured.knobs), 1)
        evaluation = counted.eval_batches * measured.eval_s_per_batch * larger
    if measured and measured.save_s is not None:
        save = measured.save_s
    if measured and measured.load_s is not None:
        start = (measured.load_s, measured.load_s + _START_S[0], measured.load_s + _START_S[1])
    if pace.source == "history":  # that has its evaluations and saves, and has started
        evaluations, saves, start = 0, 0, (0.0, 0.0, 0.0)
    low, mid, high = (
        (counted.slots * factor / tok_s + evaluations * evaluation + saves * save + begin) / 3600
        for factor, tok_s, begin in zip(
            (1 - doubt, 1.0, 1 + doubt),
            (pace.high_tok_s, pace.mid_tok_s, pace.low_tok_s),
            start,
            strict=True,
        )
    )
    return Range(low, mid, high)


def _evaluations(counted: Steps, chosen: Knobs) -> int:
    """How often the held-out rows are gone through: at intervals, and before the first step."""
    if not counted.eval_rows or not chosen.eval_steps:
        return 0
    return 1 + _times(counted.steps, chosen.eval_steps)


def _saves(counted: Steps, chosen: Knobs) -> int:
    """How often a checkpoint is written: at intervals, and at the end."""
    return 1 + (_times(counted.steps, chosen.save_steps) if chosen.save_steps else 0)


def _times(all_steps: int, interval: float) -> int:
    """How often an interval passes; below 1 it is a share of all steps (HF Trainer)."""
    every = interval if interval >= 1 else max(1, math.ceil(all_steps * interval))
    return int(all_steps // every)


def as_document(made: Plan) -> dict[str, Any]:
    """The document of ``plan --json`` (design.md)."""
    chosen, counted = made.knobs, made.steps
    return {
        "verdict": made.verdict,
        "profile": made.config.profile_name,
        "recipe": made.config.recipe_name,
        "sample": made.config.sample,
        "base_model": str(made.config.tree["base_model"]),
        "parameters": made.shape.parameters,
        "memory_gib": {
            "total": made.memory.total_gib,
            "low": made.memory.low_gib,
            "high": made.memory.high_gib,
            "card": made.card_gib,
            **made.memory.components_gib,
        },
        "batch": {
            "micro_batch_size": chosen.micro_batch_size,
            "gradient_accumulation_steps": chosen.gradient_accumulation_steps,
            "processes": chosen.processes,
            "rows": chosen.rows_per_step,
            "tokens": chosen.tokens_per_step,
        },
        "rows": {
            "train": counted.train_rows,
            "eval": counted.eval_rows,
            "dropped": counted.dropped_rows,
        },
        "epochs": chosen.epochs,
        "steps": counted.steps,
        "steps_per_epoch": counted.steps_per_epoch,
        "exact": counted.exact,
        "tokens": counted.train_tokens,
        "packing_efficiency": counted.packing_efficiency,
        "tok_s": _document(_tok_s(made.speed)),
        "ceiling_tok_s": made.ceiling_tok_s,
        "flops_per_token": made.flops_per_token,
        "peak_tflops": _peak_tflops(made.profile),
        "hours": _document(made.hours),
        "expected_hours": made.expected_hours,
        "usd": {name: cost.mid for name, cost in made.usd.items()},
        "kwh": _document(made.kwh),
        "energy_usd": _document(made.energy_usd),
        "disk_bytes": {
            "checkpoint": made.disk.checkpoint,
            "merged": made.disk.merged,
            "slim_checkpoint": made.disk.slim,
            "kept": made.disk.kept(made.profile.checkpoints),
        },
        "evidence": made.evidence,
    }


def _peak_tflops(profile: Profile) -> float | None:
    hardware = profile.hardware
    return hardware.bf16_tflops * hardware.processes if hardware.bf16_tflops else None


def _tok_s(pace: Speed | None) -> Range | None:
    return Range(pace.low_tok_s, pace.mid_tok_s, pace.high_tok_s) if pace else None


def _document(value: Range | None) -> dict[str, float] | None:
    return {"low": value.low, "mid": value.mid, "high": value.high} if value else None
