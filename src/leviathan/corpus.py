"""Owns the corpus: which files it is, and their rows as raw bytes.

A corpus is one file or a directory of them: JSONL, plain or compressed (gzip, zstd), Parquet,
or plain text (``plaintext`` says where its rows end). Does not choose rows (``samples``), read
in parallel (``blocks``) or tokenise.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import xxhash

from leviathan import plaintext
from leviathan.errors import BadInput, LeviathanError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""

REQUIRED_FIELDS = {
    "alpaca": ("instruction", "output"),
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "completion": ("text",),
    "choices": ("question", "choices", "answer"),
}
BOM = b"\xef\xbb\xbf"
Kind = Literal["plain", "gzip", "zstd", "parquet", "text"]
_MAGIC: dict[bytes, Kind] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet"}
_SUFFIXES: dict[str, Kind] = {".gz": "gzip", ".zst": "zstd", ".parquet": "parquet"}
_NAMES = (".jsonl", ".ndjson", ".parquet")
_PACKED = (".gz", ".zst")
_TEXTS = (".txt", ".md")
_PROGRESS_BYTES = 8 << 20
_CHECKED_ROWS = 100
_PARQUET_ROWS = 1024
# zstd gives back at once whatever it is fed: little by little, so that memory stays flat.
_FED_BYTES = 16 << 10
_STREAMED_BYTES = 1 << 20


class Row(NamedTuple):
    """One row, and where it stands."""

    path: Path
    number: int | str
    """Its line in ``path``, from 1 (of Parquet and text, its row), or another name of its place."""
    line: bytes
    """As it is in the file, line end and all; of Parquet and text, as JSON."""


@dataclass(frozen=True)
class Part:
    """One file of a corpus."""

    path: Path
    kind: Kind
    size: int
    """Bytes on disk."""


# --- which files -------------------------------------------------------------------------


def parts(corpus: Path) -> tuple[Part, ...]:
    """The files of a corpus, by name; kinds are told by their first bytes.

    Raises:
        BadInput: there is no such file or directory, it cannot be read, or a directory
            holds no data files.
    """
    if not corpus.exists():
        ours = corpus.parent == Path("work/demo")  # see ``classroom``
        hint = "leviathan demo --prepare" if ours else "set corpus: in the recipe"
        raise BadInput(f"corpus {corpus} does not exist", hint)
    if corpus.is_dir():
        # Text only where there is nothing else: a README beside shards is no data.
        found = _shards(corpus, _NAMES) or _shards(corpus, _TEXTS)
        if not found:
            raise BadInput(
                f"corpus {corpus} is a directory without data files",
                f"they end in {', '.join(_NAMES)}, the first two also with .gz or .zst; or all "
                f"of them in {' or '.join(_TEXTS)}",
            )
    elif corpus.is_file():
        found = [corpus]
    else:
        raise BadInput(f"corpus {corpus} is not a file", "give a file or a directory of them")
    return tuple(_part(path) for path in found)


def _shards(below: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in below.rglob("*") if _is_shard(path, below, endings))


def _is_shard(path: Path, below: Path, endings: tuple[str, ...]) -> bool:
    name = path.name
    for ending in _PACKED if endings == _NAMES else ():
        name = name.removesuffix(ending)
    hidden = any(step.startswith(".") for step in path.relative_to(below).parts)
    return name.endswith(endings) and not hidden and path.is_file()


def _part(path: Path) -> Part:
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise BadInput(f"corpus {path} cannot be read: {error.strerror}") from error
    kinds = [kind for magic, kind in _MAGIC.items() if head.startswith(magic)]
    kind = kinds[0] if kinds else "plain"
    if kind == "plain" and path.suffix in _TEXTS and not head.removeprefix(BOM).startswith(b"{"):
        kind = "text"  # else rows of JSON that someone gave this name
    if head and path.suffix in _SUFFIXES and _SUFFIXES[path.suffix] != kind:
        raise _damaged(path, f"it does not begin as {path.suffix} files do")
    return Part(path, kind, path.stat().st_size)


def is_plain(corpus: Path) -> bool:
    """Whether it is one JSONL file that can be trained on where it lies.

    Raises:
        BadInput: see ``parts``.
    """
    return not corpus.is_dir() and parts(corpus)[0].kind == "plain"


def state(corpus: Path) -> tuple[int, int]:
    """Bytes on disk and time of the last change (ns): whether it is still what it was.

    Raises:
        BadInput: see ``parts``.
    """
    stats = [part.path.stat() for part in parts(corpus)]
    changed = [stat.st_mtime_ns for stat in stats]
    if corpus.is_dir():  # two shards that swap their names change nothing else
        changed += [path.stat().st_mtime_ns for path in [corpus, *corpus.rglob("*/")]]
    return sum(stat.st_size for stat in stats), max(changed)


def plain_bytes(corpus: Path) -> int:
    """Bytes as plain JSONL; of compressed files about, by how well their first rows compress.

    Raises:
        BadInput: see ``parts`` and ``stream``.
    """
    import zlib

    total = 0.0
    for part in parts(corpus):
        as_it_is = part.kind in {"plain", "text"}
        head = b"" if as_it_is else next(iter(stream(part)), b"")[:_STREAMED_BYTES]
        total += part.size * (len(head) / len(zlib.compress(head)) if head else 1)
    return int(total)


# --- their rows --------------------------------------------------------------------------


def read_rows(corpus: Path) -> Iterator[Row]:
    """Every row in order; lines end at ``\\n`` only, blank ones are no rows.

    Raises:
        BadInput: see ``parts`` and ``stream``.
    """
    return (row for row in read_lines(corpus) if not row.line.isspace())


def read_lines(corpus: Path) -> Iterator[Row]:
    """Every line in order, blank ones too.

    Raises:
        BadInput: see ``parts`` and ``stream``.
    """
    for part in parts(corpus):
        if part.kind == "plain":
            with part.path.open("rb") as lines:
                yield from _numbered(part.path, lines)
        else:
            yield from _numbered(part.path, (x for block in stream(part) for x in lines_of(block)))


def _numbered(path: Path, lines: IO[bytes] | Iterator[bytes]) -> Iterator[Row]:
    return (Row(path, number, line) for number, line in enumerate(lines, 1))


def lines_of(block: bytes) -> Iterator[bytes]:
    """The lines of a block of whole ones, line feeds and all."""
    start = 0
    while end := block.find(b"\n", start) + 1:
        yield block[start:end]
        start = end
    if start < len(block):
        yield block[start:]


def stream(part: Part) -> Iterator[bytes]:
    """A compressed, Parquet or text file as blocks of whole lines of JSON, about a MiB each.

    Raises:
        BadInput: damaged or cut short, or text that is not UTF-8; for Parquet also: pyarrow is
            not installed, or a value that JSON has no form for.
    """
    if part.kind == "parquet":
        yield from _parquet(part.path)
        return
    if part.kind == "text":
        yield from _prose(part.path)
        return
    left = [b""]
    for piece in _gunzipped(part.path) if part.kind == "gzip" else _unzstd(part.path):
        end = piece.rfind(b"\n") + 1
        if end:
            yield b"".join([*left, piece[:end]])
            left = [piece[end:]]
        else:
            left.append(piece)
    if rest := b"".join(left):
        yield rest


def _prose(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as lines:
            if lines.read(len(BOM)) != BOM:
                lines.seek(0)
            pieces = iter(lambda: lines.readline(_STREAMED_BYTES), b"")
            yield from plaintext.blocks(pieces, str(path))
    except OSError as error:
        raise _damaged(path, error) from error


def _gunzipped(path: Path) -> Iterator[bytes]:
    import gzip
    import zlib

    try:
        with gzip.open(path) as unzipped:
            while piece := unzipped.read(_STREAMED_BYTES):
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _unzstd(path: Path) -> Iterator[bytes]:
    import zstandard  # for those who keep their corpus so

    whole = True
    pieces: list[bytes] = []
    size = 0
    try:
        with path.open("rb") as packed:
            frame = zstandard.ZstdDecompressor().decompressobj()
            while fed := packed.read(_FED_BYTES):
                while fed:
                    pieces.append(frame.decompress(fed))
                    size += len(pieces[-1])
                    fed, whole = frame.unused_data, frame.eof
                    if whole:
                        frame = zstandard.ZstdDecompressor().decompressobj()
                if size >= _STREAMED_BYTES:
                    yield b"".join(pieces)
                    pieces, size = [], 0
    except (OSError, zstandard.ZstdError) as error:
        raise _damaged(path, error) from error
    if not whole:
        raise _damaged(path, "it ends too early")
    yield b"".join(pieces)


def _parquet(path: Path) -> Iterator[bytes]:
    import msgspec

    try:
        from pyarrow import ArrowException, parquet  # comes with the training stack
    except ImportError as error:
        raise BadInput(f"reading {path} needs pyarrow", "pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as table:
            _refuse_binary(path, table.schema_arrow)
            for batch in table.iter_batches(_PARQUET_ROWS):
                yield b"".join(msgspec.json.encode(row) + b"\n" for row in batch.to_pylist())
    except (OSError, ArrowException) as error:
        raise _damaged(path, error) from error
    except TypeError as error:
        raise BadInput(f"{path}: a value JSON has no form for: {error}", "leave it out") from error


def _refuse_binary(path: Path, fields: Any) -> None:
    """JSON would get it as base64, which nobody asked for."""
    for field in fields:
        if "binary" in str(field.type):
            raise BadInput(
                f"{path}: column {field.name!r} holds {field.type}, which is no text",
                "leave it out, or store it as a string",
            )


def _damaged(path: Path, error: Exception | str) -> BadInput:
    return BadInput(f"{path} is damaged: {str(error).splitlines()[0]}", "copy it anew")


def read_with_progress(corpus: Path, what: str, progress: Progress | None) -> Iterator[Row]:
    """``read_rows``, telling ``progress`` how far it is, in bytes of plain JSONL."""
    plain = is_plain(corpus)
    total, done, shown = state(corpus)[0], 0, 0
    for row in read_rows(corpus):
        done += len(row.line)
        if progress and plain and done - shown >= _PROGRESS_BYTES:
            progress(what, done, total)
            shown = done
        yield row
    if progress:
        progress(what, total, total)


def refuse_unreadable(corpus: Path) -> None:
    """Raise BadInput unless every file of ``corpus`` can be opened."""
    parts(corpus)


def check_head(corpus: Path, required: tuple[str, ...]) -> int:
    """Look at the first rows, so that a wrong format shows before anything is begun.

    Returns how many rows were looked at.

    Raises:
        BadInput: see ``parse_row``; also an unreadable or empty corpus.
    """
    rows = 0
    for row in read_rows(corpus):
        parse_row(row, required)
        rows += 1
        if rows == _CHECKED_ROWS:
            break
    if not rows:
        raise empty(corpus)
    return rows


def changed(path: Path) -> LeviathanError:
    """What to say of a file that is not what it was a moment ago."""
    return LeviathanError(f"{path} changed while it was read", "run again when it is whole")


def first_rows(corpus: Path) -> list[dict[str, Any]]:
    """Those of the first rows that can be parsed.

    Raises:
        BadInput: see ``parts`` and ``stream``.
    """
    found = []
    for row in itertools.islice(read_rows(corpus), _CHECKED_ROWS):
        with suppress(BadInput):
            found.append(parse_row(row))
    return found


def empty(corpus: Path) -> BadInput:
    """What to say of a corpus without rows."""
    return BadInput(f"corpus {corpus} is empty", "it needs one JSON object per line")


def parse_row(row: Row, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """One row as a dictionary.

    Args:
        row: the row, and its place for messages.
        required: keys it must have.

    Raises:
        BadInput: not UTF-8, not JSON, no text, not an object, or a required key is missing.
    """
    where = f"{row.path}:{row.number}"
    line = row.line.removeprefix(BOM) if row.number == 1 else row.line
    try:
        # Decoded first: json.loads would also take UTF-16, or a BOM in mid-file.
        parsed = json.loads(line.decode())
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(parsed, ensure_ascii=False).encode()
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
    if not isinstance(parsed, dict):
        raise BadInput(f"{where}: a row must be an object, found {type(parsed).__name__}")
    missing = [name for name in required if name not in parsed]
    if missing:
        raise BadInput(
            f"{where}: no {missing[0]!r} in this row (it has: {', '.join(parsed) or 'nothing'})",
            "set format: in the recipe to alpaca, chat, sharegpt, completion or choices",
        )
    return parsed


def is_sound(line: bytes | memoryview, required: tuple[str, ...] = ()) -> bool:
    """Whether ``parse_row`` takes it, for certain; a row that it might is not sound.

    Four times as fast (docs/data.md): the library that parses is stricter than Python's.
    """
    import msgspec

    try:
        parsed = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and all(name in parsed for name in required)


def known_digest(path: Path) -> str:
    """``file_digest``, remembered while this process lives and the file stays as it is."""
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of(path: Path, _size: int, _modified: int) -> str:
    return file_digest(path)


def file_digest(path: Path) -> str:
    """``xxh3_128:<hex>`` of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"xxh3_128:{digest.hexdigest()}"
