"""Owns when two rows are the same row: by the texts they train, not by how they are written.

Does not know which texts those are (``formats``), nor look for such rows (``duplicates``).
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import xxhash


def fingerprint(texts: Iterable[str]) -> int:
    """64 bits that are equal for the same texts; never 0."""
    return chained(map(msgspec.json.encode, texts))


def chained(texts: Iterable[Any]) -> int:
    """The fingerprint of texts that are JSON strings already, with no more escapes than needed.

    XXH3 of each, seeded with that of those before it: nothing is copied together.
    """
    found = 0
    for text in texts:
        found = xxhash.xxh3_64_intdigest(text, found)
    return found or 1


def plain(texts: Iterable[str]) -> bytes:
    """The same bytes for texts that differ in white space and capitals only."""
    return "\0".join(" ".join(text.split()) for text in texts).casefold().encode()
