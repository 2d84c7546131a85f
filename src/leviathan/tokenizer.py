"""Owns counting tokens: the base model's tokenizer, found on disk, and what it makes of a row.

Uses the ``tokenizers`` library alone (no torch). Does not know what a row's text is
(``templates``) nor which rows to count (``tokens``).
"""

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from leviathan import basemodel
from leviathan.errors import BadInput
from leviathan.templates import Text

BYTES_PER_TOKEN = 4.0
"""Assumed where no tokenizer is at hand. Llama 3's makes a token of 3.94 characters of English,
Llama 2's of 3.17 (The Llama 3 Herd of Models, section 3.2)."""
ASSUMPTION_ERROR = 0.25
"""Of that assumption, as a share: 3.17 is 21 % away; code and other languages are further."""

# A template's end-of-turn token is trained on when it stands this close behind the turn
# (axolotl/prompt_strategies/chat_template.py).
_END_OF_TURN_REACH = 3


@dataclass(frozen=True)
class Count:
    """One row in tokens, before anything is dropped, cut or split."""

    tokens: int
    masked: int
    """Tokens before the first one with loss; ``tokens`` where none has."""
    trainable: int


class Tokenizer:
    """A ``tokenizer.json`` with the special tokens of the configuration."""

    def __init__(self, file: Path, tree: dict[str, Any]) -> None:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend  # comes with the training stack

        self.file = file
        self.special = special_tokens(file, tree)
        try:
            self._backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise BadInput(f"tokenizer {file} cannot be read: {error}", "copy it anew") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added = (tree.get("special_tokens") or {}).values()
        self._backend.add_special_tokens(
            [AddedToken(text, **plain) for text in added if isinstance(text, str)]
        )
        self._backend.add_tokens([AddedToken(text, **plain) for text in tree.get("tokens") or []])
        self._bos, self._eos = (self._id(name) for name in ("bos_token", "eos_token"))
        ends = tree.get("eot_tokens")
        self._ends = {self._backend.token_to_id(text) for text in ends or []} | {self._eos}

    def _id(self, name: str) -> int | None:
        text = self.special.get(name)
        found = self._backend.token_to_id(text) if text else None
        return None if found is None else int(found)

    def count(self, texts: Sequence[Text], *, adds_special_tokens: bool) -> list[Count]:
        """Every text in tokens, as Axolotl 0.19 makes them (``prompt_tokenizers.py``)."""
        if not adds_special_tokens:
            encoded = self._backend.encode_batch(
                [text.answer for text in texts], add_special_tokens=False
            )
            return [self._chat(text, row) for text, row in zip(texts, encoded, strict=True)]
        answers = self._backend.encode_batch_fast([text.answer for text in texts])
        prompts = self._backend.encode_batch_fast([text.prompt for text in texts])
        return [
            self._pair(text, prompt.ids, answer.ids)
            for text, prompt, answer in zip(texts, prompts, answers, strict=True)
        ]

    def lengths(self, texts: Sequence[Text], *, adds_special_tokens: bool) -> list[int]:
        """The tokens of ``count`` alone: a conversation's trained turns are not looked for."""
        if adds_special_tokens:
            return [found.tokens for found in self.count(texts, adds_special_tokens=True)]
        answers = [text.answer for text in texts]
        return [len(x) for x in self._backend.encode_batch_fast(answers, add_special_tokens=False)]

    def _pair(self, text: Text, prompt: list[int], answer: list[int]) -> Count:
        asked = len(prompt) if text.prompt else 0
        answered = len(answer) if text.answer else 0
        if answered:
            answered += answer[-1] != self._eos
            # A second beginning is taken out again; a text without a prompt keeps its own.
            answered -= bool(text.prompt) and answer[0] == self._bos
        masked = 0 if text.prompt_trained else asked
        return Count(asked + answered, masked, asked + answered - masked)

    def _chat(self, text: Text, encoded: Any) -> Count:
        ids, offsets = encoded.ids, encoded.offsets
        begins, ends = [begin for begin, _ in offsets], [end for _, end in offsets]
        trained: set[int] = set()
        for begin, end in text.trained or ():
            first, last = bisect_right(ends, begin), bisect_left(begins, end)
            trained |= set(range(first, last))
            near = range(last, min(last + _END_OF_TURN_REACH + 1, len(ids)))
            trained |= set([index for index in near if ids[index] in self._ends][:1])
        return Count(len(ids), min(trained, default=len(ids)), len(trained))


def assume(texts: Sequence[Text]) -> list[Count]:
    """Every text in tokens where there is no tokenizer: four bytes a token, and an end."""
    return [_assumed(text) for text in texts]


def _assumed(text: Text) -> Count:
    asked = round(len(text.prompt.encode()) / BYTES_PER_TOKEN)
    answered = round(len(text.answer.encode()) / BYTES_PER_TOKEN) + bool(text.answer)
    if text.trained is None:
        masked = 0 if text.prompt_trained else asked
        return Count(asked + answered, masked, asked + answered - masked)
    sizes = [round((end - begin) / BYTES_PER_TOKEN) + 1 for begin, end in text.trained]
    trainable = min(sum(sizes), answered)
    first = round(text.trained[0][0] / BYTES_PER_TOKEN) if trainable else answered
    return Count(answered, min(first, answered), trainable)


# --- where it is -----------------------------------------------------------------------


def find(tree: dict[str, Any]) -> Path | None:
    """``tokenizer.json`` of the base model, a directory or in the hub's cache; None without one."""
    name = str(tree.get("tokenizer_config") or tree["base_model"])
    folder = Path(name)
    if not folder.is_dir():
        revision = str(tree.get("revision_of_model") or "main")
        cached = basemodel.snapshot(name, os.environ, revision)
        if cached is None:
            return None
        folder = cached
    file = folder / "tokenizer.json"
    return file if file.is_file() else None


def digest(file: Path) -> str:
    """Of everything beside ``file`` that its counts depend on."""
    found = xxhash.xxh3_128()
    for name in (file.name, "tokenizer_config.json", "special_tokens_map.json",
                 "chat_template.jinja"):  # fmt: skip
        path = file.with_name(name)
        found.update(f"{name}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


def special_tokens(file: Path | None, tree: dict[str, Any]) -> dict[str, str]:
    """``bos_token`` and the like, by the tokenizer's files and the configuration's own."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _document(file, name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    given = tree.get("special_tokens") or {}
    return found | {key: value for key, value in given.items() if isinstance(value, str)}


def chat_template(file: Path | None) -> str | None:
    """The tokenizer's own chat template, if it has one."""
    if file and file.with_name("chat_template.jinja").is_file():
        return file.with_name("chat_template.jinja").read_text()
    found = _document(file, "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several, each with a name
        found = {item.get("name"): item.get("template") for item in found}.get("default")
    return found if isinstance(found, str) else None


def _document(file: Path | None, name: str) -> dict[str, Any]:
    try:
        found = json.loads(file.with_name(name).read_bytes()) if file else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
