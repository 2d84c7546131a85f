"""Sampling: exact counts, order, bytes unchanged, the same rows for the same seed for ever."""

import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leviathan import corpus, samples
from leviathan.errors import BadInput
from leviathan.samples import Sample, Wish

relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, rows: list[bytes], end: bytes = b"\n") -> Path:
    path.write_bytes(end.join(rows) + end)
    return path


def draw(source: Path, sample: str, seed: int, directory: Path, required=(), progress=None, **more):
    return samples.draw(Wish(source, sample, seed, directory, **more), required, progress)


def numbered(count: int) -> list[bytes]:
    return [json.dumps({"n": n}).encode() for n in range(count)]


def drawn_numbers(sample: Sample) -> list[int]:
    return [json.loads(line)["n"] for line in Path(sample.path).read_bytes().splitlines()]


def reference(data: bytes) -> list[bytes]:
    """Rows of a file by the definition: what stands between line feeds and is not blank."""
    return [line for line in data.split(b"\n") if line.strip(b" \t\r\x0b\x0c")]


@pytest.mark.parametrize(
    ("sample", "count"),
    [("10pct", 10), ("0.5pct", 1), ("99.4pct", 99), ("100pct", 100), ("full", 100), ("7", 7),
     ("100", 100), ("1", 1), ("29pct", 29)],
)  # fmt: skip
def test_exactly_the_rows_asked_for(tmp_path, sample, count):
    source = write(tmp_path / "rows.jsonl", numbered(100))
    drawn = draw(source, sample, 42, tmp_path / "data")
    numbers = drawn_numbers(drawn)
    assert (len(numbers), drawn.rows, drawn.of_rows) == (count, count, 100)
    assert numbers == sorted(set(numbers))


def test_seed_42_draws_these_very_rows(tmp_path):
    """Pinned: a run begun today must find the same sample after every upgrade."""
    source = write(tmp_path / "rows.jsonl", numbered(100))
    assert drawn_numbers(draw(source, "10pct", 42, tmp_path / "data")) == PINNED_42
    assert drawn_numbers(draw(source, "10pct", 7, tmp_path / "data")) == PINNED_7


PINNED_42 = [1, 7, 9, 12, 19, 41, 67, 88, 89, 94]
PINNED_7 = [3, 6, 8, 10, 21, 33, 34, 56, 70, 78]


def test_whole_corpus_is_used_in_place(tmp_path):
    source = write(tmp_path / "rows.jsonl", numbered(5))
    drawn = draw(source, "full", 42, tmp_path / "data")
    assert Path(drawn.path) == source
    assert [p.suffix for p in (tmp_path / "data").iterdir()] == [".json"]
    assert drawn.digest == f"xxh3_128:{xxhash.xxh3_128_hexdigest(source.read_bytes())}"


row = st.dictionaries(
    st.text(max_size=4), st.text(max_size=12) | st.integers() | st.lists(st.integers()), max_size=3
).map(lambda d: json.dumps(d, ensure_ascii=False).encode())
blank = st.sampled_from([b"", b" ", b"\t", b"\r"])
line = st.one_of(row, row, row, blank)


@relaxed
@given(
    lines=st.lists(line, min_size=1, max_size=30),
    crlf=st.booleans(),
    bom=st.booleans(),
    final=st.booleans(),
    share=st.integers(1, 100),
    seed=st.integers(0, 2**32),
)
def test_drawn_bytes_are_lines_of_the_corpus_in_their_order(
    tmp_path, lines, crlf, bom, final, share, seed
):
    """U+2028, NUL escapes, CRLF, BOM, blank lines, no final newline: whatever stands there."""
    end = b"\r\n" if crlf else b"\n"
    data = (b"\xef\xbb\xbf" if bom and lines[0].startswith(b"{") else b"") + end.join(lines)
    data += end if final else b""
    rows = reference(data)
    source, directory = tmp_path / "rows.jsonl", tmp_path / "data"
    source.write_bytes(data)
    for old in directory.glob("*"):
        old.unlink()
    if not rows:
        with pytest.raises(BadInput, match="is empty"):
            draw(source, f"{share}pct", seed, directory)
        return
    drawn = draw(source, f"{share}pct", seed, directory)
    written = Path(drawn.path).read_bytes()
    assert drawn.rows == max(1, round(len(rows) * share / 100)) == len(reference(written))
    assert drawn.of_rows == len(rows)
    assert drawn.digest == f"xxh3_128:{xxhash.xxh3_128_hexdigest(written)}"
    assert drawn.bytes == len(written)
    remaining = iter(_raw_lines(data))
    assert all(raw in remaining for raw in _raw_lines(written))  # a subsequence


