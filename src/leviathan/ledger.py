"""Owns what is kept of a source once it was counted: each row's tokens, and which row it is.

On disk, in the order of the source's index: nothing here grows with the corpus. Counting is
``counter``'s.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from leviathan import corpus, files, index
from leviathan.corpus import Progress
from leviathan.counter import Counter
from leviathan.errors import BadInput
from leviathan.index import Index, Spans
from leviathan.templates import Text

_FORMAT = 1
_RECORD = np.dtype([("tokens", "<u4"), ("identity", "<u8")])
# A token takes some 100 bytes while it is counted: 30 times as much as the text.
_BATCH_BYTES = (128 << 10) * min(os.cpu_count() or 1, 32)


@dataclass(frozen=True)
class Ledger:
    """The tokens and identities of one source's rows."""

    path: Path
    seconds: float
    """What it took to make it just now; 0 where it was there."""

    def chunks(self, found: Index) -> Iterator[tuple[Spans, NDArray[Any]]]:
        """Every row of ``found``, which it was made of: place, and tokens and identity."""
        with self.path.open("rb") as file:
            for _, spans in found.chunks():
                yield spans, np.fromfile(file, _RECORD, len(spans))


def of(
    source: Path, found: Index, counter: Counter, directory: Path, progress: Progress | None = None
) -> Ledger:
    """The ledger of a source: the one that is kept, else counted now.

    It is found again by the content of the source, wherever that lies, and by what the counts
    depend on.

    Args:
        source: for names.
        found: its rows.
        counter: how they are counted.
        directory: where ledgers are kept.
        progress: told of bytes counted.

    Raises:
        BadInput: a row that cannot be trained on, with its place.
    """
    depends = [_FORMAT, found.digest, found.rows, *counter.depends()]
    name = xxhash.xxh3_64_hexdigest(json.dumps(depends, sort_keys=True, default=str).encode())
    path = directory / f"{source.stem}-{name}.counts"
    if path.is_file() and path.stat().st_size == found.rows * _RECORD.itemsize:
        return Ledger(path, 0.0)
    started, done = time.monotonic(), 0
    with files.replaced(path) as out:
        for records, size in _counted(found, counter):
            out.write(records.tobytes())
            done += size
            if progress:
                progress(f"counting {source.name}", min(done, found.size - 1), found.size)
    if progress:
        progress(f"counting {source.name}", found.size, found.size)
    return Ledger(path, time.monotonic() - started)


@dataclass
class _Batch:
    texts: list[Text]
    identities: list[int]
    size: int = 0


def _counted(found: Index, counter: Counter) -> Iterator[tuple[NDArray[Any], int]]:
    """Records of some rows, and the bytes of those rows."""

    def count(batch: _Batch) -> list[int]:
        return counter.tokens(batch.texts)

    # The tokenizer lets go of Python's lock: the next rows are parsed meanwhile.
    with (
        ThreadPoolExecutor(1) as pool,
        closing(index.ordered(_batches(found, counter), count, pool, 2)) as counted,
    ):
        for batch, tokens in counted:
            records = np.empty(len(tokens), _RECORD)
            records["tokens"], records["identity"] = tokens, batch.identities
            yield records, batch.size


def _batches(found: Index, counter: Counter) -> Iterator[_Batch]:
    batch = _Batch([], [])
    windows = index.windows(found, found.all_rows(), _BATCH_BYTES)
    for window, data in index.read_in_turn(windows):
        for number, piece in enumerate(index.pieces(window, data)):
            row: bytes | memoryview = piece
            if not window.spans[number, 0]:
                row = bytes(piece).removeprefix(corpus.BOM)
            try:
                text, identity = counter.take(row)
            except BadInput as error:
                raise counter.complaint(index.place_of(window, number), error) from error
            batch.texts.append(text)
            batch.identities.append(identity)
            batch.size += len(piece)
            if batch.size >= _BATCH_BYTES:
                yield batch
                batch = _Batch([], [])
    if batch.texts:
        yield batch
