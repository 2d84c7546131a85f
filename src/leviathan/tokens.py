"""Owns what a corpus is in tokens: rows, their lengths, the share that is trained on.

Reads every row of a small corpus, and of a large one enough to say how wrong the figures
can be. Does not know batches (``steps``). docs/planning.md has the method.
"""

import itertools
import json
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import IO, Any

import xxhash

from leviathan import corpus, files, templates, tokenizer
from leviathan.corpus import Progress
from leviathan.errors import BadInput
from leviathan.tokenizer import Count, Tokenizer

WHOLE_BYTES = 1 << 20
"""Samples up to this size are tokenised whole: 0.3 s or less on one core."""
_BLOCKS = 128
_BLOCK_BYTES = 128 << 10
_TOKENISED_BYTES = 256 << 10
_READ_BYTES = 64 << 20
_AT_ONCE = 256
_STRIDE = 37  # prime to _BLOCKS: blocks in an order that is spread wherever it stops
_CACHE_FORMAT = 2
_ASSUMED_ROWS, _SIGMA = 2000, 0.6


@dataclass(frozen=True)
class Statistics:
    """A sample in tokens, as Axolotl will make them, before rows are dropped, cut or split."""

    rows: int
    rows_error: float
    """Standard error of ``rows``; 0 where they were counted."""
    tokens: "array[int]"
    """Of each row that was looked at; where all were, in the order of the file. Of a large corpus
    most are told by the row's bytes, some tokenised."""
    masked: "array[int]"
    """Of each, the tokens before the first one with loss; all of them where none has."""
    mean_tokens: float
    """Per row of the sample; of a large corpus not quite the mean of ``tokens``."""
    mean_error: float
    """Standard error of ``mean_tokens``."""
    total_error: float
    """Standard error of ``total_tokens``, as a share of it. Less than rows' and mean's together:
    where there are more rows than estimated, they are shorter."""
    trainable_share: float
    """Of all tokens, those with loss."""
    bytes_per_token: float
    """Bytes of JSONL for each token."""
    splits: bool
    """Rows longer than ``sequence_len`` become several (completion)."""
    source: str
    """What the figures rest on, one line."""
    whole: bool
    """No row was left out."""
    exact: bool
    """Every row was tokenised, and as Axolotl does it."""

    @property
    def row_tokens(self) -> tuple[int, ...]:
        """``tokens``, ascending."""
        return tuple(sorted(self.tokens))

    @property
    def total_tokens(self) -> float:
        """Of the whole sample, once through."""
        return self.rows * self.mean_tokens


@dataclass(frozen=True)
class Source:
    """Which rows, and how they are trained: what the figures depend on."""

    corpus: Path
    sample: str
    """As ``corpus.parse_sample`` takes it."""
    seed: int
    """Of the sample."""
    directory: Path
    """Where samples lie, and these figures are kept."""
    tree: dict[str, Any]
    """Merged Axolotl configuration."""


def measure(
    source: Source, *, exact: bool = False, progress: Progress | None = None, kept: bool = True
) -> Statistics:
    """The statistics of a sample, from the cache if nothing they depend on has changed.

    Args:
        source: what to measure.
        exact: tokenise every row of the sample, however long that takes.
        progress: called as bytes are read, where every row is.
        kept: keep what was measured at once; a caller who may yet refuse calls ``keep`` later.

    Raises:
        BadInput: no corpus, no such rows in it, rows without the format's fields or
            without text, a tokenizer or chat template that cannot be read.
    """
    corpus.parse_sample(source.sample)
    corpus.refuse_unreadable(source.corpus)
    file = tokenizer.find(source.tree)
    drawn = corpus.already_drawn(source.corpus, source.sample, source.seed, source.directory)
    known = _kept(_cache_path(source, file, drawn))
    if known and (known.whole or not exact):
        return known
    look = _Look.begin(source, drawn, file)
    corpus.check_head(source.corpus, look.required)
    small = look.path.stat().st_size <= WHOLE_BYTES
    found = look.every_row(progress) if exact or small else look.some_rows()
    if kept:
        keep(source, found)
    return found


