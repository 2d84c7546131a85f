"""Every row looked at: found, counted, placed; the clean corpus and what was left out of it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leviathan import audit, blocks, mending, scrutiny
from leviathan.errors import BadInput, LeviathanError
from leviathan.formats import Shape

GOOD = [b'{"instruction": "q%d", "input": "", "output": "answer %d"}' % (n, n) for n in range(40)]
BAD = {
    3: (b'{"instruction": "x", oops', "not_json"),
    5: (b'{"instruction": "\xff", "output": "y"}', "not_utf8"),
    7: (b"[1]", "not_object"),
    8: (b"null", "not_object"),
    9: (b'{"instruction": "a", "output": "\\ud83d"}', "not_text"),
    11: (b'{"instruction": "a"}', "missing_field"),
    12: (b'{"instruction": 3, "output": "b"}', "wrong_type"),
    13: (b'{"instruction": "a", "output": ""}', "nothing_trained"),
    20: (b'{"instruction": "k", "output": "AKIAQ2Q2Q2Q2Q2Q2Q2Q2"}', "secret"),
    21: (b'{"instruction": "c", "output": "a\\u0000"}', "control"),
    22: (b'{"instruction": "", "output": "an answer"}', "empty_field"),
    30: (b'{"output": "answer 1", "instruction": "q1", "id": 7}', "duplicate"),
    39: (b'{"output":"answer 1","instruction":"q1","input":null}', "duplicate"),
}
ROWS = [BAD[n][0] if n in BAD else row for n, row in enumerate(GOOD)]


def look(path: Path, near: float | None = None) -> audit.Audit:
    return audit.look(path, scrutiny.Wish(Shape("alpaca"), near))


def findings(path: Path, **options) -> dict[str, list[str]]:
    with look(path, **options) as looked:
        return {f.kind: [e.text for e in f.examples] for f in looked.findings()}


@pytest.fixture(params=[30, 200, 1 << 20])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", request.param)


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([*ROWS[:2], b"", *ROWS[2:]]))
    return path


@pytest.mark.usefixtures("block_bytes")
def test_every_kind_is_found_in_its_line(corpus):
    expected: dict[str, list[int]] = {}
    for row, (_, kind) in BAD.items():
        expected.setdefault(kind, []).append(row + 2)  # from 1, and a blank line before
    with look(corpus) as looked:
        found = {f.kind: f for f in looked.findings()}
        assert looked.rows() == 40
        assert looked.size == corpus.stat().st_size
    assert {k: [e.line for e in f.examples] for k, f in found.items()} == expected
    assert {k: f.rows for k, f in found.items()} == {k: len(v) for k, v in expected.items()}
    assert found["not_object"].share_pct == 5
    assert found["duplicate"].examples[0].text == f"{corpus}:32: as line 2"


def test_errors_come_first_then_what_is_found_most(corpus):
    with look(corpus) as looked:
        found = looked.findings()
    graveness = [(f.severity, -f.rows) for f in found]
    assert graveness == sorted(graveness)
    assert found[0].kind == "not_object"


@pytest.mark.usefixtures("block_bytes")
def test_shards_and_their_lines_are_named(tmp_path):
    shards = tmp_path / "corpus"
    shards.mkdir()
    (shards / "a.jsonl").write_bytes(b"\n".join(GOOD[:10]))
    (shards / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join([*GOOD[10:12], b"oops", GOOD[3]])))
    found = findings(shards)
    assert found["not_json"] == [
        f"{shards}/b.jsonl.gz:3: Expecting value: line 1 column 1 (char 0)"
    ]
    assert found["duplicate"] == [f"{shards}/b.jsonl.gz:4: as {shards}/a.jsonl:4"]


def test_nearly_the_same_text_is_found_when_asked_for(tmp_path):
    words = [f"word{n}" for n in range(200)]
    rows = [
        {"instruction": "q", "output": " ".join(words)},
        {"instruction": "q", "output": " ".join(reversed(words))},
        {"instruction": "q", "output": " ".join([*words, "more"])},
        {"instruction": "q", "output": " ".join(words)},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert set(findings(path)) == {"duplicate"}
    found = findings(path, near=0.8)
    assert found["duplicate"] == [f"{path}:4: as line 1"]
    (text,) = found["near_duplicate"]
    assert text.startswith(f"{path}:3: ")
    assert text.endswith("% as line 1")


def test_only_the_first_of_a_kind_are_shown_and_all_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"oops\n" * 30 + b"\n".join(GOOD[:1] * 30))
    with look(path) as looked:
        found = {f.kind: f for f in looked.findings()}
    assert [e.line for e in found["not_json"].examples] == [1, 2, 3, 4, 5]
    assert (found["not_json"].rows, found["duplicate"].rows) == (30, 29)
    assert [e.line for e in found["duplicate"].examples] == [32, 33, 34, 35, 36]


def test_rows_with_errors_are_nobodys_duplicates(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"instruction": "a", "output": ""}\n' * 2)
    assert set(findings(path)) == {"nothing_trained"}


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_corpus_without_rows_is_empty(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is empty"):
        look(path)


def test_several_processes_find_what_one_does(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((b"\n".join(ROWS) + b"\n") * 500)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100_000)
    with look(path) as looked:
        one = looked.findings()
    monkeypatch.setattr(audit, "_IN_PROCESS_BYTES", 0)
    monkeypatch.setattr(audit, "_WORKERS", 2)
    with look(path) as looked:
        assert looked.findings() == one


# --- mending ---------------------------------------------------------------------------


@pytest.mark.usefixtures("block_bytes")
def test_the_clean_corpus_and_the_rejects_make_the_corpus(corpus, tmp_path):
    out = tmp_path / "clean.jsonl"
    with look(corpus) as looked:
        made = mending.mend(looked, out, mending.kinds([], []))
    rejects = [json.loads(line) for line in Path(made.rejects).read_bytes().splitlines()]
    kept_kinds = {"control", "empty_field"}
    rejected = [n for n, (_, kind) in BAD.items() if kind not in kept_kinds]
    assert [r["line"] - 2 for r in rejects] == rejected
    assert [r["kinds"] for r in rejects] == [[BAD[n][1]] for n in rejected]
    assert [r["row"] for r in rejects] == [BAD[n][0].decode(errors="backslashreplace") for n in rejected]  # fmt: skip
    kept = [row for n, row in enumerate(ROWS) if n not in rejected]
    assert out.read_bytes() == b"\xef\xbb\xbf" + b"\n".join(kept) + b"\n"
    assert (made.rows, made.rejected) == (len(kept), len(rejected))
    assert set(findings(out)) == kept_kinds


def test_kinds_can_be_added_and_spared(corpus, tmp_path):
    out = tmp_path / "clean.jsonl"
    with look(corpus) as looked:
        made = mending.mend(looked, out, mending.kinds(["control"], ["secret", "duplicate"]))
    assert made.rejected == len(BAD) - 4  # two duplicates, a secret, an empty question
    with pytest.raises(BadInput, match="'secrets' is no kind of finding"):
        mending.kinds(["secrets"], [])


def test_shards_become_one_clean_file(tmp_path):
    shards = tmp_path / "corpus"
    shards.mkdir()
    (shards / "a.jsonl").write_bytes(GOOD[0] + b"\n\n" + GOOD[1])
    (shards / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD[2] + b"\noops")
    with look(shards) as looked:
        mending.mend(looked, tmp_path / "out.jsonl", mending.kinds([], []))
    assert (tmp_path / "out.jsonl").read_bytes() == b"\n".join(GOOD[:3]) + b"\n"


def test_a_corpus_that_changes_meanwhile_leaves_nothing(corpus, tmp_path):
    out = tmp_path / "clean.jsonl"
    with look(corpus) as looked:
        os.utime(corpus, ns=(1, 1))
        with pytest.raises(LeviathanError, match="changed while it was read"):
            mending.mend(looked, out, mending.kinds([], []))
    assert [p.name for p in tmp_path.iterdir()] == [corpus.name]


# --- the command -----------------------------------------------------------------------


def test_the_screen(run_cli, corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    done = run_cli("data", "check", corpus.name)
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "rows.jsonl  fail  40 rows, 2.04 kB"
    assert "fail  not_json  1 (2.5 %)  not JSON" in lines
    assert "      rows.jsonl:5: Expecting property name enclosed in double quotes" in done.stdout
    assert "warn  duplicate  2 (5 %)  trains the very text of an earlier row" in lines


def test_the_document(run_cli, corpus):
    done = run_cli("data", "check", corpus, "--json")
    document = json.loads(done.stdout)
    assert done.exit_code == 3
    assert (document["rows"], document["sound"], document["format"]) == (40, False, "alpaca")
    assert document["findings"][0]["examples"][0]["line"] == 9


def test_fixing(run_cli, corpus):
    out = corpus.with_name("clean.jsonl")
    done = run_cli("data", "check", corpus, "--fix", out)
    assert done.exit_code == 0, done.output
    assert f"wrote {out}: 29 rows" in done.stdout
    assert run_cli("data", "check", out).exit_code == 0
    assert run_cli("data", "check", corpus, "--fix", out).exit_code == 0  # it is ours to replace


def test_another_format_than_the_recipes_is_told(run_cli, tmp_path):
    path = tmp_path / "talk.jsonl"
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    path.write_text(json.dumps(row) + "\n")
    done = run_cli("data", "check", path)
    assert done.exit_code == 0, done.output
    assert "these rows are sharegpt, and recipe leviathan says alpaca" in done.stderr.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.jsonl"], "corpus nowhere.jsonl does not exist"),
        (["{corpus}", "--fix", "{corpus}"], "rows.jsonl is there already"),
        (["{corpus}", "--fix", "{other}"], "precious.jsonl is there already"),
        (["{corpus}", "--reject", "typos"], "'typos' is no kind of finding"),
        (["{corpus}", "--near", "--similarity", "2"], "--similarity 2 is out of range"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run_cli, corpus, options, message):
    other = corpus.with_name("precious.jsonl")
    other.write_text("precious")
    before = {p: p.read_bytes() for p in corpus.parent.rglob("*") if p.is_file()}
    done = run_cli("data", "check", *(o.format(corpus=corpus, other=other) for o in options))
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {p: p.read_bytes() for p in corpus.parent.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nobody_is_left_when_it_is_ended(tmp_path, number):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((b"\n".join(GOOD) + b"\n") * 40_000)
    command = [sys.executable, "-c", "from leviathan.cli import main; main()", "data", "check",
               str(path), "--near", "--fix", "out.jsonl"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while len(_session(process.pid)) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    _, told = process.communicate(timeout=20)
    assert process.returncode in {130, -9}
    assert number == signal.SIGKILL or "Traceback" not in told
    while _session(process.pid):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.05)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def _session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found
