"""Owns detection: the GPUs of a machine -> a profile for them, as YAML that teaches.

Facts come from ``cards``, knobs and their comments from the shipped profile of the nearest
card. Asks no hardware (``machine``), writes no file, predicts no memory or time.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leviathan.cards import Card, Shipped, capability, card, shipped, short_name, tensor_fma
from leviathan.config import find
from leviathan.errors import BadInput
from leviathan.machine import Gpu
from leviathan.yamlfile import dump

TOKENS_PER_STEP = 65_536
"""Effective batch of every shipped profile for GPUs, so that their runs can be compared."""

_USEFUL_GIB = 8.0
"""Below it no 8B model trains, even in 4 bits: 7.3 GiB on a T4 (Unsloth, Llama-3.1-8B, r 16)."""
_SAME_MEMORY = 0.9
"""NVML reports a few per cent less than the nominal size (ECC, reserved pages)."""
_FIRST_WITH_BF16 = 80


@dataclass(frozen=True)
class _Setup:
    """What is detected: the cards to train on, the smallest of them, the profile begun from."""

    cards: tuple[Card, ...]
    smallest: Card
    base: Shipped
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.cards)

    @property
    def capability(self) -> int:
        return min(capability(one.gpu) for one in self.cards)

    @property
    def mixed(self) -> bool:
        return len({one.name for one in self.cards}) > 1

    @property
    def same_card(self) -> bool:
        """Whether the profile begun from is for this very card, or a variant of it."""
        known = self.smallest.known
        return known is not None and known.profile.hardware.gpu == self.base.profile.hardware.gpu

    @property
    def as_shipped(self) -> bool:
        """Whether the profile begun from is for just these cards, and as many of them."""
        hardware = self.base.profile.hardware
        same = hardware.gpu == self.smallest.name and not self.mixed
        return same and hardware.count == self.count

    @property
    def title(self) -> str:
        name = f"{self.smallest.name}{' and larger' if self.mixed else ''}"
        return f"{self.count} x {name}" if self.count > 1 else name

    @property
    def why(self) -> str:
        """Why the knobs are those of ``base``."""
        if self.same_card:
            return "the same card"
        return "the nearest by memory: assumed to suit this card, too"


def profile_for(gpus: Sequence[Gpu], name: str = "detected") -> tuple[str, tuple[str, ...]]:
    """A profile for ``gpus`` as the text of its file, and what the user should know of it.

    Without a GPU it is the shipped cpu profile. ``name`` is what the file will be called.
    """
    if not gpus:
        text = find("profiles", "cpu").read_text()
        return text, ("no NVIDIA GPU answers: this is the cpu profile, for tiny models only",)
    setup = _setup(gpus)
    parts = [_header(setup, name), _hardware(setup), _MONEY, _knobs(setup)]
    begun = f"{setup.title}: knobs of profile {setup.base.name}, {setup.why}"
    return "\n".join(parts), (begun, *setup.notes)


def new_file(name: str) -> Path:
    """Where a profile called ``name`` is written.

    Raises:
        BadInput: the name cannot be a profile's, or there is such a file already.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*", name):
        raise BadInput(f"{name!r} cannot be a profile's name", "letters, digits, dot, dash, _")
    path = Path("configs/profiles", f"{name}.yaml")
    if path.exists():
        raise BadInput(f"{path} exists and is not overwritten", "choose another name")
    return path


_MONEY = """\
price_usd_hour: null         # what you pay for an hour of this machine, for --budget-usd
electricity_usd_kwh: null    # or for a kilowatt hour, where it is your own
"""


def _setup(gpus: Sequence[Gpu]) -> _Setup:
    profiles = shipped()
    useful, notes = _useful(gpus)
    cards = tuple(card(gpu, profiles) for gpu in useful)
    smallest = min(cards, key=lambda one: (one.gpu.memory_gib, one.bf16_tflops or 0.0))
    setup = _Setup(cards, smallest, _nearest(smallest, len(cards), profiles))
    return replace(setup, notes=(*notes, *_notes(setup)))


