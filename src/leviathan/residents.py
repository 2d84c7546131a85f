"""Owns what stays in a GPU's memory between steps: weights, adapter, gradients, optimizer state.

Pure; bytes per process. What comes and goes within a step is ``activations``; phases, totals
and verdicts are ``memory``. Derivations and sources: docs/planning.md, "Memory".
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from leviathan.decoder import Linear, Part, Shape
from leviathan.knobs import Knobs

_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_FP32 = 4
_NF4_BLOCK = 64
"""Weights that share one fp32 absmax (bitsandbytes functional.quantize_4bit)."""
_NESTED_BLOCK = 256
"""absmax values that share one, where they are quantised themselves (same place)."""
_NF4_TABLES = 16 * 4
"""The sixteen fp32 values of NF4, held once per linear."""
_NESTED_TABLES = 256 * 4 + 4
"""The 256 fp32 values of the nested quantisation and its offset, per linear."""
_OPTIMIZER_BLOCK = 256
"""States that share one fp32 absmax in bitsandbytes' 8-bit optimizers (optim/optimizer.py)."""
_SMALLEST_8BIT = 4096
"""Tensors with fewer elements keep fp32 states there (min_8bit_size)."""
_PAGED_FROM = 100_000
"""Tensors with fewer elements are never paged (get_state_buffer)."""
_ZERO_BUCKET = 500_000_000
"""DeepSpeed's default reduce_bucket_size and allgather_bucket_size, in elements."""
_DERIVED = ("adamw_torch", "adamw_8bit", "adamw_bnb_8bit", "adamw_32bit", "lion", "ademamix",
            "adagrad", "rmsprop")  # fmt: skip
"""Optimizers whose states were read in torch and bitsandbytes (names of transformers 5.16)."""
_SHARDED_WEIGHTS = {"fsdp", "zero3"}
_ZERO = {"zero1", "zero2", "zero3"}


@dataclass(frozen=True)
class Stack:
    """What training programs keep, where they differ. ``AXOLOTL`` is the one Leviathan starts.

    The others exist so that published measurements of other programs can be predicted as well.
    """

    name: str
    upcast: bool = False
    """Embeddings, head, norms stay in fp32 beside quantised linears: what PEFT's
    prepare_model_for_kbit_training leaves. Axolotl casts them back (loaders/model.py)."""
    upcast_full: bool = False
    """Full fine-tuning with eager or sdpa attention keeps them in fp32, too (same place)."""
    autocast: bool = True
    """Linears compute in 16 bits whatever their input (Trainer with bf16 or fp16)."""
    adapter_bytes: int = _FP32
    """Per adapter parameter: fp32 by PEFT's autocast_adapter_dtype."""
    outputs_held: bool = False
    """The loop keeps the model's output, logits included, through the backward pass."""
    logit_bytes: int = 12
    """Per logit at the loss's peak: log-softmax, its gradient and that of its input, fp32."""


AXOLOTL = Stack("Axolotl 0.19", upcast_full=True)


@dataclass(frozen=True)
class Tensors:
    """``count`` trained tensors of one kind: ``rows`` x ``columns`` (columns 1: a vector)."""

    rows: int
    columns: int
    count: int
    bytes: int
    """Per element."""

    @property
    def elements(self) -> int:
        """Of one of them."""
        return self.rows * self.columns

    @property
    def total(self) -> int:
        """Elements of all."""
        return self.elements * self.count

    @property
    def total_bytes(self) -> int:
        """Of all."""
        return self.total * self.bytes


@dataclass(frozen=True)
class Residents:
    """Bytes on one GPU."""

    weights: int
    adapter: int
    gradients: int
    """All of them, as they stand when the backward pass ends."""
    optimizer: int
    paged: int
    """The part of ``optimizer`` that the driver may move to RAM (paged optimizers)."""
    step: int
    """Temporaries of the optimizer's step."""
    gathered: int
    """Whole weights that sharding assembles to compute with, and communication buffers."""
    loading: int
    """Beyond ``weights`` while the model is loaded and cast."""


def compute_bytes(knobs: Knobs) -> int:
    """Bytes per element of the dtype that the forward pass computes in."""
    return _BYTES[knobs.dtype]


def wide(knobs: Knobs, stack: Stack) -> bool:
    """Whether embeddings, head and norms stand in fp32 while linears compute in 16 bits."""
    if knobs.dtype == "fp32":
        return False
    if knobs.quantised:
        return stack.upcast
    upcast = stack.upcast_full and knobs.method == "full" and knobs.strategy != "fsdp"
    return upcast and knobs.attention in {"eager", "sdpa"}


def _linear_bytes(linear: Linear, knobs: Knobs, bias_bytes: int) -> float:
    """One decoder linear as stored, its bias included."""
    bias = linear.out * linear.bias * bias_bytes
    if knobs.method == "qlora":
        return _nf4_bytes(linear.weights, knobs.double_quant) + bias
    if knobs.method == "lora_8bit":  # int8, and one fp32 scale per row (bitsandbytes Int8Params)
        return linear.weights + linear.out * _FP32 + bias
    return linear.weights * compute_bytes(knobs) + bias


