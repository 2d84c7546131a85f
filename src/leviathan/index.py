"""Owns where the rows of a corpus begin and end: found once, kept on disk, read back by place.

Does not know what a row holds, nor which rows are wanted (``selection``). Line ends are
found by numpy on as many threads as pay: it lets go of Python's lock, and finds them ten times
as fast as a loop over lines does. docs/data.md has the figures.
"""

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from leviathan import corpus
from leviathan.corpus import Part, Progress, Row
from leviathan.spill import Spill

Job = TypeVar("Job")
Result = TypeVar("Result")
Spans = NDArray[np.int64]
"""(rows, 2): first byte of each row, and the byte after its last, line end included."""

THREADS = min(4, os.cpu_count() or 1)
_STEP_BYTES = 1 << 20  # read and looked at in one go: it stays in a core's own cache
_JOB_BYTES = 8 << 20
_WINDOW_BYTES = 4 << 20
# Rows this close to each other are read together: that costs less than another read, by far
# (1 GB, rows of 2.7 KB, one in ten: 0.08 s; with 64 KiB 0.27 s, with 4 KiB 1.3 s).
_GAP_BYTES = 256 << 10
_CHUNK_ROWS = 32 << 10
_LINE_FEED, _SPACE = 10, 32
_LOOKED_BYTES = 64


@dataclass(frozen=True)
class _Found:
    """Line ends and blank lines of one stretch of a part."""

    ends: NDArray[np.int64]
    blank: NDArray[np.int64]
    """Where blank lines begin."""
    digest: bytes
    size: int
    """Bytes of the stretch."""
    share: int
    """Bytes on disk it stands for."""


class Index:
    """Every row of a corpus by number. A context manager: its file goes when it is left."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts
        self.rows_of: list[int] = []
        """Rows of each part."""
        self.size = 0
        """Bytes, once decompressed."""
        self.digest = ""
        """``xxh3_128x8MiB:<hex>``: of the digests of every 8 MiB of each part (of a compressed
        one: of every block it is read in). So that several threads can make it."""
        self._spans = Spill((np.int64, 2))

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self._spans.close()

    @property
    def rows(self) -> int:
        """In all parts."""
        return sum(self.rows_of)

    def add(self, spans: Spans) -> None:
        """Rows that follow those known."""
        self.rows_of[-1] += len(spans)
        self._spans.append(spans)

    def chunks(self) -> Iterator[tuple[Part, Spans]]:
        """All rows again, some thousands at a time, never of two parts at once."""
        before = 0
        for part, rows in zip(self.parts, self.rows_of, strict=True):
            for first in range(0, rows, _CHUNK_ROWS):
                count = min(_CHUNK_ROWS, rows - first)
                yield part, self._spans.read(before + first, count)
            before += rows

    def all_rows(self) -> Iterator[NDArray[np.bool_]]:
        """Masks of ``chunks`` that choose every row."""
        return (np.ones(len(spans), bool) for _, spans in self.chunks())


def build(path: Path, what: str = "counting", progress: Progress | None = None) -> Index:
    """Find every row of the corpus at ``path``.

    Raises:
        BadInput: see ``corpus.parts`` and ``corpus.stream``.
    """
    parts = corpus.parts(path)
    total, done = sum(part.size for part in parts), 0
    index, digest = Index(parts), xxhash.xxh3_128()
    try:
        for part in parts:
            index.rows_of.append(0)
            start = size = 0
            blank = _first_is_blank(part)
            for found in _stretches(part):
                digest.update(found.digest)
                blank = np.concatenate((blank, found.blank))
                if len(found.ends):
                    starts = np.concatenate(([start], found.ends[:-1]))
                    blank = _add(index, starts, found.ends, blank)
                    start = int(found.ends[-1])
                size += found.size
                done += found.share
                if progress:
                    progress(what, done, total)
            if start < size:
                _add(index, np.array([start]), np.array([size]), blank)
            index.size += size
    except BaseException:
        index.__exit__()
        raise
    index.digest = f"xxh3_128x8MiB:{digest.hexdigest()}"
    return index


def _add(
    index: Index, starts: NDArray[np.int64], ends: NDArray[np.int64], blank: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Add the rows among these lines; blank lines that begin later are given back."""
    if len(blank):
        kept, later = ~np.isin(starts, blank, assume_unique=True), blank > starts[-1]
        starts, ends, blank = starts[kept], ends[kept], blank[later]
    index.add(np.column_stack((starts, ends)))
    return blank