def _raw_lines(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


@pytest.mark.parametrize(
    "text",
    [
        '{"t": "line\u2028separator\u2029"}',
        '{"t": "next\x85line"}',
        '{"t": "escaped \\u0000 NUL"}',
        '{"t": "vertical \\u000b tab"}',
    ],
)
def test_only_a_line_feed_ends_a_row(tmp_path, text):
    rows = [text.encode()] * 10
    source = write(tmp_path / "rows.jsonl", rows)
    drawn = draw(source, "50pct", 42, tmp_path / "data")
    assert drawn.of_rows == 10
    assert Path(drawn.path).read_bytes() == (text.encode() + b"\n") * 5


def test_a_very_long_line_is_one_row(tmp_path):
    long = json.dumps({"n": 0, "t": "x" * 20_000_000}).encode()
    source = write(tmp_path / "rows.jsonl", [long, *numbered(3)])
    assert draw(source, "full", 42, tmp_path / "data").rows == 4


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b'{"n": 1}', b"", b"not json"], ":3: not JSON"),
        ([b'{"n": 1}', b'{"t": "raw \x00 NUL"}'], ":2: not JSON"),
        ([b'{"n": 1}', b'{"t": "\xff"}'], ":2: not UTF-8"),
        ([b"[1, 2]"], ":1: a row must be an object, found list"),
        ([b'{"m": 1}'], ":1: no 'n' in this row (it has: m)"),
        ([b"{}"], ":1: no 'n' in this row (it has: nothing)"),
        ([b'{"n": 1}{"n": 2}'], ":1: not JSON"),
        ([b"[" * 100_000], ":1: nested too deeply"),
        ([b'{"n": 1, "t": "\\uD83D alone"}'], ":1: half a surrogate pair"),
        ([b" ", b""], "is empty"),
    ],
)
def test_bad_row_is_named_by_its_line(tmp_path, lines, message):
    source = write(tmp_path / "rows.jsonl", lines)
    for sample in ("full", "1"):
        with pytest.raises(BadInput) as caught:
            draw(source, sample, 42, tmp_path / "data", required=("n",))
        assert message in caught.value.message
        assert str(source) in caught.value.message
    assert not (tmp_path / "data").exists()


def test_bad_row_far_down_leaves_nothing_behind(tmp_path):
    source = write(tmp_path / "rows.jsonl", [*numbered(150), b"broken"])
    for sample in ("full", "150"):
        with pytest.raises(BadInput, match=r"rows\.jsonl:151: not JSON"):
            draw(source, sample, 3, tmp_path / "data")
        assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_corpus_that_is_no_file_is_bad_input(tmp_path, kind):
    source = tmp_path / "rows.jsonl"
    if kind == "directory":
        source.mkdir()
    with pytest.raises(
        BadInput, match=r"rows\.jsonl (does not exist|is a directory without data files)"
    ):
        draw(source, "full", 42, tmp_path / "data")


def test_more_rows_than_there_are_is_bad_input(tmp_path):
    source = write(tmp_path / "rows.jsonl", numbered(5))
    with pytest.raises(BadInput, match=r"--sample 6 asks for more rows than .* has \(5\)"):
        draw(source, "6", 42, tmp_path / "data")


# --- the manifest -----------------------------------------------------------------


def test_sample_is_reused_without_reading_the_corpus(tmp_path):
    source = write(tmp_path / "rows.jsonl", numbered(50))
    first = draw(source, "10pct", 42, tmp_path / "data")
    read = []
    again = draw(source, "10pct", 42, tmp_path / "data", progress=lambda *a: read.append(a))
    assert (again, read) == (first, [])


