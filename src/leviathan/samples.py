"""Owns samples: which part of a corpus was asked for, drawing it, its manifest.

Does not know how rows are found (``index``) or chosen (``selection``).
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from leviathan import corpus, files
from leviathan.corpus import Progress
from leviathan.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from leviathan.index import Index, Window

DIRECTORY = Path("work/data")
"""Where samples lie unless told otherwise."""
METHOD = "selection sampling, ordered, random.Random(seed)"


@dataclass(frozen=True)
class Sample:
    """A drawn sample: the file Axolotl reads, and what it is a sample of."""

    path: str
    """File holding the rows; the corpus itself when the sample is ``full`` and it is one
    plain file."""
    rows: int
    of_rows: int
    bytes: int
    seed: int
    sample: str
    digest: str
    """``xxh3_128:<hex>`` of the bytes at ``path``."""
    source: str
    source_bytes: int
    """On disk."""
    source_mtime_ns: int
    mtime_ns: int = 0
    """When ``path`` was written: a sample edited by hand is drawn again."""
    checked: tuple[str, ...] | None = ()
    """Keys every row was seen to have; None where rows were copied unread."""
    method: str = METHOD
    by: str | None = None
    """Field whose values keep their proportions."""
    strata: dict[str, int] | None = None
    """Rows drawn of each of its values."""
    source_digest: str | None = None
    """Of the rows of the whole corpus, see ``index.Index``."""


@dataclass(frozen=True)
class Wish:
    """Which rows of which corpus, and where to put them."""

    corpus: Path
    sample: str
    """``10pct``, ``full`` or a row count."""
    seed: int
    """The same seed draws the same rows on every Python version."""
    directory: Path
    """Where samples and manifests are kept."""
    by: str | None = None
    """Keep the proportions of this field's values; ``meta.source`` is a field in a field."""
    output: Path | None = None
    """The file to write instead of one in ``directory``."""

    @property
    def path(self) -> Path:
        """Where the rows go, unless the corpus itself serves."""
        if self.output:
            return self.output
        # Two corpora of one name in different folders must not overwrite each other's samples.
        place = xxhash.xxh3_64(str(self.corpus.parent).encode()).hexdigest()[:6]
        by = f"_by-{re.sub(r'[^A-Za-z0-9.-]', '_', self.by)}" if self.by else ""
        name = f"{_stem(self.corpus.resolve())}-{place}_{self.sample}{by}_seed{self.seed}.jsonl"
        return self.directory / name

    @property
    def manifest(self) -> Path:
        """Where it is written what was drawn."""
        if self.output:
            return Path(f"{self.output}.manifest.json")
        return self.path.with_suffix(".json")


def _stem(corpus: Path) -> str:
    name = corpus.name
    while (shorter := re.sub(r"\.(jsonl?|ndjson|parquet|gz|zst|txt|md)$", "", name)) != name:
        name = shorter
    return name


def parse(text: str) -> float | int | None:
    """``10pct`` -> 0.1 (a share), ``5000`` -> 5000 (rows), ``full`` -> None.

    Raises:
        BadInput: not a sample, or outside 0..100 percent.
    """
    hint = "use a share like 10pct or 0.5pct, a row count like 5000, or full"
    if text == "full":
        return None
    if re.fullmatch(r"\d+", text) and int(text) > 0:
        return int(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)pct", text)
    if match and 0 < float(match[1]) <= 100:
        return float(match[1]) / 100
    raise BadInput(f"--sample {text!r} is not a sample", hint)


def rows_wanted(wanted: float | int | None, of_rows: int, path: Path) -> int:
    """How many of ``of_rows`` rows a sample has.

    Args:
        wanted: what ``parse`` made of it.
        of_rows: rows of the corpus.
        path: the corpus, for messages.

    Raises:
        BadInput: the corpus is empty, or has fewer rows than asked for.
    """
    if of_rows == 0:
        raise corpus.empty(path)
    if wanted is None:
        return of_rows
    if isinstance(wanted, int):
        if wanted > of_rows:
            raise BadInput(
                f"--sample {wanted} asks for more rows than {path} has ({of_rows})", "use full"
            )
        return wanted
    return max(1, round(of_rows * wanted))


