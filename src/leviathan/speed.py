"""Owns how fast a machine trains: floating-point work per token, tokens per second, why.

Pure. Does not count tokens or steps (``steps``) nor judge what fits (``memory``).
Derivations and sources: docs/planning.md, "Time".
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from leviathan import calibrations
from leviathan.calibrations import Calibration
from leviathan.config import Hardware
from leviathan.decoder import Shape
from leviathan.eta import Eta
from leviathan.knobs import Knobs

# Share of the dense peak that good training software reaches on top of the work counted
# here: 41 % NeMo AutoModel (Llama-3-8B LoRA, H100, 4k), 44 % LLaMA-Factory with
# FlashAttention-2 (Llama-2-7B LoRA, A100); facts and sources in docs/planning.md.
REACHED = (0.35, 0.42, 0.50)
# 4-bit weights are unpacked to 16 bits before each use: 0.5 B read and 2 B written.
_UNPACK_BYTES = {"qlora": 2.5, "lora_8bit": 3.0}
# Half the width that a measured speed keeps at least, and what each doubling (or halving) of a
# size that was not measured adds to it. Assumed: steps vary, and sizes use a card differently.
_MEASURED_WIDTH, _DOUBLING_WIDTH = 0.05, 0.10
# Bytes of a parameter or gradient on the wire between GPUs: bf16 weights, fp32 adapters.
_WIRE_BYTES = {"full": 2, "lora": 4, "qlora": 4, "lora_8bit": 4}


@dataclass(frozen=True)
class Speed:
    """Computed tokens (padding included) per second over all processes."""

    low_tok_s: float
    mid_tok_s: float
    high_tok_s: float
    eval_tok_s: float
    """In evaluation: the forward pass only; infinite where evaluations are in the others."""
    source: str
    """formula, calibration, or history."""
    evidence: str
    """One line: where the figure came from."""


def train_flops_per_token(shape: Shape, knobs: Knobs, attended: float) -> float:
    """Floating-point operations of one trained token: forward, backward, recomputation.

    A matrix of N weights takes 2N forward, 2N for the gradient of its input, and 2N for
    its own gradient, which only trained matrices need. Causal attention over
    ``attended`` tokens takes 2 x attended x query width a layer forward (half of the
    4 x of full attention) and twice that backward. Checkpointing runs the decoder
    layers forward once more (Kaplan et al. 2020, appendix; Chowdhery et al. 2022,
    appendix B).
    """
    layers, head = shape.linear_parameters, shape.hidden * shape.vocab
    attention = _attention(shape, attended)
    if knobs.method == "full":
        total, again = 6.0 * (layers + head) + 3 * attention, 2.0 * layers + attention
    else:
        adapter = shape.lora_parameters(knobs.rank, knobs.targets, all_linear=knobs.all_linear)
        total = 4.0 * (layers + head) + 6.0 * adapter + 3 * attention
        again = 2.0 * (layers + adapter) + attention
    return total + again if knobs.gradient_checkpointing else total


def forward_flops_per_token(shape: Shape, attended: float) -> float:
    """Floating-point operations of one evaluated token."""
    return 2.0 * (shape.linear_parameters + shape.hidden * shape.vocab) + _attention(
        shape, attended
    )


def _attention(shape: Shape, attended: float) -> float:
    window = min(attended, shape.sliding_window or attended)
    return 2.0 * window * shape.heads * shape.head_dim * shape.layers


def by_formula(shape: Shape, knobs: Knobs, hardware: Hardware, attended: float) -> Speed | None:
    """Speed from the card's data sheet; None where it names no peak (a CPU).

    One micro batch takes: work / (peak x share reached) + unpacking of quantised weights at
    the memory's bandwidth + what the links between GPUs cannot hide behind the work (all
    of it in the slow case, half in the middle, nothing in the fast one).
    """
    if not hardware.bf16_tflops or not hardware.memory_gb_s:
        return None
    peak = hardware.bf16_tflops * 1e12
    tokens = knobs.micro_batch_size * knobs.sequence_len
    work = tokens * train_flops_per_token(shape, knobs, attended)
    unpack = _unpack_s(shape, knobs, hardware)
    link = _link_s(shape, knobs, hardware)
    seconds = [
        work / (peak * share) + unpack + link * hidden
        for share, hidden in zip(REACHED, (1.0, 0.5, 0.0), strict=True)
    ]
    low, mid, high = (knobs.processes * tokens / s for s in seconds)
    forward = tokens * forward_flops_per_token(shape, attended) / (peak * REACHED[1])
    evaluated = knobs.processes * tokens / (forward + unpack / 3)
    share = "-".join(f"{100 * s:.0f}" for s in (REACHED[0], REACHED[-1]))
    evidence = (
        f"formula: {work / tokens / 1e9:.1f} GFLOP a token at {share} % of "
        f"{hardware.bf16_tflops:g} TFLOPS"
    )
    if hardware.nodes > 1 and not hardware.network_gb_s:
        evidence += "; the network between hosts is not in it (hardware.network_gb_s)"
    return Speed(low, mid, high, evaluated, "formula", evidence)


def by_history(told: Eta, slots: int) -> Speed | None:
    """Speed from what a run itself has shown; None without evidence.

    Args:
        told: seconds for all its steps, evaluations and saves, which are in this speed.
        slots: token positions computed meanwhile.
    """
    if not told.mid_s:
        return None
    mid = slots / told.mid_s
    low = slots / told.high_s if told.high_s else mid / (1 + _MEASURED_WIDTH)
    high = slots / told.low_s if told.low_s else mid * (1 + _MEASURED_WIDTH)
    return Speed(low, mid, high, math.inf, "history", f"history: {told.source}")


def by_calibration(
    measured: Calibration, shape: Shape, knobs: Knobs, attended: float
) -> Speed | None:
    """Speed from a bench on such a machine; None where it measured none.

    A bench of other sizes is scaled by the work of a token; its interval is wider.
    """
    if not measured.padded_tok_s or not measured.step_s:
        return None
    there = Knobs(**{**asdict(knobs), **_frozen(measured.knobs)})
    work = train_flops_per_token(shape, knobs, attended)
    mid = measured.padded_tok_s * train_flops_per_token(shape, there, attended) / work
    doublings = calibrations.distance(measured, knobs)
    width = _MEASURED_WIDTH + _DOUBLING_WIDTH * doublings
    slow = max(1 + width, (measured.step_high_s or 0) / measured.step_s)
    fast = min(1 - width / (1 + width), (measured.step_low_s or measured.step_s) / measured.step_s)
    evaluated = mid * work / forward_flops_per_token(shape, attended)
    what = "calibration" if calibrations.is_exact(measured, knobs) else "calibration of other sizes"
    return Speed(mid / slow, mid, mid / fast, evaluated, "calibration", f"{what}: {measured.text}")


def _frozen(knobs: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in knobs.items()}


def ceiling_tok_s(shape: Shape, knobs: Knobs, hardware: Hardware, attended: float) -> float | None:
    """Tokens per second at the card's full peak: more is impossible."""
    if not hardware.bf16_tflops:
        return None
    flops = train_flops_per_token(shape, knobs, attended)
    return knobs.processes * hardware.bf16_tflops * 1e12 / flops