def _nf4_bytes(weights: int, double_quant: bool) -> float:
    blocks = math.ceil(weights / _NF4_BLOCK)
    if not double_quant:
        return weights / 2 + blocks * _FP32 + _NF4_TABLES
    nested = math.ceil(blocks / _NESTED_BLOCK)
    return weights / 2 + blocks + nested * _FP32 + _NF4_TABLES + _NESTED_TABLES


def layer_bytes(shape: Shape, knobs: Knobs) -> float:
    """The linears of one decoder layer as stored."""
    return _stored(shape.linears, knobs)


def _stored(linears: Iterable[Linear], knobs: Knobs) -> float:
    # PEFT casts biases to fp32 with everything unquantised; only norms and embeddings go back.
    bias_bytes = _FP32 if knobs.quantised else compute_bytes(knobs)
    return sum(_linear_bytes(x, knobs, bias_bytes) for x in linears)


def weight_bytes(shape: Shape, knobs: Knobs, stack: Stack = AXOLOTL) -> float:
    """The base model's weights as stored, unsharded."""
    other = _FP32 if wide(knobs, stack) else compute_bytes(knobs)
    unquantised = shape.embedding_parameters + shape.head_parameters + shape.other_parameters
    unquantised += shape.vocab * shape.head_bias
    linears = shape.layers * layer_bytes(shape, knobs)
    if shape.vision:
        tower = shape.vision.count * sum(x.parameters for x in shape.vision.linears)
        unquantised -= tower
        linears += shape.vision.count * _stored(shape.vision.linears, knobs)
    return linears + unquantised * other


def trained(shape: Shape, knobs: Knobs, stack: Stack = AXOLOTL) -> list[Tensors]:
    """Every trained tensor, by kind, in the dtype that the optimizer sees."""
    found = _whole(shape, knobs, stack) if knobs.method == "full" else _adapter(shape, knobs, stack)
    if knobs.strategy in _ZERO:  # DeepSpeed holds the model in 16 bits, masters apart
        return [replace(x, bytes=compute_bytes(knobs)) for x in found]
    if knobs.strategy == "fsdp":  # accelerate casts what FSDP trains to fp32
        return [replace(x, bytes=_FP32) for x in found]
    return list(found)


def _adapter(shape: Shape, knobs: Knobs, stack: Stack) -> Iterator[Tensors]:
    for linear in adapted(shape, knobs):
        yield from _pair(linear.out, linear.into, shape.layers, knobs, stack)
    if shape.vision and knobs.all_linear:
        for linear in shape.vision.linears:
            yield from _pair(linear.out, linear.into, shape.vision.count, knobs, stack)
    sides = shape.vocab, shape.hidden
    for path in (f"{shape.path}.embed_tokens", "lm_head"):
        part = Part(path, shape.vocab * shape.hidden)
        if part.is_saved(knobs.modules_to_save):  # a copy of the module, in its own dtype
            yield Tensors(*sides, 1, _FP32 if wide(knobs, stack) else compute_bytes(knobs))
        elif knobs.targets and part.is_targeted(knobs.targets):
            yield from _pair(*sides, 1, knobs, stack)


def _pair(out: int, into: int, count: int, knobs: Knobs, stack: Stack) -> Iterator[Tensors]:
    yield Tensors(knobs.rank, into, count, stack.adapter_bytes)
    yield Tensors(out, knobs.rank, count, stack.adapter_bytes)


def adapted(shape: Shape, knobs: Knobs) -> list[Linear]:
    """The linears of one decoder layer that carry LoRA matrices."""
    if knobs.method == "full":
        return []
    layer = f"{shape.path}.layers.0"
    return [x for x in shape.linears if knobs.all_linear or _hit(f"{layer}.{x.path}", knobs)]


def _hit(path: str, knobs: Knobs) -> bool:
    return bool(knobs.targets) and Part(path, 0).is_targeted(knobs.targets)


def _whole(shape: Shape, knobs: Knobs, stack: Stack) -> Iterator[Tensors]:
    size = compute_bytes(knobs)
    other = _FP32 if wide(knobs, stack) else size
    for linear in shape.linears:
        yield Tensors(linear.out, linear.into, shape.layers, size)
        if linear.bias:
            yield Tensors(linear.out, 1, shape.layers, size)
    for norm in shape.norms:
        yield Tensors(norm.parameters, 1, shape.layers, other)
    yield Tensors(shape.final_norm.parameters, 1, 1, other)
    yield Tensors(shape.vocab, shape.hidden, 1 if shape.tied else 2, other)
    yield Tensors(shape.vision_parameters, 1, 1, size)
    if shape.head_bias:
        yield Tensors(shape.vocab, 1, 1, other)


