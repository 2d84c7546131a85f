"""Owns disk forecasts: what a checkpoint, prepared data and a merged model will take, and where.

Reads file sizes and a model's shape, also of a model that is not downloaded yet. The
judgement is ``check_inputs``'s.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import basemodel, knobs, shapes, slimming
from leviathan.checkpoints import Checkpoint
from leviathan.config import CheckpointPolicy
from leviathan.errors import BadInput
from leviathan.knobs import Knobs
from leviathan.shapes import Shape

Tensor = tuple[int, ...]

_ADAPTER_BYTES = 4  # PEFT keeps and saves the adapter in fp32 under mixed precision
_ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Moments that an optimizer keeps of each parameter; the first name that is part of its.
_MOMENTS = {"ademamix": 3, "lion": 1, "adagrad": 1, "rmsprop": 1, "muon": 1, "sgd": 0, "": 2}
# bitsandbytes' optimizer.py and torchao's optim/: blocks share an fp32 scale, and smaller
# tensors stay as they are.
_BLOCK = {"8bit": 256, "4bit": 128}
_LEAST_QUANTISED = 4096
_RECORD_BYTES = 290  # of torch.save, for each tensor of an optimizer's state (measured here)
_SMALL_BYTES = 30_000  # README, scheduler, RNG, arguments, our record (measured here, one process)
# Llama 3.1's tokenizer.json as transformers saves it: 17,209,920 bytes for 128,256 tokens.
_BYTES_PER_TOKEN_KIND = 134


@dataclass(frozen=True)
class Forecast:
    """Bytes the run will want; None where nothing is known (a base model of unknown shape)."""

    checkpoint: int | None
    merged: int | None
    slim: int | None = None
    """Of a checkpoint without what only a resume reads (``slimming``)."""

    def kept(self, policy: CheckpointPolicy) -> int | None:
        """What all checkpoints take that retention leaves: the newest few and the best.

        Pinned ones come on top, and the next one until an older one has gone.
        """
        if self.checkpoint is None:
            return None
        count = policy.keep + 1
        whole = count if policy.whole is None else min(policy.whole, count)
        small = self.checkpoint if self.slim is None else self.slim
        return whole * self.checkpoint + (count - whole) * small


@dataclass(frozen=True)
class Need:
    """Bytes that one purpose will take somewhere."""

    what: str
    path: Path
    bytes: int
    soon: bool
    """Wanted before the first save is done; the rest may be made room for later."""


@dataclass(frozen=True)
class Volume:
    """One file system, and everything that is going to be written to it."""

    path: Path
    """A place on it that people know."""
    free_bytes: int
    needs: tuple[Need, ...]

    def total(self, *, soon: bool = False) -> int:
        """Bytes wanted: all of them, or those that are wanted ``soon``."""
        return sum(need.bytes for need in self.needs if need.soon or not soon)


TEXT_BYTES_PER_TOKEN = 4.0
"""Of JSON rows: 4.28 measured for English and Python under 8,000 words of BPE; a smaller
figure asks for more disk (docs/measurements.md)."""
_PREPARED_BYTES_PER_TOKEN = 13  # int32 input_ids, int8 attention_mask, int64 labels
_PACKED_BYTES_PER_TOKEN = 21  # and int64 position_ids
_CACHED_SHARE = 0.97  # the datasets library's Arrow copy of the rows, measured


def prepared_bytes(sample_bytes: int, *, packed: bool) -> int:
    """What Axolotl's tokenised dataset takes: its columns' widths times the tokens.

    Measured on axolotl 0.19: 13.02 bytes a token unpacked, 21.04 packed.
    """
    width = _PACKED_BYTES_PER_TOKEN if packed else _PREPARED_BYTES_PER_TOKEN
    return int(sample_bytes / TEXT_BYTES_PER_TOKEN * width)


def cached_bytes(sample_bytes: int) -> int:
    """What the datasets library's own copy of the rows takes."""
    return int(sample_bytes * _CACHED_SHARE)


def forecast(
    tree: dict[str, Any],
    base_model: str,
    existing: list[Checkpoint],
    shape: Shape | None = None,
) -> Forecast:
    """What the next checkpoint and the merge take.

    A checkpoint of this run answers best; before the first, arithmetic does. ``shape`` is the
    base model's where that is not on disk.
    """
    try:
        shape = shape or shapes.load(base_model)
        found = planned(shape, knobs.read(tree), _tokenizer_bytes(base_model))
    except BadInput:  # told by who needs to know; a run of another architecture may train
        weights = basemodel.locate({**tree, "base_model": base_model}, os.environ).weight_bytes
        found = Forecast(None, weights or None)
    newest = next((c for c in reversed(existing) if c.obstacle is None), None)
    if newest is None:
        return found
    slim = newest.bytes - slimming.freed(newest) if newest.committed else found.slim
    return Forecast(newest.bytes, found.merged, slim)


