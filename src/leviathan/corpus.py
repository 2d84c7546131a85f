"""Owns the corpus: reading JSONL rows, drawing a sample, its manifest.

Does not tokenise: what a row means to training is Axolotl's prompt strategy.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from leviathan import files
from leviathan.errors import BadInput

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""

REQUIRED_FIELDS = {
    "alpaca": ("instruction", "output"),
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "completion": ("text",),
}
_BOM = b"\xef\xbb\xbf"
_PROGRESS_BYTES = 8 << 20
_CHECKED_ROWS = 100


@dataclass(frozen=True)
class Sample:
    """A drawn sample: the file Axolotl reads, and what it is a sample of."""

    path: str
    """File holding the rows; the corpus itself when the sample is ``full``."""
    rows: int
    of_rows: int
    bytes: int
    seed: int
    sample: str
    digest: str
    """``xxh3_128:<hex>`` of the bytes at ``path``."""
    source: str
    source_bytes: int
    source_mtime_ns: int
    mtime_ns: int = 0
    """When ``path`` was written: a sample edited by hand is drawn again."""
    checked: tuple[str, ...] = ()
    """Keys every row was seen to have."""
    method: str = "selection sampling, ordered, random.Random(seed)"


def parse_sample(text: str) -> float | int | None:
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


def draw(
    corpus: Path,
    sample: str,
    seed: int,
    directory: Path,
    required: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Sample:
    """The sample of ``corpus``: exactly the rows asked for, in order, bytes unchanged.

    Two passes over the file (count, then Knuth's selection sampling, TAOCP 3.4.2 S) in
    constant memory. The result is kept in ``directory`` with a manifest and reused
    while the corpus has the same size and modification time.

    Args:
        corpus: JSONL file; blank lines are no rows.
        sample: ``10pct``, ``full`` or a row count.
        seed: the same seed draws the same rows on every Python version.
        directory: where samples and manifests are kept.
        required: keys every drawn row must have.
        progress: called as bytes are read.

    Raises:
        BadInput: the corpus is missing, empty or has a bad row (named by line), or has
            fewer rows than asked for.
    """
    wanted = parse_sample(sample)
    refuse_unreadable(corpus)
    manifest = sample_path(corpus, sample, seed, directory).with_suffix(".json")
    known = _reusable(manifest, corpus)
    if known and set(required) <= set(known.checked):
        return known
    of_rows = _count_rows(corpus, required, progress)
    rows = rows_wanted(wanted, of_rows, corpus)
    if rows == of_rows:
        digest, size = _check_all(corpus, required, progress)
        path = corpus
    else:
        path = manifest.with_suffix(".jsonl")
        with files.new_directories_kept_on_success(directory):
            digest, size = _write(corpus, path, rows, of_rows, seed, required, progress)
    stat = corpus.stat()
    drawn = Sample(
        str(path), rows, of_rows, size, seed, sample, digest,
        str(corpus), stat.st_size, stat.st_mtime_ns, path.stat().st_mtime_ns, required,
    )  # fmt: skip
    files.write_json(manifest, asdict(drawn))
    return drawn


def as_document(sample: Sample) -> dict[str, Any]:
    """The document of ``data sample --json``."""
    return asdict(sample)


def sample_path(corpus: Path, sample: str, seed: int, directory: Path) -> Path:
    """Where the sample is written unless it is the whole corpus."""
    # Two corpora of one name in different folders must not overwrite each other's samples.
    place = xxhash.xxh3_64(str(corpus.parent).encode()).hexdigest()[:6]
    return directory / f"{corpus.stem}-{place}_{sample}_seed{seed}.jsonl"


def expected_bytes(corpus: Path, sample: str) -> int:
    """How large a sample will be about, judged by the corpus's size and its first rows."""
    size = corpus.stat().st_size
    wanted = parse_sample(sample)
    if wanted is None:
        return size
    if isinstance(wanted, float):
        return int(size * wanted)
    rows, seen = 0, 0
    for _, line in read_rows(corpus):
        rows, seen = rows + 1, seen + len(line)
        if rows == min(wanted, _CHECKED_ROWS):
            break
    return min(size, int(seen / max(rows, 1) * wanted))


def refuse_unreadable(corpus: Path) -> None:
    """Raise BadInput unless ``corpus`` is a file that can be opened."""
    if not corpus.exists():
        raise BadInput(f"corpus {corpus} does not exist", "set corpus: in the recipe")
    if not corpus.is_file():
        raise BadInput(f"corpus {corpus} is not a file", "give one JSONL file")
    try:
        with corpus.open("rb"):
            pass
    except OSError as error:
        raise BadInput(f"corpus {corpus} cannot be read: {error.strerror}") from error


def _reusable(manifest: Path, corpus: Path) -> Sample | None:
    try:
        known = Sample(**json.loads(manifest.read_text()))
        drawn = Path(known.path).stat()
    except (OSError, ValueError, TypeError):
        return None
    stat = corpus.stat()
    known = replace(known, checked=tuple(known.checked))
    same = (known.source_bytes, known.source_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    whole = (drawn.st_size, drawn.st_mtime_ns) == (known.bytes, known.mtime_ns)
    return known if same and whole and known.source == str(corpus) else None


def already_drawn(corpus: Path, sample: str, seed: int, directory: Path) -> Sample | None:
    """The sample that ``draw`` would reuse; None where it would read the corpus."""
    return _reusable(sample_path(corpus, sample, seed, directory).with_suffix(".json"), corpus)


def rows_wanted(wanted: float | int | None, of_rows: int, corpus: Path) -> int:
    """How many of ``of_rows`` rows a sample has.

    Args:
        wanted: what ``parse_sample`` made of it.

    Raises:
        BadInput: the corpus is empty, or has fewer rows than asked for.
    """
    if of_rows == 0:
        raise BadInput(f"corpus {corpus} is empty", "it needs one JSON object per line")
    if wanted is None:
        return of_rows
    if isinstance(wanted, int):
        if wanted > of_rows:
            raise BadInput(
                f"--sample {wanted} asks for more rows than {corpus} has ({of_rows})",
                "use full",
            )
        return wanted
    return max(1, round(of_rows * wanted))


def check_head(corpus: Path, required: tuple[str, ...]) -> int:
    """Look at the first rows, so that a wrong format shows before anything is begun.

    Returns how many rows were looked at.

    Raises:
        BadInput: see ``parse_row``; also an unreadable or empty corpus.
    """
    refuse_unreadable(corpus)
    rows = 0
    for number, line in read_rows(corpus):
        parse_row(line, corpus, number, required)
        rows += 1
        if rows == _CHECKED_ROWS:
            break
    return rows_wanted(None, rows, corpus)


def read_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line number (from 1) and raw bytes of every row; lines end at ``\\n`` only."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.isspace():
                yield number, line


def selected(
    rows: Iterator[tuple[int, bytes]], wanted: int, of_rows: int, seed: int
) -> Iterator[tuple[int, bytes]]:
    """Those of ``of_rows`` rows that a sample of ``wanted`` has, in order."""
    chance = random.Random(seed).random  # noqa: S311 - a sample, not a secret
    needed, left = wanted, of_rows
    for row in rows:
        if chance() * left < needed:
            yield row
            needed -= 1
        left -= 1


def parse_row(
    line: bytes, path: Path, number: int | str, required: tuple[str, ...]
) -> dict[str, Any]:
    """One row as a dictionary.

    Args:
        line: the row's bytes.
        path: for messages.
        number: line number from 1, or another name of the place in the file.
        required: keys the row must have.

    Raises:
        BadInput: not UTF-8, not JSON, no text, not an object, or a required key is missing.
    """
    where = f"{path}:{number}"
    try:
        # Decoded first: json.loads would also take UTF-16, or a BOM in mid-file.
        row = json.loads((line.removeprefix(_BOM) if number == 1 else line).decode())
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{where}: not UTF-8 ({error.reason})") from error
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where}: half a surrogate pair ({error.object[error.start]!r}), which is no text",
            "write the character itself, or both escapes",
        ) from error
    except RecursionError as error:
        raise BadInput(f"{where}: nested too deeply", "one JSON object per line") from error
    except ValueError as error:
        raise BadInput(f"{where}: not JSON: {error}", "one JSON object per line") from error
    if not isinstance(row, dict):
        raise BadInput(f"{where}: a row must be an object, found {type(row).__name__}")
    missing = [name for name in required if name not in row]
    if missing:
        raise BadInput(
            f"{where}: no {missing[0]!r} in this row (it has: {', '.join(row) or 'nothing'})",
            "set format: in the recipe to alpaca, chat, sharegpt or completion",
        )
    return row