@pytest.mark.parametrize(
    "change",
    [
        lambda source, data: source.open("ab").write(b'{"n": 99}\n'),
        lambda source, data: source.touch(),
        lambda source, data: next(data.glob("*.jsonl")).write_bytes(b""),
        lambda source, data: next(data.glob("*.jsonl")).unlink(),
        lambda source, data: next(data.glob("*.json")).write_text("{"),
        lambda source, data: next(data.glob("*.json")).write_text('{"rows": 1}'),
        lambda source, data: next(data.glob("*.json")).write_text("[]"),
    ],
    ids=["corpus grew", "corpus touched", "sample emptied", "sample gone", "manifest cut",
         "manifest of another version", "manifest no object"],
)  # fmt: skip
def test_sample_is_drawn_again_when_anything_changed(tmp_path, change):
    source, data = write(tmp_path / "rows.jsonl", numbered(50)), tmp_path / "data"
    first = draw(source, "10pct", 42, data)
    change(source, data)
    read = []
    again = draw(source, "10pct", 42, data, progress=lambda *a: read.append(a))
    assert read
    assert again.of_rows == len(source.read_bytes().splitlines())
    assert len(drawn_numbers(again)) == again.rows == 5
    if again.of_rows == 50:
        assert again.digest == first.digest


def test_sample_drawn_without_a_format_is_not_reused_for_one(tmp_path):
    """``data sample`` checks no fields; ``train`` after it must still check its own."""
    source = write(tmp_path / "rows.jsonl", numbered(50))
    draw(source, "10pct", 42, tmp_path / "data")
    with pytest.raises(BadInput, match="no 'instruction' in this row"):
        draw(source, "10pct", 42, tmp_path / "data", required=("instruction",))


def test_interrupted_drawing_leaves_nothing_and_the_old_sample_whole(tmp_path):
    source = write(tmp_path / "rows.jsonl", numbered(50))
    first = draw(source, "10pct", 42, tmp_path / "data")
    before = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()}
    source.touch()

    def interrupt(what, *_):
        if what == "sampling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(source, "10pct", 42, tmp_path / "data", progress=interrupt)
    assert {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir()} == before
    assert draw(source, "10pct", 42, tmp_path / "data").digest == first.digest


def test_progress_counts_up_to_the_whole_file(tmp_path):
    source = write(tmp_path / "rows.jsonl", numbered(50))
    seen = []
    draw(source, "10pct", 42, tmp_path / "data", progress=lambda *a: seen.append(a))
    size = source.stat().st_size
    assert seen == [("counting", size, size), ("sampling", size, size)]


# --- other files than one of JSONL --------------------------------------------------


def parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("sample", ["10pct", "full"])
def test_a_compressed_corpus_gives_the_sample_of_the_plain_one(tmp_path, pack, sample):
    plain = write(tmp_path / "rows.jsonl", numbered(3000))
    packed = tmp_path / "packed.jsonl"  # known by what it begins with
    packed.write_bytes(pack(plain.read_bytes()))
    one, two = (draw(path, sample, 42, tmp_path / "data") for path in (plain, packed))
    assert (one.rows, one.of_rows, one.digest) == (two.rows, two.of_rows, two.digest)
    assert Path(one.path).read_bytes() == Path(two.path).read_bytes()
    assert Path(two.path) != packed  # Axolotl is given plain JSONL, always


def test_a_directory_is_its_shards_by_name(tmp_path):
    shards = tmp_path / "corpus"
    (shards / "b").mkdir(parents=True)
    rows = numbered(40)
    write(shards / "a.jsonl", rows[:10])
    (shards / "b" / "1.jsonl.gz").write_bytes(gzip.compress(b"\n".join(rows[10:20])))
    (shards / "b" / "2.ndjson.zst").write_bytes(zstandard.compress(b"\n".join(rows[20:30])))
    parquet(shards / "c.parquet", [json.loads(row) for row in rows[30:]])
    (shards / "README.md").write_text("not a shard")
    (shards / ".hidden.jsonl").write_text("nor this")
    whole = draw(shards, "full", 42, tmp_path / "data")
    assert (whole.rows, drawn_numbers(whole)) == (40, list(range(40)))
    part = draw(shards, "50pct", 42, tmp_path / "data")
    lone = draw(write(tmp_path / "one.jsonl", rows), "50pct", 42, tmp_path / "data")
    assert drawn_numbers(part) == drawn_numbers(lone)