# --- finding line ends -------------------------------------------------------------------


def _stretches(part: Part) -> Iterator[_Found]:
    if part.kind != "plain":
        yield from _streamed(part)
        return
    begins = iter(range(0, part.size, _JOB_BYTES))
    with part.path.open("rb", buffering=0) as file, ThreadPoolExecutor(THREADS) as pool:
        local = threading.local()

        def look(begin: int) -> _Found:
            return _look(file.fileno(), begin, min(begin + _JOB_BYTES, part.size), local)

        with closing(ordered(begins, look, pool, 2 * THREADS)) as found:
            yield from (result for _, result in found)


def _look(fd: int, begin: int, end: int, local: threading.local) -> _Found:
    """Line ends from ``begin`` to ``end - 1`` of a plain file."""
    if not hasattr(local, "buffer"):
        local.buffer = mmap.mmap(-1, _STEP_BYTES + 8)
        local.codes = np.frombuffer(local.buffer, np.uint8)
    digest, ends, blank = xxhash.xxh3_128(), [], []
    for place in range(begin, end, _STEP_BYTES):
        size = min(_STEP_BYTES, end - place)
        # One byte more: what follows the last line end.
        got = os.preadv(fd, [memoryview(local.buffer)[: size + 1]], place)
        digest.update(memoryview(local.buffer)[:size])
        found = _line_ends(local.codes, size)
        after = local.codes[found[found < got]]
        suspects = found[: len(after)][after <= _SPACE] + place
        blank += [start for start in suspects.tolist() if _is_blank(fd, start)]
        ends.append(found + place)
    return _Found(
        np.concatenate(ends), np.array(blank, np.int64), digest.digest(), end - begin, end - begin
    )


