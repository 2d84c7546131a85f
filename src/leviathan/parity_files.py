"""Owns the parity of a model's weights: their index, their names, their embeddings' rows.

Reads headers, no tensor but two embeddings that should be one. What transformers looks for it
is asked itself, on the meta device. Does not know tokens (``parity_tokens``).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from leviathan import basemodel, shards
from leviathan.parity_finding import Finding

INDEX, VOCABULARY = "safetensors index", "vocabulary"
TIED, MISSING = "tied weights", "missing tensors"
_AGAIN = "merge again"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    file: Path
    begin: int
    end: int
    shape: tuple[int, ...]

    def chunks(self) -> Iterator[bytes]:
        """The bytes, some MB at a time."""
        with self.file.open("rb") as stream:
            stream.seek(self.begin)
            left = self.end - self.begin
            while left and (data := stream.read(min(left, _CHUNK))):
                left -= len(data)
                yield data


@dataclass(frozen=True)
class Weights:
    """The tensors of every safetensors file of a directory."""

    files: tuple[str, ...]
    places: Mapping[str, Place]
    problems: tuple[str, ...]
    """Files that are broken, tensors that are there twice."""


@dataclass(frozen=True)
class Architecture:
    """What transformers builds of config.json, and what it finds for it in the weights."""

    input: str
    """The tensor of the input embeddings."""
    output: str
    """The tensor of the head; empty where there is none."""
    vocab_size: int
    tied: bool
    """Whether config.json says that both are one."""
    missing: tuple[str, ...] = ()
    """Names it needs and does not find: it would fill them at random."""
    unexpected: tuple[str, ...] = ()
    """Names it does not read."""
    mismatched: tuple[str, ...] = ()
    """Those of another shape."""


def weights(directory: Path) -> Weights:
    """Every safetensors header below ``directory``."""
    files = sorted(directory.glob("*.safetensors"))
    places: dict[str, Place] = {}
    problems = []
    for file in files:
        header = basemodel.safetensors_header(file)
        if header is None:
            problems.append(f"{file.name} is no whole safetensors file")
            continue
        offset, entries = header
        here = {name: _place(file, offset, entry) for name, entry in entries.items()}
        problems += [
            f"{name} is in {places[name].file.name} and in {file.name}"
            for name in here.keys() & places.keys()
        ]
        if file.stat().st_size != max((place.end for place in here.values()), default=offset):
            problems.append(f"{file.name} is not as long as its header says")
        places |= here
    return Weights(tuple(file.name for file in files), places, tuple(problems))


def _place(file: Path, offset: int, entry: dict[str, Any]) -> Place:
    begin, end = (offset + at for at in entry["data_offsets"])
    return Place(file, begin, end, tuple(entry["shape"]))


def architecture(directory: Path, *, trust_remote_code: bool) -> Architecture:
    """Ask transformers, without a weight in memory.

    Raises:
        OSError, ValueError, RuntimeError: it cannot load the model at all.
    """
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        directory, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    named = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    text = model.config.get_text_config()
    return Architecture(
        input=named[id(into)],
        output=named[id(out)] if out is not None else "",
        vocab_size=int(text.vocab_size),
        tied=bool(text.tie_word_embeddings or model.config.tie_word_embeddings),
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        mismatched=tuple(sorted(name for name, *_ in info["mismatched_keys"])),
    )


def index(directory: Path, found: Weights) -> Finding:
    """The index says of every tensor the file it is in, and how large all of them are."""
    if not found.files:
        return Finding(INDEX, "fail", "there is no safetensors file", _AGAIN)
    problems = list(found.problems)
    path = directory / shards.INDEX
    total = sum(place.end - place.begin for place in found.places.values())
    if path.is_file():
        told = json.loads(path.read_bytes())
        problems += _against(told["weight_map"], found)
        size = (told.get("metadata") or {}).get("total_size")
        if size != total:
            problems.append(f"total_size says {size}, the tensors are {total} bytes")
    elif found.files != (shards.SINGLE,):
        names = ", ".join(found.files[:3])
        problems.append(f"{names} without {shards.INDEX}: servers look for {shards.SINGLE}")
    if problems:
        return Finding(INDEX, "fail", _several(problems), _AGAIN)
    count = len(found.files)
    what = "one file, none needed" if count == 1 else f"{count} files"
    return Finding(INDEX, "ok", f"{what}: {len(found.places)} tensors, {total} bytes")


def _against(weight_map: Mapping[str, str], found: Weights) -> list[str]:
    problems = []
    for name, file in weight_map.items():
        place = found.places.get(name)
        if place is None:
            problems.append(f"{name} is in no file, the index says {file}")
        elif place.file.name != file:
            problems.append(f"{name} is in {place.file.name}, the index says {file}")
    unlisted = sorted(found.places.keys() - weight_map.keys())
    return problems + [f"{name} is not in the index" for name in unlisted]


def vocabulary(highest: int, tokens: int, rows: Mapping[str, int], vocab_size: int) -> Finding:
    """Every id of the tokenizer has its row; padded rows, which no id uses, are fine.

    Args:
        highest: the tokenizer's largest id.
        tokens: how many it has.
        rows: of the embeddings and of the head, by the tensors' names.
        vocab_size: of config.json.
    """
    wrong = [f"{name} has {n} rows" for name, n in rows.items() if n != vocab_size]
    if wrong:
        evidence = f"{' and '.join(wrong)}, vocab_size of config.json is {vocab_size}"
        return Finding(VOCABULARY, "fail", evidence, _AGAIN)
    if highest >= vocab_size:
        return Finding(
            VOCABULARY, "fail",
            f"the tokenizer's ids go up to {highest}, the last of the {vocab_size} rows is "
            f"{vocab_size - 1}",
            "ship the tokenizer that was trained with; train added tokens with "
            "lora_modules_to_save: [embed_tokens, lm_head]",
        )  # fmt: skip
    padded = vocab_size - 1 - highest
    more = f", {padded} rows are padding" if padded else ""
    return Finding(
        VOCABULARY, "ok", f"{tokens} tokens, ids up to {highest}, {vocab_size} rows{more}"
    )


def tied(built: Architecture, found: Weights) -> Finding:
    """A head of its own is read only where config.json says that there is one."""
    if not built.output:
        return Finding(TIED, "ok", "there is no head")
    head, into = found.places.get(built.output), found.places.get(built.input)
    says = f"tie_word_embeddings is {str(built.tied).lower()}"
    if not built.tied:
        if head is None:
            return Finding(TIED, "fail", f"{says}, and there is no {built.output}", _AGAIN)
        return Finding(TIED, "ok", f"{says}, {built.output} is there")
    if head is None or into is None:
        return Finding(TIED, "ok", f"{says}, and there is one matrix")
    if all(a == b for a, b in zip_longest(head.chunks(), into.chunks())):
        return Finding(TIED, "ok", f"{says}; {built.output} is a copy of {built.input}")
    return Finding(
        TIED, "fail",
        f"{says}, yet {built.output} differs from {built.input}: servers would drop it",
        "set tie_word_embeddings: false in config.json, or merge again",
    )  # fmt: skip


def missing(built: Architecture) -> Finding:
    """Every tensor that the architecture needs is there, in the shape it needs."""
    problems = [f"{name} is missing: it would be filled at random" for name in built.missing]
    problems += [f"{name} has another shape than config.json makes" for name in built.mismatched]
    if problems:
        return Finding(MISSING, "fail", _several(problems), _AGAIN)
    unread = [name for name in built.unexpected if name != built.output]
    if unread:
        evidence = f"transformers does not read {_several(unread)}"
        return Finding(MISSING, "warn", evidence, "nothing, if the base model has it too")
    return Finding(MISSING, "ok", "transformers finds every tensor it needs, and no other")


def _several(items: list[str]) -> str:
    """The first two, and how many more."""
    more = f", and {len(items) - 2} more" if len(items) > 2 else ""
    return ", ".join(items[:2]) + more
