"""Owns mixes: what was asked for, what one is made of, its file, its manifest, what to say of it.

Does not make one (``mixing``).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from leviathan import corpus
from leviathan.errors import BadInput

MOST_EPOCHS = 4
"""Up to four passes over a text are worth about as much as new text (Muennighoff et al., Scaling
Data-Constrained Language Models, 2023)."""
_FORMAT = 1
_NAMES = re.compile(r"\.(jsonl?|ndjson|parquet)(\.gz|\.zst)?$")
_ROUNDED = Fraction(1, 100)  # what weights may lack of 1: thirds are written as 0.33
_MOST_HELD = Fraction(1, 2)
_OFF, _MUCH, _LITTLE = 0.001, 0.005, 0.9


# --- what was asked for --------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One corpus and its share of the mix."""

    path: Path
    weight: Fraction
    """Share of the tokens; of all sources together, 1."""


@dataclass(frozen=True)
class Wish:
    """What to mix, how much of it, and where to."""

    sources: tuple[Source, ...]
    tokens: int | None
    """How many to train on; None: ``rows`` says how much."""
    rows: int | None
    seed: int
    tree: dict[str, Any]
    """Merged Axolotl configuration: it says what a row is in tokens."""
    directory: Path
    """Where mixes lie, and what was counted is kept."""
    holdout: Fraction = Fraction(0)
    """Share that is kept out of training."""
    output: Path | None = None
    """The file to write instead of one in ``directory``."""

    @cached_property
    def request(self) -> str:
        """A name for everything that was asked for."""
        from leviathan.counter import Counter  # it brings msgspec and templates

        sources = [(str(source.path), str(source.weight)) for source in self.sources]
        asked = [_FORMAT, sources, self.tokens, self.rows, self.seed, str(self.holdout)]
        text = json.dumps([*asked, *Counter(self.tree).depends()], sort_keys=True, default=str)
        return xxhash.xxh3_64_hexdigest(text.encode())

    @property
    def path(self) -> Path:
        """The mix."""
        return self.output or self.directory / f"mix-{self.request[:8]}.jsonl"

    @property
    def held_path(self) -> Path:
        """What is kept out of it."""
        return self.path.with_name(f"{self.path.name.removesuffix('.jsonl')}.holdout.jsonl")

    @property
    def manifest(self) -> Path:
        """Where it is written what was mixed."""
        return self.path.with_name(f"{self.path.name}.manifest.json")


def parse(texts: Sequence[str]) -> tuple[Source, ...]:
    """``a.jsonl:0.45``, ... -> sources; weights are divided by their sum, which is about 1 or 100.

    Raises:
        BadInput: a weight that is missing or none, weights that do not add up, a file of an
            unknown kind, one corpus that is part of another.
    """
    named = [_parse(text) for text in texts]
    total = sum((weight for _, weight in named), Fraction(0))
    if not any(abs(total / whole - 1) <= _ROUNDED for whole in (1, 100)):
        raise BadInput(
            f"the weights add up to {float(total):g}", "make them add up to 1, or to 100"
        )
    for number, (path, _) in enumerate(named):
        for other, _ in named[:number]:
            _refuse_overlap(path, other)
    return tuple(Source(path, weight / total) for path, weight in named)


def _parse(text: str) -> tuple[Path, Fraction]:
    name, colon, number = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", number):
        raise BadInput(f"{text!r} has no weight", "write PATH:WEIGHT, as web.jsonl:0.45")
    path, weight = Path(name), Fraction(number)
    if not name or not weight:
        what = "names no file" if not name else "has weight 0"
        raise BadInput(f"{text!r} {what}", "leave it out, or write PATH:WEIGHT")
    if not path.is_dir() and path.exists() and not _NAMES.search(name):
        raise BadInput(
            f"{path} is of no kind that can be mixed",
            ".jsonl, .ndjson (also with .gz or .zst), .parquet, or a directory of them",
        )
    corpus.parts(path)
    return path, weight


