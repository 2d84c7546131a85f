"""Owns seeing at a glance that rows are sound: well-formed, the right fields, text in them.

Nothing is decoded, as most of a parser's time goes into making strings: msgspec checks the
form of a row and gives the bytes of its fields as they stand. What is not plainly sound is
looked at closer by ``scrutiny``, with no difference in what is found (a test compares).

One writer of JSON writes a text in one way only, as ``\\u00e9`` or as it is. Where a corpus has
both, rows with escapes are decoded to compare them (``has_escapes``, ``audit``).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import ahocorasick_rs
import msgspec

from leviathan import hazards, identity
from leviathan.formats import AROUND, ROLES, Shape

_QUOTE, _BACKSLASH, _SPACE = 34, 92, 32
_SIGNS = b'"\\'  # escaped, and no white space
_EMPTY = msgspec.Raw(b'""')
_ABSENT = msgspec.Raw(b"null")
_LEAST = 3  # bytes of a text that is not empty, with its quotes
_NEXT = {
    "": {"system", "user"}, "system": {"user"}, "user": {"assistant"}, "assistant": {"user"},
}  # fmt: skip
"""After whom who speaks, in the usual order."""
_LEFTMOST = ahocorasick_rs.MatchKind.LeftmostFirst
# A blank line is none of msgspec's rows.
_BLANK = ahocorasick_rs.BytesAhoCorasick(
    [b"\n" + space for space in (b"\n", b"\r", b" ", b"\t", b"\x0b", b"\x0c")],
    matchkind=_LEFTMOST,
)
_ESCAPES = ahocorasick_rs.BytesAhoCorasick([b"\\u"], matchkind=_LEFTMOST)
_DECODED_BYTES = 32 << 10
_LOOKED_BYTES = 8 << 10  # where escapes are many, they are found here and not all listed
_MUST_BE_ESCAPED = (b"000", b"001")


def fingerprints(lines: bytes, shape: Shape) -> list[int] | None:
    """Of each line what ``identity`` says of its texts; 0 for a line to look closer at.

    None where all lines are to be looked at closer: one of them is no row of this shape.

    Args:
        lines: whole lines.
        shape: that rows should have.
    """
    decoder = _decoder(shape)
    if decoder is None or not lines or lines[0] <= _SPACE:
        return None
    if _BLANK.find_matches_as_indexes(lines):
        return None
    try:
        rows = decoder.decode_lines(lines)
        _refuse_what_is_no_utf8(lines)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return _SEERS[shape.kind](rows)


def _refuse_what_is_no_utf8(lines: bytes) -> None:
    """msgspec does not look into the strings that it passes over."""
    if lines.isascii():
        return
    place = 0
    while place < len(lines):  # little by little: a large string would not stay in the cache
        end = lines.find(b"\n", place + _DECODED_BYTES) + 1 or len(lines)
        lines[place:end].decode()
        place = end


def has_escapes(lines: bytes) -> bool:
    """Whether a character is escaped that could stand there as it is."""
    return any(
        lines[begin + 2 : begin + 5] not in _MUST_BE_ESCAPED and not hazards.escaped(lines, begin)
        for some in (lines[:_LOOKED_BYTES], lines)
        for _, begin, _ in _ESCAPES.find_matches_as_indexes(some)
    )


@cache
def _decoder(shape: Shape) -> Any:
    raw, field = msgspec.Raw, msgspec.field
    fields: list[Any]
    if shape.kind == "alpaca":
        fields = [("instruction", raw), ("output", raw), ("input", raw, _EMPTY)]
    elif shape.kind == "completion":
        fields = [("text", raw, field(name=shape.field))]
    elif shape.kind in {"chat", "sharegpt"}:
        message = msgspec.defstruct(
            "Message",
            [
                ("role", str, field(name=shape.role)),
                ("content", raw, field(name=shape.content)),
                ("tool_calls", raw, _ABSENT),
            ],
            gc=False,
        )
        messages = list[message]  # type: ignore[valid-type]
        around = [(name, raw, _ABSENT) for name in AROUND]
        fields = [("messages", messages, field(name=shape.field)), *around]
    else:
        return None
    return msgspec.json.Decoder(msgspec.defstruct("Row", fields))


def _alpaca(rows: list[Any]) -> list[int]:
    found = []
    for row in rows:
        texts = row.instruction, row.input, row.output
        asked, given, answer = [memoryview(text) for text in texts]
        sound = _is_text(asked) and _is_text(answer) and given[0] == _QUOTE
        found.append(identity.chained(texts) if sound else 0)
    return found


def _completions(rows: list[Any]) -> list[int]:
    return [identity.chained((row.text,)) if _is_text(memoryview(row.text)) else 0 for row in rows]


def _talks(rows: list[Any]) -> list[int]:
    return [_talk(row.messages) if row.system is row.tools is _ABSENT else 0 for row in rows]


def _talk(messages: list[Any]) -> int:
    texts, last = list[Any](), ""
    for message in messages:
        role = ROLES.get(message.role, "")
        if role not in _NEXT.get(last, ()) or message.tool_calls is not _ABSENT:
            return 0
        if not _is_text(memoryview(message.content)):
            return 0
        last = role
        texts += _encoded(role), message.content
    return identity.chained(texts) if last == "assistant" else 0


@cache
def _encoded(role: str) -> bytes:
    return msgspec.json.encode(role)


def _is_text(raw: memoryview) -> bool:
    """Whether it is a string that begins with a letter or sign: not empty, nor white space."""
    return (
        raw[0] == _QUOTE
        and len(raw) >= _LEAST
        and raw[1] > _SPACE
        and (raw[1] != _BACKSLASH or raw[2] in _SIGNS)
    )


_SEERS: dict[str, Callable[[list[Any]], list[int]]] = {
    "alpaca": _alpaca, "completion": _completions, "chat": _talks, "sharegpt": _talks,
}  # fmt: skip
