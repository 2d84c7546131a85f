"""Owns making a model of random weights: a real architecture to measure, without its download.

A program of its own, in a process of its own that imports torch: ``python -m
leviathan.random_weights`` reads one JSON request on stdin. Does not choose the architecture
(``stand_in``).
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leviathan import demo, machine, vocabulary
from leviathan.errors import BadInput, LeviathanError, Refused

SHARD_BYTES = 1 << 30
_WORDS = 8192
"""Tokens that are really learned; the corpus is too small for many more."""
_BYTES = 256
_SEED = 42
_BLOCK = 4_194_301  # prime, so that no two rows of a matrix are alike
_STD = 0.02  # initializer_range of the common families
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
                    "merges.txt", "special_tokens_map.json", "chat_template.jinja")  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What to make."""

    directory: str
    """Where; it exists and is empty."""
    config: dict[str, Any]
    """The architecture, as config.json has it."""
    tokenizer: str | None
    """Directory with the real tokenizer; None to make one."""
    special_tokens: list[str]
    """Tokens that the recipe names."""
    corpus: str
    """The shipped corpus, which a made tokenizer learns from."""


def make(request: Request) -> None:
    """Write config.json, tokenizer and bf16 shards into the directory.

    Weights are normal with the architecture's standard deviation, norms one, biases zero:
    losses begin near log(vocabulary). Memory stays at one shard; the seed is fixed.

    Raises:
        BadInput: transformers does not know the architecture, or the vocabulary is too small.
        Refused: the disk has no room.
    """
    from leviathan.models import quiet

    quiet()
    directory = Path(request.directory)
    config, parameters = _on_meta(request.config)
    size = 2 * sum(parameter.numel() for _, parameter in parameters)
    free = machine.free_bytes(directory)
    if free < size * 1.02 + SHARD_BYTES / 16:
        raise Refused(
            f"random weights take {size / 2**30:.3g} GiB and {directory.parent} has "
            f"{free / 2**30:.3g} free", "free some space, or give a base model that is here",
        )  # fmt: skip
    if request.tokenizer:
        _copy_tokenizer(Path(request.tokenizer), directory)
    else:
        _make_tokenizer(request, config, directory)
    config.save_pretrained(directory)
    _write(parameters, directory, float(getattr(config, "initializer_range", None) or _STD))


def _on_meta(values: dict[str, Any]) -> tuple[Any, list[tuple[str, Any]]]:
    """The configuration and every parameter, without memory; a tied matrix comes once."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(**{**values, "dtype": "bfloat16"})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadInput(
            f"transformers cannot make this architecture: {str(error).splitlines()[0]}",
            "look at its config.json",
        ) from error
    return config, list(model.named_parameters())


def _write(parameters: list[tuple[str, Any]], directory: Path, std: float) -> None:
    import torch
    from safetensors.torch import save_file

    # 8 billion normal numbers take minutes; copies of some millions take the disk's time.
    torch.manual_seed(_SEED)
    block = torch.empty(_BLOCK).normal_(0.0, std).to(torch.bfloat16)
    shards = list(_shards(parameters))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {key: _filled(key, parameter.shape, block) for key, parameter in shard}
        save_file(tensors, directory / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    size = 2 * sum(parameter.numel() for _, parameter in parameters)
    document = {"metadata": {"total_size": size}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(document, indent=2))


def _shards(parameters: list[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    shard: list[tuple[str, Any]] = []
    size = 0
    for name, parameter in parameters:
        if shard and size + 2 * parameter.numel() > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((name, parameter))
        size += 2 * parameter.numel()
    yield shard


def _filled(name: str, shape: Any, block: Any) -> Any:
    import torch

    tensor = torch.empty(shape, dtype=torch.bfloat16)
    if len(shape) < 2:
        return tensor.fill_(0.0 if name.endswith("bias") else 1.0)
    flat, done = tensor.view(-1), 0
    while done < flat.numel():
        part = flat[done : done + len(block)]
        part.copy_(block[: len(part)])
        done += len(part)
    return tensor


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def _make_tokenizer(request: Request, config: Any, directory: Path) -> None:
    """Byte-level BPE of the shipped corpus, padded to the vocabulary's size."""
    special = list(dict.fromkeys([*vocabulary.SPECIAL_TOKENS, *request.special_tokens]))
    size = int(config.get_text_config().vocab_size)
    if size < _BYTES + len(special):
        raise BadInput(
            f"a vocabulary of {size} has no room for 256 bytes and {len(special)} special tokens",
            "put a tokenizer beside config.json",
        )
    texts = demo.all_text(Path(request.corpus))
    words = vocabulary.padded(vocabulary.byte_level(texts, min(size, _WORDS), special), size)
    vocabulary.save(words, directory, special, begin=vocabulary.END_OF_TEXT)
    config.eos_token_id = config.bos_token_id = words.token_to_id(vocabulary.END_OF_TEXT)
    config.pad_token_id = words.token_to_id(vocabulary.PAD)


def request_json(request: Request) -> bytes:
    """The request as the program reads it."""
    return json.dumps(asdict(request)).encode()


def main() -> None:
    """Make what stdin asks for; a mistake is one line on stderr and its exit code."""
    try:
        make(Request(**json.loads(sys.stdin.buffer.read())))
    except LeviathanError as error:
        sys.stderr.write(f"{error.message}\0{error.hint or ''}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
