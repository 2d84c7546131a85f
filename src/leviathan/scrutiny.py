"""Owns looking at the rows of one block: a flag for each thing that is wrong, a hash of the text.

Runs in processes of its own (``audit`` starts them), so it imports nothing that is slow to come.
"""

import multiprocessing
import os
import threading
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from leviathan import corpus, glance, hazards, identity
from leviathan.blocks import Block
from leviathan.corpus import Part, Row
from leviathan.errors import BadInput
from leviathan.findings import BITS, BLANK, ERRORS, EXAMPLES
from leviathan.formats import Shape

_NO_ROW = object()


@dataclass(frozen=True)
class Wish:
    """What to look for."""

    shape: Shape
    near: float | None = None
    """Similarity from which rows count as near-duplicates; None: they are not looked for."""
    decoded: bool = False
    """Compare texts, not the way they are written; takes longer."""


@dataclass(frozen=True)
class Looked:
    """What was found in one block."""

    flags: bytes
    """Of each line, 4 bytes (``findings.BITS``)."""
    hashes: bytes
    """Of each line, 8 bytes; 0 where there is no text to compare."""
    signatures: bytes
    """Of each line, where near-duplicates are looked for (``neighbours``)."""
    size: int
    plain: bool
    """Some characters stand there as they are that other writers would escape,"""
    escaped: bool
    """and some are escaped."""
    examples: list[tuple[int, str, str]]
    """Line in the block from 0, kind, and what."""


def follow_parent() -> None:
    """End when the process ends that started this one."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def look_at_each(several: list[Block], wish: Wish) -> list[Looked]:
    """Everything that can be said of each block by itself."""
    return [look(block, wish) for block in several]


def look(block: Block, wish: Wish) -> Looked:
    """Everything that can be said of a block by itself."""
    data = block.read()
    lines = data.removeprefix(corpus.BOM) if block.first else data
    escaped = glance.has_escapes(lines)
    seen = None
    if wish.near is None and not (wish.decoded and escaped):
        seen = glance.fingerprints(lines, wish.shape)
    if seen is None:
        seen = [0] * (lines.count(b"\n") + (lines != b"" and not lines.endswith(b"\n")))
    found = _Lines(block.part, wish, len(seen))
    found.take(lines, seen)
    for place, kind, what in hazards.find(data):
        found.note(data.count(b"\n", 0, place), kind, what)
    return Looked(
        found.flags.tobytes(), found.hashes.tobytes(), found.signatures(), len(data),
        not lines.isascii(), escaped, found.examples,
    )  # fmt: skip


class _Lines:
    """The lines of one block, taken one after another."""

    def __init__(self, part: Part, wish: Wish, count: int) -> None:
        self.flags, self.hashes = array("I", bytes(4 * count)), array("Q", bytes(8 * count))
        self.examples: list[tuple[int, str, str]] = []
        self._texts: list[str] = []
        self._part, self._shape, self._near = part, wish.shape, wish.near is not None
        self._noted: Counter[str] = Counter()

    def note(self, number: int, kind: str, what: str) -> None:
        """Something is wrong in a line."""
        self.flags[number] |= BITS[kind]
        self._noted[kind] += 1
        if self._noted[kind] <= EXAMPLES:
            self.examples.append((number, kind, what))

    def take(self, lines: bytes, seen: list[int]) -> None:
        """All lines: those that were seen to be sound, and closer the others."""
        self.hashes = array("Q", seen)
        if all(seen):
            return
        for number, (line, known) in enumerate(zip(corpus.lines_of(lines), seen, strict=True)):
            if known:
                continue
            texts = self._look_closer(number, line)
            if texts is not None:
                self.hashes[number] = identity.fingerprint(texts)
            if self._near:
                self._texts.append("\n".join(texts or ()))

    def _look_closer(self, number: int, line: bytes) -> tuple[str, ...] | None:
        """What a row trains, unless it cannot be trained on."""
        try:
            row = msgspec.json.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            row = self._refused(number, line)
        if type(row) is dict:
            for kind, what in self._shape.problems(row):
                self.note(number, kind, what)
            if not self.flags[number] & ERRORS:
                return self._shape.texts(row)
        elif row is not _NO_ROW:
            self.note(number, "not_object", f"found {type(row).__name__}")
        return None

    def signatures(self) -> bytes:
        """Of all lines; none where near-duplicates are not looked for."""
        if not self._near:
            return b""
        from leviathan import neighbours  # brings numpy and rensa; most checks need neither

        return neighbours.signatures(self._texts).tobytes()

    def _refused(self, number: int, line: bytes) -> Any:
        """A line that the fast parser does not take, judged by the strict one."""
        if not line.strip():
            self.flags[number] = BLANK
            return _NO_ROW
        try:
            return corpus.parse_row(Row(self._part.path, "", line))
        except BadInput as error:
            self.note(number, *_kind(error.message.removeprefix(f"{self._part.path}:: ")))
        return _NO_ROW


def _kind(what: str) -> tuple[str, str]:
    if what.startswith("not UTF-8"):
        return "not_utf8", what
    if what.startswith("half a surrogate"):
        return "not_text", what
    if what.startswith("a row must be an object"):
        return "not_object", what.partition(", ")[2]
    return "not_json", what.removeprefix("not JSON: ")
