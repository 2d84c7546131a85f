"""Owns what of a row is shown: parts of its tokens, with signs for what is not seen.

Pure. Does not make the tokens (``preview``) nor draw them (``ui``).
"""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from leviathan.preview import Token

_SIGNS = {"\n": "\u21b5", "\t": "\u21e5", "\x7f": "\u2421"} | {
    chr(code): chr(0x2400 + code) for code in range(32) if code not in {9, 10}
}
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}  # would hide, or move the cursor
_JOINERS = "\u200c\u200d"  # within words of some scripts, and emoji
_LINE_END = re.compile(r"(?<=\n)(?=[^\n])")
_REACHES = (500, 200, 100, 60, 40, 25, 16, 10, 6)
_LEAST_GAP = 8
_LINE_END_COST = 40


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens of one kind, or a gap between others."""

    text: str
    """With signs; a line ends behind the sign of a line end."""
    trained: bool = False
    special: bool = False
    left_out: int = 0
    """Tokens that are not shown here."""
    left_trained: int = 0
    """Of these, with loss."""


def parts(tokens: Sequence[Token], most: int = 1000) -> list[Part]:
    """A row in parts; of a long one what is near its ends, and where loss begins or ends.

    Args:
        tokens: of the row.
        most: characters to be shown, about; a line end counts as half a line.
    """
    shown, found = _places(tokens, most), list[Part]()
    kinds = [(t.trained, t.special) if n in shown else None for n, t in enumerate(tokens)]
    behind = [token.text[:1] for token in tokens[1:]] + [""] * bool(tokens)
    rows = zip(kinds, tokens, behind, strict=True)
    for kind, group in itertools.groupby(rows, lambda row: row[0]):
        some = list(group)
        if kind:
            text = "".join(token.text for _, token, _ in some)
            found.append(Part(visible(text, some[-1][2]), *kind))
        else:
            trained = sum(token.trained for _, token, _ in some)
            found.append(Part("", left_out=len(some), left_trained=trained))
    return found


def _places(tokens: Sequence[Token], most: int) -> set[int]:
    """Which tokens are shown."""
    count = len(tokens)
    costs = [len(token.text) + _LINE_END_COST * ("\n" in token.text) for token in tokens]
    turns = [n for n in range(1, count) if tokens[n].trained != tokens[n - 1].trained]
    for reach in (count, *_REACHES):
        shown = _around([0, *turns, count], reach, count)
        if sum(costs[place] for place in shown) <= most:
            return shown
    half = most // 2
    head = itertools.takewhile(lambda n: sum(costs[:n]) < half, range(count))
    tail = itertools.takewhile(lambda n: sum(costs[n:]) < half, range(count - 1, -1, -1))
    return set(head) | set(tail)


def _around(places: list[int], reach: int, count: int) -> set[int]:
    """Tokens close to the places; gaps not worth a mark are closed."""
    shown, end = set[int](), 0
    for place in places:
        begin = max(place - reach, 0)
        begin = end if begin - end < _LEAST_GAP else begin
        end = min(place + reach, count)
        shown |= set(range(begin, end))
    return shown


def visible(text: str, following: str = "") -> str:
    """``text`` with signs for what is not seen; nothing in it moves the cursor but line ends.

    Args:
        text: of a row.
        following: the character behind it; several line ends in a row are one.
    """
    lines = _LINE_END.split(text + following)
    lines[-1] = lines[-1][: len(lines[-1]) - len(following)]
    return "\n".join("".join(map(_sign, line)) for line in lines)


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    unseen = unicodedata.category(character) in _UNSEEN and character not in _JOINERS
    return f"<U+{ord(character):04X}>" if unseen else character