def _line_ends(codes: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """Places after each line feed in the first ``size`` codes.

    Few bytes are line feeds: eight at a time are passed over at once.
    """
    width = -(-size // 8) * 8
    equal = codes[:width] == _LINE_FEED
    equal[size:] = False
    words = np.flatnonzero(equal.view(np.uint64) != 0)
    rows, columns = equal.reshape(-1, 8)[words].nonzero()
    ends: NDArray[np.int64] = words[rows] * 8 + columns + 1
    return ends


def _is_blank(fd: int, start: int) -> bool:
    """Whether the line that begins here holds white space alone; at the end of a file, too."""
    while seen := os.pread(fd, _LOOKED_BYTES, start):
        line, feed, _ = seen.partition(b"\n")
        if line.strip():
            return False
        if feed:
            return True
        start += len(seen)
    return True


def _first_is_blank(part: Part) -> NDArray[np.int64]:
    if part.kind == "plain":
        with part.path.open("rb", buffering=0) as file:
            return np.array([0] if _is_blank(file.fileno(), 0) else [], np.int64)
    return np.array([], np.int64)  # what is streamed is looked at whole


def _streamed(part: Part) -> Iterator[_Found]:
    place = 0
    for data in corpus.stream(part):
        size = len(data)
        codes = np.frombuffer(data.ljust(-(-size // 8) * 8), np.uint8)
        ends = _line_ends(codes, size)
        starts = np.concatenate(([0], ends[ends < size]))
        suspects = starts[codes[starts] <= _SPACE] if size else starts[:0]
        blank = [
            s for s in suspects.tolist() if data[s : data.find(b"\n", s) + 1 or None].isspace()
        ]
        yield _Found(
            ends + place, np.array(blank, np.int64) + place, xxhash.xxh3_128_digest(data), size, 0
        )
        place += size
    # A stream does not tell how much of its file was read: all of it counts as the last.
    yield _Found(np.array([], np.int64), np.array([], np.int64), b"", 0, part.size)


# --- reading rows back -------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Rows of one part that are read together."""

    part: Part
    spans: Spans
    data: bytes | None
    """The bytes from the first row to the end of the last, where they come from a stream."""


def windows(
    index: Index, masks: Iterator[NDArray[np.bool_]], size: int = _WINDOW_BYTES
) -> Iterator[Window]:
    """The chosen rows in order, as what to read.

    Args:
        index: of the corpus.
        masks: which rows of each chunk of ``index.chunks()``.
        size: bytes of a window, about, of plain parts.
    """
    streamed: dict[Part, _Stream] = {}
    for (part, spans), mask in zip(index.chunks(), masks, strict=True):
        chosen = spans[mask]
        if part.kind != "plain":
            streamed = streamed if part in streamed else {part: _Stream(part)}
            yield from streamed[part].windows(chosen)
        elif len(chosen):
            cells, gaps = chosen[:, 0] // size, chosen[1:, 0] - chosen[:-1, 1]
            apart = (gaps > min(size, _GAP_BYTES)) | (cells[1:] != cells[:-1])
            for group in np.split(chosen, np.flatnonzero(apart) + 1):
                yield Window(part, group, None)


class _Stream:
    """A streamed part, read forward once."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._blocks = corpus.stream(part)
        self._begin = 0
        self._data = b""

    def windows(self, spans: Spans) -> Iterator[Window]:
        while len(spans):
            while spans[0, 0] >= self._begin + len(self._data):
                self._begin += len(self._data)
                self._data = next(self._blocks)
            inside = int(np.searchsorted(spans[:, 0], self._begin + len(self._data)))
            group, spans = spans[:inside], spans[inside:]
            first, last = group[0, 0] - self._begin, group[-1, 1] - self._begin
            yield Window(self._part, group, self._data[first:last])


def read(
    chosen: Iterator[Window], work: Callable[[Window, memoryview], Result]
) -> Iterator[tuple[Window, Result]]:
    """Each window with what ``work`` makes of it and its bytes, in order; it runs in threads.

    ``work`` must not keep the bytes: the buffer is used again.
    """
    local = threading.local()

    def one(window: Window) -> Result:
        return work(window, _bytes(window, local))

    with (
        ThreadPoolExecutor(THREADS) as pool,
        closing(ordered(chosen, one, pool, 2 * THREADS)) as found,
    ):
        yield from found


def read_in_turn(chosen: Iterator[Window]) -> Iterator[tuple[Window, memoryview]]:
    """Each window with its bytes, which are good until the next one is asked for; no threads."""
    local = threading.local()
    return ((window, _bytes(window, local)) for window in chosen)


def _bytes(window: Window, local: threading.local) -> memoryview:
    if window.data is not None:
        return memoryview(window.data)
    begin, size = int(window.spans[0, 0]), int(window.spans[-1, 1] - window.spans[0, 0])
    if size > len(getattr(local, "buffer", b"")):
        local.buffer = mmap.mmap(-1, max(size, _WINDOW_BYTES + _GAP_BYTES))
    view = memoryview(local.buffer)[:size]
    with window.part.path.open("rb", buffering=0) as file:
        if os.preadv(file.fileno(), [view], begin) != size:
            raise corpus.changed(window.part.path)
    return view


def pieces(window: Window, data: memoryview) -> list[memoryview]:
    """The bytes of each row of a window."""
    begin = int(window.spans[0, 0])
    return [data[start - begin : end - begin] for start, end in window.spans.tolist()]


def place_of(window: Window, number: int) -> Row:
    """Row ``number`` of a window with its line, which is counted anew: for messages."""
    start = int(window.spans[number, 0])
    for row in corpus.read_lines(window.part.path):
        if start < len(row.line):
            return row
        start -= len(row.line)
    raise corpus.changed(window.part.path)


def ordered(
    jobs: Iterator[Job], work: Callable[[Job], Result], pool: Executor, at_once: int
) -> Generator[tuple[Job, Result], None, None]:
    """Each job with what ``work`` made of it, in the order of ``jobs``; few are under way."""
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(work, job)))
            if len(waiting) >= at_once:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()