def _unpack_s(shape: Shape, knobs: Knobs, hardware: Hardware) -> float:
    """Seconds one micro batch spends on unpacking: forward, backward, recomputation."""
    if not knobs.quantised or not hardware.memory_gb_s:
        return 0.0
    passes = 3 if knobs.gradient_checkpointing else 2
    amount = shape.linear_parameters * _UNPACK_BYTES[knobs.method] * passes
    return amount / (hardware.memory_gb_s * 1e9)


def _link_s(shape: Shape, knobs: Knobs, hardware: Hardware) -> float:
    """Seconds the GPUs' links are busy for one micro batch.

    Ring all-reduce moves 2 (n-1)/n of what is reduced, once an optimizer step (DDP,
    ZeRO-1 and 2). Sharded weights are gathered for the forward and the backward pass
    and their gradients scattered: 3 (n-1)/n, every micro batch (Rajbhandari et al.
    2020, section 7).
    """
    slowest = _slowest_link_gb_s(hardware)
    if knobs.processes == 1 or not slowest:
        return 0.0
    share = (knobs.processes - 1) / knobs.processes
    trained = _trained(shape, knobs)
    wire = _WIRE_BYTES[knobs.method]
    if knobs.strategy in {"zero3", "fsdp"}:
        frozen = 0 if knobs.method == "full" else shape.parameters
        amount = share * (3 * trained * wire + 2 * frozen * 2)
    else:
        amount = 2 * share * trained * wire / knobs.gradient_accumulation_steps
    return amount / (slowest * 1e9)


def _slowest_link_gb_s(hardware: Hardware) -> float | None:
    """A ring goes as fast as its slowest link: between hosts that is the network."""
    if hardware.nodes == 1 or not hardware.network_gb_s:
        return hardware.link_gb_s
    return min(hardware.network_gb_s, hardware.link_gb_s or math.inf)


def _trained(shape: Shape, knobs: Knobs) -> int:
    if knobs.method == "full":
        return shape.parameters
    return shape.lora_parameters(
        knobs.rank,
        knobs.targets,
        all_linear=knobs.all_linear,
        modules_to_save=knobs.modules_to_save,
    )