def in_place(wish: Wish) -> bool:
    """Whether the corpus itself serves as the sample.

    Raises:
        BadInput: there is no corpus.
    """
    return wish.sample == "full" and wish.output is None and corpus.is_plain(wish.corpus)


def already_drawn(wish: Wish) -> Sample | None:
    """The sample that ``draw`` would reuse; None where it would read the corpus."""
    try:
        known = Sample(**json.loads(wish.manifest.read_text()))
        drawn = Path(known.path).stat()
        state = corpus.state(wish.corpus) if wish.corpus.exists() else None
    except (OSError, ValueError, TypeError, BadInput):
        return None
    checked = known.checked if known.checked is None else tuple(known.checked)
    asked = (str(wish.corpus), wish.sample, wish.seed, wish.by)
    same = (known.source, known.sample, known.seed, known.by) == asked
    if state is None:
        return replace(known, checked=checked) if same and _is_carried(known, wish) else None
    whole = (drawn.st_size, drawn.st_mtime_ns) == (known.bytes, known.mtime_ns)
    unchanged = state == (known.source_bytes, known.source_mtime_ns)
    return replace(known, checked=checked) if same and whole and unchanged else None


def _is_carried(known: Sample, wish: Wish) -> bool:
    """Whether it is the sample of a corpus that stayed elsewhere (``cloud export``), whole.

    Its bytes are read: a copy has another modification time, and no corpus to draw it anew from.
    """
    if Path(known.path) != wish.path or wish.path.stat().st_size != known.bytes:
        return False
    return corpus.known_digest(wish.path) == known.digest


def readable(wish: Wish) -> Path:
    """What there is to read: the corpus, or the sample that came here without it."""
    carried = None if wish.corpus.exists() else already_drawn(wish)
    return Path(carried.path) if carried else wish.corpus


def expected_bytes(path: Path, sample: str) -> int:
    """How large a sample will be about, judged by the corpus's size and its first rows.

    Raises:
        BadInput: there is no corpus that can be read.
    """
    size, wanted = corpus.plain_bytes(path), parse(sample)
    if wanted is None:
        return size
    if isinstance(wanted, float):
        return int(size * wanted)
    rows, seen = 0, 0
    for row in corpus.read_rows(path):
        rows, seen = rows + 1, seen + len(row.line)
        if rows == min(wanted, 100):
            break
    return min(size, int(seen / max(rows, 1) * wanted))


# --- drawing -----------------------------------------------------------------------------


def draw(
    wish: Wish, required: tuple[str, ...] | None = (), progress: Progress | None = None
) -> Sample:
    """The sample: exactly the rows asked for, in order, bytes unchanged.

    Every row is found, then the chosen ones are copied, in constant memory. The result is
    kept with a manifest and reused while the corpus has the same size and modification time.

    Args:
        wish: what to draw.
        required: keys every drawn row must have; None: rows are copied unread.
        progress: called as bytes are read.

    Raises:
        BadInput: the corpus is missing, empty or has a bad row (named by line), or has
            fewer rows than asked for; the output is a file that no manifest speaks of.
    """
    wanted = parse(wish.sample)
    known = already_drawn(wish)
    if known and (_is_checked(known, required) or not wish.corpus.exists()):
        return known
    before = corpus.state(wish.corpus)
    refuse_overwriting(wish.path, wish.manifest if wish.output else None, wish.corpus)
    if required is not None:
        corpus.check_head(wish.corpus, required)
    from leviathan import index  # numpy's import costs more than most commands take

    with index.build(wish.corpus, "counting", progress) as found:
        rows = rows_wanted(wanted, found.rows, wish.corpus)
        path = wish.corpus if rows == found.rows and in_place(wish) else wish.path
        drawing = _Drawing(wish, found, rows, required, progress)
        if path == wish.corpus:
            size = drawing.check_all()
            digest = corpus.file_digest(path)
        else:
            with files.new_directories_kept_on_success(path.parent):
                digest, size = drawing.write(path)
    if corpus.state(wish.corpus) != before:
        raise corpus.changed(wish.corpus)
    drawn = Sample(
        str(path), rows, found.rows, size, wish.seed, wish.sample, digest, str(wish.corpus),
        *before, path.stat().st_mtime_ns, required, by=wish.by, strata=drawing.strata,
        source_digest=found.digest,
    )  # fmt: skip
    files.write_json(wish.manifest, asdict(drawn))
    return drawn