def planned(shape: Shape, knobs: Knobs, tokenizer: int | None = None) -> Forecast:
    """What a checkpoint and the merged model take by arithmetic, within 5 %.

    ``tokenizer`` is the size of its files in bytes; unknown, it follows from the vocabulary.
    The log in trainer_state.json, half a KB for each logged step, is left out.

    Raises:
        BadInput: the adapter's targets name no linear of the model.
    """
    if tokenizer is None:
        tokenizer = _BYTES_PER_TOKEN_KIND * shape.vocab
    weights, state = _full(shape, knobs) if knobs.method == "full" else _adapter(shape, knobs)
    merged = shape.parameters * _ELEMENT_BYTES[knobs.dtype]  # as Axolotl merges it
    checkpoint = weights + state + tokenizer + _SMALL_BYTES
    return Forecast(checkpoint, merged + tokenizer, weights + tokenizer + _SMALL_BYTES)


def optimizer_bytes(optimizer: str, tensors: Iterable[Tensor], element_bytes: int = 4) -> int:
    """State that ``optimizer`` (Axolotl's name) keeps of trained ``tensors``.

    ``element_bytes`` is the size of a trained parameter's entry: torch's own optimizers keep
    their moments in the same type, bitsandbytes' in fp32 or less.
    """
    moments = next(count for name, count in _MOMENTS.items() if name in optimizer)
    block = next((size for bits, size in _BLOCK.items() if bits in optimizer), None)
    is_torch = not block and not any(x in optimizer for x in ("32bit", "ademamix", "lion"))
    per_entry = element_bytes if is_torch else 4
    total = 0
    for tensor in tensors:
        entries = math.prod(tensor)
        if optimizer == "adafactor":  # a row and a column of a matrix (Shazeer and Stern 2018)
            total += 4 * (sum(tensor) if len(tensor) == 2 else entries)
        elif block and entries >= _LEAST_QUANTISED:
            quantised = entries if block == _BLOCK["8bit"] else entries // 2
            total += moments * (quantised + 4 * math.ceil(entries / block))
        else:
            total += moments * per_entry * entries
    return total


def _adapter(shape: Shape, knobs: Knobs) -> tuple[int, int]:
    """Bytes of the adapter's weights and of the optimizer's state."""
    tensors = shape.lora_tensors(knobs.rank, knobs.targets, knobs.all_linear, knobs.modules_to_save)
    weights = _ADAPTER_BYTES * sum(map(math.prod, tensors))
    if {"embed_tokens", "lm_head"} & set(knobs.targets):
        # PEFT then saves the adapted embeddings themselves, too (save_embedding_layers: auto).
        weights += _ELEMENT_BYTES[knobs.dtype] * 2 * shape.embedding_parameters
    is_embedding_trained = "embed_tokens" in knobs.modules_to_save
    return weights, _state(shape, knobs, tensors, _ADAPTER_BYTES, is_embedding_trained)


def _full(shape: Shape, knobs: Knobs) -> tuple[int, int]:
    """The same for a model trained whole: saved in the type it is trained in.

    Under FSDP2 that is fp32: accelerate casts what is trained up (``residents``).
    """
    element = 4 if knobs.strategy == "fsdp" else _ELEMENT_BYTES[knobs.dtype]
    return shape.parameters * element, _state(shape, knobs, shape.tensors(), element, True)


def _state(
    shape: Shape, knobs: Knobs, tensors: list[Tensor], element: int, is_embedding_trained: bool
) -> int:
    """What is in optimizer.pt, or in DeepSpeed's folder."""
    optimizer, entries = knobs.optimizer, sum(map(math.prod, tensors))
    if knobs.strategy.startswith("zero"):
        # DeepSpeed adds the fp32 master copy, keeps moments in fp32, and saves the weights again.
        return entries * (element + 4) + optimizer_bytes(optimizer, tensors)
    overhead = _RECORD_BYTES * 3 * len(tensors)
    embedding: list[Tensor] = [(shape.vocab, shape.hidden)]
    if "8bit" in optimizer and "torch" not in optimizer and is_embedding_trained:
        # transformers has bitsandbytes keep an nn.Embedding's state in 32 bits (trainer.py).
        overhead += optimizer_bytes(optimizer.replace("8bit", "32bit"), embedding)
        overhead -= optimizer_bytes(optimizer, embedding)
    return optimizer_bytes(optimizer, tensors, element) + overhead


def _tokenizer_bytes(base_model: str) -> int | None:
    """The tokenizer's files, which every checkpoint carries; None where they are not here."""
    directory = Path(base_model)
    if not directory.is_dir():
        snapshot = basemodel.snapshot(base_model, os.environ)
        if snapshot is None:
            return None
        directory = snapshot
    names = [file for file in directory.glob("*token*") if file.is_file()]
    return sum(file.stat().st_size for file in names) or None
