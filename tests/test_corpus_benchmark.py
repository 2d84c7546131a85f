"""benchmarks/corpus.py on a megabyte: what it says of each contestant is true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import corpus_rows  # noqa: E402
import processes  # noqa: E402

# Whether the count is exact, the order kept, the bytes identical. A peer of which a row says
# "not here" is not on this machine.
GIVES = {
    "ours": ["yes", "yes", "yes"],
    "raw read": ["", "", ""],
    "rb loop + random()": ["no", "yes", "yes"],
    "rb loop + xxh3": ["no", "yes", "yes"],
    "mawk": ["no", "yes", "yes"],
    "gawk": ["no", "yes", "yes"],
    "exact-k in two passes": ["yes", "yes", "yes"],
    "numpy index + pread": ["yes", "yes", "yes"],
    "shuf -n": ["yes", "no", "yes"],
    "duckdb": ["yes", "no", "no"],
    "polars": ["yes", "no", "no"],
    "pyarrow": ["yes", "yes", "no"],
    "HF datasets": ["yes", "yes", "no"],
}
ROWS = 100
CHECKERS = ["ours", "raw read", "json.loads loop", "orjson loop", "HF datasets"]


def benchmark(*options: str, **environment: str) -> tuple[dict[str, list[str]], str]:
    """Rows of the last table by name, and all that was printed."""
    command = [sys.executable, BENCHMARKS / "corpus.py", "--gb", "0.001", "--repeat", "1", *options]
    done = subprocess.run(
        command, check=False, text=True, capture_output=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("\n| | ") if "\n| | " in done.stdout else 0 :]
    lines = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}, done.stdout


def test_sampling_is_judged_by_what_was_written():
    rows, said = benchmark()
    assert list(rows)[2:] == list(GIVES)
    for name, gives in GIVES.items():
        if rows[name][0] != "not here":
            chance = gives[0] == "no"  # it may come to the very count
            assert rows[name][-3 + chance :] == gives[chance:], name
            assert all(float(cell.replace(",", "")) >= 0 for cell in rows[name][:5])
    assert "ours / mawk" in said
    assert "ours / the fastest that is exact, ordered and identical" in said


def test_checking():
    rows, said = benchmark("--check", "--only", "json.loads loop,orjson loop,HF datasets,raw read")
    assert list(rows)[2:] == CHECKERS
    here = [name for name in CHECKERS if rows[name][0] != "not here"]
    assert {"ours", "json.loads loop"} <= set(here)
    assert all(float(rows[name][1]) > 0 for name in here)  # seconds
    assert "checking: ours / json.loads loop" in said


def test_who_is_not_here_is_said(tmp_path):
    rows, _ = benchmark("--only", "mawk,duckdb", PATH=str(tmp_path))
    assert rows["mawk"][0] == "not here"


def test_memory_over_time():
    _, said = benchmark("--only", "ours", "--check", "--cold")
    for title in ("sampling", "checking"):
        small, large, ratio = [line for line in said.splitlines() if line.startswith(title)]
        assert "exit 0" in small
        assert "exit 0" in large
        assert 0.5 < float(ratio.split()[-1]) < 2


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    assert corpus_rows.make(path, 200_000) == ROWS
    return path


def test_the_corpus_is_one(corpus, tmp_path):
    lines = corpus.read_bytes().splitlines(keepends=True)
    assert 1900 < sum(map(len, lines)) / len(lines) < 2150
    assert max(map(len, lines)) < 2400
    assert len({json.loads(line)["instruction"] for line in lines}) == len(lines) == ROWS
    assert any(not line.isascii() for line in lines)
    assert not any(b"\\u" in line for line in lines)  # one writer, one habit
    corpus_rows.make(tmp_path / "again", 200_000)
    assert (tmp_path / "again").read_bytes() == corpus.read_bytes()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda rows: rows, None),
        (lambda rows: rows[:-1], "count"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "order"),
        (lambda rows: [rows[0], *rows[:-1]], "order"),
        (lambda rows: [rows[0].replace(b'", "', b'","'), *rows[1:]], "bytes"),
        (lambda rows: [*rows[:-1], rows[-1].rstrip(b"\n")], "bytes"),
    ],
)
def test_a_sample_is_judged(corpus, tmp_path, change, wrong):
    rows = corpus.read_bytes().splitlines(keepends=True)[::10]
    (tmp_path / "sample").write_bytes(b"".join(change(rows)))
    judged = corpus_rows.judge(corpus, tmp_path / "sample", ROWS // 10)
    assert judged == {key: key != wrong for key in ("count", "order", "bytes")}


def test_memory_and_time_of_children_count(tmp_path):
    """A child that fills 64 MiB and computes for 0.2 s, under a parent that does not."""
    child = "import time; x = bytearray(64 << 20); e = time.process_time() + .2\nwhile time.process_time() < e: pass"  # fmt: skip
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = processes.run([sys.executable, "-c", parent], tmp_path, None)
    assert done.code == 0
    assert 64 < done.largest_mib < 100
    assert done.largest_mib < done.tree_mib < done.largest_mib + 40
    assert 0.2 <= done.cpu_s < 2
    assert done.wall_s >= 0.2
    assert max(mib for _, mib in done.trace_mib) == pytest.approx(done.tree_mib, rel=0.2)


def test_output_and_failure(tmp_path):
    out = tmp_path / "out"
    done = processes.run(["echo", "a row"], tmp_path, out, as_stdout=True)
    assert (done.code, out.read_bytes()) == (0, b"a row\n")
    assert done.durable_s >= done.wall_s
    done = processes.run([sys.executable, "-c", "exit('no such thing')"], tmp_path, None)
    assert (done.code, done.error) == (1, "no such thing")
