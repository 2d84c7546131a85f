"""Durable files: all or nothing, and lines that survive a half-written one."""

import math
import multiprocessing
import os
from pathlib import Path

import pytest

from leviathan import files


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "record"
    files.write_text(path, "old")

    def fail():
        with files.replaced(path) as out:
            out.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_into_and_a_link_followed(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    link.symlink_to(target)
    target.write_text("old")
    files.write_text(link, "new")
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"pipe", "link", "target"}


@pytest.mark.parametrize(
    ("value", "figure"),
    [(1, 1.0), ("inf", math.inf), (1e308, None), (-(10**200), None), (10**400, None),
     (True, None), ("1", None), ([1], None)],
)  # fmt: skip
def test_a_figure_is_one_to_compute_with(value, figure):
    assert files.number(value) == figure


def test_a_tree_is_synced_whole_and_from_the_leaves_up(tmp_path, monkeypatch):
    (tmp_path / "made/shards").mkdir(parents=True)
    for name in ("made/model.safetensors", "made/shards/one"):
        (tmp_path / name).write_bytes(b"weights")
    synced = []
    monkeypatch.setattr(
        files.os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    files.fsync_tree(tmp_path / "made")
    made = tmp_path / "made"
    assert {*synced} == {made, made / "shards", made / "shards/one", made / "model.safetensors"}
    assert synced.index(made / "shards/one") < synced.index(made / "shards") < synced.index(made)


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "record"
    files.write_text(path, "old")
    with files.replaced(path) as out:
        out.write(b"new")
        out.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_half_and_foreign_lines_are_passed_over(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a":1}\n[1]\nnot json\n\xff\xfe\n\n{"b":2}\n{"half":')
    assert files.read_json_lines(path) == [{"a": 1}, {"b": 2}]
    assert files.read_json_lines(tmp_path / "none") == []


def test_line_after_a_half_written_one_is_not_lost(tmp_path):
    """A writer killed in the middle of a line must not cost the next writer its own."""
    path = tmp_path / "lines"
    path.write_bytes(b'{"a":1}\n{"half":')
    files.append_json(path, {"event": "resume"})
    assert files.read_json_lines(path) == [{"a": 1}, {"event": "resume"}]


def _append_many(path: Path, writer: int) -> None:
    for number in range(200):
        files.append_json(path, {"writer": writer, "number": number, "fill": "x" * 300})


def test_lines_of_several_writers_never_mix(tmp_path):
    path = tmp_path / "lines"
    writers = [
        multiprocessing.get_context("fork").Process(target=_append_many, args=(path, i))
        for i in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = files.read_json_lines(path)
    for i in range(3):
        assert [line["number"] for line in found if line["writer"] == i] == list(range(200))


def test_directory_bytes_counts_nested_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub/b").write_bytes(b"45")
    assert files.directory_bytes(tmp_path) == 5


def test_a_tail_begins_anew_where_its_file_did(tmp_path):
    """Somebody deletes events.jsonl while a run writes it: what comes then still counts."""
    path = tmp_path / "lines.jsonl"
    for number in range(5):
        files.append_json(path, {"line": number})
    tail = files.Tail(path)
    path.unlink()
    assert tail.lines() == []
    files.append_json(path, {"line": 5})
    assert tail.lines() == [{"line": 5}]
    files.append_json(path, {"line": 6})
    assert tail.lines() == [{"line": 6}]
