"""Owns tokenizers of our own making: learning one from text, and writing it as models carry it.

Byte-level BPE, or one token for each character. Uses the ``tokenizers`` library alone (no
torch). Counting with a tokenizer that is there is ``tokenizer``'s.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from leviathan import corpus, files, formats
from leviathan.corpus import Progress
from leviathan.errors import BadInput

Kind = Literal["bpe", "characters"]
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
UNKNOWN = "<|unknown|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, TURN_START, TURN_END)
"""In the order of their ids. <|endoftext|> ends documents, ChatML's two are for turns. Padding has
a token of its own: a collator that masks padding out of the loss would otherwise mask the end
out too, and the model would never learn to stop."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHARS = 500_000_000
"""Characters that a tokenizer is learned from at most, unless told otherwise."""
_BYTES = 256
_MEASURED = {512: 2.0, 65536: 4.5}
_HELD_OUT_EVERY = 100
_MEASURED_CHARS = 1_000_000
_ENDLESS = 1 << 30
"""model_max_length of a tokenizer that sets no limit: the model's positions do."""


def least(kind: Kind) -> int:
    """Tokens that a vocabulary of this kind has at least."""
    special = len(SPECIAL_TOKENS)
    return special + _BYTES if kind == "bpe" else special + 2  # the unknown one and a character


# --- learning ----------------------------------------------------------------------------


def byte_level(texts: Iterable[str], size: int, special: Sequence[str]) -> Any:
    """Byte-level BPE of at most ``size`` tokens, the special ones first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # when learning

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer_class: Any = trainers.BpeTrainer  # untyped
    trainer = trainer_class(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(texts, trainer)
    return found


def characters(texts: Iterable[str], size: int, special: Sequence[str]) -> tuple[Any, float]:
    """A token for each character, and the share of the text that is none of them.

    The commonest that find room in ``size``, line feed included, which chat templates need.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    counts = Counter[str]("\n")
    for text in texts:
        counts.update(text)
    first = [*special, UNKNOWN]
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    ranked.remove("\n")
    chosen = sorted(["\n", *ranked[: size - len(first) - 1]])
    words = {token: number for number, token in enumerate([*first, *chosen])}
    # BPE without merges: whatever it is given falls into its characters.
    found = Tokenizer(models.BPE(vocab=words, merges=[], unk_token=UNKNOWN, fuse_unk=False))
    found.decoder = decoders.Fuse()
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in first])
    lost = 1 - sum(counts[character] for character in chosen) / counts.total()
    return found, max(0.0, lost)