def _refuse_overlap(path: Path, other: Path) -> None:
    one, two = path.resolve(), other.resolve()
    if one == two:
        raise BadInput(f"{path} is named twice", "add its weights up")
    if two in one.parents or one in two.parents:
        inner, outer = (path, other) if two in one.parents else (other, path)
        raise BadInput(f"{inner} is part of {outer}", "leave one of them out")


def parse_share(text: str | None) -> Fraction:
    """``0.5pct`` -> 1/200; None -> 0.

    Raises:
        BadInput: not such a share, or more than half.
    """
    if text is None:
        return Fraction(0)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)pct", text)
    share = Fraction(match[1]) / 100 if match else Fraction(0)
    if not 0 < share <= _MOST_HELD:
        raise BadInput(f"--holdout {text!r} is no share", "above 0 and up to 50pct, as 0.5pct")
    return share


def refuse(wish: Wish) -> None:
    """Raise BadInput where the mix would overwrite, or become part of, what it is made of.

    A file that was named is overwritten only where a manifest says that it is a mix.
    """
    if wish.path.suffix in {".gz", ".zst", ".parquet"}:
        raise BadInput(f"{wish.path}: a mix is written as plain JSONL", "name it .jsonl")
    ours = paths(wish.manifest) if wish.output else None
    for path in (wish.path, wish.held_path) if wish.holdout else (wish.path,):
        if path.exists() and ours is not None and str(path) not in ours:
            raise BadInput(
                f"{path} is there already, and not written by this command",
                "give another name, or remove it",
            )
        for source in wish.sources:
            _refuse_inside(path, source.path)
    for source in wish.sources:
        _refuse_inside(wish.directory / "kept.counts", source.path)


