"""The command data stats: its screen, its document, what plan makes of it, bad input."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import tiny
from fakes.processes import LEVIATHAN, listing
from leviathan import tokens
from test_bad_input import SHAPE

TINY = ["-p", "tiny", "-r", "tiny"]
STATS = ["data", "stats", *TINY]


@pytest.fixture
def base(project):
    """The tiny project's base model: a config.json and a tokenizer, no weights."""
    (project / "base").mkdir()
    (project / "base/config.json").write_text(json.dumps(SHAPE))
    return tiny.write_tokenizer(project / "base", project / "rows.jsonl")


@pytest.fixture
def as_if_large(monkeypatch):
    monkeypatch.setattr(tokens, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(tokens, "_BLOCK_BYTES", 64)


def json_of(done):
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def write_long(path: Path) -> Path:
    """Rows of about 100 tokens, every tenth of some 400; sequence_len is 256."""
    with path.open("w") as out:
        for number in range(200):
            text = " ".join(tiny.WORDS[: number % 10 + 3] * (1 if number % 10 else 110))
            out.write(json.dumps({"instruction": "go", "output": text}) + "\n")
    return path


def test_the_screen(run_cli, base):
    write_long(Path("long.jsonl"))
    done = run_cli(*STATS, "long.jsonl")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "long.jsonl    sample full, for tiny on tiny"
    labels = ["rows", "tokens", "lengths", "recommended", "evidence"]
    assert [line.split()[0] for line in lines if line[:1].isalpha()][1:] == [
        *labels[:3], "sequence_len", *labels[3:],
    ]  # fmt: skip
    facts = {line[:13].strip(): line[13:] for line in lines}
    assert facts["rows"].startswith("200, ")
    assert re.fullmatch(r"[\d,]+, \d+ a row; \d+ % trained on", facts["tokens"])
    assert re.fullmatch(r"\d+ to \d+; median \d+, p95 \d+, p99 \d+", facts["lengths"])
    assert facts["evidence"] == "all 200 rows tokenised with base/tokenizer.json"
    assert facts["recommended"].startswith("512: no row is longer (at 256: 10 % with 29 %)")
    chart = lines[4:9]
    assert all(line[8] == "┤" for line in chart)
    assert "█" in chart[0]
    assert lines[10].split() == ["128", "256"]
    (mark,) = (line.index("▲") for line in lines if "▲ sequence_len 256" in line)
    assert all(line[mark] == "│" for line in chart[:4])
    table = [
        line.split()
        for line in lines
        if re.match(r" +[\d,]+ ", line) and "┤" not in line and "%" in line
    ]
    assert [row[0] for row in table] == ["256", "1,024", "2,048", "4,096", "8,192"]
    assert table[0][1:4] == ["*", "10", "%"]
    assert max(map(len, lines[4:18])) <= 80
    assert re.fullmatch(r"kept for plan in work/data/long-\w{16}\.tokens\n", done.stderr)


def on_a_terminal(*arguments: str) -> list[str]:
    """Lines of a command on a terminal of 80 x 24."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(
        [LEVIATHAN, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**environment, "TERM": "dumb"},
    ) as running:  # fmt: skip
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while more := os.read(ours, 65536):
                shown += more
    os.close(ours)
    assert running.returncode == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    return [line.split("\r")[-1] for line in text.replace("\r\n", "\n").splitlines()]


def test_it_fits_a_terminal_of_80_by_24(project, base):
    write_long(Path("long.jsonl"))
    lines = on_a_terminal(*STATS, "long.jsonl", "--set", "sequence_len=2048")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    (mark,) = (line.index("▲") for line in lines if "▲" in line)
    assert sum(line[mark : mark + 1] == "│" for line in lines) == 5


def test_the_document(run_cli, base):
    document = json_of(run_cli(*STATS, "--json"))
    assert {
        "corpus": "rows.jsonl", "sample": "full", "rows": 72, "rows_error": 0, "exact": True,
        "bytes": Path("rows.jsonl").stat().st_size, "sequence_len": 256,
        "over_long_rows_are": "dropped", "recommended_sequence_len": 128,
    }.items() <= document.items()  # fmt: skip
    told = document["tokens"]
    assert told["low"] == told["total"] == told["high"] == round(72 * told["mean"])
    assert list(told["percentiles"]) == ["min", "5", "25", "50", "75", "95", "99", "max"]
    assert 0 < document["trainable_share"] < 0.3
    assert list(document["truncated"]) == ["256", "1024", "2048", "4096", "8192"]
    assert document["truncated"]["256"] == {
        "rows": {"value": 0, "low": 0, "high": 0}, "tokens": {"value": 0, "low": 0, "high": 0},
    }  # fmt: skip
    assert 0.5 < document["packing"]["256"]["packed"] <= 1
    assert document["prepared"] == {
        "rows": 72, "tokens": told["total"],
        "trainable_tokens": round(told["total"] * document["trainable_share"]),
    }  # fmt: skip
    assert document["recommendation"].startswith("no row is longer")
    assert document["source"] == "all 72 rows tokenised with base/tokenizer.json"
    assert Path(document["path"]).is_file()


def test_another_corpus_sample_and_format(run_cli, base):
    Path("more.jsonl").write_text('{"text": "alpha beta"}\n' * 50)
    document = json_of(
        run_cli(*STATS, "more.jsonl", "-s", "20", "--set", "format=completion", "--json")
    )
    assert (document["corpus"], document["rows"]) == ("more.jsonl", 20)
    assert document["trainable_share"] == 1
    assert document["over_long_rows_are"] == "split"
    one, other = (
        json_of(run_cli(*STATS, "-s", "20", "--set", f"seed={seed}", "--json"))["tokens"]["total"]
        for seed in (1, 2)
    )
    assert one != other


def test_a_part_of_a_large_corpus_has_errors_and_exact_has_none(run_cli, base, as_if_large):
    write_long(Path("rows.jsonl"))
    part = json_of(run_cli(*STATS, "--json"))
    whole = json_of(run_cli(*STATS, "--exact", "--json"))
    assert (part["exact"], whole["exact"]) == (False, True)
    assert part["rows_error"] > whole["rows_error"] == 0
    told = part["tokens"]
    assert told["low"] < told["total"] < told["high"]
    assert told["low"] <= whole["tokens"]["total"] <= told["high"]
    over = part["truncated"]["256"]["rows"]
    assert over["low"] < over["value"] < over["high"]
    assert over["low"] <= whole["truncated"]["256"]["rows"]["value"] <= over["high"]
    assert whole["truncated"]["256"]["rows"]["value"] == 0.1
    assert re.match(r"\d+ of about \d+ rows tokenised", part["source"])
    assert json_of(run_cli(*STATS, "--json")) == whole  # once known, never estimated again
    shown = run_cli(*STATS, "-s", "30").stdout
    assert "+-" not in shown
    assert "all 30 rows tokenised" in shown


def test_a_part_on_the_screen(run_cli, base, as_if_large):
    write_long(Path("rows.jsonl"))
    shown = run_cli(*STATS).stdout
    assert re.search(r"^rows +about \d+ \(\+- \d+\), ", shown, re.MULTILINE)
    assert re.search(r"^tokens +[\d,]+ \([\d,]+ to [\d,]+\), \d+ a row", shown, re.MULTILINE)
    assert re.search(r"^ +256 \* +[\d.]+ % \([\d.]+ to [\d.]+\) ", shown, re.MULTILINE)


def test_plan_is_exact_for_any_sample_once_every_row_was_counted(run_cli, base, as_if_large):
    write_long(Path("rows.jsonl"))
    plan = ["plan", *TINY, "--json"]
    assert json_of(run_cli(*plan, "-s", "50pct"))["exact"] is False
    kept = json_of(run_cli(*STATS, "--exact", "--json"))
    for sample, rows in (("50pct", 100), ("30", 30), ("full", 200)):
        planned = json_of(run_cli(*plan, "-s", sample))
        assert planned["exact"] is True
        assert sum(planned["rows"].values()) == rows
        assert planned["evidence"]["tokens"].startswith(f"all {rows} rows tokenised with")
    assert planned["rows"]["dropped"] == 20
    prepared = kept["prepared"]
    assert prepared["rows"] == planned["rows"]["train"] + planned["rows"]["eval"] == 180
    assert planned["tokens"] == pytest.approx(
        prepared["tokens"] * planned["rows"]["train"] / 180, abs=1
    )
    Path("rows.jsonl").touch()
    assert json_of(run_cli(*plan, "-s", "50pct"))["exact"] is False


def test_plan_takes_a_closer_look_too(run_cli, base, as_if_large):
    write_long(Path("rows.jsonl"))
    looked = json_of(run_cli(*STATS, "--json"))
    planned = json_of(run_cli("plan", *TINY, "-s", "full", "--json"))
    assert planned["evidence"]["tokens"] == looked["source"]


def test_without_the_tokenizer_it_says_what_it_rests_on(run_cli, project):
    done = run_cli(*STATS, "--set", "base_model=org/model", "--json")
    document = json_of(done)
    assert document["exact"] is False
    assert "no tokenizer of org/model here: 4 bytes a token assumed" in document["source"]
    told = document["tokens"]
    assert told["low"] == pytest.approx(told["total"] * (1 - 1.96 * 0.25), rel=0.01)


def test_the_base_models_positions_are_the_end(run_cli, base):
    write_long(Path("rows.jsonl"))
    (base / "config.json").write_text(json.dumps({**SHAPE, "max_position_embeddings": 300}))
    document = json_of(run_cli(*STATS, "--json"))
    assert document["recommended_sequence_len"] == 300
    assert document["recommendation"].endswith("; the base model takes at most 300")


def test_where_work_cannot_be_written_it_tells_all_the_same(run_cli, base):
    Path("work").write_text("")
    done = run_cli(*STATS, "--json")
    assert json_of(done)["path"] is None
    assert done.stderr == ""


def test_it_loads_no_training_stack(project, base):
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom leviathan import cli\n"
        f"done = CliRunner().invoke(cli.app, {STATS})\n"
        "print(done.exit_code, {'torch', 'transformers', 'axolotl', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "0 set()\n", done.stderr


def rows(*lines: str):
    return lambda: Path("rows.jsonl").write_text("".join(f"{line}\n" for line in lines))


def nothing() -> None:
    pass


ROW = '{"instruction": "i", "input": "", "output": "o"}'
BAD = {
    "no corpus": (lambda: Path("rows.jsonl").unlink(), STATS, "corpus rows.jsonl does not exist"),
    "corpus named wrongly": (nothing, [*STATS, "row.jsonl"], "corpus row.jsonl does not exist"),
    "the default's corpus, not here": (nothing, ["data", "stats"], "corpus examples/datasets/FINAL"),
    "empty corpus": (rows(), STATS, "corpus rows.jsonl is empty"),
    "not JSON far down": (rows(*[ROW] * 150, "hello"), STATS, "rows.jsonl:151: not JSON"),
    "not UTF-8": (lambda: Path("rows.jsonl").write_bytes(b'{"a": "\xff"}\n'), STATS, "rows.jsonl:1: not UTF-8"),
    "another format": (nothing, [*STATS, "--set", "format=chat"], "rows.jsonl:1: no 'messages' in this row"),
    "no text": (rows('{"instruction": "", "output": ""}'), STATS, "corpus rows.jsonl has no text to train on"),
    "no sample": (nothing, [*STATS, "-s", "ten"], "--sample 'ten' is not a sample"),
    "too many rows": (nothing, [*STATS, "-s", "73"], "--sample 73 asks for more rows than rows.jsonl has (72)"),
    "unknown profile": (nothing, ["data", "stats", "-p", "a400"], "no profile called 'a400'"),
    "unknown key": (nothing, [*STATS, "--set", "sequenc_len=4"], "--set sequenc_len=4: sequenc_len is not a key Axolotl knows"),
    "no length": (nothing, [*STATS, "--set", "sequence_len=0"], "sequence_len is 0; it needs a whole number"),
    "base model not there": (nothing, [*STATS, "--set", "base_model=./bsae"], "base model directory ./bsae does not exist"),
    "unknown template": (nothing, [*STATS, "--set", "format=chat", "--set", "chat_template=chatmI"], "chat_template"),
    "two corpora": (nothing, [*STATS, "a.jsonl", "b.jsonl"], "Got unexpected extra argument (b.jsonl)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(run_cli, project, base, name):
    change, command, start = BAD[name]
    change()
    before = listing(project)
    done = run_cli(*command)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"leviathan: {start}")
    assert done.stdout == ""
    assert listing(project) == before


def test_a_sequence_len_beyond_all_bounds_is_no_traceback(run_cli, base):
    """Whether the base model takes it is not asked here; the figures are those of no cut."""
    document = json_of(run_cli(*STATS, "--set", "sequence_len=99999999999", "--json"))
    assert document["truncated"]["99999999999"]["rows"]["value"] == 0