def _useful(gpus: Sequence[Gpu]) -> tuple[list[Gpu], list[str]]:
    """The GPUs worth training on: a small display card would hold back the others."""
    chosen = [i for i, gpu in enumerate(gpus) if gpu.memory_gib >= _USEFUL_GIB]
    if len(chosen) in {0, len(gpus)}:
        return list(gpus), []
    left_out = [gpu for i, gpu in enumerate(gpus) if i not in chosen]
    notes = [f"left out as too small: {_listed(left_out)}"]
    if chosen != list(range(len(chosen))):
        visible = ",".join(map(str, chosen))
        notes.append(f"start with CUDA_VISIBLE_DEVICES={visible}; a run takes the first it sees")
    return [gpus[i] for i in chosen], notes


def _nearest(one: Card, count: int, profiles: list[Shipped]) -> Shipped:
    """The profile whose knobs suit ``one``: of the same card, else of the class of memory."""
    memory = one.gpu.memory_gib

    def size(candidate: Shipped) -> float:
        return candidate.profile.hardware.memory_gib or 0.0

    if one.known and memory >= _SAME_MEMORY * size(one.known):
        of_card = [p for p in profiles if p.profile.hardware.gpu == one.known.profile.hardware.gpu]
        return next((p for p in of_card if p.profile.hardware.count == count), one.known)
    single = [p for p in profiles if p.profile.hardware.count == 1]
    fitting = [p for p in single if memory >= _SAME_MEMORY * size(p)] or [min(single, key=size)]
    largest = max(map(size, fitting))
    near = [p for p in fitting if size(p) >= _SAME_MEMORY * largest]
    return min(near, key=lambda p: abs(_capability(p) - capability(one.gpu)))


def _capability(one: Shipped) -> int:
    return int((one.profile.hardware.compute_capability or "sm_0").removeprefix("sm_"))


def _listed(gpus: Iterable[Gpu]) -> str:
    return ", ".join(f"{short_name(gpu)} ({gpu.memory_gib:.1f} GiB)" for gpu in gpus)


def _notes(setup: _Setup) -> list[str]:
    """What the user should know, besides what the header says anyway."""
    notes = []
    if setup.mixed:
        notes.append(
            f"different cards, {_listed(c.gpu for c in setup.cards)}: written for all of them "
            "together, at the memory of the smallest and the pace of the slowest; for one alone "
            "set count: 1 and start with CUDA_VISIBLE_DEVICES"
        )
    if setup.capability < _FIRST_WITH_BF16:
        notes.append(f"sm_{setup.capability} has no bf16: fp16, no flash-attn, no Triton kernels")
    if setup.smallest.gpu.memory_gib < _USEFUL_GIB:
        notes.append("an 8B model does not fit this card: choose a smaller base_model")
    micro, sequence, accumulation = _batch(setup)
    tokens = micro * sequence * accumulation * setup.count
    if tokens != TOKENS_PER_STEP:
        usual = f"the shipped profiles' is {TOKENS_PER_STEP:,}"
        notes.append(f"the effective batch is {tokens:,} tokens; {usual}")
    return notes


# --- header and hardware ----------------------------------------------------------


def _header(setup: _Setup, name: str) -> str:
    paragraphs = [
        f"Measured (NVML): memory, power limit, compute capability. {_provenance(setup)}",
        f"The knobs, and the comments beside them, are those of profile {setup.base.name}, "
        f"{setup.why}" + ("." if setup.as_shipped else "; what had to differ says so."),
        *(f"Note: {note}." for note in setup.notes),
    ]
    lines = [f"{setup.title}: written by `leviathan profiles detect`.", "",
             f"  leviathan train --profile {name} --sample 10pct", ""]  # fmt: skip
    for paragraph in paragraphs:
        lines += textwrap.wrap(paragraph, 96, break_long_words=False, break_on_hyphens=False)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return f"{comment}\n{dump({'description': _description(setup)})}"


