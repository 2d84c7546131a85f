"""Owns what can be told of a checkpoint that has no commit record: whether its files are whole.

Reads names, safetensors headers, the checksums inside the zip archives of ``torch.save``,
and JSON; never unpickles anything. Hashes against a record are ``checkpoints``'s.
"""

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

_INDEX = "model.safetensors.index.json"
_WEIGHTS = {"adapter_model.safetensors", "model.safetensors", _INDEX,
            "pytorch_model_fsdp.bin", "pytorch_model_fsdp_0"}  # fmt: skip
_OPTIMIZERS = {"optimizer.pt", "optimizer.bin", "optimizer_0"}
"""Of DDP, of FSDP whole, of FSDP in pieces."""
_IN_PIECES = ("pytorch_model_fsdp_0", "optimizer_0")


def quick_problem(path: Path) -> str | None:
    """Which of the files that a resume needs is missing; None if they are all there.

    FSDP writes whole states or folders of pieces with a ``.metadata``, DeepSpeed a folder of
    every rank's part that the file ``latest`` names.
    """
    names = {entry.name for entry in path.iterdir()}
    deepspeed = "latest" in names
    if not names & _WEIGHTS and not deepspeed:
        return "no adapter or model weights"
    if "trainer_state.json" not in names:
        return "trainer_state.json is missing"
    # A scheduler of DeepSpeed's own is in its parts.
    found = _deepspeed_problem(path) if deepspeed else _optimizer_problem(path, names)
    if found:
        return found
    if not any(name.startswith("rng_state") for name in names):
        return "rng_state.pth is missing"
    if _INDEX in names and (lacking := _lacking_shards(path, names)):
        return f"{lacking} is missing"
    if "adapter_model.safetensors" in names and "adapter_config.json" not in names:
        return "adapter_config.json is missing"
    return None


def _lacking_shards(path: Path, names: set[str]) -> str | None:
    """The first file that a sharded model's index names and that is not there."""
    try:
        named = set(json.loads((path / _INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"a readable {_INDEX}"
    return min((str(name) for name in named if name not in names), default=None)


def _optimizer_problem(path: Path, names: set[str]) -> str | None:
    if not names & _OPTIMIZERS:
        return "optimizer.pt is missing"
    if "scheduler.pt" not in names:
        return "scheduler.pt is missing"
    for folder in _IN_PIECES:
        if folder in names and not (path / folder / ".metadata").is_file():
            return f"{folder}/.metadata is missing"
    return None


def _deepspeed_problem(path: Path) -> str | None:
    try:
        folder = (path / "latest").read_text().strip()
    except (OSError, ValueError):
        return "latest cannot be read"
    if not folder or "/" in folder or not (path / folder).is_dir():
        return f"latest names {folder!r:.40}, which is not there"
    if not any((path / folder).glob("*optim_states.pt")):
        return f"{folder} holds no optimizer state"
    return None


def problem(path: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of ``step``; None if nothing is.

    Reads safetensors headers and lengths, checksums inside the zip archives that
    ``torch.save`` writes, and JSON. Weights that are all zero, as files are that a power
    cut left without data, do not pass; other damage inside weights only hashes see.
    """
    found = quick_problem(path)
    if found:
        return found
    for file in sorted(path.rglob("*")):
        if file.is_file() and (found := _file_problem(file)):
            return f"{file.relative_to(path)} {found}"
    state = json.loads((path / "trainer_state.json").read_bytes())
    told = state.get("global_step") if isinstance(state, dict) else None
    return None if told == step else f"trainer_state.json is of step {told}"


def _file_problem(file: Path) -> str | None:
    if file.suffix == ".safetensors":
        return _safetensors_problem(file)
    # training_args.bin is not needed to resume; a bad one is harmless (facts measured).
    if file.suffix in {".pt", ".pth", ".bin"} and file.name != "training_args.bin":
        return _zip_problem(file)
    if file.suffix == ".json":
        try:
            json.loads(file.read_bytes())
        except ValueError:
            return "is not whole JSON"
    return None


def _safetensors_problem(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= size - 8:
            return "has no safetensors header"
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            spans = {n: (int(t["data_offsets"][0]), int(t["data_offsets"][1]))
                     for n, t in header.items()}  # fmt: skip
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return "has a broken safetensors header"
        if any(not 0 <= begin <= end for begin, end in spans.values()):
            return "has a broken safetensors header"
        expected = 8 + length + max((end for _, end in spans.values()), default=0)
        if size != expected:
            return f"has {size} bytes, its header says {expected}"
        return _zeros_problem(stream, spans)


def _zeros_problem(stream: IO[bytes], spans: dict[str, tuple[int, int]]) -> str | None:
    """Whether the data, or one LoRA A matrix (drawn at random, hence never zero), is all zero."""
    base, anything = stream.tell(), False
    for name, (begin, end) in spans.items():
        stream.seek(base + begin)
        zero = _only_zeros(stream, end - begin)
        if zero and end > begin and "lora_A" in name:
            return f"holds nothing but zeros for {name}"
        anything |= not zero
    return None if anything or not spans else "holds nothing but zeros"


def _only_zeros(stream: IO[bytes], length: int) -> bool:
    while length > 0 and (block := stream.read(min(length, 1 << 20))):
        if block.count(0) != len(block):
            return False
        length -= len(block)
    return True


def _zip_problem(file: Path) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError):
        return "is not a whole torch archive"
    return f"has a damaged part ({bad})" if bad else None
