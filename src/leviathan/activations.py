"""Owns what a step allocates and frees again: checkpoints, one layer's tensors, the logits.

Pure; bytes. What stays between steps is ``residents``; phases, totals and verdicts are
``memory``. Derivations and sources: docs/planning.md, "Memory".
"""

import math
from dataclasses import dataclass

from leviathan.decoder import Linear, Shape
from leviathan.knobs import Knobs
from leviathan.residents import Stack, adapted, compute_bytes, wide

_FP32 = 4
_EAGER_BACKWARD = 3, 2
"""Tensors of scores (head x query x key) at the peak of eager attention's backward pass, in
fp32 (softmax, its gradient, its input's) and in the compute dtype (on either side of them)."""
_SHARDED_ADAPTER_LAYER = 2
"""One layer's tensors under FSDP with an adapter against one GPU: measured on 2 and 4 A100,
with and without NF4, as if in fp32; the cause is not established (docs/planning.md)."""
_IN_FLIGHT, _IN_FLIGHT_SAVED = 4, 2
"""MLP-wide tensors beyond the saved ones at the peak of a layer's backward pass: in general,
and where the MLP's product is among the saved or recomputed in place. Counted in real backward
passes (tests/real/test_tensor_bytes.py), the 4 on an A100, too (docs/planning.md)."""
_EVALUATED_LOGIT_BYTES = 10
"""Per logit without gradients: 16-bit logits, their fp32 copy, the log-softmax."""
_SHARED_INPUT = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "attention"),
    **dict.fromkeys(("o_proj", "dense", "out_proj"), "attention output"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "fc1"), "mlp"),
    **dict.fromkeys(("down_proj", "fc2"), "mlp middle"),
}


@dataclass(frozen=True)
class Activations:
    """Bytes on one GPU for one micro batch."""

    kept: int
    """What every layer leaves for the backward pass: all of its tensors, or with gradient
    checkpointing its input alone."""
    layer: int
    """Beyond ``kept``, while one layer runs backward."""
    head: int
    """Beyond ``kept``, at the loss's peak, logits apart."""
    logits: int
    """The logits and what the loss makes of them, at the loss's peak."""
    evaluated: int
    """An evaluation batch's logits and layer, without gradients."""


def activations(shape: Shape, knobs: Knobs, stack: Stack) -> Activations:
    """One micro batch's tensors; ``sequence_len`` tokens a row, padded or packed."""
    tokens = knobs.micro_batch_size * knobs.sequence_len
    saved = _saved(shape, knobs, stack) * tokens
    in_flight = _in_flight(shape, knobs, stack, saved, tokens)
    kept, layer = _kept(shape, knobs, stack, saved, tokens), in_flight
    if knobs.gradient_checkpointing and not _offloads_everything(knobs):
        layer = saved + in_flight
    if knobs.strategy == "fsdp" and knobs.method != "full":
        layer *= _SHARDED_ADAPTER_LAYER
    inputs = 16 + 2 * shape.head_dim * compute_bytes(knobs)  # ids and labels; cosines and sines
    return Activations(
        kept=round(kept + inputs * tokens),
        layer=round(layer),
        head=round(_head(shape, knobs, stack, tokens)),
        logits=round(_logits(shape, knobs, stack, tokens)),
        evaluated=round(_evaluated(shape, knobs)),
    )


def _offloads_everything(knobs: Knobs) -> bool:
    """Axolotl: with an adapter, offloading takes the place of recomputation."""
    return knobs.activation_offloading and knobs.method != "full"


def _residual_bytes(knobs: Knobs, stack: Stack) -> int:
    """Of the stream between the layers: the embeddings' dtype."""
    return _FP32 if wide(knobs, stack) else compute_bytes(knobs)


def _kept(shape: Shape, knobs: Knobs, stack: Stack, saved: float, tokens: int) -> float:
    if knobs.activation_offloading:
        # In RAM; what one layer left is on its way there while the next one runs.
        own = _residual_bytes(knobs, stack) * shape.hidden * tokens
        return 2 * (saved if _offloads_everything(knobs) else own)
    if knobs.gradient_checkpointing:
        return shape.layers * _residual_bytes(knobs, stack) * shape.hidden * tokens
    return shape.layers * saved


def _linear_dtype(knobs: Knobs, stack: Stack) -> int:
    """Bytes per element inside a layer: without autocast it is the residual stream's dtype."""
    return compute_bytes(knobs) if stack.autocast else _residual_bytes(knobs, stack)


def _saved(shape: Shape, knobs: Knobs, stack: Stack) -> float:
    """Bytes per token that one layer's forward pass saves for its backward pass."""
    return (
        _norms(shape, knobs, stack)
        + _attention(shape, knobs, stack)
        + _mlp(shape, knobs, stack)
        + _linear_inputs(shape, knobs, stack)
    )


def _norms(shape: Shape, knobs: Knobs, stack: Stack) -> float:
    """RMSNorm: its input in fp32; where the weight is trained the normalised input, too."""
    residual = _residual_bytes(knobs, stack)
    each = _FP32 + (residual if knobs.method == "full" else 0)
    width = sum(_norm_width(shape, x.path) for x in shape.norms)
    return (residual if knobs.fused_norm else each) * width


def _norm_width(shape: Shape, path: str) -> int:
    if path.endswith("q_norm"):
        return shape.heads * shape.head_dim
    return shape.kv_heads * shape.head_dim if path.endswith("k_norm") else shape.hidden


