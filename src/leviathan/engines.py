"""Owns the commands of the servers that Leviathan starts: vLLM's, and transformers' own.

Does not start them (``serve``). vLLM pins other packages than Axolotl does, so it is a program
of another environment; flags as in its 0.11 to 0.27 (vllm/engine/arg_utils.py, vllm/config).
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leviathan import shapes
from leviathan.errors import BadInput, Refused

VLLM, TRANSFORMERS = "vllm", "transformers"
VARIABLE = "LEVIATHAN_VLLM"
"""Names vLLM's executable."""
KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM asks its clients for this key; by the environment, where ``ps`` does not show it."""
UTILISATION = 0.90
"""Share of a card's memory that vLLM takes; its own default, said aloud."""
_RESERVE_GIB = 2.0
"""Of that, for activations, CUDA graphs and the context: assumed, not measured."""
_BLOCK = 16
"""Tokens of one block of vLLM's cache."""
_SHORTEST = 256
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank admits (MaxLoRARanks in vllm/config/lora.py)."""
_INSTALL = "python3 -m venv .venv-vllm && .venv-vllm/bin/pip install vllm, or --engine transformers"


@dataclass(frozen=True)
class Card:
    """The GPUs a server gets."""

    name: str
    memory_gib: float
    """Of one."""
    count: int = 1


@dataclass(frozen=True)
class Offer:
    """What is to be served."""

    name: str
    """What a client calls it."""
    model: Path
    """Directory of a whole model, or of the base."""
    adapter: Path | None = None
    """An adapter with its tokenizer, to be served on the base."""
    checkpoint: str = ""
    """What of its run it was made of, as its proof says; empty where it says nothing."""


@dataclass(frozen=True)
class Command:
    """How a server is started."""

    arguments: list[str]
    model: str
    """What a request has to call the model."""
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def find_vllm(given: Path | None) -> Path | None:
    """vLLM's executable: as given, by LEVIATHAN_VLLM, on PATH, in ./.venv-vllm; else None.

    Raises:
        BadInput: the one that was named is no program.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named:
        if not os.access(named, os.X_OK) or named.is_dir():
            raise BadInput(f"{named} is no program", "name vLLM's executable, as bin/vllm")
        return named.absolute()
    on_path = shutil.which("vllm")
    if on_path:
        return Path(on_path)
    beside = Path(".venv-vllm/bin/vllm")
    return beside.absolute() if os.access(beside, os.X_OK) else None


def choose(wanted: str | None, vllm: Path | None, *, has_gpu: bool) -> tuple[str, str]:
    """The engine, and why that one.

    Raises:
        BadInput: it is unknown, or not installed.
    """
    if wanted == VLLM and vllm is None:
        raise BadInput("vLLM is not found: not on PATH, nor in .venv-vllm, nor named", _INSTALL)
    if wanted in (VLLM, TRANSFORMERS):
        return str(wanted), "asked for"
    if wanted is not None:
        raise BadInput(f"--engine {wanted!r} is unknown", f"use {VLLM} or {TRANSFORMERS}")
    if vllm and has_gpu:
        return VLLM, f"found at {vllm}"
    return TRANSFORMERS, "vLLM is not installed" if not vllm else "no GPU is here for vLLM"


def transformers_command(offer: Offer, host: str, port: int, *, has_gpu: bool) -> Command:
    """``transformers serve`` of this environment, pinned to the model.

    Raises:
        Refused: the engine cannot serve it.
    """
    if offer.adapter:
        raise Refused(
            f"transformers serve cannot put the adapter {offer.adapter} on its base",
            "leviathan merge makes one model of them, or --engine vllm",
        )
    model = str(offer.model.resolve())
    if "@" in model:
        raise BadInput(
            f"transformers serve takes what follows the @ in {model} for a revision",
            "move the model to a directory without @",
        )
    arguments = [
        sys.executable, "-m", "transformers.cli.transformers", "serve", model,
        "--host", host, "--port", str(port),
        "--device", "auto" if has_gpu else "cpu",
    ]  # fmt: skip
    return Command(arguments, model, environment={"HF_HUB_OFFLINE": "1"})


