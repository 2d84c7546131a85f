"""Owns looking at every row of a corpus: what is wrong, where, and how often.

Changes nothing; ``mending`` writes the clean corpus. What is wrong with one row is told by
``formats`` and ``hazards``, which rows are the same by ``duplicates`` and ``neighbours``.
"""

import multiprocessing
import os
import signal
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from leviathan import blocks, corpus, hazards, identity, neighbours
from leviathan.blocks import Block
from leviathan.corpus import Part, Progress, Row
from leviathan.duplicates import Duplicates
from leviathan.errors import BadInput
from leviathan.formats import Shape
from leviathan.index import ordered
from leviathan.lengths import Report
from leviathan.neighbours import Neighbours
from leviathan.spill import Spill

Severity = Literal["error", "warning"]

KINDS: dict[str, tuple[Severity, str]] = {
    "not_utf8": ("error", "not UTF-8"),
    "not_json": ("error", "not JSON"),
    "not_object": ("error", "JSON, but no object"),
    "not_text": ("error", "half a surrogate pair, which is no text"),
    "missing_field": ("error", "a field is missing"),
    "wrong_type": ("error", "a field holds something else than text"),
    "nothing_trained": ("error", "nothing to train on"),
    "unknown_role": ("error", "a role that chat templates do not know"),
    "secret": ("error", "looks like a secret: a key or a token"),
    "duplicate": ("warning", "trains the very text of an earlier row"),
    "near_duplicate": ("warning", "nearly the text of an earlier row"),
    "role_order": ("warning", "turns in an unusual order"),
    "empty_field": ("warning", "an empty field"),
    "control": ("warning", "control characters, or text that was decoded wrongly"),
    "over_long": ("warning", "longer than sequence_len"),
    "masked": ("warning", "no token is left to train on within sequence_len"),
}
"""Every kind of finding: ``error`` is what breaks a training or should not be trained on."""
_BITS = {kind: 1 << bit for bit, kind in enumerate(KINDS)}
_ERRORS = sum(bit for kind, bit in _BITS.items() if KINDS[kind][0] == "error")
BLANK = 1 << 31
"""Flag of a line that is no row."""
_EXAMPLES = 5
_NO_ROW = object()
_SHOWN = 100
_IN_PROCESS_BYTES = 16 << 20  # below this, other processes would not have begun in time
_WORKERS = min(8, len(os.sched_getaffinity(0)))


def bits(kinds: Iterator[str] | frozenset[str]) -> int:
    """The flags of these kinds."""
    return sum(_BITS[kind] for kind in kinds)


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


@dataclass(frozen=True)
class Wish:
    """What to look for."""

    shape: Shape
    near: float | None = None
    """Similarity from which rows count as near-duplicates; None: they are not looked for."""


@dataclass
class _Looked:
    """What a worker says of one block."""

    flags: NDArray[np.uint32]
    hashes: NDArray[np.uint64]
    signatures: NDArray[np.uint8] | None
    size: int
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    """Line in the block from 0, kind, and what."""


class Audit:
    """A corpus that was looked at: a flag for each kind of finding on every line, on disk."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path, self.shape = path, shape
        self.parts = corpus.parts(path)
        self.state = corpus.state(path)
        self.size = 0
        """Bytes, once decompressed."""
        self.lines_of = [0 for _ in self.parts]
        self.flags = Spill("<u4")
        self._examples: dict[str, list[Example]] = {kind: [] for kind in KINDS}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flags.close()

    def place(self, line: int) -> tuple[Path, int]:
        """The part, and the line in it from 1, of a line counted over all parts from 0."""
        begins = [0, *accumulate(self.lines_of)]
        part = bisect_right(begins, line) - 1
        return self.parts[part].path, line - begins[part] + 1

    def add_example(self, kind: str, line: int, what: str) -> None:
        """Remember what is wrong in a line, if it is among the first of its kind."""
        if len(self._examples[kind]) < _EXAMPLES:
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
            here = here[flags[here["row"] - first] & _BITS["duplicate"] == 0]
            more = flags.copy()
            more[here["row"] - first] |= _BITS[kind]
            marked.append(more)
            for record in here[:_EXAMPLES]:
                self.add_example(kind, int(record["row"]), what(record))
        self.flags.close()
        self.flags = marked

    def mark_lengths(self, report: Report) -> None:
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
            more[lines[rows]] |= _BITS[kind]
            marked.append(more)
            for row in rows[:_EXAMPLES].tolist():
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
            for kind, bit in _BITS.items():
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

    Raises:
        BadInput: there is no corpus, it is empty, or a compressed file is damaged.
    """
    audit = Audit(path, wish.shape)
    total, done, line = sum(part.size for part in audit.parts), 0, 0
    duplicates = Duplicates()
    near = Neighbours(wish.near) if wish.near is not None else None
    work = partial(_look, wish=wish)
    with (
        _pool(total) as pool,
        closing(ordered(blocks.of(audit.parts), work, pool, 2 * _WORKERS)) as looked,
    ):
        for block, found in looked:
            audit.lines_of[audit.parts.index(block.part)] += len(found.flags)
            audit.size += found.size
            audit.flags.append(found.flags)
            duplicates.add(found.hashes)
            if near is not None and found.signatures is not None:
                near.add(found.signatures)
            for number, kind, what in found.examples:
                audit.add_example(kind, line + number, what)
            line += len(found.flags)
            done += block.share
            if progress:
                progress("checking", done, total)
    _compare(audit, duplicates, near)
    if not audit.rows():
        raise corpus.empty(path)
    if corpus.state(path) != audit.state:
        raise corpus.changed(path)
    return audit


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
    pool = ProcessPoolExecutor(_WORKERS, mp_context=context, initializer=_begin)
    # Ctrl+C is for this process alone: workers begin, and stay, with the signal blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(_WORKERS):
            pool.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


