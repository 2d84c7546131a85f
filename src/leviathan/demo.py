"""Owns the embedded default: a small base model, built on this machine from the shipped corpus.

Not here: the corpus itself (scripts/make_demo_corpus.py), the fine-tuning of
the base (train), the questions put to the result (configs/suites/demo.yaml).

The base is a language model of Python's documentation. It has read the corpus'
"text" fields and never a question, and its tokenizer has no chat template, so
whatever the fine-tuned model knows about answering it learned from the adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leviathan import vocabulary
from leviathan.models import quiet
from leviathan.vocabulary import END_OF_TEXT, PAD, TURN_END

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

Progress = Callable[[str, float], None]
"""Called with a stage ("tokenizer", "base") and the share of it that is done, 0 to 1."""

RECORD = "leviathan-base.json"


@dataclass(frozen=True)
class BaseSettings:
    """The base model's shape and schedule. Any change makes another base."""

    vocab_size: int = 1536
    """Tokens, the four special ones included. <|endoftext|> ends documents, ChatML's two are
    reserved."""
    hidden: int = 128
    """Width. Multiples of 32, so that the 4-bit path works on it too."""
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    context: int = 128
    """Tokens per training window."""
    batch: int = 8
    """Windows per step."""
    steps: int = 600
    initial_std: float = 0.06
    """Spread of the fresh weights. Llama's 0.02 suits far wider models."""
    learning_rate: float = 4e-3
    warmup_steps: int = 20
    seed: int = 42


def prepare(
    directory: Path,
    corpus: Path,
    progress: Progress | None = None,
    settings: BaseSettings | None = None,
) -> Path:
    """Build the base model in `directory` unless it is there already, and return `directory`.

    The directory appears whole or not at all; an older base in it is replaced.
    """
    settings = settings or BaseSettings()
    record = {
        "corpus_sha256": hashlib.sha256(corpus.read_bytes()).hexdigest(),
        "settings": asdict(settings),
    }
    if _recorded(directory) == record:
        return directory
    report = progress or _silent
    scratch = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _build(scratch, corpus, settings, report)
        (scratch / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _replace(directory, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return directory


def _silent(_stage: str, _share: float) -> None:
    """The progress of a caller who did not ask for any."""


def _recorded(directory: Path) -> object:
    """What the finished base in `directory` was built from, None where there is none."""
    try:
        return json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _replace(directory: Path, scratch: Path) -> None:
    """Move `scratch` into place; rename(2) replaces no full directory: an old one steps aside."""
    _sync(scratch)
    stale = scratch.with_suffix(".old")
    if directory.exists():
        directory.rename(stale)
    scratch.rename(directory)
    shutil.rmtree(stale, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Force the files to disk: a power cut after the rename must not leave empty files."""
    for path in (*directory.iterdir(), directory):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _build(directory: Path, corpus: Path, settings: BaseSettings, report: Progress) -> None:
    """Tokenizer, then model, both saved in `directory` as Transformers lays them out."""
    quiet()
    report("tokenizer", 0.0)
    tokenizer = _make_tokenizer(corpus, directory, settings)
    report("tokenizer", 1.0)
    model = _train_model(tokenizer, list(_documentation(corpus)), settings, report)
    model.save_pretrained(directory)


def _rows(corpus: Path) -> Iterator[dict[str, Any]]:
    """The corpus, line by line; a file is split at newlines only, unlike str.splitlines."""
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _documentation(corpus: Path) -> Iterator[str]:
    """The plain text that the base reads."""
    for row in _rows(corpus):
        if isinstance(text := row.get("text"), str):
            yield text


def all_text(corpus: Path) -> Iterator[str]:
    """Documentation and conversations: the tokenizer should spell both well."""
    yield from _documentation(corpus)
    for row in _rows(corpus):
        yield from (message["content"] for message in row["messages"])


def _make_tokenizer(corpus: Path, directory: Path, settings: BaseSettings) -> Tokenizer:
    """Byte-level BPE of all text of the corpus, written without a chat template."""
    words: Tokenizer = vocabulary.byte_level(
        all_text(corpus), settings.vocab_size, vocabulary.SPECIAL_TOKENS
    )
    vocabulary.save(words, directory, template=None)
    return words


def _new_model(tokenizer: Tokenizer, settings: BaseSettings) -> LlamaForCausalLM:
    """A small Llama with fresh weights, which stops at the end of a document or of a turn."""
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )  # heavy: only when building

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.hidden,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        initializer_range=settings.initial_std,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(TURN_END)],
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return model


def _train_model(
    tokenizer: Tokenizer, texts: list[str], settings: BaseSettings, report: Progress
) -> LlamaForCausalLM:
    """Plain next-token training. The caller's random state is left as it was found."""
    import torch  # heavy: only when building

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _new_model(tokenizer, settings)
        model.train()
        stream = _token_stream(tokenizer, texts)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
        for step in range(settings.steps):
            windows = _windows(stream, settings)
            loss = model(input_ids=windows, labels=windows).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            report("base", (step + 1) / settings.steps)
    return model.eval()


def _rate(step: int, settings: BaseSettings) -> float:
    """Share of the learning rate: linear warm-up, then linear decay to a tenth."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return 1.0 - 0.9 * (step - settings.warmup_steps) / max(
        1, settings.steps - settings.warmup_steps
    )


def _token_stream(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All documents in one line, each closed by the end token."""
    import torch  # heavy: only when building

    encoded = tokenizer.encode_batch([text + END_OF_TEXT for text in texts])
    return torch.tensor([token for document in encoded for token in document.ids])


def _windows(stream: torch.Tensor, settings: BaseSettings) -> torch.Tensor:
    """A batch of windows from random places, (batch, context)."""
    import torch  # heavy: only when building

    starts = torch.randint(len(stream) - settings.context, (settings.batch, 1))
    return stream[starts + torch.arange(settings.context)]
