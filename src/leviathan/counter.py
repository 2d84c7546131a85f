"""Owns counting rows in tokens: parsing one, the text it is trained as, the tokenizer.

Neither reads files nor keeps counts (``ledger``), and does not estimate (``tokens``).
"""

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from leviathan import corpus, formats, identity, templates, tokenizer
from leviathan.corpus import Row
from leviathan.errors import BadInput
from leviathan.templates import Text
from leviathan.tokenizer import Tokenizer

_KEYS = ("datasets", "train_on_inputs", "special_tokens", "tokens", "eot_tokens",
         "chat_template_kwargs", *templates.UNFOLLOWED_KEYS)  # fmt: skip
# Not followed elsewhere, and of no consequence to a single row: a recipe that comes to test on
# a mix's holdout keeps its counts.
_BESIDE = {"test_datasets", "dataset_exact_deduplication", "dataset_shard_num", "streaming"}


class Counter:
    """What one configuration makes of rows. The tokenizer is loaded when it is first needed."""

    def __init__(self, tree: dict[str, Any]) -> None:
        """Find the format and the tokenizer of a merged configuration.

        Raises:
            BadInput: the chat template asked for is not to be found.
        """
        self._tree = tree
        self._file = tokenizer.find(tree)
        self.form = templates.read(
            tree,
            tokenizer.special_tokens(self._file, tree),
            tokenizer.chat_template(self._file),
        )
        self._shape = formats.of(tree)
        self._installed = importlib.util.find_spec("tokenizers") is not None

    @property
    def has_tokenizer(self) -> bool:
        """Whether tokens are counted, not bytes."""
        return self._file is not None and self._installed

    @property
    def how(self) -> str:
        """What the counts rest on, one line."""
        name = self._tree.get("tokenizer_config") or self._tree["base_model"]
        missing = "the tokenizers library is not installed" if self._file else ""
        missing = missing or f"no tokenizer of {name} here"
        how = f"{missing}: {tokenizer.BYTES_PER_TOKEN:g} bytes a token assumed"
        if self.has_tokenizer:
            how = f"tokenised with {self._file}"
        return how

    @property
    def unfollowed(self) -> tuple[str, ...]:
        """Settings that change a row's tokens in ways not followed: they are estimates then."""
        return tuple(name for name in self.form.unfollowed if name not in _BESIDE)

    def depends(self) -> list[Any]:
        """Everything that the count of a row depends on, beside the row."""
        return [
            tokenizer.digest(self._file) if self._file and self._installed else None,
            {key: self._tree.get(key) for key in _KEYS if key not in _BESIDE},
            templates.chat_text(self._tree, tokenizer.chat_template(self._file)),
        ]

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        return Tokenizer(self._file, self._tree) if self._file and self._installed else None

    def close(self) -> None:
        """Give the tokenizer's memory back."""
        self.__dict__.pop("_tokenizer", None)

    def take(self, line: bytes | memoryview) -> tuple[Text, int]:
        """The text a row is trained as, and 64 bits that say which row it is
        (``identity``); never 0.

        Raises:
            BadInput: it is no such row; see ``complaint``.
        """
        try:
            row = msgspec.json.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(name in row for name in self.form.required):
            row = corpus.parse_row(Row(Path(), "", bytes(line)), self.form.required)
        said = identity.plain(self._shape.texts(row))
        return self.form.render(row), xxhash.xxh3_64_intdigest(said) or 1

    def complaint(self, row: Row, error: BadInput) -> BadInput:
        """What to say of a row that ``take`` refused, with its place."""
        try:
            corpus.parse_row(row, self.form.required)
        except BadInput as located:
            return located
        return BadInput(f"{row.path}:{row.number}: {error.message}", error.hint)

    def tokens(self, texts: Sequence[Text]) -> list[int]:
        """Of each text, as training will make them, before rows are dropped, cut or split."""
        if self._tokenizer is None:
            return [count.tokens for count in tokenizer.assume(texts)]
        return self._tokenizer.lengths(texts, adds_special_tokens=self.form.adds_special_tokens)