# --- in a worker -------------------------------------------------------------------------


def _begin() -> None:
    """End when the process ends that started this one."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _look(block: Block, wish: Wish) -> _Looked:
    data = block.read()
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if block.first and lines:
        lines[0] = lines[0].removeprefix(corpus.BOM)
    lookup = _Lines(block.part, wish, len(lines))
    for number, line in enumerate(lines):
        lookup.take(number, line)
    for place, kind, what in hazards.find(data):
        lookup.note(data.count(b"\n", 0, place), kind, what)
    signed = neighbours.signatures(lookup.texts) if wish.near is not None else None
    return _Looked(lookup.flags, lookup.hashes, signed, len(data), lookup.examples)


class _Lines:
    """The lines of one block, taken one after another."""

    def __init__(self, part: Part, wish: Wish, count: int) -> None:
        self.flags = np.zeros(count, np.uint32)
        self.hashes = np.zeros(count, np.uint64)
        self.texts: list[bytes] = []
        self.examples: list[tuple[int, str, str]] = []
        self._part, self._shape, self._near = part, wish.shape, wish.near is not None
        self._fields = (wish.shape.field,) if wish.shape.field else ()
        self._noted: Counter[str] = Counter()

    def note(self, number: int, kind: str, what: str) -> None:
        """Something is wrong in a line."""
        self.flags[number] |= _BITS[kind]
        self._noted[kind] += 1
        if self._noted[kind] <= _EXAMPLES:
            self.examples.append((number, kind, what))

    def take(self, number: int, line: bytes) -> None:
        """Look at one line."""
        text = b""
        try:
            row = orjson.loads(line)
        except ValueError:
            row = self._refused(number, line)
        if type(row) is dict:
            for kind, what in self._shape.problems(row):
                self.note(number, kind, what)
            if not self.flags[number] & _ERRORS:
                text = identity.content(row, self._shape.kind, self._fields)
                self.hashes[number] = xxhash.xxh3_64_intdigest(text) or 1
        elif row is not _NO_ROW:
            self.note(number, "not_object", f"found {type(row).__name__}")
        if self._near:
            self.texts.append(text)

    def _refused(self, number: int, line: bytes) -> Any:
        if not line.strip():
            self.flags[number] = BLANK
            return _NO_ROW
        kind, what, row = _judge(Row(self._part.path, number + 1, line))
        if kind:
            self.note(number, kind, what)
            return _NO_ROW
        return row


def _judge(row: Row) -> tuple[str, str, Any]:
    """What is wrong with a line that the fast parser refused, in the words of the strict one."""
    try:
        return "", "", corpus.parse_row(Row(row.path, "", row.line))
    except BadInput as error:
        what = error.message.removeprefix(f"{row.path}:: ")
    for start, kind in (("not UTF-8", "not_utf8"), ("half a surrogate", "not_text")):
        if what.startswith(start):
            return kind, what, None
    if what.startswith("a row must be an object"):
        return "not_object", what.partition(", ")[2], None
    return "not_json", what.removeprefix("not JSON: "), None
