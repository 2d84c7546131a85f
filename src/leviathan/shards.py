"""Owns weights on disk as safetensors: what a model's files hold, and writing new ones in a stream.

Does not know what a tensor means nor what becomes of it (``trained_weights``, ``fusion``).

The format: 8 bytes of length, a JSON header, the tensors' bytes without a gap. All sizes are
known before the first byte is computed, so a file is written tensor by tensor and no more
than one is ever in memory.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from leviathan import basemodel, files
from leviathan.errors import BadInput

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# F8, F4 and the like are not here: what holds them is a quantised model, and none to merge into.
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
          "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # fmt: skip
"""Bytes of an element, by the names of the format."""
FLOATS = ("F64", "F32", "F16", "BF16")
_CHUNK = 1 << 24
Bytes = bytes | memoryview


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file that is to be written."""

    name: str
    dtype: str
    """As the format spells it: BF16, F32, ..."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return WIDTHS[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Stored(Tensor):
    """A tensor of a file that is there."""

    file: Path
    begin: int
    """Where its first byte lies in the file."""

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, some MB at a time."""
        left = self.bytes
        with self.file.open("rb") as stream:
            stream.seek(self.begin)
            while left:
                data = stream.read(min(left, _CHUNK))
                if not data:
                    raise BadInput(f"{self.file} is cut off", "restore the base model")
                left -= len(data)
                yield data

    def load(self) -> Any:
        """The tensor itself, as torch has it; read, not mapped: a map would count as memory."""
        import torch

        data = bytearray(self.bytes)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.begin)
            view, at = memoryview(data), 0
            while at < len(data):
                count = stream.readinto(view[at:])
                if not count:
                    raise BadInput(f"{self.file} is cut off", "restore the base model")
                at += count
        return torch.frombuffer(data, dtype=torch_dtype(self.dtype)).reshape(self.shape)


@dataclass(frozen=True)
class Shard:
    """One file that is to be written, and what goes into it, in the order of its bytes."""

    name: str
    tensors: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.bytes for tensor in self.tensors)


def torch_dtype(name: str) -> Any:
    """torch's type of the format's name."""
    import torch

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
             "BOOL": "bool"}  # fmt: skip
    integer = name.replace("U", "uint").replace("I", "int")
    return getattr(torch, names.get(name, integer))


def stored(directory: Path) -> dict[str, Stored]:
    """All tensors of a model, in the order in which they lie on disk.

    Raises:
        BadInput: no safetensors, a broken file, or one that the index names and is not there.
    """
    found: dict[str, Stored] = {}
    for file in _weight_files(directory):
        header = basemodel.safetensors_header(file)
        if header is None:
            raise BadInput(f"{file} is no whole safetensors file", "restore the base model")
        offset, entries = header
        here = [_stored(name, entry, file, offset) for name, entry in entries.items()]
        if here and file.stat().st_size < max(tensor.begin + tensor.bytes for tensor in here):
            raise BadInput(f"{file} is cut off", "restore the base model")
        found |= {tensor.name: tensor for tensor in sorted(here, key=lambda one: one.begin)}
    return found


def _stored(name: str, entry: dict[str, Any], file: Path, offset: int) -> Stored:
    if entry["dtype"] not in WIDTHS:
        raise BadInput(
            f"{file}: {name} is stored as {entry['dtype']}: the base model is quantised",
            "merge into the model it was made of",
        )
    begin = offset + entry["data_offsets"][0]
    return Stored(name, entry["dtype"], tuple(entry["shape"]), file, begin)


def _weight_files(directory: Path) -> list[Path]:
    try:
        index = json.loads((directory / INDEX).read_bytes())
        names = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        found = sorted(directory.glob("*.safetensors"))
        whole = directory / SINGLE
        names = [whole.name] if whole in found else [file.name for file in found]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{directory / INDEX} cannot be read", "restore the base model") from error
    if not names:
        others = any(directory.glob("*.bin"))
        raise BadInput(
            f"{directory} holds no safetensors" + (", only pickled .bin files" if others else ""),
            "save it once with transformers' save_pretrained, which writes safetensors",
        )
    lacking = [name for name in names if not (directory / name).is_file()]
    if lacking:
        raise BadInput(f"{directory} lacks {', '.join(lacking)}", "restore the base model")
    return [directory / name for name in names]


def layout(tensors: Iterable[Tensor], shard_bytes: int) -> list[Shard]:
    """Files of at most ``shard_bytes``, named as usual; a larger tensor has one of its own."""
    groups: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not groups or size + tensor.bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.bytes
    if len(groups) == 1:
        return [Shard(SINGLE, _aligned(groups[0]))]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", _aligned(group))
        for number, group in enumerate(groups, 1)
    ]


def _aligned(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Wide elements first: after an odd number of narrow ones none could be mapped."""
    return tuple(sorted(tensors, key=lambda tensor: -WIDTHS[tensor.dtype]))


def write(path: Path, shard: Shard, content: Callable[[Tensor], Iterable[Bytes]]) -> str:
    """Write one file, durably and whole or not at all; ``xxh3_128:<hex>`` of its bytes."""
    digest = xxhash.xxh3_128()
    with files.replaced(path) as stream:
        for data in _parts(shard, content):
            digest.update(data)
            stream.write(data)
    return f"xxh3_128:{digest.hexdigest()}"


def _parts(shard: Shard, content: Callable[[Tensor], Iterable[Bytes]]) -> Iterator[Bytes]:
    yield _header(shard.tensors)
    for tensor in shard.tensors:
        size = 0
        for data in content(tensor):
            size += len(data)
            yield data
        if size != tensor.bytes:
            raise AssertionError(f"{tensor.name}: {size} bytes for {tensor.bytes}")


def _header(tensors: Sequence[Tensor]) -> bytes:
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.bytes
        document[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]
        }  # fmt: skip
        at = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_index(directory: Path, shards: Sequence[Shard]) -> None:
    """Say which tensor is in which file; one file needs no index."""
    if len(shards) == 1:
        return
    files.write_json(
        directory / INDEX,
        {
            "metadata": {"total_size": sum(shard.bytes for shard in shards)},
            "weight_map": {t.name: shard.name for shard in shards for t in shard.tensors},
        },
    )