# --- reading and counting ----------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """One look at a corpus: where it lies, how its rows become text, what counts them."""

    source: Source
    drawn: corpus.Sample | None
    form: templates.Format
    tokenizer: Tokenizer | None
    missing: str

    @classmethod
    def begin(cls, source: Source, drawn: corpus.Sample | None, file: Path | None) -> "_Look":
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
        """All rows of the sample: of its file, or those that ``corpus.draw`` would select."""
        rows: Iterator[tuple[int, bytes]] = corpus.read_rows(self.source.corpus)
        wanted = corpus.parse_sample(self.source.sample)
        if self.drawn or wanted is None:
            rows = corpus.read_with_progress(self.path, "tokenising", progress)
        else:
            of_rows = sum(1 for _ in rows)
            chosen = corpus.rows_wanted(wanted, of_rows, self.source.corpus)
            rows = corpus.read_with_progress(self.path, "tokenising", progress)
            if chosen < of_rows:
                rows = corpus.selected(rows, chosen, of_rows, self.source.seed)
        counted = _Counted()
        for batch in _batches(rows):
            counted.add(batch, self._counts(batch))
        line = _Line(counted.mean, 0.0, 0.0)
        return self._statistics(counted, _Estimate(len(counted.tokens), 0.0, 0.0, 0.0, line))

    def some_rows(self) -> Statistics:
        """Rows that begin in evenly spread blocks; of those a part is tokenised."""
        blocks = _read_blocks(self.path)
        every = max(1, round(sum(len(line) for _, line in blocks.lines) / _TOKENISED_BYTES))
        counted = _Counted()
        for batch in _batches(blocks.lines[::every]):
            counted.add(batch, self._counts(batch))
        line = counted.line()
        made = self._statistics(counted, self._estimate(blocks, line), whole=False)
        others = (len(row) for number, (_, row) in enumerate(blocks.lines) if number % every)
        counted.extend_by_size(others, line)
        return made

    def _estimate(self, blocks: "_Blocks", line: "_Line") -> "_Estimate":
        if self.drawn:
            return _Estimate(self.drawn.rows, 0.0, blocks.bytes / self.drawn.rows, 0.0, line)
        wanted = corpus.parse_sample(self.source.sample)
        mean = (blocks.bytes / blocks.rows, blocks.mean_bytes_error)
        if isinstance(wanted, int):
            most = math.ceil(blocks.rows + 4 * blocks.rows_error)
            return _Estimate(corpus.rows_wanted(wanted, most, self.path), 0.0, *mean, line)
        share = wanted or 1.0
        return _Estimate(max(1, round(blocks.rows * share)), blocks.rows_error * share, *mean, line)

    def _counts(self, batch: list[tuple[int | str, bytes]]) -> list[Count]:
        texts = [self._text(place, line) for place, line in batch]
        if self.tokenizer is None:
            return tokenizer.assume(texts)
        return self.tokenizer.count(texts, adds_special_tokens=self.form.adds_special_tokens)

    def _text(self, place: int | str, line: bytes) -> templates.Text:
        row = corpus.parse_row(line, self.path, place, self.required)
        try:
            return self.form.render(row)
        except BadInput as error:
            raise BadInput(f"{self.path}:{place}: {error.message}", error.hint) from error

    def _statistics(
        self, counted: "_Counted", estimate: "_Estimate", *, whole: bool = True
    ) -> Statistics:
        if not counted.trainable:
            raise BadInput(
                f"corpus {self.source.corpus} has no text to train on", "look at its fields"
            )
        rows, mean = estimate.rows, estimate.mean
        assumed = 0.0 if self.tokenizer else tokenizer.ASSUMPTION_ERROR
        about = "about " if estimate.rows_error else ""
        seen = f"all {rows:,}" if whole else f"{len(counted.tokens):,} of {about}{rows:,}"
        return Statistics(
            rows=rows,
            rows_error=estimate.rows_error,
            tokens=counted.tokens,
            masked=counted.masked,
            mean_tokens=mean,
            mean_error=math.hypot(estimate.mean_error, mean * assumed),
            total_error=math.hypot(estimate.total_error, assumed),
            trainable_share=counted.trainable / sum(counted.tokens),
            bytes_per_token=counted.bytes / sum(counted.tokens),
            splits=self.form.kind == "completion",
            source=f"{seen} rows{self._how()}",
            whole=whole,
            exact=whole and self.tokenizer is not None and not self.form.unfollowed,
        )

    def _how(self) -> str:
        if self.tokenizer is None:
            how = f", {self.missing}: {tokenizer.BYTES_PER_TOKEN:g} bytes a token assumed"
        else:
            how = f" tokenised with {self.tokenizer.file}"
        if self.form.unfollowed:
            how += f"; an estimate: {', '.join(self.form.unfollowed)} is not followed"
        return how