def _description(setup: _Setup) -> str:
    dtype = "bf16" if setup.capability >= _FIRST_WITH_BF16 else "fp16"
    four_bit = setup.base.profile.axolotl.get("load_in_4bit")
    method = "4-bit QLoRA" if four_bit else f"{dtype} LoRA"
    return f"{setup.title} (detected), {method}, {_batch(setup)[1] // 1024}k sequences"


def _provenance(setup: _Setup) -> str:
    known = setup.smallest.known
    if known:
        return f"Known of this card (profile {known.name}): peak and bandwidth."
    return "Computed from its core count, bus width and highest clocks (NVML): peak and bandwidth."


def _hardware(setup: _Setup) -> str:
    one, gpu = setup.smallest, setup.smallest.gpu
    peak = min((c.bf16_tflops for c in setup.cards if c.bf16_tflops), default=None)
    speed = min((c.memory_gb_s for c in setup.cards if c.memory_gb_s), default=None)
    power = [c.gpu.power_limit_w for c in setup.cards if c.gpu.power_limit_w]
    known = f"as in profile {one.known.name}" if one.known else ""
    known = "the lowest of the cards'" if setup.mixed else known
    lines = [
        _line("device", "cuda"),
        _line("gpu", one.name, "the smallest" if setup.mixed else ""),
        _line("count", setup.count),
        _line("memory_gib", _number(gpu.memory_gib, 1), "measured"),
        _line("bf16_tflops", _number(peak, 1), known or _peak_origin(gpu)),
        _line("memory_gb_s", _number(speed, 0), known or _speed_origin(gpu)),
        _line("power_w", _number(sum(power) / len(power), 0) if power else None,
              "measured: the limit in force" if power else "not told by NVML"),
        _line("system_power_w", None, "what the rest of the machine draws; measure at the wall"),
        *_link(setup),
        _line("compute_capability", f"sm_{setup.capability}", "measured"),
    ]  # fmt: skip
    return "hardware:\n" + "".join(f"{line}\n" for line in lines)


def _link(setup: _Setup) -> list[str]:
    if setup.count == 1:
        return []
    known = setup.base.profile.hardware.link_gb_s if setup.as_shipped else None
    origin = f"as in profile {setup.base.name}" if known else "NVLink or PCIe, GB/s one way"
    return [_line("link_gb_s", _number(known, 0), origin)]


def _peak_origin(gpu: Gpu) -> str:
    fma = tensor_fma(gpu)
    if not (fma and gpu.sm_count and gpu.max_sm_clock_mhz):
        return "not known: see the data sheet (dense, fp32 accumulation)"
    ghz = gpu.max_sm_clock_mhz / 1000
    peak = "" if capability(gpu) >= _FIRST_WITH_BF16 else " (fp16)"
    return f"upper bound{peak}: {gpu.sm_count} SMs x {fma} FMA x 2 x {ghz:.2f} GHz, its highest"


def _speed_origin(gpu: Gpu) -> str:
    if not (gpu.memory_bus_bits and gpu.max_memory_clock_mhz):
        return "not known: see the data sheet"
    return f"{gpu.memory_bus_bits} bits x {gpu.max_memory_clock_mhz / 1000:.2f} GHz x 2"


def _number(value: float | None, digits: int) -> float | None:
    rounded = None if value is None else round(value, digits)
    return int(rounded) if rounded is not None and rounded == int(rounded) else rounded


def _line(key: str, value: Any, comment: str = "") -> str:
    text = "  " + dump({key: value}).strip()
    return f"{f'{text}  ':<29}# {comment}" if comment else text


# --- the knobs --------------------------------------------------------------------


def _batch(setup: _Setup) -> tuple[int, int, int]:
    """Rows per forward pass, tokens per row, accumulation: the usual tokens per step."""
    axolotl = setup.base.profile.axolotl
    micro, sequence = int(axolotl["micro_batch_size"]), int(axolotl["sequence_len"])
    if setup.smallest.gpu.memory_gib < _SAME_MEMORY * (setup.base.profile.hardware.memory_gib or 0):
        sequence //= 2
    while micro > 1 and micro * sequence * setup.count > TOKENS_PER_STEP:
        micro //= 2
    return micro, sequence, max(1, round(TOKENS_PER_STEP / (micro * sequence * setup.count)))