def vllm_command(
    executable: Path, offer: Offer, host: str, port: int, card: Card | None, limit: int | None
) -> Command:
    """``vllm serve`` with the flags that suit the card and the context.

    ``limit`` is the context that was asked for, in tokens.

    Raises:
        Refused: the model does not fit the card, or the adapter cannot be served unmerged.
    """
    arguments = [
        str(executable), "serve", str(offer.model.resolve()), "--host", host, "--port", str(port),
    ]  # fmt: skip
    length, notes = _context(offer, card, limit)
    name = offer.name
    # With an adapter, the base keeps a name of its own: both can be asked.
    arguments += ["--served-model-name", f"{name}-base" if offer.adapter else name]
    arguments += ["--dtype", _dtype(offer.model)]
    arguments += ["--max-model-len", str(length), "--gpu-memory-utilization", str(UTILISATION)]
    if card and card.count > 1:
        arguments += ["--tensor-parallel-size", str(card.count)]
    if offer.adapter:
        arguments += _lora(offer.adapter, name)
    return Command(arguments, name, tuple(notes), {"VLLM_NO_USAGE_STATS": "1"})


def _config(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_bytes()))


def _dtype(model: Path) -> str:
    """A card serves in 16 bits; fp32 weights are rounded there, and the proof has said how."""
    config = _config(model)
    text = config.get("text_config") or {}
    stored = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype"))
    return "float16" if stored == "float16" else "bfloat16"


def _context(offer: Offer, card: Card | None, limit: int | None) -> tuple[int, list[str]]:
    shape = shapes.load(str(offer.model))
    longest = shape.max_positions
    if limit and limit > longest:
        raise BadInput(f"--context {limit}: the model knows {longest:,} positions", "ask for fewer")
    if card is None:
        return limit or longest, ["no card is known, so nothing is said of its memory: --profile"]
    weights = sum(file.stat().st_size for file in offer.model.glob("*.safetensors"))
    weights_gib = weights / 2**30 or shape.parameters * 2 / 2**30
    if shape.heads % card.count:
        fitting = [n for n in range(card.count, 0, -1) if shape.heads % n == 0]
        raise Refused(
            f"vLLM cannot share {shape.heads} attention heads among {card.count} cards",
            f"--profile of a machine with {' or '.join(map(str, fitting[:2]))}",
        )
    # A key and a value of every layer and kv head, 2 bytes each (Kwon et al. 2023, section 3);
    # tensor parallelism gives each card its part of heads and weights, but never less than one
    # kv head (get_num_kv_heads in vllm/config/model.py).
    kv_heads = max(shape.kv_heads, card.count)
    token_bytes = 2 * shape.layers * kv_heads * shape.head_dim * 2
    all_gib = card.count * card.memory_gib * UTILISATION
    left_gib = all_gib - weights_gib - card.count * _RESERVE_GIB
    room = int(left_gib * 2**30 / token_bytes) // _BLOCK * _BLOCK
    cards = f"{card.count} x {card.name}" if card.count > 1 else card.name
    if room < (limit or _SHORTEST):
        raise Refused(
            f"{offer.name} does not fit {cards}: {weights_gib:.1f} GiB of weights leave room for "
            f"{max(room, 0):,} tokens of context",
            "merge --quantize makes a smaller one; or more cards, or a shorter --context",
        )
    note = (
        f"{cards}: {weights_gib:.1f} GiB of weights, {token_bytes / 1024:.0f} KiB a token: room "
        f"for {room:,} tokens at once, by formula"
    )
    return limit or min(longest, room), [note]


def _lora(adapter: Path, name: str) -> list[str]:
    config = dict(json.loads((adapter / "adapter_config.json").read_bytes()))
    why = next((reason for key, reason in _UNSERVABLE.items() if config.get(key)), None)
    ranks = [config.get("r") or 0, *(config.get("rank_pattern") or {}).values()]
    fitting = [r for r in _RANKS if r >= max(ranks)]
    if why is None and not fitting:
        why = f"its rank is {max(ranks)}, vLLM takes up to {_RANKS[-1]}"
    if why:
        raise Refused(f"vLLM cannot serve {adapter} unmerged: {why}", "leviathan merge, then serve")
    path = str(adapter.resolve())
    arguments = ["--enable-lora", "--lora-modules", f"{name}={path}"]
    arguments += ["--max-lora-rank", str(fitting[0]), "--tokenizer", path]
    template = adapter.resolve() / "chat_template.jinja"
    return [*arguments, "--chat-template", str(template)] if template.is_file() else arguments


_UNSERVABLE = {
    "modules_to_save": "it trained whole modules",
    "use_dora": "it is DoRA",
    "trainable_token_indices": "it trained embeddings of tokens",
    "lora_bias": "it trained biases",
}
