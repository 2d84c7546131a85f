"""Owns a probe's base model: the real one where it is at hand, else random weights of its shape.

Does not make the weights itself (``random_weights``, in a process of its own).
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from leviathan import basemodel, config, files, random_weights, shapes
from leviathan.errors import BadInput, LeviathanError, Refused

DIRECTORY = Path("work/bench/models")
_RECORD = "leviathan-random.json"
_TOKENIZER = "the tokenizer"
_ERRORS = {2: BadInput, 3: Refused}


@dataclass(frozen=True)
class StandIn:
    """What a probe trains on."""

    name: str
    """The recipe's base model."""
    parameters: int
    """Of the shape, a tied matrix counted once; of a real model of no known shape, as its files
    have them."""
    real: bool
    config: dict[str, Any]
    """Its config.json."""
    tokenizer: Path | None
    """Directory that has the real tokenizer, if there is one."""
    special_tokens: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """Where its random weights are or will be."""
        return DIRECTORY / re.sub(r"[^A-Za-z0-9._-]+", "_", self.name).strip("_.")

    @property
    def record(self) -> dict[str, Any]:
        """What the random weights are made from; others are made anew."""
        parts = [self.config, str(self.tokenizer or ""), *self.special_tokens]
        return {"digest": xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())}


def find(tree: dict[str, Any], values: dict[str, Any] | None = None) -> StandIn:
    """The base model of a merged ``tree``, real or to be made. Writes nothing.

    ``values`` is the config.json of a model that is still to be made from nothing.

    Raises:
        BadInput: neither model nor config.json is here, and no shape of that name ships.
    """
    name = str(tree["base_model"])
    found = basemodel.locate(tree, os.environ)
    lacking = set(found.missing)
    real = found.directory is not None and not lacking
    tokenizer = found.directory if _TOKENIZER not in lacking else None
    values = values or shapes.config(name)
    try:
        parameters = shapes.from_config(values, name).parameters
    except BadInput:
        if not real or found.directory is None:
            raise
        parameters = _counted(found.directory)
    named = [*(tree.get("special_tokens") or {}).values(), *(tree.get("tokens") or [])]
    texts = tuple(token for token in named if isinstance(token, str))
    return StandIn(name, parameters, real, values, tokenizer, texts)


def _counted(directory: Path) -> int:
    headers = map(basemodel.safetensors_header, directory.glob("*.safetensors"))
    tensors = [entry for header in headers if header for entry in header[1].values()]
    return sum(math.prod(entry["shape"]) for entry in tensors)


def make(stand_in: StandIn, tell: Callable[[str], None]) -> Path:
    """Its random weights, made unless they are there; the directory appears whole or not at all.

    Raises:
        BadInput: transformers cannot make that architecture.
        Refused: the disk has no room.
    """
    directory = stand_in.directory
    if _recorded(directory) == stand_in.record:
        return directory.resolve()
    size = 2 * stand_in.parameters / 2**30
    tell(f"{stand_in.name} is not here: making random weights of it ({size:.3g} GiB, once)")
    scratch = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    scratch.mkdir(parents=True)
    try:
        _run(stand_in, scratch)
        files.write_json(scratch / _RECORD, stand_in.record)
        shutil.rmtree(directory, ignore_errors=True)
        scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return directory.resolve()


def _run(stand_in: StandIn, directory: Path) -> None:
    request = random_weights.Request(
        directory=str(directory.resolve()),
        config=stand_in.config,
        tokenizer=str(stand_in.tokenizer.resolve()) if stand_in.tokenizer else None,
        special_tokens=list(stand_in.special_tokens),
        corpus=str((config.directories("demo")[-1] / "stdlib.jsonl").resolve()),
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", "leviathan.random_weights"],
        input=random_weights.request_json(request), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return
    told = done.stderr.decode(errors="replace").strip()
    kind = _ERRORS.get(done.returncode)
    if kind:
        message, _, hint = told.splitlines()[-1].partition("\0")
        raise kind(message, hint or None)
    last = told.splitlines()[-1] if told else f"exit code {done.returncode}"
    raise LeviathanError(f"the random weights of {stand_in.name} could not be made: {last}")


def _recorded(directory: Path) -> object:
    try:
        return json.loads((directory / _RECORD).read_bytes())
    except (OSError, ValueError):
        return None
