"""Owns when two rows are the same row: by what is trained of them, not by how they are written.

Does not look for such rows (``duplicates``, ``neighbours``, ``mixture``).
"""

from typing import Any

import xxhash


def texts(row: dict[str, Any], kind: str, field: str = "") -> list[str]:
    """What a row trains, in order; keys, ids and other fields are left out.

    Args:
        row: parsed.
        kind: ``alpaca``, ``chat``, ``sharegpt``, ``completion``; of others, every text.
        field: of the messages, or of the text.
    """
    if kind == "alpaca":
        names = row.get("instruction"), row.get("input"), row.get("output")
        return [value if type(value) is str else _joined(value) for value in names]
    if kind == "completion":
        value = row.get(field or "text")
        return [value if type(value) is str else _joined(value)]
    if kind in {"chat", "sharegpt"}:
        messages = row.get(field or "messages")
        if isinstance(messages, list):
            return [text for message in messages for text in _strings(message)]
    return _strings(row)


def digest(texts: list[str]) -> int:
    """64 bits that are equal for the same texts; never 0.

    XXH3 of each text, seeded with that of those before it.
    """
    found = len(texts)
    for text in texts:
        found = xxhash.xxh3_64_intdigest(text.encode(), found)
    return found or 1


def plain(texts: list[str]) -> bytes:
    """The same bytes for texts that differ in white space and capitals only."""
    return "\0".join(" ".join(text.split()) for text in texts).casefold().encode()


def _joined(value: Any) -> str:
    return "\0".join(_strings(value))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]