def _knobs(setup: _Setup) -> str:
    """The shipped file from its retention on, with what has to differ edited line by line."""
    source = setup.base.source
    lines: list[str | None] = [*source.path.read_text().splitlines()]
    for key, replacement in ({} if setup.as_shipped else _edits(setup)).items():
        at = source.lines.get(("axolotl", key))
        if at is None:
            continue  # not every profile has every kernel
        lines[at - 1] = "\n".join(replacement) or None
        _drop_continuation(lines, at)
        if key == "save_steps":
            _drop_comment_above(lines, at - 1)
    first = source.lines["checkpoints",] - 1
    return "".join(f"{line}\n" for line in lines[first:] if line is not None)


def _drop_continuation(lines: list[str | None], at: int) -> None:
    """What belongs to a key's line: items of its list, further lines of its comment."""
    while at < len(lines) and (lines[at] or "").startswith("   "):
        lines[at] = None
        at += 1


def _drop_comment_above(lines: list[str | None], at: int) -> None:
    while (lines[at - 1] or "").startswith("  # ") and "---" not in (lines[at - 1] or ""):
        at -= 1
        lines[at] = None


def _edits(setup: _Setup) -> dict[str, list[str]]:
    """Axolotl key -> the lines that replace it; none removes it."""
    micro, sequence, accumulation = _batch(setup)
    axolotl = setup.base.profile.axolotl
    edits: dict[str, list[str]] = {}
    if sequence != axolotl["sequence_len"]:
        edits["sequence_len"] = [_line("sequence_len", sequence, "detected: less memory")]
    if micro != axolotl["micro_batch_size"]:
        edits["micro_batch_size"] = [_line("micro_batch_size", micro, "detected: many GPUs")]
    gpus = f"{setup.count} GPUs x " if setup.count > 1 else ""
    tokens = setup.count * micro * accumulation * sequence
    batch = f"effective batch = {gpus}{micro} x {accumulation} rows of {sequence} = {tokens:,}"
    key = "gradient_accumulation_steps"
    edits[key] = [_line(key, accumulation, batch)]
    edits |= _pace(setup)
    return edits | (_without_bf16() if setup.capability < _FIRST_WITH_BF16 else {})


def _pace(setup: _Setup) -> dict[str, list[str]]:
    """Save after about the same time as the shipped profile does, by the cards' peaks."""
    hardware, axolotl = setup.base.profile.hardware, setup.base.profile.axolotl
    ratio = setup.count / hardware.count
    if setup.smallest.bf16_tflops and hardware.bf16_tflops:
        ratio *= setup.smallest.bf16_tflops / hardware.bf16_tflops
    steps = max(5, round(axolotl["save_steps"] * ratio / 5) * 5)
    why = f"detected: about as often as {setup.base.name}, by the peaks"
    same = "keep equal to save_steps, so that every checkpoint has a score"
    return {"save_steps": [_line("save_steps", steps, why)],
            "eval_steps": [_line("eval_steps", steps, same)]}  # fmt: skip


def _without_bf16() -> dict[str, list[str]]:
    """For cards before Ampere: no bf16, tf32 or flash-attn; Triton asks for sm_80 (its README)."""
    kernels = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
    liger = ("liger_rope", "liger_rms_norm", "liger_glu_activation",
             "liger_fused_linear_cross_entropy")  # fmt: skip
    return {
        "attn_implementation": [
            _line("attn_implementation", "sdpa", "detected: flash-attn needs sm_80"),
            _line("sdpa_varlen", False, "its kernel is flash-attn's, too"),
        ],
        "bf16": [_line("bf16", False, "detected: needs sm_80"), _line("fp16", True)],
        "tf32": [_line("tf32", False, "detected: needs sm_80")],
        **{key: [_line(key, False, "detected: Triton needs sm_80")] for key in kernels},
        "plugins": [
            _line("chunked_cross_entropy", True, "detected: instead of Liger, which is Triton")
        ],
        **{key: [] for key in liger},
    }
