"""Owns counting tokens: the base model's tokenizer, found on disk, and what it makes of a row.

Uses the ``tokenizers`` library alone (no torch). Does not know what a row's text is
(``templates``) nor which rows to count (``tokens``).
"""

import json
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Assumption:
    """How long texts are in tokens where there is no tokenizer."""

    bytes_per_token: float = BYTES_PER_TOKEN
    """Where ``characters`` is not set."""
    characters: bool = False
    """Each character will be one."""
    error: float = ASSUMPTION_ERROR
    """Standard error of all tokens, as a share."""
    why: str = ""
    """Where it comes from, for the evidence."""

    def tokens(self, text: str) -> int:
        """Of one text."""
        if self.characters:
            return len(_SPECIAL.sub("x", text))
        return round(len(text.encode()) / self.bytes_per_token)

    @property
    def told(self) -> str:
        """It, in a few words."""
        rule = "each character a token" if self.characters else (
            f"{self.bytes_per_token:g} bytes a token")  # fmt: skip
        return f"{rule} assumed{f' ({self.why})' if self.why else ''}"


ASSUMED = Assumption()
_SPECIAL = re.compile(r"<\|\w+\|>")
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


@dataclass(frozen=True)
class Spelled:
    """One row, token by token."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """Of each token, whether it has loss."""


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
        more = (tree.get("special_tokens") or {}).get("additional_special_tokens") or []
        self._backend.add_special_tokens([AddedToken(text, **plain) for text in more])
        self._bos, self._eos = (self._id(name) for name in ("bos_token", "eos_token"))

        decoder = self._backend.get_added_tokens_decoder().items()
        self.own = frozenset(number for number, token in decoder if token.special)
        """Ids of the special tokens."""

    def _id(self, name: str) -> int | None:
        text = self.special.get(name)
        return self.number(text) if text else None

    def number(self, text: str) -> int | None:
        """The id of a token; None where there is none."""
        found = self._backend.token_to_id(text)
        return None if found is None else int(found)

    def text(self, number: int) -> str:
        """A token as the vocabulary spells it."""
        return str(self._backend.id_to_token(number))

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

    def spell(self, text: Text, *, adds_special_tokens: bool) -> Spelled:
        """One text token by token; ``count`` says how many they are."""
        if not adds_special_tokens:
            encoded = self._backend.encode(text.answer, add_special_tokens=False)
            places = self._trained(text, encoded)
            return Spelled(tuple(encoded.ids), tuple(n in places for n in range(len(encoded.ids))))
        prompt = self._backend.encode(text.prompt).ids if text.prompt else []
        answer = self._backend.encode(text.answer).ids if text.answer else []
        if answer and self._eos is not None and answer[-1] != self._eos:
            answer.append(self._eos)
        if answer and text.prompt and answer[0] == self._bos:
            del answer[0]
        trained = (text.prompt_trained,) * len(prompt) + (True,) * len(answer)
        return Spelled((*prompt, *answer), trained)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of every token; see the function ``pieces``."""
        return pieces(ids, lambda some: self._backend.decode(some, skip_special_tokens=False))

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
        trained = self._trained(text, encoded)
        return Count(len(encoded.ids), min(trained, default=len(encoded.ids)), len(trained))

    def _trained(self, text: Text, encoded: Any) -> set[int]:
        """Places of the tokens with loss, as Axolotl's chat_template strategy finds them."""
        ids, offsets = encoded.ids, encoded.offsets
        begins, ends = [begin for begin, _ in offsets], [end for _, end in offsets]
        kinds = self._ends(text)
        trained, newest = set[int](), dict[int, int]()
        for turn in text.turns or ():
            first, behind = bisect_right(ends, turn.begin), bisect_left(begins, turn.end)
            found = turn.begin < turn.end and first < behind
            if found and turn.trained:
                trained |= set(range(first, behind))
            for kind, (wanted, which) in enumerate(kinds):
                place = _end_of_turn(ids, wanted, behind if found else -1)
                if place is None:
                    continue
                newest[kind] = place
                if which == "all" or (which == "turn" and turn.trained):
                    trained.add(place)
        lasting = (newest[kind] for kind in newest if kinds[kind][1] == "last")
        return trained | set(lasting)

    def _ends(self, text: Text) -> tuple[tuple[frozenset[int | None], str], ...]:
        """Tokens that end a turn, and which of them are trained on."""
        ends, eos = text.ends, frozenset({self._eos})
        eot = eos if ends.tokens is None else frozenset(map(self._backend.token_to_id, ends.tokens))
        return ((eot, ends.eot), (eos, ends.eos))


def _end_of_turn(ids: list[int], wanted: frozenset[int | None], behind: int) -> int | None:
    """The first wanted token close ``behind`` a turn; -1 for a turn that was not found.

    For such a turn Axolotl begins to look at the last token of the row, and goes on at the
    first: that one can be taken for the end of an empty turn.
    """
    if behind < 0 and ids and ids[-1] in wanted:
        return None
    near = range(max(behind, 0), min(behind + _END_OF_TURN_REACH + 1, len(ids)))
    return next((place for place in near if ids[place] in wanted), None)


def pieces(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text of every token, so that all of them in a row are the text of the row.

    A token by itself may lose its space (SentencePiece) or be half a character (byte-level
    BPE): each is decoded behind those before it, and a character stands at its last token.
    """
    texts, begin, shown = list[str](), 0, 0
    for end in range(1, len(ids) + 1):
        known, both = decode(list(ids[begin:shown])), decode(list(ids[begin:end]))
        if both.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(both[len(known) :])
        begin, shown = shown, end
    return texts


def assume(texts: Sequence[Text], how: Assumption = ASSUMED) -> list[Count]:
    """Every text in tokens where there is no tokenizer, with an end for each."""
    return [_assumed(text, how) for text in texts]


def _assumed(text: Text, how: Assumption) -> Count:
    asked = how.tokens(text.prompt)
    answered = how.tokens(text.answer) + bool(text.answer)
    if text.turns is None:
        masked = 0 if text.prompt_trained else asked
        return Count(asked + answered, masked, asked + answered - masked)
    trained = [turn for turn in text.turns if turn.trained and turn.begin < turn.end]
    sizes = [how.tokens(text.answer[turn.begin : turn.end]) + 1 for turn in trained]
    trainable = min(sum(sizes), answered)
    first = how.tokens(text.answer[: trained[0].begin]) if trainable else answered
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
