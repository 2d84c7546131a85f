"""Owns disk forecasts: what a checkpoint and a merged model will take.

Reads sizes and safetensors headers only. The judgement is ``preflight``'s.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import checkpoints
from leviathan.checkpoints import Checkpoint

# Bytes of optimizer state for one trained parameter: two moments, in fp32 or in 8 bit.
_STATE_BYTES = {"8bit": 2, "default": 8}
_ADAPTER_BYTES = 4  # PEFT keeps and saves the adapter in fp32 under mixed precision
_MERGED_BYTES = 2  # merged models are written in bf16


@dataclass(frozen=True)
class Forecast:
    """Bytes the run will want; None where nothing is known (a base model on the hub)."""

    checkpoint: int | None
    merged: int | None


def forecast(tree: dict[str, Any], base_model: str, existing: list[Checkpoint]) -> Forecast:
    """What the next checkpoint and the merge take.

    A checkpoint of this run answers best; before the first, LoRA's arithmetic does: a
    matrix of (out, in) gets r x (out + in) parameters.
    """
    shapes = _shapes(Path(base_model))
    merged = sum(_numel(s) for s in shapes.values()) * _MERGED_BYTES if shapes else None
    if (known := checkpoints.newest_bytes(existing)) is not None:
        return Forecast(known, merged)
    rank, targets = tree.get("lora_r"), tree.get("lora_target_modules")
    if not shapes or not isinstance(rank, int):
        return Forecast(None, merged)
    names = targets if isinstance(targets, list) else []
    linear = tree.get("lora_target_linear")
    adapted = [s for name, s in shapes.items() if len(s) == 2 and _is_adapted(name, names, linear)]
    parameters = sum(rank * (out + into) for out, into in adapted)
    state = _STATE_BYTES["8bit" if "8bit" in str(tree.get("optimizer")) else "default"]
    return Forecast(parameters * (_ADAPTER_BYTES + state) + _small_files(base_model), merged)


def _is_adapted(name: str, targets: list[Any], linear: Any) -> bool:
    module = name.removesuffix(".weight").rpartition(".")[2]
    return module in targets or bool(linear and module.endswith("_proj"))


def _small_files(base_model: str) -> int:
    """The tokenizer's files, which every checkpoint carries."""
    return sum(p.stat().st_size for p in Path(base_model).glob("*token*") if p.is_file())


def _numel(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _shapes(directory: Path) -> dict[str, list[int]]:
    """Name and shape of every weight of a local model, from the headers."""
    found: dict[str, list[int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        header = safetensors_header(path)
        if header:  # a broken base is told by who checks it
            found |= {name: entry["shape"] for name, entry in header[1].items()}
    return found


def safetensors_header(path: Path) -> tuple[int, dict[str, Any]] | None:
    """Where the data of a safetensors file begins, and its tensors; None for a broken one."""
    try:
        with path.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            header = json.loads(stream.read(min(length, 1 << 26)))
        header.pop("__metadata__", None)
        all(entry["shape"] for entry in header.values())
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None
    return 8 + length, header
