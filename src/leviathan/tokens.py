"""Owns looking at a corpus: which rows are read and tokenised, and what they come to.

Reads every row of a small corpus, and of a large one enough to say how wrong the figures
can be. Does not own the figures (``figures``) nor know batches (``steps``).
docs/planning.md has the method.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from leviathan import corpus, figures, index, samples, selection, templates, tokenizer
from leviathan.corpus import Progress, Row
from leviathan.errors import BadInput
from leviathan.estimate import Counted, Estimate, Line, total
from leviathan.figures import Source, Statistics
from leviathan.tokenizer import Count, Tokenizer

WHOLE_BYTES = 1 << 20
"""Samples up to this size are tokenised whole: 0.3 s or less on one core."""
_BLOCKS = 128
_BLOCK_BYTES = 128 << 10
_TOKENISED_BYTES = 256 << 10
_READ_BYTES = 64 << 20
_AT_ONCE = 256
_STRIDE = 37  # prime to _BLOCKS: blocks in an order that is spread wherever it stops


def measure(
    source: Source,
    *,
    exact: bool = False,
    closer: bool = False,
    progress: Progress | None = None,
    kept: bool = True,
) -> Statistics:
    """The statistics of a sample, from the cache if nothing they depend on has changed.

    Args:
        source: what to measure.
        exact: tokenise every row of the sample, however long that takes.
        closer: tokenise every row that is looked at, some seconds' worth, not a part of them.
        progress: called as bytes are read or tokenised, where that takes long.
        kept: keep what was measured at once; a caller who may yet refuse calls ``keep`` later.

    Raises:
        BadInput: no corpus, no such rows in it, rows without the format's fields or
            without text, a tokenizer or chat template that cannot be read.
    """
    samples.parse(source.sample)
    corpus.refuse_unreadable(source.corpus)
    file = tokenizer.find(source.tree)
    known = figures.known(source, file)
    if known and (known.whole or not (exact or (closer and known.counted < len(known.tokens)))):
        return known
    drawn = samples.already_drawn(source.wish)
    look = _Look.begin(source, drawn, file)
    corpus.check_head(source.corpus, look.required)
    small = corpus.plain_bytes(look.path) <= (_BLOCKS * _BLOCK_BYTES if closer else WHOLE_BYTES)
    found = look.every_row(progress) if exact or small else look.some_rows(closer, progress)
    if kept:
        figures.keep(source, found)
    return found


# --- reading and counting ----------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """One look at a corpus: where it lies, how its rows become text, what counts them."""

    source: Source
    drawn: samples.Sample | None
    form: templates.Format
    tokenizer: Tokenizer | None
    missing: str

    @classmethod
    def begin(cls, source: Source, drawn: samples.Sample | None, file: Path | None) -> "_Look":
        form = templates.read(
            source.tree,
            tokenizer.special_tokens(file, source.tree),
            tokenizer.chat_template(file),
        )
        name = source.tree.get("tokenizer_config") or source.tree["base_model"]
        try:
            loaded = Tokenizer(file, source.tree) if file else None
        except ImportError:
            return cls(source, drawn, form, None, "the tokenizers library is not installed")
        return cls(source, drawn, form, loaded, f"no tokenizer of {name} here")

    @property
    def path(self) -> Path:
        return Path(self.drawn.path) if self.drawn else self.source.corpus

    @property
    def required(self) -> tuple[str, ...]:
        return self.form.required

    def every_row(self, progress: Progress | None) -> Statistics:
        """All rows of the sample: of its file, or those that ``samples.draw`` would select."""
        wanted = samples.parse(self.source.sample)
        rows = corpus.read_with_progress(self.path, "tokenising", progress)
        if not (self.drawn or wanted is None):
            with index.build(self.source.corpus, "counting", progress) as found:
                of_rows = found.rows
            chosen = samples.rows_wanted(wanted, of_rows, self.source.corpus)
            if chosen < of_rows:
                rows = selection.selected(rows, chosen, of_rows, self.source.seed)
        counted = Counted()
        for batch in _batches(rows):
            counted.add(map(_size, batch), self._counts(batch))
        return figures.whole(
            counted,
            self.source,
            splits=self.form.kind == "completion",
            error=self._assumed,
            how=self._how(),
            exact=self.tokenizer is not None and not self.form.unfollowed,
        )

    def some_rows(self, closer: bool, progress: Progress | None) -> Statistics:
        """Rows that begin in evenly spread blocks; of those a part is tokenised."""
        blocks = _read_blocks(self.path) if corpus.is_plain(self.path) else _read_all(self.path)
        size, done = sum(map(_size, blocks.lines)), 0
        every = 1 if closer else max(1, round(size / _TOKENISED_BYTES))
        counted = Counted()
        for batch in _batches(blocks.lines[::every]):
            counted.add(map(_size, batch), self._counts(batch))
            done += sum(map(_size, batch)) * every
            if progress:
                progress("tokenising", min(done, size), size)
        figures.refuse_nothing(counted, self.source)
        line = counted.line()
        found = self._statistics(counted, self._estimate(blocks, line))
        others = (_size(row) for number, row in enumerate(blocks.lines) if number % every)
        counted.extend_by_size(others, line)
        return found

    def _estimate(self, blocks: "_Blocks", line: Line) -> Estimate:
        if self.drawn:
            return Estimate(self.drawn.rows, 0.0, blocks.bytes / self.drawn.rows, 0.0, line)
        wanted = samples.parse(self.source.sample)
        mean = (blocks.bytes / blocks.rows, blocks.mean_bytes_error)
        if isinstance(wanted, int):
            most = math.ceil(blocks.rows + 4 * blocks.rows_error)
            return Estimate(samples.rows_wanted(wanted, most, self.path), 0.0, *mean, line)
        share = wanted or 1.0
        return Estimate(max(1, round(blocks.rows * share)), blocks.rows_error * share, *mean, line)

    def _counts(self, batch: list[Row]) -> list[Count]:
        texts = [self._text(row) for row in batch]
        if self.tokenizer is None:
            return tokenizer.assume(texts, self.source.assumed)
        return self.tokenizer.count(texts, adds_special_tokens=self.form.adds_special_tokens)

    def _text(self, row: Row) -> templates.Text:
        parsed = corpus.parse_row(row, self.required)
        try:
            return self.form.render(parsed)
        except BadInput as error:
            raise BadInput(f"{row.path}:{row.number}: {error.message}", error.hint) from error

    @property
    def _assumed(self) -> float:
        """Standard error of all tokens for want of a tokenizer, as a share."""
        return 0.0 if self.tokenizer else self.source.assumed.error

    def _statistics(self, counted: Counted, estimate: Estimate) -> Statistics:
        tokens, seen = total(counted.tokens), len(counted.tokens)
        about = "about " if estimate.rows_error else ""
        return Statistics(
            rows=estimate.rows,
            rows_error=estimate.rows_error,
            tokens=counted.tokens,
            masked=counted.masked,
            mean_tokens=estimate.mean,
            mean_error=math.hypot(estimate.mean_error, estimate.mean * self._assumed),
            total_error=math.hypot(estimate.total_error, self._assumed),
            trainable_share=total(counted.trainable) / tokens,
            bytes_per_token=counted.bytes / tokens,
            splits=self.form.kind == "completion",
            source=f"{seen:,} of {about}{estimate.rows:,} rows{self._how()}",
            whole=False,
            exact=False,
            size=round(estimate.rows * estimate.mean_bytes),
            counted=seen,
            trainable=counted.trainable,
            sizes=counted.sizes,
        )

    def _how(self) -> str:
        if self.tokenizer is None:
            how = f", {self.missing}: {self.source.assumed.told}"
        else:
            how = f" tokenised with {self.tokenizer.file}"
        if self.form.unfollowed:
            how += f"; an estimate: {', '.join(self.form.unfollowed)} is not followed"
        return how


def _size(row: Row) -> int:
    return len(row.line)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


# --- evenly spread blocks ----------------------------------------------------------------


@dataclass(frozen=True)
class _Blocks:
    """Rows that begin in blocks of one size, and what they say about the whole file."""

    lines: list[Row]
    """By place."""
    bytes: int
    """Of the whole file."""
    rows: float
    """Of the whole file, estimated."""
    rows_error: float

    @property
    def mean_bytes_error(self) -> float:
        """Standard error of the bytes a row has, by the first-order rule for 1 / rows."""
        return self.bytes / self.rows * (self.rows_error / self.rows)


def _read_blocks(path: Path) -> _Blocks:
    """Every row whose first byte lies in one of the blocks.

    Taking the next line after a random place would find long rows more often than short
    ones. Here each row's first byte is as likely to be inside a block as any other's.
    """
    size = path.stat().st_size
    step = size / _BLOCKS
    counts, lines, read, covered = dict[int, int](), list[tuple[int, bytes]](), 0, 0
    with path.open("rb", buffering=_BLOCK_BYTES) as stream:
        for turn in range(_BLOCKS):
            block = turn * _STRIDE % _BLOCKS
            begin = int(block * step)
            end = min(begin + _BLOCK_BYTES, int((block + 1) * step))
            found = list(_rows_beginning(stream, begin, end))
            counts[block] = len(found)
            lines += found
            covered += end - begin
            read += sum(len(line) for _, line in found)
            if read > _READ_BYTES:
                break
    if not lines:
        raise BadInput(f"corpus {path} has no row in {_BLOCKS} places", "it may hold no line ends")
    error = math.sqrt(_variance(counts) * len(counts) * (1 - covered / size)) * size / covered
    return _Blocks(
        [Row(path, f"byte {place}", line) for place, line in sorted(lines)],
        size,
        len(lines) * size / covered,
        error,
    )


def _read_all(path: Path) -> _Blocks:
    """Rows evenly spread over a corpus that cannot be read here and there: it is read whole."""
    with index.build(path) as found:
        if not found.rows:
            raise corpus.empty(path)
        every = max(1, found.size // _READ_BYTES)
        rows = itertools.islice(corpus.read_rows(path), 0, None, every)
        return _Blocks(list(rows), found.size, found.rows, 0.0)


def _variance(counts: dict[int, int]) -> float:
    """Of the rows in one block, from neighbouring blocks' differences.

    So that a file whose rows grow longer towards its end, evenly sampled, is not taken for
    a badly sampled one (Wolter, Introduction to Variance Estimation, 2007, 8.2).
    """
    ordered = [counts[block] for block in sorted(counts)]
    pairs = list(itertools.pairwise(ordered))
    return sum((one - other) ** 2 for one, other in pairs) / max(1, 2 * len(pairs))


def _rows_beginning(stream: IO[bytes], begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Place and bytes of every row whose first byte is in ``begin`` to ``end - 1``."""
    stream.seek(max(0, begin - 1))
    place = max(0, begin - 1)
    if begin:
        place += len(stream.readline())  # the rest of a row that began before
    while place < end:
        line = stream.readline()
        if not line:
            return
        if not line.isspace():
            yield place, line
        place += len(line)