def _is_checked(known: Sample, required: tuple[str, ...] | None) -> bool:
    if required is None:
        return True
    return known.checked is not None and set(required) <= set(known.checked)


def refuse_overwriting(path: Path, manifest: Path | None, source: Path) -> None:
    """Raise BadInput where writing ``path`` would destroy, or become, what is being read.

    Args:
        path: to be written.
        manifest: which must speak of a file that is there already; None: it is ours by its name.
        source: the corpus that is read.
    """
    if path.is_dir():
        raise BadInput(f"{path} is a directory", "name a file in it")
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise BadInput(
            f"{path} lies in the corpus {source}, and would become a part of it",
            "put it elsewhere with -o, or the corpus into a directory of its own",
        )
    if manifest is None or not path.exists():
        return
    try:
        ours = json.loads(manifest.read_text())["path"] == str(path)
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours or path.resolve() == source.resolve():
        raise BadInput(
            f"{path} is there already, and not written by this command",
            "give another name, or remove it",
        )


def as_document(sample: Sample) -> dict[str, Any]:
    """The document of ``data sample --json``."""
    return asdict(sample)


@dataclass
class _Drawing:
    """One corpus whose rows are known, being copied from."""

    wish: Wish
    index: "Index"
    rows: int
    required: tuple[str, ...] | None
    progress: Progress | None
    strata: dict[str, int] | None = None

    def check_all(self) -> int:
        """Parse every row in place; returns the corpus's bytes."""
        if self.required is not None:
            for _ in self._read(self.index.all_rows(), self._check, "checking"):
                pass
        return self.index.size

    def write(self, path: Path) -> tuple[str, int]:
        """Copy the chosen rows to ``path``; their digest and bytes."""
        digest, size, gap = xxhash.xxh3_128(), 0, b""
        with files.replaced(path) as out:
            for rows in self._read(self._masks(), self._copy, "sampling"):
                data = gap + rows if gap else rows
                out.write(data)
                digest.update(data)
                size += len(data)
                # A part's last row may lack a line end; rows of another part may follow.
                gap = b"" if data.endswith(b"\n") else b"\n"
        return f"xxh3_128:{digest.hexdigest()}", size

    def _read(
        self, masks: "Iterator[NDArray[np.bool_]]", work: Callable[..., bytes], what: str
    ) -> Iterator[bytes]:
        from leviathan import index

        seen, size = 0, self.index.size
        for window, data in index.read(index.windows(self.index, masks), work):
            yield data
            seen += len(window.spans)
            if self.progress and seen < self.rows:
                self.progress(what, size * seen // self.rows, size)
        if self.progress:
            self.progress(what, size, size)

    def _masks(self) -> "Iterator[NDArray[np.bool_]]":
        from leviathan import selection

        if self.wish.by is None:
            sizes = (len(spans) for _, spans in self.index.chunks())
            return selection.masks(sizes, self.rows, self.index.rows, self.wish.seed)
        from leviathan import strata

        found = strata.of(self.index, self.wish.by, self.progress)
        wanted = selection.shares(self.rows, found.rows)
        self.strata = {found.names[code]: count for code, count in wanted.items()}
        seeds = {code: f"{self.wish.seed}/{found.names[code]}" for code in wanted}
        return selection.masks_by(found.codes(), wanted, found.rows, seeds)

    def _check(self, window: "Window", data: memoryview) -> bytes:
        from leviathan import index

        for number, row in enumerate(index.pieces(window, data)):
            if not corpus.is_sound(row, self.required or ()):
                corpus.parse_row(index.place_of(window, number), self.required or ())
        return b""

    def _copy(self, window: "Window", data: memoryview) -> bytes:
        from leviathan import index

        if self.required is not None:
            self._check(window, data)
        rows = index.pieces(window, data)
        if window.part != self.index.parts[0] and window.spans[0, 0] == 0:
            # A mark at the beginning of a file would be a mistake in the middle of another.
            rows[0] = memoryview(bytes(rows[0]).removeprefix(corpus.BOM))
        return b"".join(rows)