def test_shards_without_a_last_line_end_or_with_a_mark_are_joined_well(tmp_path):
    shards = tmp_path / "corpus"
    shards.mkdir()
    for name in "abc":
        (shards / f"{name}.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n{"n": 2}')
    drawn = draw(shards, "full", 42, tmp_path / "data", required=("n",))
    rows = b'{"n": 1}\r\n{"n": 2}'
    assert Path(drawn.path).read_bytes() == b"\xef\xbb\xbf" + b"\n".join([rows] * 3)
    assert drawn.bytes == Path(drawn.path).stat().st_size


def test_a_bad_row_in_a_shard_is_named_by_shard_and_line(tmp_path):
    shards = tmp_path / "corpus"
    shards.mkdir()
    write(shards / "a.jsonl", numbered(150))
    (shards / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join([*numbered(150), b"oops"])))
    with pytest.raises(BadInput, match=r"b\.jsonl\.gz:151: not JSON"):
        draw(shards, "full", 42, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: (d / "c.jsonl").write_text('{"n": 9}\n'),
        lambda d: (d / "a.jsonl").unlink(),
        lambda d: (d / "b.jsonl").rename(d / "x.jsonl"),
        lambda d: (d / "b.jsonl").write_text('{"n": 7}\n'),
    ],
    ids=["one more", "one gone", "renamed", "changed"],
)
def test_a_directory_whose_shards_changed_is_drawn_again(tmp_path, change):
    shards = tmp_path / "corpus"
    shards.mkdir()
    for n, name in enumerate("ab"):
        write(shards / f"{name}.jsonl", [b'{"n": %d}' % n])
    first = draw(shards, "full", 42, tmp_path / "data")
    assert draw(shards, "full", 42, tmp_path / "data") == first
    change(shards)
    seen = []
    draw(shards, "full", 42, tmp_path / "data", progress=lambda *a: seen.append(a))
    assert seen


@pytest.mark.parametrize("value", [b"\xff\xfe", [{"a": b"x"}]])
def test_parquet_columns_that_are_no_text_are_named(tmp_path, value):
    source = parquet(tmp_path / "rows.parquet", [{"n": value}])
    with pytest.raises(BadInput, match=r"rows\.parquet: column 'n' holds .*binary"):
        draw(source, "full", 42, tmp_path / "data")


# --- strata -------------------------------------------------------------------------


def test_a_field_keeps_its_proportions(tmp_path):
    rows = [
        json.dumps({"n": n, "meta": {"source": "web" if n % 10 else ["a", "book"][n % 20 == 0]}})
        for n in range(1000)
    ]
    source = write(tmp_path / "rows.jsonl", [row.encode() for row in [*rows, '{"n": 1000}']])
    drawn = draw(source, "10pct", 42, tmp_path / "data", by="meta.source")
    counted = Counter(
        json.loads(line).get("meta", {}).get("source")
        for line in Path(drawn.path).read_text().splitlines()
    )
    assert counted == {"web": 90, "a": 5, "book": 5}
    assert drawn.strata == {'"web"': 90, '"a"': 5, '"book"': 5, "null": 0}
    assert drawn_numbers(drawn) == sorted(drawn_numbers(drawn))
    other = draw(source, "10pct", 42, tmp_path / "data")
    assert other.path != drawn.path


@pytest.mark.parametrize(
    ("field", "message"),
    [("n", "--by n has more than 1,000 different values"), ("x", "--by x: no row has such")],
)
def test_a_field_that_groups_nothing_is_refused(tmp_path, field, message):
    source = write(tmp_path / "rows.jsonl", numbered(1100))
    with pytest.raises(BadInput, match=message):
        draw(source, "10pct", 42, tmp_path / "data", by=field)
    assert not (tmp_path / "data").exists()


# --- a file of one's own ------------------------------------------------------------