def _attention(shape: Shape, knobs: Knobs, stack: Stack) -> float:
    """Flash-like: queries, keys, values, output, log-sum-exp. Eager: the scores, too."""
    size = _linear_dtype(knobs, stack)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if knobs.attention != "eager":
        return size * 2 * (q + kv) + _FP32 * shape.heads
    scores = shape.heads * knobs.sequence_len  # softmax in fp32, and its 16-bit copy
    return size * 4 * q + scores * (_FP32 + (size if size < _FP32 else 0))


def _mlp(shape: Shape, knobs: Knobs, stack: Stack) -> float:
    """Gate, its activation, up; fused: gate and up; ungated: the activation's input."""
    size = _linear_dtype(knobs, stack) * shape.intermediate
    if any(x.name == "fc1" for x in shape.linears):
        return size
    return (2 if knobs.fused_glu or _fused_mlp(shape, knobs) else 3) * size


def _fused_mlp(shape: Shape, knobs: Knobs) -> bool:
    return knobs.lora_kernels and any(x.name == "down_proj" for x in adapted(shape, knobs))


def _linear_inputs(shape: Shape, knobs: Knobs, stack: Stack) -> float:
    """What linears save of their inputs: one tensor where they read the same one, a copy for
    each where it has to be cast on the way in."""
    linears = shape.linears if knobs.method == "full" else tuple(adapted(shape, knobs))
    size = _linear_dtype(knobs, stack)
    ranks = knobs.rank * len(linears) * size
    # PEFT casts the input of LoRA on an unquantised linear to the adapter's dtype.
    if knobs.method == "lora" and not knobs.lora_kernels and size < stack.adapter_bytes:
        copy = size if stack.autocast else stack.adapter_bytes
        return copy * sum(x.into for x in linears) + ranks
    if wide(knobs, stack) and stack.autocast:
        cast = sum(x.into for x in linears if _SHARED_INPUT.get(x.name) in {"attention", "mlp"})
        middle = sum(x.into for x in linears if _SHARED_INPUT.get(x.name) == "mlp middle")
        return size * (cast + middle) + ranks
    return size * _distinct(linears, shape, knobs) + ranks


def _distinct(linears: tuple[Linear, ...], shape: Shape, knobs: Knobs) -> int:
    inputs = {_SHARED_INPUT.get(x.name, x.name): x.into for x in linears}
    inputs.pop("attention output", None)  # attention has saved it
    if _fused_mlp(shape, knobs):
        inputs.pop("mlp middle", None)  # recomputed
    return sum(inputs.values())


def _keeps_product(shape: Shape, knobs: Knobs) -> bool:
    if knobs.method == "full" or _fused_mlp(shape, knobs):
        return True
    names = {x.name for x in adapted(shape, knobs)}
    return knobs.quantised and bool(names & {"down_proj", "fc2"})


def _in_flight(shape: Shape, knobs: Knobs, stack: Stack, saved: float, tokens: int) -> float:
    """Beyond what it saved, at the peak of one layer's backward pass."""
    size = compute_bytes(knobs)
    wide_tensors = _IN_FLIGHT_SAVED if _keeps_product(shape, knobs) else _IN_FLIGHT
    mlp = size * (shape.hidden + wide_tensors * shape.intermediate) * tokens
    if knobs.quantised:  # one linear's weights in the compute dtype, while fewer tensors live
        largest = max(x.weights for x in shape.linears) * size
        mlp = max(mlp, size * (shape.hidden + shape.intermediate) * tokens + largest)
    if knobs.attention != "eager":
        return mlp
    full, computed = _EAGER_BACKWARD
    scores = shape.heads * knobs.sequence_len * tokens
    return max(mlp, scores * (full * _FP32 + computed * _linear_dtype(knobs, stack)) - saved)


def _head(shape: Shape, knobs: Knobs, stack: Stack, tokens: int) -> float:
    """The last norm's input in fp32 and its result; an fp32 head's copy in the compute dtype."""
    size = compute_bytes(knobs)
    copy = size * shape.vocab * shape.hidden if wide(knobs, stack) and stack.autocast else 0
    return (_FP32 + size) * shape.hidden * tokens + copy


def _logits(shape: Shape, knobs: Knobs, stack: Stack, tokens: int) -> float:
    size = compute_bytes(knobs)
    softcap = size if shape.model_type.startswith("gemma2") else 0  # tanh saves its result
    if not knobs.fused_cross_entropy:
        # Trainer hands outputs out in fp32; a plain loop as they are.
        held = _FP32 if stack.autocast else _residual_bytes(knobs, stack)
        extra = held if stack.outputs_held else 0
        return (stack.logit_bytes + softcap + extra) * shape.vocab * tokens
    # Liger: logits of one chunk of tokens at a time, the hidden states' gradient, and where
    # the head is trained its gradient (ops/fused_linear_cross_entropy.py).
    chunks = math.ceil(shape.vocab / shape.hidden)
    chunk = 1 << (math.ceil(tokens / chunks) - 1).bit_length()
    trained = knobs.method == "full" or "lm_head" in knobs.modules_to_save
    head = shape.vocab * shape.hidden * size if trained else 0
    return min(chunk, tokens) * shape.vocab * size + size * shape.hidden * tokens + head


def _evaluated(shape: Shape, knobs: Knobs) -> float:
    """Liger computes whole logits when not training; the loss is then the ordinary one."""
    tokens = knobs.eval_batch_size * knobs.sequence_len
    size = compute_bytes(knobs)
    layer = size * (3 * shape.hidden + 3 * shape.intermediate) * tokens
    logits = _EVALUATED_LOGIT_BYTES * shape.vocab * tokens
    return max(layer, logits + size * shape.hidden * tokens)