def _count_rows(corpus: Path, required: tuple[str, ...], progress: Progress | None) -> int:
    rows = 0
    for number, line in read_with_progress(corpus, "counting", progress):
        rows += 1
        if rows <= _CHECKED_ROWS:
            parse_row(line, corpus, number, required)
    return rows


def _check_all(
    corpus: Path, required: tuple[str, ...], progress: Progress | None
) -> tuple[str, int]:
    for number, line in read_with_progress(corpus, "checking", progress):
        parse_row(line, corpus, number, required)
    return file_digest(corpus), corpus.stat().st_size


def _write(
    corpus: Path,
    path: Path,
    rows: int,
    of_rows: int,
    seed: int,
    required: tuple[str, ...],
    progress: Progress | None,
) -> tuple[str, int]:
    digest, size = xxhash.xxh3_128(), 0
    with files.replaced(path) as out:
        read = read_with_progress(corpus, "sampling", progress)
        for number, line in selected(read, rows, of_rows, seed):
            parse_row(line, corpus, number, required)
            out.write(line)
            digest.update(line)
            size += len(line)
    return f"xxh3_128:{digest.hexdigest()}", size


def read_with_progress(
    corpus: Path, what: str, progress: Progress | None
) -> Iterator[tuple[int, bytes]]:
    """``read_rows``, telling ``progress`` how far it is."""
    total, done, shown = corpus.stat().st_size, 0, 0
    for number, line in read_rows(corpus):
        done += len(line)
        if progress and done - shown >= _PROGRESS_BYTES:
            progress(what, done, total)
            shown = done
        yield number, line
    if progress:
        progress(what, total, total)


def file_digest(path: Path) -> str:
    """``xxh3_128:<hex>`` of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"xxh3_128:{digest.hexdigest()}"