def _batches(
    rows: Iterable[tuple[int | str, bytes]],
) -> Iterator[list[tuple[int | str, bytes]]]:
    batch: list[tuple[int | str, bytes]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


class _Counted:
    """Rows counted so far."""

    def __init__(self) -> None:
        self.tokens, self.masked, self.sizes = array("I"), array("I"), array("I")
        self.trainable = 0

    def add(self, batch: list[tuple[int | str, bytes]], counts: list[Count]) -> None:
        self.tokens.extend(count.tokens for count in counts)
        self.masked.extend(count.masked for count in counts)
        self.sizes.extend(len(line) for _, line in batch)
        self.trainable += sum(count.trainable for count in counts)

    @property
    def bytes(self) -> int:
        return sum(self.sizes)

    @property
    def mean(self) -> float:
        return sum(self.tokens) / len(self.tokens)

    def line(self) -> "_Line":
        """Tokens by bytes, fitted by least squares."""
        number = len(self.tokens)
        mean_tokens, mean_size = self.mean, self.bytes / number
        spread = sum((size - mean_size) ** 2 for size in self.sizes)
        pairs = list(zip(self.sizes, self.tokens, strict=True))
        together = sum((size - mean_size) * (count - mean_tokens) for size, count in pairs)
        slope = together / spread if spread else 0.0
        fitted = _Line(mean_tokens - slope * mean_size, slope, 0.0)
        left = sum((count - fitted.base - slope * size) ** 2 for size, count in pairs)
        return replace(fitted, error=math.sqrt(left / max(1, number - 2) / number))

    def extend_by_size(self, sizes: Iterable[int], line: "_Line") -> None:
        """Add rows of these bytes without tokenising them, masked as those tokenised are."""
        known = list(zip(self.tokens, self.masked, strict=True))
        for (tokens, masked), size in zip(itertools.cycle(known), sizes, strict=False):
            likely = round(line.at(size))
            self.tokens.append(likely)
            self.masked.append(round(likely * masked / tokens) if tokens else 0)


@dataclass(frozen=True)
class _Line:
    """Tokens a row has by its bytes: the regression estimator.

    Tokens follow bytes closely, and the bytes of a row are known far better than the few
    tokenised rows tell (Cochran, Sampling Techniques, 1977, 7.3 and 12.6).
    """

    base: float
    slope: float
    error: float
    """Standard error of the mean row's tokens, from the rows' distances to the line."""

    def at(self, size: float) -> float:
        """Tokens of a row of ``size`` bytes; never less than one."""
        return max(1.0, self.base + self.slope * size)


@dataclass(frozen=True)
class _Estimate:
    """Rows and mean of a sample, with their standard errors; 0 for what is known."""

    rows: int
    rows_error: float
    mean_bytes: float
    mean_bytes_error: float
    line: _Line

    @property
    def mean(self) -> float:
        return self.line.at(self.mean_bytes)

    @property
    def mean_error(self) -> float:
        return math.hypot(self.line.error, self.line.slope * self.mean_bytes_error)

    @property
    def total_error(self) -> float:
        """Of rows x mean, as a share. It is base x rows + slope x bytes, and bytes are known."""
        if not self.rows_error:
            return self.mean_error / self.mean
        own = self.line.error / self.mean
        return math.hypot(own, self.line.base * self.rows_error / (self.rows * self.mean))


# --- evenly spread blocks ----------------------------------------------------------------


@dataclass(frozen=True)
class _Blocks:
    """Rows that begin in blocks of one size, and what they say about the whole file."""

    lines: list[tuple[str, bytes]]
    """Place in the file and bytes of every row, by place."""
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
        [(f"byte {place}", line) for place, line in sorted(lines)],
        size,
        len(lines) * size / covered,
        error,
    )


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