def test_an_output_of_ones_own_has_its_manifest_beside_it(tmp_path):
    source, out = write(tmp_path / "rows.jsonl", numbered(50)), tmp_path / "out" / "some.jsonl"
    drawn = draw(source, "10pct", 42, tmp_path / "data", output=out)
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "some.jsonl",
        "some.jsonl.manifest.json",
    ]
    assert not (tmp_path / "data").exists()
    assert draw(source, "10pct", 42, tmp_path / "data", output=out) == drawn
    again = draw(source, "20pct", 42, tmp_path / "data", output=out)  # it is ours to replace
    assert (again.rows, len(out.read_bytes().splitlines())) == (10, 10)


def test_what_would_become_a_part_of_the_corpus_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", numbered(50))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="lies in the corpus"):
        draw(Path(), "10pct", 42, Path("work/data"))
    with pytest.raises(BadInput, match="is a directory"):
        draw(Path("rows.jsonl"), "10pct", 42, Path("work/data"), output=Path())
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.zst", "rows.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_damaged(tmp_path, name):
    source = write(tmp_path / name, numbered(5))
    with pytest.raises(BadInput, match=f"{name} is damaged: it does not begin as"):
        draw(source, "full", 42, tmp_path / "data")


@pytest.mark.parametrize("name", ["precious.jsonl", "rows.jsonl"])
def test_a_file_of_someone_elses_is_never_overwritten(tmp_path, name):
    source = write(tmp_path / "rows.jsonl", numbered(50))
    other = tmp_path / name
    if not other.exists():
        other.write_text("precious")
    before = other.read_bytes()
    with pytest.raises(BadInput, match="is there already"):
        draw(source, "10pct", 42, tmp_path / "data", output=other)
    assert other.read_bytes() == before


# --- what is copied unread ------------------------------------------------------------


def test_rows_copied_unread_are_read_before_they_are_trained_on(tmp_path):
    source = write(tmp_path / "rows.jsonl", [*numbered(150), b"broken"])
    drawn = draw(source, "full", 42, tmp_path / "data", required=None)
    assert (drawn.rows, drawn.checked) == (151, None)
    with pytest.raises(BadInput, match=r"rows\.jsonl:151: not JSON"):
        draw(source, "full", 42, tmp_path / "data")


def test_a_line_of_a_hundred_megabytes_is_one_row(tmp_path):
    long = b'{"n": 0, "t": "' + b"x" * 100_000_000 + b'"}'
    source = write(tmp_path / "rows.jsonl", [*numbered(3), long, *numbered(3)])
    drawn = draw(source, "100pct", 42, tmp_path / "data", output=tmp_path / "copy.jsonl")
    assert drawn.of_rows == 7
    assert drawn.digest == corpus.file_digest(source)


def test_the_sample_and_what_it_leaves_make_the_corpus(tmp_path):
    """NUL bytes, bytes that are no UTF-8, separators: none of it is looked at."""
    rows = [b"%d \x00\xff\xe2\x80\xa8\x85\x1e" % n for n in range(500)]
    source = write(tmp_path / "rows.jsonl", rows)
    drawn = draw(source, "30pct", 42, tmp_path / "data", required=None)
    taken = Path(drawn.path).read_bytes().split(b"\n")[:-1]
    assert len(taken) == 150
    left = [row for row in rows if row not in set(taken)]
    assert sorted([*taken, *left]) == sorted(rows)


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.3, 0.5, 0.8])
def test_kill_9_leaves_the_old_sample_or_the_new_one(tmp_path, moment):
    source = write(tmp_path / "rows.jsonl", [b'{"n": %d, "t": "%s"}' % (n, b"x" * 3000) for n in range(20_000)])  # fmt: skip
    out = tmp_path / "out.jsonl"
    old = draw(source, "10", 42, tmp_path / "data", output=out)
    command = [sys.executable, "-c", "from leviathan.cli import main; main()", "data", "sample",
               str(source), "--sample", "90pct", "-o", str(out)]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    time.sleep(0.25 + moment)
    process.kill()
    process.wait()
    assert corpus.file_digest(out) in {old.digest, draw(source, "90pct", 42, tmp_path / "data", required=None).digest}  # fmt: skip
    draw(source, "90pct", 42, tmp_path / "data", output=out)  # and the next one cleans up
    assert not list(tmp_path.glob(".*.tmp"))
