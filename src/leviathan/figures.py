"""Owns the figures of a corpus in tokens: what is known of its rows, kept between calls.

What was counted row by row for a whole corpus serves every sample of it. Does not look at
the corpus (``tokens``); docs/data.md says where figures are kept, and why there.
"""

import importlib.util
import json
import math
from array import array
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from leviathan import corpus, files, samples, selection, templates, tokenizer
from leviathan.errors import BadInput
from leviathan.estimate import Counted, total
from leviathan.tokenizer import ASSUMED, Assumption

_FORMAT = 3
_ROWS = ("tokens", "masked", "trainable", "sizes")
_ROW_BYTES = array("I").itemsize
_ASSUMED_ROWS, _SIGMA = 2000, 0.6


@dataclass(frozen=True)
class Statistics:
    """A sample in tokens, as Axolotl will make them, before rows are dropped, cut or split."""

    rows: int
    rows_error: float
    """Standard error of ``rows``; 0 where they were counted."""
    tokens: "array[int]"
    """Of each row that was looked at, in the order of the file; of a large corpus the first
    ``counted`` were tokenised, and the others, behind them, are told by their bytes."""
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
    size: int = 0
    """Bytes of JSONL of the sample; estimated where ``rows`` is."""
    counted: int = 0
    trainable: "array[int]" = field(default_factory=lambda: array("I"))
    """Tokens with loss, of each row in ``tokens``."""
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    """Bytes of JSONL, of each."""

    @property
    def row_tokens(self) -> npt.NDArray[np.uint32]:
        """``tokens``, ascending."""
        return np.sort(np.asarray(self.tokens))

    @property
    def total_tokens(self) -> float:
        """Of the whole sample, once through."""
        return self.rows * self.mean_tokens


@dataclass(frozen=True)
class Source:
    """Which rows, and how they are trained: what the figures depend on."""

    corpus: Path
    sample: str
    """As ``samples.parse`` takes it."""
    seed: int
    """Of the sample."""
    directory: Path
    """Where samples lie, and these figures are kept."""
    tree: dict[str, Any]
    """Merged Axolotl configuration."""
    assumed: Assumption = ASSUMED
    """How tokens are counted where the tokenizer is not here."""

    @property
    def wish(self) -> samples.Wish:
        """The sample that would be drawn."""
        return samples.Wish(self.corpus, self.sample, self.seed, self.directory)


def whole(
    counted: Counted, source: Source, *, splits: bool, error: float, how: str, exact: bool
) -> Statistics:
    """The statistics of a sample whose every row was counted.

    Raises:
        BadInput: there is nothing to train on.
    """
    refuse_nothing(counted, source)
    rows, tokens = len(counted.tokens), total(counted.tokens)
    return Statistics(
        rows=rows,
        rows_error=0.0,
        tokens=counted.tokens,
        masked=counted.masked,
        mean_tokens=counted.mean,
        mean_error=counted.mean * error,
        total_error=error,
        trainable_share=total(counted.trainable) / tokens,
        bytes_per_token=counted.bytes / tokens,
        splits=splits,
        source=f"all {rows:,} rows{how}",
        whole=True,
        exact=exact,
        size=counted.bytes,
        counted=rows,
        trainable=counted.trainable,
        sizes=counted.sizes,
    )


def refuse_nothing(counted: Counted, source: Source) -> None:
    """Raise BadInput unless a row has a token to train on."""
    if not any(counted.trainable):
        raise BadInput(f"corpus {source.corpus} has no text to train on", "look at its fields")


# --- kept between calls ------------------------------------------------------------------


def keep(source: Source, found: Statistics) -> Path | None:
    """Keep what was found for the next time; where, or None if that cannot be written."""
    serves_all = found.whole and samples.parse(source.sample) is None
    path = _cache_path(source, tokenizer.find(source.tree), of_all=serves_all)
    rows = len(found.tokens)
    document = {f.name: getattr(found, f.name) for f in fields(found)} | dict.fromkeys(_ROWS, rows)
    header = json.dumps(document).encode() + b"\n"
    if _holds(path, header, rows):
        return path
    try:
        with files.replaced(path) as out:
            out.write(header)
            for name in _ROWS:
                getattr(found, name).tofile(out)
    except OSError:
        return None  # a directory that cannot be written costs the time again, not the plan
    return path


