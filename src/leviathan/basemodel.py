"""Owns finding a base model on this machine: a local directory, or the hub's cache.

Reads folders and headers only. Does not download, nor load the model (``models``).

Where the hub keeps what it has downloaded, and by which variables: huggingface_hub's
constants.py and file_download.py; importing it would take longer than all our checks.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TRUE = {"1", "ON", "YES", "TRUE"}  # huggingface_hub.constants.ENV_VARS_TRUE_VALUES
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Located:
    """A base model, as far as it is here."""

    name: str
    directory: Path | None
    """Where its files lie; None: it would have to be downloaded."""
    missing: tuple[str, ...] = ()
    """Files that lack, or are shorter than their header says."""
    weight_bytes: int = 0
    is_local: bool = False
    """Named as a directory, not as a model of the hub."""
    to_be_made: bool = False
    """From nothing, before training begins; ``weight_bytes`` is what it will take."""


def locate(tree: Mapping[str, Any], environment: Mapping[str, str]) -> Located:
    """Where the base model of an Axolotl configuration lies, and what it lacks there."""
    name = str(tree["base_model"])
    is_local = Path(name).is_dir()
    revision = str(tree.get("revision_of_model") or "main")
    directory = Path(name) if is_local else snapshot(name, environment, revision)
    if directory is None:
        return Located(name, None)
    from_scratch = bool(tree.get("reinit_weights"))
    weights = [] if from_scratch else _weights(directory)
    lacking = [] if (directory / "config.json").is_file() else ["config.json"]
    if not tree.get("tokenizer_config") and not any((directory / t).is_file() for t in _TOKENIZERS):
        lacking.append("the tokenizer")
    if not weights and not from_scratch:
        lacking.append("model.safetensors")
    lacking += [file.name for file in weights if _is_short(file)]
    size = sum(file.stat().st_size for file in weights if file.is_file())
    return Located(name, directory, tuple(lacking), size, is_local)


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the hub's libraries are told to stay off the network."""
    wish = environment.get("HF_HUB_OFFLINE") or environment.get("TRANSFORMERS_OFFLINE") or ""
    return wish.upper() in _TRUE


def has_token(environment: Mapping[str, str]) -> bool:
    """Whether the hub would be shown a token."""
    if environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    file = Path(environment.get("HF_TOKEN_PATH") or hub_home(environment) / "token")
    return file.expanduser().is_file()


def hub_home(environment: Mapping[str, str]) -> Path:
    """The folder of everything the hub's libraries keep."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or str(Path(cache) / "huggingface")
    return Path(os.path.expandvars(home)).expanduser()


def datasets_cache(environment: Mapping[str, str]) -> Path:
    """Where the datasets library keeps its copy of the rows (datasets/config.py)."""
    return Path(environment.get("HF_DATASETS_CACHE") or hub_home(environment) / "datasets")


def snapshot(name: str, environment: Mapping[str, str], revision: str = "main") -> Path | None:
    """Where the hub's cache holds a model; None: it was never downloaded."""
    given = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    hub = Path(os.path.expandvars(given)).expanduser() if given else hub_home(environment) / "hub"
    model = hub / f"models--{name.replace('/', '--')}"
    try:
        commit = (model / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    snapshot = model / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _weights(directory: Path) -> list[Path]:
    """The files that hold the weights, present or not; none where nothing tells of any."""
    for single in _SINGLE:
        index = directory / f"{single}.index.json"
        try:
            named = json.loads(index.read_text())["weight_map"].values()
            return [directory / name for name in sorted(set(named))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if (directory / single).is_file():
                return [directory / single]
    return sorted(directory.glob("*.safetensors"))


def _is_short(file: Path) -> bool:
    """Missing, empty, or a download or copy that was cut off."""
    if not file.is_file() or file.stat().st_size == 0:
        return True
    if file.suffix != ".safetensors":
        return False
    header = safetensors_header(file)
    if header is None:
        return True
    offset, tensors = header
    ends = [entry.get("data_offsets", (0, 0))[1] for entry in tensors.values()]
    return file.stat().st_size < offset + max(ends, default=0)


def safetensors_header(path: Path) -> tuple[int, dict[str, Any]] | None:
    """Where the data of a safetensors file begins, and its tensors; None for a broken one."""
    try:
        with path.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            header = json.loads(stream.read(min(length, 1 << 26)))
        header.pop("__metadata__", None)
        whole = all("shape" in entry for entry in header.values())
    except (OSError, ValueError, struct.error, TypeError, AttributeError):
        return None
    return (8 + length, header) if whole else None
