"""Owns looking at every row of a corpus: what is wrong, where, and how often.

Changes nothing; ``mending`` writes the clean corpus. What is wrong with one row is told by
``scrutiny``, in processes started here; which rows are the same by ``duplicates`` and
``neighbours``.
"""

import itertools
import multiprocessing
import os
import signal
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from leviathan import blocks, corpus, scrutiny, signals
from leviathan.blocks import Block
from leviathan.corpus import Part, Progress
from leviathan.duplicates import Duplicates
from leviathan.findings import BITS, BLANK, EXAMPLES, KINDS, Severity
from leviathan.formats import Shape
from leviathan.index import ordered
from leviathan.neighbours import SLOTS, Neighbours
from leviathan.scrutiny import Looked, Wish
from leviathan.spill import Spill

if TYPE_CHECKING:
    from leviathan.lengths import Report

_SHOWN = 100
_BATCH = 8  # blocks that a worker takes at once: passing one by one costs a tenth of the time
_IN_PROCESS_BYTES = 16 << 20  # below this, other processes would not have begun in time
_WORKERS = min(8, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Example:
    """One row of a finding."""

    path: str
    line: int
    what: str

    @property
    def text(self) -> str:
        """On one line."""
        return f"{self.path}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong."""

    kind: str
    severity: Severity
    text: str
    rows: int
    share_pct: float
    examples: tuple[Example, ...]
    """The first few."""


class Audit:
    """A corpus that was looked at: a flag for each kind of finding on every line, on disk."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path, self.shape = path, shape
        self.parts = corpus.parts(path)
        self.state = corpus.state(path)
        self.size = 0
        """Bytes, once decompressed."""
        self.lines_of = dict.fromkeys(self.parts, 0)
        self.flags = Spill("<u4")
        self._examples: dict[str, list[Example]] = {kind: [] for kind in KINDS}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flags.close()

    def place(self, line: int) -> tuple[Path, int]:
        """The part, and the line in it from 1, of a line counted over all parts from 0."""
        begins = [0, *accumulate(self.lines_of.values())]
        part = bisect_right(begins, line) - 1
        return self.parts[part].path, line - begins[part] + 1

    def take(self, block: Block, found: Looked) -> None:
        """Keep what was found in the next block."""
        before = len(self.flags)
        flags = np.frombuffer(found.flags, np.uint32)
        self.lines_of[block.part] += len(flags)
        self.size += found.size
        self.flags.append(flags)
        for number, kind, what in found.examples:
            self.add_example(kind, before + number, what)

    def add_example(self, kind: str, line: int, what: str) -> None:
        """Remember what is wrong in a line, if it is among the first of its kind."""
        if len(self._examples[kind]) < EXAMPLES:
            path, number = self.place(line)
            self._examples[kind].append(Example(str(path), number, what[:_SHOWN]))

    def mark(self, kind: str, found: Iterator[NDArray[Any]], what: Callable[[Any], str]) -> None:
        """Flag lines that turned out to be of a kind later, unless they are duplicates.

        Args:
            kind: of finding.
            found: records with the field ``row``, in its order.
            what: tells of an example.
        """
        marked, records = Spill("<u4"), _Ahead(found)
        for first, flags in self.flags.pieces():
            here = records.below(first + len(flags))
            here = here[flags[here["row"] - first] & BITS["duplicate"] == 0]
            more = flags.copy()
            more[here["row"] - first] |= BITS[kind]
            marked.append(more)
            for record in here[:EXAMPLES]:
                self.add_example(kind, int(record["row"]), what(record))
        self.flags.close()
        self.flags = marked

    def mark_lengths(self, report: "Report") -> None:
        """Flag rows by their tokens, every one of which was counted."""
        found, limit = report.statistics, report.sequence_len
        tokens, masked, trainable = (
            np.asarray(one) for one in (found.tokens, found.masked, found.trainable)
        )
        empty = trainable == 0
        if report.fate == "cut":
            empty |= masked >= limit
        self._mark_rows("masked", empty, lambda row: f"{tokens[row]:,} tokens")
        if report.fate != "split":
            self._mark_rows("over_long", tokens > limit, lambda row: f"{tokens[row]:,} tokens")

    def _mark_rows(self, kind: str, chosen: NDArray[np.bool_], what: Callable[[int], str]) -> None:
        """Flag rows chosen by their number; blank lines have none."""
        marked, before = Spill("<u4"), 0
        for first, flags in self.flags.pieces():
            lines = np.flatnonzero((flags & BLANK) == 0)
            rows = np.flatnonzero(chosen[before : before + len(lines)])
            more = flags.copy()
            more[lines[rows]] |= BITS[kind]
            marked.append(more)
            for row in rows[:EXAMPLES].tolist():
                self.add_example(kind, first + int(lines[row]), what(before + row))
            before += len(lines)
        self.flags.close()
        self.flags = marked

    def rows(self) -> int:
        """Lines that are not blank."""
        return len(self.flags) - self.count(BLANK)

    def count(self, wanted: int) -> int:
        """Lines with any of these flags."""
        return sum(int(np.count_nonzero(flags & wanted)) for _, flags in self.flags.pieces())

    def findings(self) -> tuple[Finding, ...]:
        """What is wrong: errors first, what is found most often first."""
        counts: Counter[str] = Counter()
        for _, flags in self.flags.pieces():
            for kind, bit in BITS.items():
                counts[kind] += int(np.count_nonzero(flags & bit))
        rows = max(self.rows(), 1)
        found = [
            Finding(kind, *KINDS[kind], count, 100 * count / rows, tuple(self._examples[kind]))
            for kind, count in counts.items()
            if count
        ]
        return tuple(sorted(found, key=lambda f: (f.severity, -f.rows)))


class _Ahead:
    """Records in the order of their rows, taken as far as asked."""

    def __init__(self, found: Iterator[NDArray[Any]]) -> None:
        self._found = found
        self._left: list[NDArray[Any]] = []

    def below(self, row: int) -> NDArray[Any]:
        """Those not yet taken with a smaller row number."""
        while not self._left or self._left[-1]["row"][-1] < row:
            more = next(self._found, None)
            if more is None:
                break
            if len(more):
                self._left.append(more)
        if not self._left:
            return np.empty(0, [("row", "<i8")])
        records: NDArray[Any] = np.concatenate(self._left)
        taken = int(np.searchsorted(records["row"], row))
        self._left = [records[taken:]] if taken < len(records) else []
        return records[:taken]


# --- in the process that was started -----------------------------------------------------


def look(path: Path, wish: Wish, progress: Progress | None = None) -> Audit:
    """Look at every row; the caller closes what is returned.

    Twice, where the corpus comes from writers of different habits (``glance``).

    Raises:
        BadInput: there is no corpus, it is empty, or a compressed file is damaged.
    """
    audit, mixed = _look(path, wish, progress)
    if mixed and not wish.decoded and wish.near is None:
        audit.__exit__()
        audit, _ = _look(path, replace(wish, decoded=True), progress)
    return audit


def _look(path: Path, wish: Wish, progress: Progress | None) -> tuple[Audit, bool]:
    """What was found, and whether texts are written in more than one way."""
    audit = Audit(path, wish.shape)
    total, done = sum(part.size for part in audit.parts), 0
    plain = escaped = False
    duplicates = Duplicates()
    near = Neighbours(wish.near) if wish.near is not None else None
    with closing(_looked(audit.parts, wish, total)) as looked:
        for block, found in looked:
            audit.take(block, found)
            duplicates.add(np.frombuffer(found.hashes, np.uint64))
            if near is not None:
                near.add(np.frombuffer(found.signatures, np.uint8).reshape(-1, SLOTS))
            plain, escaped = plain or found.plain, escaped or found.escaped
            done += block.share
            if progress:
                progress("checking", done, total)
    _compare(audit, duplicates, near)
    if not audit.rows():
        raise corpus.empty(path)
    if corpus.state(path) != audit.state:
        raise corpus.changed(path)
    return audit, plain and escaped


def _looked(
    parts: tuple[Part, ...], wish: Wish, size: int
) -> Generator[tuple[Block, Looked], None, None]:
    """Every block with what a worker says of it, in order."""
    found = blocks.of(parts)
    batches = iter(lambda: list(itertools.islice(found, _BATCH)), [])
    work = partial(scrutiny.look_at_each, wish=wish)
    with _pool(size) as pool, closing(ordered(batches, work, pool, 2 * _WORKERS)) as looked:
        for batch, results in looked:
            yield from zip(batch, results, strict=True)


def _compare(audit: Audit, duplicates: Duplicates, near: Neighbours | None) -> None:
    def earlier(record: Any) -> str:
        path, line = audit.place(int(record["earlier"]))
        return f"as {path}:{line}" if len(audit.parts) > 1 else f"as line {line}"

    with closing(duplicates):
        audit.mark("duplicate", duplicates.find(), earlier)
    if near is not None:
        with closing(near):
            audit.mark(
                "near_duplicate",
                near.find(),
                lambda record: f"{100 * record['similarity']:.0f} % {earlier(record)}",
            )


def _pool(size: int) -> Executor:
    if size < _IN_PROCESS_BYTES or _WORKERS == 1:
        return ThreadPoolExecutor(1)
    # Not forked: this process has threads (a live line), and a fork copies their locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(_WORKERS, mp_context=context, initializer=scrutiny.follow_parent)
    # Ctrl+C is for this process alone: whoever is started while it is ignored ignores it for good.
    with signals.taken(signal.SIG_IGN, signal.SIGINT):
        for _ in range(_WORKERS):
            pool.submit(os.getpid)
    return pool