# --- kept between calls ------------------------------------------------------------------


def _cache_path(source: Source, file: Path | None, drawn: corpus.Sample | None) -> Path:
    """Beside the samples, named after everything the figures depend on."""
    stat = source.corpus.stat()
    keys = ("datasets", "train_on_inputs", "chat_template", "chat_template_jinja", "special_tokens",
            "tokens", "eot_tokens", "chat_template_kwargs", *templates.UNFOLLOWED_KEYS)  # fmt: skip
    depends = [
        _CACHE_FORMAT, str(source.corpus.resolve()), stat.st_size, stat.st_mtime_ns, source.sample,
        source.seed, tokenizer.digest(file) if file else None, str(file), drawn and drawn.digest,
        {key: source.tree.get(key) for key in keys},
    ]  # fmt: skip
    name = xxhash.xxh3_64_hexdigest(json.dumps(depends, sort_keys=True, default=str).encode())
    return source.directory / f"{source.corpus.stem}-{name}.tokens"


def keep(source: Source, found: Statistics) -> None:
    """Keep what ``measure`` found, for the next time."""
    drawn = corpus.already_drawn(source.corpus, source.sample, source.seed, source.directory)
    path = _cache_path(source, tokenizer.find(source.tree), drawn)
    if _kept(path) == found:
        return
    document = asdict(found) | {"tokens": len(found.tokens), "masked": len(found.masked)}
    try:
        with files.replaced(path) as out:
            out.write(json.dumps(document).encode() + b"\n")
            out.write(found.tokens.tobytes() + found.masked.tobytes())
    except OSError:
        return  # a directory that cannot be written costs the time again, not the plan


def _kept(path: Path) -> Statistics | None:
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.readline())
            for name in ("tokens", "masked"):
                numbers = array("I")
                numbers.fromfile(stream, document[name])
                document[name] = numbers
        return Statistics(**document)
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        return None


# --- where the corpus is not -------------------------------------------------------------


def assumed(name: str, rows: int, size: int, sample: str) -> Statistics:
    """The statistics of a sample of a corpus that is not here, from its rows and bytes.

    Four bytes a token, and lengths spread log-normally as those of instruction corpora are
    (sigma 0.6: the longest per cent is four times the median). Both are assumptions.

    Args:
        name: of the corpus, for the evidence.
        rows: of the whole corpus.
        size: of the whole corpus in bytes.
        sample: as ``corpus.parse_sample`` takes it.
    """
    wanted = corpus.parse_sample(sample)
    chosen = corpus.rows_wanted(wanted, rows, Path(name))
    mean = size / rows / tokenizer.BYTES_PER_TOKEN
    spread = NormalDist(math.log(mean) - _SIGMA**2 / 2, _SIGMA)
    quantiles = (spread.inv_cdf((n + 0.5) / _ASSUMED_ROWS) for n in range(_ASSUMED_ROWS))
    lengths = array("I", (max(1, round(math.exp(value))) for value in quantiles))
    return Statistics(
        rows=chosen,
        rows_error=0.0,
        tokens=lengths,
        masked=array("I", [0] * len(lengths)),
        mean_tokens=mean,
        mean_error=mean * tokenizer.ASSUMPTION_ERROR,
        total_error=tokenizer.ASSUMPTION_ERROR,
        trainable_share=1.0,
        bytes_per_token=tokenizer.BYTES_PER_TOKEN,
        splits=False,
        source=f"{name} is not here: {rows:,} rows and {size / 1e9:.3g} GB as the recipe says, "
        f"{tokenizer.BYTES_PER_TOKEN:g} bytes a token assumed",
        whole=False,
        exact=False,
    )