def _holds(path: Path, header: bytes, rows: int) -> bool:
    """Whether these figures are kept there, by their sums: the rows of a corpus take a while."""
    try:
        with path.open("rb") as stream:
            same = stream.read(len(header)) == header
        return same and path.stat().st_size == len(header) + rows * len(_ROWS) * _ROW_BYTES
    except OSError:
        return False


def known(source: Source, file: Path | None) -> Statistics | None:
    """What is kept of a sample; where every row of the corpus was counted, from that."""
    own = _kept(_cache_path(source, file, of_all=False))
    if own and own.whole:
        return own
    every = _kept(_cache_path(source, file, of_all=True))
    return _part(every, source) if every else own


def _part(every: Statistics, source: Source) -> Statistics:
    """The statistics of the rows that ``samples.draw`` would select, from those of all."""
    wanted = samples.parse(source.sample)
    chosen = samples.rows_wanted(wanted, every.rows, source.corpus)
    if chosen == every.rows:
        return every
    mask = selection.Selection(chosen, every.rows, source.seed).mask(every.rows)
    counted = Counted(every.tokens, every.masked, every.trainable, every.sizes)
    return whole(
        counted.chosen(np.flatnonzero(mask)),
        source,
        splits=every.splits,
        error=every.total_error,
        how=every.source.removeprefix(f"all {every.rows:,} rows"),
        exact=every.exact,
    )


def _cache_path(source: Source, file: Path | None, *, of_all: bool) -> Path:
    """Beside the samples, named after everything the figures depend on.

    Args:
        of_all: every row of the corpus, which serves any sample of it; not of this sample.
    """
    keys = ("datasets", "train_on_inputs", "chat_template", "chat_template_jinja", "special_tokens",
            "tokens", "eot_tokens", "chat_template_kwargs", *templates.UNFOLLOWED_KEYS)  # fmt: skip
    depends: list[Any] = [
        _FORMAT, str(source.corpus.resolve()), *corpus.state(source.corpus),
        tokenizer.digest(file) if file else None, str(file),
        importlib.util.find_spec("tokenizers") is not None,
        templates.chat_text(source.tree, tokenizer.chat_template(file)),
        {key: source.tree.get(key) for key in keys},
        *([] if file or source.assumed == ASSUMED else [source.assumed.told]),
    ]  # fmt: skip
    if not of_all:
        drawn = samples.already_drawn(source.wish)
        depends += [source.sample, source.seed, drawn and drawn.digest]
    name = xxhash.xxh3_64_hexdigest(json.dumps(depends, sort_keys=True, default=str).encode())
    return source.directory / f"{source.corpus.stem}-{name}.tokens"


def _kept(path: Path) -> Statistics | None:
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.readline())
            for name in _ROWS:
                numbers = array("I")
                numbers.fromfile(stream, document[name])
                document[name] = numbers
        return Statistics(**document)
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        return None


# --- where the corpus is not -------------------------------------------------------------


def assumed(
    name: str,
    rows: int,
    size: int,
    sample: str,
    how: Assumption = ASSUMED,
    *,
    splits: bool = False,
) -> Statistics:
    """The statistics of a sample of a corpus that is not here, from its rows and bytes.

    Bytes a token (``how``), and lengths spread log-normally as those of instruction corpora are
    (sigma 0.6: the longest per cent is four times the median). Both are assumptions.

    Args:
        name: of the corpus, for the evidence.
        rows: of the whole corpus.
        size: of the whole corpus in bytes.
        sample: as ``samples.parse`` takes it.
        how: what is assumed of its tokens.
        splits: rows that are too long become several (completion).
    """
    wanted = samples.parse(sample)
    chosen = samples.rows_wanted(wanted, rows, Path(name))
    each = 1.0 if how.characters else how.bytes_per_token
    mean = size / rows / each
    spread = NormalDist(math.log(mean) - _SIGMA**2 / 2, _SIGMA)
    quantiles = (spread.inv_cdf((n + 0.5) / _ASSUMED_ROWS) for n in range(_ASSUMED_ROWS))
    lengths = array("I", (max(1, round(math.exp(value))) for value in quantiles))
    return Statistics(
        rows=chosen,
        rows_error=0.0,
        tokens=lengths,
        masked=array("I", [0] * len(lengths)),
        mean_tokens=mean,
        mean_error=mean * how.error,
        total_error=how.error,
        trainable_share=1.0,
        bytes_per_token=each,
        splits=splits,
        size=round(chosen * size / rows),
        source=f"{name} is not here: {rows:,} rows and {size / 1e9:.3g} GB as the recipe says, "
        f"{how.told}",
        whole=False,
        exact=False,
    )