def padded(words: Any, size: int) -> Any:
    """The tokenizer with reserved tokens up to ``size``, which no text leads to.

    As plain words of the vocabulary: 120,000 reserved special tokens would make every start
    slow.
    """
    from tokenizers import Tokenizer

    document = json.loads(words.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary |= {f"<|reserved_{number}|>": number for number in range(len(vocabulary), size)}
    return Tokenizer.from_str(json.dumps(document))


@dataclass(frozen=True)
class Wish:
    """What a tokenizer is to be learned from."""

    corpus: Path
    rows: formats.Shape
    kind: Kind
    size: int
    special: tuple[str, ...] = ()
    """Tokens beside ``SPECIAL_TOKENS``."""
    chars: int = CHARS


@dataclass(frozen=True)
class Learned:
    """A tokenizer, and what it was learned from."""

    words: Any
    """The ``tokenizers.Tokenizer``."""
    kind: Kind
    special: tuple[str, ...]
    size: int
    """Tokens, reserved ones included."""
    used: int
    """Without the reserved ones."""
    rows: int
    chars: int
    bytes_per_token: float
    held_out: bool
    """Measured on rows that it was not learned from."""
    unknown_share: float
    """Of the characters, those without a token."""
    digest: str
    """``xxh3_128:<hex>`` of the texts."""

    @property
    def facts(self) -> dict[str, Any]:
        """All that can be written down."""
        names = ("kind", "size", "used", "rows", "chars", "bytes_per_token", "held_out",
                 "unknown_share", "digest")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def learn(wish: Wish, progress: Progress | None = None) -> Learned:
    """A tokenizer of the corpus; the same text gives the same one.

    Raises:
        BadInput: no corpus, rows that are no JSON, no text in them, or a vocabulary too small.
    """
    special = tuple(dict.fromkeys([*SPECIAL_TOKENS, *wish.special]))
    room = least(wish.kind) + len(special) - len(SPECIAL_TOKENS)
    if wish.size < room:
        raise BadInput(
            f"a vocabulary of {wish.size} is too small: {len(special)} special tokens and "
            f"{'every byte' if wish.kind == 'bpe' else 'characters'} make {room} at least",
            "ask for more",
        )
    texts = _Texts(wish, progress)
    unknown = 0.0
    if wish.kind == "bpe":
        words = byte_level(texts.learned(), wish.size, special)
    else:
        words, unknown = characters(texts.learned(), wish.size, special)
        special = (*special, UNKNOWN)
    if not texts.chars:
        raise BadInput(f"corpus {wish.corpus} has no text to learn from", "look at its fields")
    used = words.get_vocab_size()
    held_out = bool(texts.held_out.texts)
    measured = texts.held_out if held_out else texts.first
    return Learned(
        padded(words, wish.size), wish.kind, special, wish.size, used, texts.rows, texts.chars,
        bytes_per_token(words, measured.texts), held_out, unknown,
        texts.digest_text,
    )  # fmt: skip


def digest(wish: Wish) -> str:
    """``Learned.digest`` of what would be learned from, without learning.

    Raises:
        BadInput: no corpus, or rows that are no JSON.
    """
    texts = _Texts(wish, None)
    for _ in texts.learned():
        pass
    return texts.digest_text


def describe(learned: Learned) -> str:
    """What was learned, in a line."""
    where = "held-out rows" if learned.held_out else "the rows it was learned from"
    text = f"{learned.used:,} tokens, {learned.bytes_per_token:.2f} bytes a token on {where}"
    if learned.used < learned.size:
        text += f"; the corpus fills no more, {learned.size - learned.used:,} are reserved"
    if learned.unknown_share:
        text += f"; {learned.unknown_share:.2g} of the characters have none"
    return text


class _Some:
    """The first of some texts, to measure on."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._chars = 0

    def keep(self, text: str) -> None:
        if self._chars < _MEASURED_CHARS:
            self.texts.append(text[:_MEASURED_CHARS])
            self._chars += len(text)


class _Texts:
    """The texts of a corpus, evenly spread over it where they are more than are wanted."""

    def __init__(self, wish: Wish, progress: Progress | None) -> None:
        self.wish, self.progress = wish, progress
        self.rows = self.chars = 0
        self.digest = xxhash.xxh3_128()
        self.held_out = _Some()
        """Of BPE one row in a hundred; a character must not be missed."""
        self.first = _Some()

    @property
    def digest_text(self) -> str:
        return f"xxh3_128:{self.digest.hexdigest()}"

    def learned(self) -> Iterator[str]:
        for text in self._all():
            if self.wish.kind == "bpe" and self.rows % _HELD_OUT_EVERY == 0:
                self.held_out.keep(text)
                continue
            self.first.keep(text)
            yield text

    def _all(self) -> Iterator[str]:
        """Every so many rows, so that what stands last is heard, too."""
        wish = self.wish
        every = max(1, math.ceil(corpus.plain_bytes(wish.corpus) / wish.chars))
        rows = corpus.read_with_progress(wish.corpus, "learning the vocabulary", self.progress)
        for number, row in enumerate(rows):
            if number % every:
                continue
            self.rows += 1
            for text in filter(None, wish.rows.texts(corpus.parse_row(row))):
                self.digest.update(text.encode() + b"\0")
                self.chars += len(text)
                yield text
            if self.chars >= wish.chars:
                return


def bytes_per_token(words: Any, texts: Sequence[str]) -> float:
    """Bytes of UTF-8 for each token that ``words`` makes of ``texts``."""
    encoded = words.encode_batch_fast(list(texts), add_special_tokens=False)
    size = sum(len(text.encode()) for text in texts)
    return size / max(1, sum(len(row.ids) for row in encoded))


def expected_bytes_per_token(size: int) -> float:
    """Of English prose in a byte-level BPE of ``size`` tokens that is still to be learned.

    By _MEASURED; a corpus of one kind of text, or of another language, differs.
    """
    points = sorted(_MEASURED.items())
    least, most = points[0], points[-1]
    if size <= least[0]:
        return least[1]
    for (low, below), (high, above) in itertools.pairwise(points):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return below + share * (above - below)
    return most[1]


# --- writing -----------------------------------------------------------------------------


def save(
    words: Any, directory: Path, special: Sequence[str] = SPECIAL_TOKENS, *,
    begin: str | None = None, unknown: str | None = None, template: str | None = CHATML,
) -> None:  # fmt: skip
    """Write tokenizer.json and what transformers, vLLM and Axolotl read beside it.

    Args:
        words: the ``tokenizers.Tokenizer``.
        directory: where.
        special: its special tokens.
        begin: the token that begins a text, if one does.
        unknown: the token of what has none.
        template: the chat template; None for a model that has never seen a turn.
    """
    directory.mkdir(parents=True, exist_ok=True)
    named = {"bos_token": begin, "eos_token": END_OF_TEXT, "pad_token": PAD, "unk_token": unknown}
    others = [token for token in special if token not in named.values()]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _ENDLESS,
        **{name: token for name, token in named.items() if token},
        "additional_special_tokens": others,
    }
    files.write_text(directory / "tokenizer.json", words.to_str(pretty=True))
    files.write_json(directory / "tokenizer_config.json", settings)
    files.write_json(
        directory / "special_tokens_map.json",
        {**{name: token for name, token in named.items() if token},
         "additional_special_tokens": others},
    )  # fmt: skip
    if template:
        files.write_text(directory / "chat_template.jinja", template)


def write(learned: Learned, directory: Path) -> None:
    """Write what was learned, with ChatML."""
    unknown = UNKNOWN if learned.kind == "characters" else None
    save(learned.words, directory, learned.special, unknown=unknown)