def paths(manifest: Path) -> set[str]:
    """The files a manifest speaks of; none where there is no manifest."""
    try:
        known = json.loads(manifest.read_text())
        return {str(known["path"]), str((known["holdout"] or {}).get("path"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _refuse_inside(path: Path, source: Path) -> None:
    if source.resolve() in (path.resolve(), *path.resolve().parents):
        inside = f"{path.parent} is part of the source {source}" if source.is_dir() else ""
        raise BadInput(
            inside or f"{path} is one of the sources",
            "name its files, or move them" if inside else "give another name",
        )


# --- what became of it ---------------------------------------------------------------------


@dataclass(frozen=True)
class Portion:
    """What one source gave."""

    source: str
    weight: float
    """Asked for."""
    share: float
    """Of the mix's tokens, reached."""
    rows: int
    tokens: int
    epochs: float
    """How often its tokens are in the mix."""
    of_rows: int
    """That may be trained on."""
    of_tokens: int
    longer: dict[str, float]
    """Share of these tokens that is in rows of more tokens than so many."""
    beyond: dict[str, float]
    """Share of these tokens that comes after so many in its row."""
    digest: str
    """Of the source's rows, see ``index.Index``."""
    source_bytes: int
    """On disk."""
    source_mtime_ns: int


@dataclass(frozen=True)
class Held:
    """What is kept out of training, and written beside the mix."""

    path: str
    share: float
    """Asked for."""
    rows: int
    tokens: int
    bytes: int
    digest: str
    mtime_ns: int
    shares: tuple[float, ...]
    """Of its tokens, those of each source."""
    rows_kept_out: int
    """Rows of the sources that are not trained on: those written, their equals, and what the
    mix's weights leave no room for."""


@dataclass(frozen=True)
class Mixture:
    """A mix: the file that is trained on, and what it is made of."""

    path: str
    rows: int
    tokens: int
    bytes: int
    digest: str
    """``xxh3_128:<hex>`` of the bytes at ``path``."""
    mtime_ns: int
    seed: int
    request: str
    """``Wish.request``."""
    counted: str
    """What the tokens rest on."""
    in_tokens: bool
    """False where bytes were counted, for want of a tokenizer."""
    unfollowed: tuple[str, ...]
    """Settings that make estimates of the tokens."""
    portions: tuple[Portion, ...]
    holdout: Held | None


def already_mixed(wish: Wish) -> Mixture | None:
    """The mix as it lies there, if it is what is wished for and its sources have not changed."""
    try:
        known = _read(json.loads(wish.manifest.read_text()))
        same = known.request == wish.request
        for file in (known, known.holdout) if known.holdout else (known,):
            stat = Path(file.path).stat()
            same &= (stat.st_size, stat.st_mtime_ns) == (file.bytes, file.mtime_ns)
        for portion in known.portions:
            state = (portion.source_bytes, portion.source_mtime_ns)
            same &= corpus.state(Path(portion.source)) == state
    except (OSError, ValueError, TypeError, KeyError, BadInput):
        return None
    return known if same else None


def _read(document: dict[str, Any]) -> Mixture:
    held = document["holdout"]
    return Mixture(
        **document
        | {"unfollowed": tuple(document["unfollowed"])}
        | {"portions": tuple(Portion(**portion) for portion in document["portions"])}
        | {"holdout": Held(**held | {"shares": tuple(held["shares"])}) if held else None}
    )


def as_document(mixture: Mixture, tree: dict[str, Any]) -> dict[str, Any]:
    """The document of ``data mix --json``."""
    return {**asdict(mixture), "warnings": list(warnings(mixture, tree))}


def warnings(mixture: Mixture, tree: dict[str, Any]) -> Iterator[str]:
    """What a person should know before training on it.

    Args:
        mixture: that was made.
        tree: merged configuration that it is going to be trained with.
    """
    if not mixture.in_tokens:
        yield f"the weights hold in bytes, not in tokens: {mixture.counted}"
    if mixture.unfollowed:
        yield f"tokens are estimated: {', '.join(mixture.unfollowed)} is not followed"
    for portion in mixture.portions:
        yield from _of_portion(portion)
    yield from _of_cutting(mixture, tree)
    repeated = [portion.source for portion in mixture.portions if portion.epochs > 1]
    if repeated and tree.get("val_set_size"):
        yield (
            f"rows of {', '.join(repeated)} come more than once, and val_set_size takes rows at "
            "random: it would measure on rows that are trained on; use --holdout and test_datasets"
        )
    held = mixture.holdout
    if held and held.tokens < _LITTLE * held.share * mixture.tokens:
        yield (
            f"the holdout has {held.tokens:,} tokens, not {held.share * mixture.tokens:,.0f}: rows "
            "that the mix repeats are not repeated there"
        )


def _of_portion(portion: Portion) -> Iterator[str]:
    if portion.epochs > MOST_EPOCHS:
        yield (
            f"{portion.source} is repeated {portion.epochs:.1f} times: beyond {MOST_EPOCHS} passes "
            "a text teaches less each time; find more of it, or give it less weight"
        )
    if abs(portion.share - portion.weight) > _OFF:
        yield (
            f"{portion.source} has {portion.share:.2%} of the tokens, not {portion.weight:.2%}: "
            "its rows are too long for so small a mix"
        )


def _of_cutting(mixture: Mixture, tree: dict[str, Any]) -> Iterator[str]:
    """What becomes of the weights where training drops or cuts long rows."""
    length = str(tree.get("sequence_len"))
    cuts = str(tree.get("excess_length_strategy")).lower() == "truncate"
    if tree["datasets"][0].get("type") == "completion":  # split, and nothing is lost
        return
    lost = [(p.beyond if cuts else p.longer).get(length, 0.0) for p in mixture.portions]
    left = [p.share * (1 - part) for p, part in zip(mixture.portions, lost, strict=True)]
    shares = [part / (sum(left) or 1) for part in left]
    off = [abs(s - p.weight) for s, p in zip(shares, mixture.portions, strict=True)]
    if max(off) > _MUCH:
        told = (f"{p.source} {s:.1%}" for p, s in zip(mixture.portions, shares, strict=True))
        yield (
            f"training {'cuts' if cuts else 'drops'} rows longer than sequence_len {length}, and "
            f"the weights of what is left are {', '.join(told)}; raise sequence_len (data stats)"
        )
