"""Owns finding rows that are nearly the text of an earlier one: MinHash signatures and LSH.

Does not read rows, nor decide which of their text counts. Equal rows are ``duplicates``.

Two texts are compared by their shingles: the 32 bytes that follow each beginning of a word,
about five words, after everything but letters and digits has become one space and ASCII is
lower case. The similarity of two texts is the share of their shingles that they have in
common (Jaccard). The 5-word shingles and 0.8 are those of Lee et al. 2021,
"Deduplicating Training Data Makes Language Models Better".
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import rensa
from numpy.typing import NDArray

from leviathan import spill

THRESHOLD = 0.8
SLOTS = 128
"""Bytes of a signature. The estimate of a similarity s is off by sqrt(s (1 - s) / SLOTS)."""
BANDS = 16
"""Rows with equal 8 bytes in any of these places of their signatures are compared: 99.4 % of the
pairs of similarity 0.85, 94 % at 0.8, 6 % at 0.5 (1 - (1 - s^8)^16)."""
FOUND = np.dtype([("row", "<i8"), ("earlier", "<i8"), ("similarity", "<f4")])
"""A row, an earlier one that it resembles, and how much."""

_SHINGLE = 32
# Few rows at a time: larger arrays are slower to get from the system than to fill. And from
# 65,536 shingles on (two bytes each at least) rensa starts threads of its own, in what may be
# one of several worker processes already.
_BATCH_ROWS = 32
_MOST_BYTES = 100_000
_SEED = 42
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SPACE = 32
_WORDS = bytes(
    byte if byte >= 0x80 or chr(byte).isalnum() else _SPACE for byte in bytes(range(256)).lower()
)
_ROUNDS = 16
_PAIRS = 1 << 14
_MEMBER = np.dtype([("band", "<u8"), ("row", "<i8")])


def signatures(texts: Sequence[str | bytes]) -> NDArray[np.uint8]:
    """A row of ``SLOTS`` bytes for each text; zeros for a text without a letter or digit.

    The first 100,000 bytes of a text count. A pure function, for worker processes: a text has the
    same signature in all of them, whatever texts it comes with.
    """
    signed = [_sign(batch) for batch in _batches(texts)]
    return np.concatenate([np.empty((0, SLOTS), np.uint8), *signed])


def _batches(texts: Sequence[str | bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for text in texts:
        # Half a pair of surrogates is no reason to fail: JSON can have it.
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        data = data[:_MOST_BYTES]
        if batch and (len(batch) == _BATCH_ROWS or size + len(data) > _MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(data)
        size += len(data)
    if batch:
        yield batch


def _sign(texts: Sequence[bytes]) -> NDArray[np.uint8]:
    hashes, bounds = shingles(texts)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, bounds, SLOTS, _SEED)
    # Lists are the only way out of rensa's matrix; an array takes them faster than numpy does.
    slots = array("I", chain.from_iterable(matrix.to_rows()))
    # The lowest byte of each minimum: different ones agree by chance in 1 of 256 slots, which
    # the estimate allows for (b-bit minwise hashing, Li and König 2010).
    signed = np.frombuffer(slots, np.uint32).astype(np.uint8).reshape(len(texts), SLOTS)
    signed[bounds[1:] == bounds[:-1]] = 0
    return signed


def shingles(texts: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The shingles of all texts, hashed, and where each text's begin; the end of the last too."""
    data, ends = _words(texts)
    begins = _beginnings(data)
    windows = np.ndarray((len(data) - _SHINGLE + 1,), f"V{_SHINGLE}", data.data, strides=(1,))
    eights = windows[begins].view("<u8").reshape(-1, _SHINGLE // 8)
    hashes = np.zeros(len(begins), np.uint64)
    for column in range(_SHINGLE // 8):
        hashes ^= eights[:, column]
        hashes *= _MULTIPLIER
        hashes ^= hashes >> np.uint64(32)
    bounds = np.searchsorted(begins, np.concatenate([[0], ends]))
    return hashes, bounds.astype(np.uint64)


def _words(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The texts' words, each text between zeros, and the place where each text ends."""
    gap = bytes(_SHINGLE)
    rows = [text.translate(_WORDS) for text in texts]
    data = np.frombuffer(gap.join([b"", *rows, b""]), np.uint8)
    ends = np.cumsum([_SHINGLE + len(row) for row in rows], dtype=np.int64)
    surplus = np.zeros(len(data), dtype=bool)  # a space before a space or the text's end
    np.logical_and(data[:-1] == _SPACE, data[1:] <= _SPACE, out=surplus[:-1])
    removed = np.flatnonzero(surplus)
    return data[~surplus], ends - np.searchsorted(removed, ends)


def _beginnings(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where words begin; in scripts without spaces every character is one."""
    word = data > _SPACE
    begins = word[1:] > word[:-1]
    if data.max(initial=0) >= 0xE0:  # three bytes a character: Chinese, Japanese, Thai, ...
        begins |= (data[1:] >= 0xE0) & (data[1:] != 0xE2)  # 0xE2: punctuation and symbols
    return _with_long_words(np.flatnonzero(begins) + 1, data)


def _with_long_words(begins: NDArray[np.int64], data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A word longer than two shingles begins again every 16 bytes: base64, DNA, ..."""
    ends = np.append(begins[1:], len(data))
    long = np.flatnonzero(ends - begins > 2 * _SHINGLE)
    if not len(long):
        return begins
    word = data > _SPACE
    word_ends = np.flatnonzero(word[:-1] > word[1:]) + 1
    begin = begins[long]
    end = np.minimum(ends[long], word_ends[np.searchsorted(word_ends, begin)])
    more = [
        np.arange(first + _SHINGLE // 2, last, _SHINGLE // 2)
        for first, last in zip(begin.tolist(), end.tolist(), strict=True)
        if last - first > 2 * _SHINGLE
    ]
    return np.sort(np.concatenate([begins, *more]))


class Neighbours:
    """Rows that resemble an earlier one, of any number of rows.

    The signatures wait in a temporary file of 128 bytes a row; while they are compared, up to 40
    more. In memory: some 45 MiB and a byte a row.

    No pair is reported whose signatures do not say that its similarity reaches the threshold;
    at 0.8 the standard error of that is 0.035, so pairs are found half of the time at the
    threshold itself, and 97 % of them from 0.87 on. A row that was reported represents
    nothing any more: what resembles it and no row that stays is mostly not reported, so that
    rows are not lost by likeness of likenesses.
    """

    def __init__(self, threshold: float = THRESHOLD, directory: Path | None = None) -> None:
        """Begin without rows.

        Args:
            threshold: the least similarity that is reported, 0 to 1; below 0.7 few are found.
            directory: where temporary files are made.
        """
        self._directory = directory
        # Of the slots that differ, one in 256 agrees by chance.
        self._agreeing = SLOTS * (threshold + (1 - threshold) / 256)
        self._signatures = spill.Spill((np.uint8, SLOTS), directory)

    def add(self, signed: NDArray[np.uint8]) -> None:
        """The signatures of the rows that come next; all zeros for a row that resembles none."""
        self._signatures.append(signed)

    def find(self) -> Iterator[NDArray[Any]]:
        """Every row that resembles an earlier one, once, in order: arrays of ``FOUND``."""
        rows = len(self._signatures)
        reported = np.zeros(rows, dtype=bool)
        count = spill.parts_for(rows)
        with spill.Spill(FOUND, self._directory) as found:
            for band in range(BANDS):
                with spill.Parts(_MEMBER, count, self._directory) as parts:
                    self._divide(band, parts, count, reported)
                    for pieces in parts:
                        self._resembling(pieces, found, reported)
            yield from spill.in_row_order(found, rows, self._directory)

    def close(self) -> None:
        """Give the disk back."""
        self._signatures.close()

    def _divide(
        self, band: int, parts: spill.Parts, count: int, reported: NDArray[np.bool_]
    ) -> None:
        for first, signed in self._signatures.pieces():
            bands = signed.view("<u8")
            members = np.empty(len(bands), _MEMBER)
            members["band"] = bands[:, band]
            members["row"] = np.arange(first, first + len(bands))
            compared = bands.any(axis=1) & ~reported[first : first + len(bands)]
            members = members[compared]
            parts.append(members, spill.by_hash(members["band"], count))

    def _resembling(
        self, pieces: Iterator[NDArray[Any]], found: spill.Spill, reported: NDArray[np.bool_]
    ) -> None:
        """Compare rows that share a band: with its first row, then those left with the next."""
        first = np.empty(0, _MEMBER)
        for piece in pieces:
            members = np.concatenate([first, piece])
            members = members[np.argsort(members["band"], kind="stable")]
            leaders = []
            for _ in range(_ROUNDS):
                begins = np.ones(len(members), dtype=bool)
                begins[1:] = members["band"][1:] != members["band"][:-1]
                leaders.append(members[begins])
                earlier = leaders[-1]["row"][np.cumsum(begins) - 1][~begins]
                members = members[~begins]
                alike = self._compare(members["row"], earlier, found)
                reported[members["row"][alike]] = True
                members = members[~alike]
                if not len(members):
                    break
            first = np.concatenate(leaders)
            first = first[np.argsort(first["row"])]

    def _compare(
        self, rows: NDArray[np.int64], earlier: NDArray[np.int64], found: spill.Spill
    ) -> NDArray[np.bool_]:
        """Which rows resemble the earlier ones; these are put into ``found``."""
        alike = np.zeros(len(rows), dtype=bool)
        for start in range(0, len(rows), _PAIRS):
            some = slice(start, start + _PAIRS)
            equal = self._signatures.at(rows[some]) == self._signatures.at(earlier[some])
            agreeing = np.count_nonzero(equal, axis=1)
            alike[some] = agreeing >= self._agreeing
            pairs = np.empty(len(agreeing), FOUND)
            pairs["row"], pairs["earlier"] = rows[some], earlier[some]
            pairs["similarity"] = (agreeing / SLOTS - 1 / 256) / (1 - 1 / 256)
            found.append(pairs[alike[some]])
        return alike