def state_bytes(tensors: Tensors, optimizer: str) -> float:
    """Optimizer state of one tensor (``known`` tells whether the name is)."""
    elements = tensors.elements
    name = optimizer.removeprefix("paged_")
    if name == "sgd":  # no momentum unless optim_args ask for it
        return 0
    if name == "adafactor":  # second moment: row and column means in fp32
        return _FP32 * (tensors.rows + tensors.columns if tensors.columns > 1 else elements)
    states = _states(name)
    if "8bit" in name and elements >= _SMALLEST_8BIT:
        return states * (elements + _FP32 * math.ceil(elements / _OPTIMIZER_BLOCK))
    if "torch" in name or name in {"adagrad", "rmsprop", "lion_pytorch"}:
        return states * elements * tensors.bytes  # torch.zeros_like(parameter)
    return states * elements * _FP32


def _states(name: str) -> int:
    if name.startswith("ademamix"):
        return 3
    return 1 if name.startswith(("lion", "adagrad", "rmsprop")) else 2


def known(optimizer: str) -> bool:
    """Whether the states of this optimizer were derived; any other counts as AdamW in fp32."""
    name = optimizer.removeprefix("paged_")
    return name in {"sgd", "adafactor"} or name.startswith(_DERIVED)


def residents(shape: Shape, knobs: Knobs, stack: Stack = AXOLOTL) -> Residents:
    """What stays on one GPU, after sharding and offload."""
    tensors = trained(shape, knobs, stack)
    size = sum(x.total_bytes for x in tensors)
    weights, adapter = weight_bytes(shape, knobs, stack), float(size)
    if knobs.method == "full":
        weights, adapter = (size if knobs.strategy == "fsdp" else weights), 0
    share = 1 / knobs.processes if knobs.strategy in _SHARDED_WEIGHTS else 1
    if knobs.offload and knobs.strategy in _SHARDED_WEIGHTS:
        share = 0
    return Residents(
        weights=round(weights * share),
        adapter=round(adapter * share),
        gradients=_gradients(size, knobs),
        optimizer=0 if knobs.offload else round(_optimizer(tensors, knobs)),
        paged=_paged(tensors, knobs),
        step=_step(tensors, knobs),
        gathered=_gathered(shape, knobs, sum(x.total for x in tensors)),
        loading=_loading(shape, knobs, stack),
    )


def _optimizer(tensors: list[Tensors], knobs: Knobs) -> float:
    if knobs.strategy not in _ZERO:
        states = sum(x.count * state_bytes(x, knobs.optimizer) for x in tensors)
        return states / knobs.processes if knobs.strategy == "fsdp" else states
    masters = [replace(x, bytes=_FP32) for x in tensors]
    states = sum(x.count * state_bytes(x, knobs.optimizer) for x in masters)
    kept_apart = 0 if knobs.dtype == "fp32" else sum(x.total_bytes for x in masters)
    return (states + kept_apart) / knobs.processes


def _gradients(size: int, knobs: Knobs) -> int:
    if knobs.strategy == "ddp":  # the reducer's buckets beside the gradients themselves
        return 2 * size
    if knobs.strategy in {"zero2", "zero3", "fsdp"}:
        return 0 if knobs.offload else round(size / knobs.processes)
    return size


def _paged(tensors: list[Tensors], knobs: Knobs) -> int:
    if knobs.offload or not knobs.optimizer.startswith("paged_"):
        return 0
    return round(_optimizer([x for x in tensors if x.elements >= _PAGED_FROM], knobs))


def _step(tensors: list[Tensors], knobs: Knobs) -> int:
    """torch's foreach kernels make one more copy of all parameters (the denominators)."""
    if knobs.offload or knobs.strategy in _ZERO:
        return 0
    if knobs.optimizer == "adafactor":
        return _FP32 * max((x.elements for x in tensors), default=0)
    if knobs.optimizer not in {"adamw_torch", "adagrad", "rmsprop"}:
        return 0
    share = knobs.processes if knobs.strategy == "fsdp" else 1
    return round(sum(x.total_bytes for x in tensors) / share)


def _gathered(shape: Shape, knobs: Knobs, trained_elements: int) -> int:
    size = compute_bytes(knobs)
    if knobs.strategy in {"zero1", "zero2"}:
        # Two reduce buckets (overlap_comm) and one of the weights' all-gather.
        return 3 * size * min(_ZERO_BUCKET, trained_elements)
    if knobs.strategy not in _SHARDED_WEIGHTS:
        return 0
    root = size * (shape.embedding_parameters + shape.head_parameters + shape.hidden)
    layers = 2 if knobs.strategy == "zero3" else 1  # stage 3 prefetches the next one
    return round(root + layers * layer_bytes(shape, knobs))


def _loading(shape: Shape, knobs: Knobs, stack: Stack) -> int:
    """Axolotl casts embeddings and head to fp32 and back before an adapter is added."""
    back_and_forth = knobs.method != "full" and not wide(knobs, stack) and knobs.dtype != "fp32"
    skipped = knobs.method == "qlora" and knobs.skip_upcast
    if not back_and_forth or skipped or knobs.strategy in _SHARDED_WEIGHTS:
        return 0
    return 2 * shape.embedding_parameters + 4 * (
        shape.head_parameters or shape.embedding_parameters
    )
