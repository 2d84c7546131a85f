"""Where rows begin and end: against a definition in three lines, at every size of step."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leviathan import blocks, corpus, index
from leviathan.errors import BadInput

relaxed = settings(max_examples=60, deadline=None)

line = st.one_of(
    st.binary(max_size=12).map(lambda b: b"{" + b.replace(b"\n", b"") + b"}"),
    st.sampled_from([b"", b" ", b"\t\r", b"\x0b\x0c", b"{}", b"  {}", b"\x00", b"\x1f{}"]),
    st.integers(1, 300).map(lambda n: b"{" + b"x" * n + b"}"),
    st.integers(1, 200).map(lambda n: b" " * n),
)
text = st.tuples(st.lists(line, max_size=25), st.sampled_from([b"\n", b"\r\n"]), st.booleans()).map(
    lambda t: t[1].join(t[0]) + (t[1] if t[2] else b"")
)


def reference(data: bytes) -> list[bytes]:
    return [line for line in _lines(data) if not line.isspace()]


def _lines(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def indexed(path: Path) -> list[bytes]:
    with index.build(path) as found:
        picked = []
        masks = (np.ones(len(spans), bool) for _, spans in found.chunks())
        for _, rows in index.read(index.windows(found, masks), _copies):
            picked += rows
        assert found.rows == len(picked)
        return picked


def _copies(window, data):
    return [bytes(piece) for piece in index.pieces(window, data)]


@pytest.fixture(params=[(8, 8, 8), (8, 64, 16), (16, 16, 1 << 20), (1 << 20, 8 << 20, 4 << 20)])
def steps(request, monkeypatch):
    """Small steps put every kind of byte at an edge of one."""
    for name, value in zip(
        ("_STEP_BYTES", "_JOB_BYTES", "_WINDOW_BYTES"), request.param, strict=True
    ):
        monkeypatch.setattr(index, name, value)
    monkeypatch.setattr(index, "_GAP_BYTES", request.param[0])
    monkeypatch.setattr(index, "_CHUNK_ROWS", 3 if request.param[0] == 8 else 1 << 15)
    monkeypatch.setattr(index, "_LOOKED_BYTES", 3)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", request.param[0])


@pytest.mark.usefixtures("steps")
@settings(relaxed, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=text)
def test_rows_are_those_of_the_definition(tmp_path, data):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    assert indexed(path) == reference(data)
    assert [row.line for row in corpus.read_rows(path)] == reference(data)
    assert b"".join(block.read() for block in blocks.of(corpus.parts(path))) == data


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@settings(relaxed, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=text, streamed=st.integers(1, 50))
def test_the_same_rows_come_out_of_a_compressed_file(tmp_path, pack, data, streamed):
    path = tmp_path / "rows.jsonl.packed"
    path.write_bytes(pack(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_STREAMED_BYTES", streamed)
        patch.setattr(corpus, "_FED_BYTES", 7)
        assert indexed(path) == reference(data)
        assert b"".join(block.read() for block in blocks.of(corpus.parts(path))) == data


def test_several_frames_and_members_are_one_file(tmp_path):
    for name, pack in (("a.zst", zstandard.compress), ("a.gz", gzip.compress)):
        path = tmp_path / name
        path.write_bytes(pack(b'{"a": 1}\n{"b"') + pack(b": 2}\n"))
        assert indexed(path) == [b'{"a": 1}\n', b'{"b": 2}\n']


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("left", [0.5, 0.97])
def test_a_compressed_file_cut_short_is_damaged_not_small(tmp_path, pack, left):
    path = tmp_path / "rows.jsonl"
    data = pack(bytes(np.random.default_rng(1).integers(0, 256, 100_000, np.uint8)))
    path.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(BadInput, match=r"rows\.jsonl is damaged: "):
        indexed(path)


def test_the_digest_tells_corpora_apart_and_not_how_they_are_read(tmp_path):
    digests = set()
    for data in (b"{}\n" * 100, b"{}\n" * 101, b"{ }" * 100):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(data)
        with index.build(path) as one, index.build(path) as two:
            assert one.digest == two.digest
            digests.add(one.digest)
    assert len(digests) == 3


def test_a_row_that_is_named_is_found_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + b'{"a": 1}\n' * 5 + b"\n\n" + b'{"b": 2}')
    with index.build(path) as found:
        (window,) = index.windows(found, found.all_rows())
        assert index.place_of(window, 5) == (path, 9, b'{"b": 2}')


def test_threads_end_when_the_reader_stops_early(tmp_path):
    import threading

    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 100_000)
    with index.build(path) as found:
        reading = index.read(index.windows(found, found.all_rows()), _copies)
        next(reading)
        reading.close()
    assert not [t for t in threading.enumerate() if "ThreadPool" in t.name]
