"""What samples and checks a corpus elsewhere, one small program each, for the benchmark.

    python benchmarks/corpus_peers.py NAME CORPUS OUT ROWS

Each as its documentation suggests, without a trick that its users would not know. Those that
can draw an exact number are given it, and need not count the corpus first as ours does. A
module that only some of these need is imported where it is used.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SEED = 42
SHARE = 0.1
_BLOCK = 1 << 20


def read(corpus: Path, out: Path, rows: int) -> None:
    """Only read: what the disk, or the memory that holds the file, can give."""
    buffer = memoryview(bytearray(_BLOCK))
    with corpus.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def loop(corpus: Path, out: Path, rows: int) -> None:
    """Each row with a probability: about so many."""
    draw = random.Random(SEED).random  # noqa: S311
    with corpus.open("rb") as stream, out.open("wb") as target:
        target.writelines(line for line in stream if draw() < SHARE)


def xxh3(corpus: Path, out: Path, rows: int) -> None:
    """Rows whose hash is low: about so many, and equal rows together."""
    from xxhash import xxh3_64_intdigest

    below = int(SHARE * 2**64)
    with corpus.open("rb") as stream, out.open("wb") as target:
        target.writelines(line for line in stream if xxh3_64_intdigest(line, SEED) < below)


def selection(corpus: Path, out: Path, rows: int) -> None:
    """Selection sampling (Knuth, TAOCP 3.4.2 S) in two passes of plain Python."""
    with corpus.open("rb") as stream:
        left = sum(1 for _ in stream)
    draw = random.Random(SEED).random  # noqa: S311
    with corpus.open("rb") as stream, out.open("wb") as target:
        for line in stream:
            if left * draw() < rows:
                target.write(line)
                rows -= 1
            left -= 1


def pread(corpus: Path, out: Path, rows: int) -> None:
    """An index of line ends by numpy, then only the drawn rows are read."""
    import numpy as np

    ends, at = [], 0
    with corpus.open("rb", buffering=0) as stream, out.open("wb") as target:
        while block := stream.read(_BLOCK):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + (at + 1))
            at += len(block)
        bounds = np.concatenate([[0], *ends])
        drawn = np.sort(np.random.default_rng(SEED).choice(len(bounds) - 1, rows, replace=False))
        for begin, end in zip(bounds[drawn].tolist(), bounds[drawn + 1].tolist(), strict=True):
            target.write(os.pread(stream.fileno(), end - begin, begin))


def duckdb(corpus: Path, out: Path, rows: int) -> None:
    """Read JSON, a reservoir, write JSON."""
    import duckdb

    duckdb.execute(
        f"COPY (SELECT * FROM read_json('{corpus}', format = 'newline_delimited') "  # noqa: S608
        f"USING SAMPLE reservoir({rows} ROWS) REPEATABLE ({SEED})) TO '{out}' (FORMAT json)"
    )


def polars(corpus: Path, out: Path, rows: int) -> None:
    """Read JSON, sample, write JSON."""
    import polars as pl

    pl.read_ndjson(corpus).sample(n=rows, seed=SEED).write_ndjson(out)


def pyarrow(corpus: Path, out: Path, rows: int) -> None:
    """Read JSON, take rows in order; it writes no JSON, so Python does."""
    import pyarrow.json

    table = pyarrow.json.read_json(corpus)
    draw = random.Random(SEED)  # noqa: S311
    drawn = table.take(sorted(draw.sample(range(table.num_rows), rows)))
    with out.open("w", encoding="utf-8") as target:
        for row in drawn.to_pylist():
            target.write(json.dumps(row, ensure_ascii=False) + "\n")


def _dataset(corpus: Path, cache: str) -> "datasets.Dataset":  # type: ignore[name-defined]  # noqa: F821
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=cache)


def hf_datasets(corpus: Path, out: Path, rows: int) -> None:
    """Load into a new cache, select rows in order, write JSON."""
    draw = random.Random(SEED)  # noqa: S311
    with tempfile.TemporaryDirectory(dir=out.parent) as cache:
        loaded = _dataset(corpus, cache)
        drawn = loaded.select(sorted(draw.sample(range(len(loaded)), rows)))
        drawn.to_json(out, force_ascii=False)


def check_json(corpus: Path, out: Path, rows: int) -> None:
    """Parse each row, look for the two fields."""
    _check(corpus, json.loads)


def check_orjson(corpus: Path, out: Path, rows: int) -> None:
    """The same with a faster parser."""
    import orjson

    _check(corpus, orjson.loads)


def _check(corpus: Path, parse: Callable[[bytes], object]) -> None:
    bad = 0
    with corpus.open("rb") as stream:
        for line in stream:
            row = parse(line)
            bad += not (isinstance(row, dict) and row.get("instruction") and row.get("output"))
    if bad:
        sys.exit(f"{bad} bad rows")


def check_datasets(corpus: Path, out: Path, rows: int) -> None:
    """Load into a new cache, as training does; fields are not looked at."""
    with tempfile.TemporaryDirectory(dir=out.parent) as cache:
        _dataset(corpus, cache)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
