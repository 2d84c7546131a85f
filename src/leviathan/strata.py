"""Owns which stratum each row of a corpus belongs to: the value of one of its fields.

Does not choose rows (``selection``).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from leviathan import corpus, index
from leviathan.corpus import Progress
from leviathan.errors import BadInput
from leviathan.index import Index, Window
from leviathan.spill import Spill

_MOST = 1000
"""Values a field may have: with more of them it names rows, it does not group them."""


@dataclass(frozen=True)
class Strata:
    """Each row's stratum, on disk."""

    names: tuple[str, ...]
    """Of each stratum, its value as JSON; rows without the field are ``null``."""
    rows: dict[int, int]
    """Of each stratum."""
    each: Spill
    """The stratum of each row."""
    index: Index

    def codes(self) -> Iterator[NDArray[np.uint16]]:
        """The stratum of each row, chunk by chunk of the index."""
        first = 0
        for _, spans in self.index.chunks():
            yield self.each.read(first, len(spans))
            first += len(spans)


def of(found: Index, field: str, progress: Progress | None = None) -> Strata:
    """The strata of an indexed corpus.

    Args:
        found: the corpus's rows.
        field: a key of every row, or of an object in it: ``meta.source``.
        progress: told of bytes read.

    Raises:
        BadInput: a row that is no JSON object, or too many different values.
    """
    names: dict[bytes, int] = {}
    rows: Counter[int] = Counter()
    each = Spill("<u2")
    path = field.split(".")

    def values(window: Window, data: memoryview) -> list[bytes]:
        found = []
        for number, row in enumerate(index.pieces(window, data)):
            found.append(_value(_parsed(row, window, number), path))
        return found

    seen = 0
    for _, these in index.read(index.windows(found, found.all_rows()), values):
        codes = [names.setdefault(value, len(names)) for value in these]
        if len(names) > _MOST:
            raise BadInput(
                f"--by {field} has more than {_MOST:,} different values "
                f"(among the first {seen + len(these):,} rows)",
                "name a field that groups rows, such as source",
            )
        rows.update(codes)
        each.append(np.array(codes, np.uint16))
        seen += len(these)
        if progress:
            progress(f"reading {field}", found.size * seen // found.rows, found.size)
    if names.keys() == {b"null"}:
        raise BadInput(f"--by {field}: no row has such a field", "name a key of the rows")
    return Strata(tuple(name.decode() for name in names), dict(rows), each, found)


def _parsed(row: memoryview, window: Window, number: int) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(row)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        return parsed
    return corpus.parse_row(index.place_of(window, number))


def _value(row: Any, path: list[str]) -> bytes:
    for step in path:
        row = row.get(step) if isinstance(row, dict) else None
    return msgspec.json.encode(row, order="sorted")
