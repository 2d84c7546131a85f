"""Mixes: weights, order, passes, what is held out, and that nobody's file is lost."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leviathan import corpus, mixing, mixture
from leviathan.errors import BadInput
from leviathan.mixture import Source, Wish

relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TREE = {"base_model": "nobody/nothing", "datasets": [{"type": "completion", "field": "text"}],
        "sequence_len": 2048}  # fmt: skip


def text(name: str, number: int, size: int = 40) -> str:
    return f"{name}{number:06d} ".ljust(size, name)


def write(path: Path, rows: list[dict], end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(row) + end for row in rows).encode())
    return path


def numbered(path: Path, name: str, rows: int, size: int = 40) -> Path:
    return write(path, [{"text": text(name, n, size)} for n in range(rows)])


def mixed(directory: Path, *sources: tuple[Path, object], **more) -> mixture.Mixture:
    return mixing.mix(wish(directory, *sources, **more))


def wish(directory: Path, *sources: tuple[Path, object], **more) -> Wish:
    asked = {"tokens": None, "rows": None, "seed": 42, "tree": TREE, "directory": directory} | more
    named = tuple(Source(path, Fraction(weight)) for path, weight in sources)
    return Wish(named, **asked)


def lines(path: str) -> list[str]:
    return [json.loads(line)["text"].strip() for line in Path(path).read_bytes().splitlines()]


def tokens_of(texts: list[str]) -> int:
    """As they are assumed where there is no tokenizer: four bytes each, and an end."""
    return sum(round(len(t.encode()) / 4) + 1 for t in texts)


# --- weights and order -----------------------------------------------------------------


@relaxed
@given(
    sizes=st.lists(st.tuples(st.integers(50, 400), st.integers(20, 400)), min_size=2, max_size=4),
    cuts=st.lists(st.integers(1, 99), min_size=4, max_size=4),
    amount=st.integers(20_000, 80_000),
    seed=st.integers(0, 2**32),
)
def test_weights_hold_within_a_row_all_along_the_file(tmp_path_factory, sizes, cuts, amount, seed):
    directory = tmp_path_factory.mktemp("mix")
    total = sum(cuts[: len(sizes)])
    sources = [
        (numbered(directory / f"{n}.jsonl", "abcd"[n], rows, size), Fraction(cuts[n], total))
        for n, (rows, size) in enumerate(sizes)
    ]
    made = mixed(directory, *sources, tokens=amount, seed=seed)
    rows = [json.loads(line)["text"] for line in Path(made.path).read_text().splitlines()]
    largest = max(size for _, size in sizes) // 4 + 2
    assert abs(made.tokens - amount) <= largest
    assert made.tokens == tokens_of(rows)
    running, given_so_far = Counter(), 0
    for row in rows:
        running[row[0]] += tokens_of([row])
        given_so_far += tokens_of([row])
        for number, (_, weight) in enumerate(sources):
            share = float(weight) * given_so_far
            assert abs(running["abcd"[number]] - share) <= 2 * largest
    for portion, (_, weight) in zip(made.portions, sources, strict=True):
        assert abs(portion.tokens - float(weight) * amount) <= 2 * largest


def test_rows_keep_their_order_within_a_pass_and_passes_are_whole(tmp_path):
    one, two = numbered(tmp_path / "a.jsonl", "a", 1000), numbered(tmp_path / "b.jsonl", "b", 10)
    made = mixed(tmp_path, (one, "0.5"), (two, "0.5"), tokens=11 * 35)
    a = [t for t in lines(made.path) if t[0] == "a"]
    b = [t for t in lines(made.path) if t[0] == "b"]
    assert a == sorted(set(a))
    assert len(b) == 35 // 2 + 35 % 2 or len(b) == 35 // 2
    assert sorted(b[:10]) == b[:10] == sorted(set(b))
    assert b[10:] == sorted(set(b[10:]))
    assert made.portions[1].epochs == pytest.approx(1.75, abs=0.06)


def test_exactly_so_many_rows(tmp_path):
    one = write(tmp_path / "a.jsonl", [{"text": "x" * (20 + n % 300)} for n in range(900)])
    two = numbered(tmp_path / "b.jsonl", "b", 900, 100)
    made = mixed(tmp_path, (one, "0.3"), (two, "0.7"), rows=700)
    assert made.rows == len(lines(made.path)) == 700
    assert made.portions[0].share == pytest.approx(0.3, abs=0.003)


def test_every_row_is_as_likely_as_any_other(tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": str(n) * (1 + n) * 8} for n in range(10)])
    counts = Counter[str]()
    for seed in range(300):
        made = mixed(tmp_path, (source, "1"), tokens=44, seed=seed, output=tmp_path / "m.jsonl")
        counts.update(t[0] for t in lines(made.path))
    expected = 300 * 44 / tokens_of([str(n) * (1 + n) * 8 for n in range(10)])
    assert all(counts[str(n)] == pytest.approx(expected, abs=35) for n in range(10)), counts


def test_the_same_seed_makes_the_same_mix_and_another_another(tmp_path):
    sources = [(numbered(tmp_path / f"{n}.jsonl", n, 300), "0.5") for n in "ab"]
    digests = [
        mixed(tmp_path, *sources, tokens=2000, seed=seed, output=tmp_path / f"{n}.out.jsonl").digest
        for n, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_bytes_are_those_of_the_sources_with_one_line_end(tmp_path):
    one = tmp_path / "a.jsonl"
    one.write_bytes(b'\xef\xbb\xbf{"text":  "a\\u00e9 \xe2\x80\xa8 x"}\r\n\n{"text": "b"}')
    made = mixed(tmp_path, (one, "1"), rows=2)
    assert Path(made.path).read_bytes() == b'{"text":  "a\\u00e9 \xe2\x80\xa8 x"}\n{"text": "b"}\n'
    assert made.digest == corpus.file_digest(Path(made.path))


# --- held out --------------------------------------------------------------------------


def test_what_is_held_out_is_trained_on_nowhere_however_it_is_written(tmp_path):
    rows = [{"text": f"Some Text number {n} of many"} for n in range(400)]
    again = [{"id": n, "text": f"  some text NUMBER {n}\tof  many\n"} for n in range(400)]
    one, two = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", [*again, *rows])
    made = mixed(tmp_path, (one, "0.2"), (two, "0.8"), tokens=30_000, holdout=Fraction(1, 10))
    held = [" ".join(t.casefold().split()) for t in lines(made.holdout.path)]
    trained = {" ".join(t.casefold().split()) for t in lines(made.path)}
    assert held
    assert not trained & set(held)
    assert len(held) == len(set(held)) == made.holdout.rows  # once each
    assert len(trained) + made.holdout.rows_kept_out // 3 == 400
    assert made.portions[1].epochs > 2


def test_the_holdout_is_about_as_large_as_asked_and_follows_the_weights(tmp_path):
    sources = [
        (numbered(tmp_path / f"{n}.jsonl", n, 4000), w) for n, w in (("a", "0.3"), ("b", "0.7"))
    ]
    made = mixed(tmp_path, *sources, tokens=40_000, holdout=Fraction(1, 20))
    assert made.holdout.tokens == pytest.approx(2000, rel=0.02)
    assert made.holdout.shares[0] == pytest.approx(0.3, abs=0.02)
    assert made.tokens == pytest.approx(40_000, abs=12)


# --- manifest, damage, interruption ----------------------------------------------------


def test_a_mix_is_made_once(tmp_path):
    source = numbered(tmp_path / "a.jsonl", "a", 100)
    asked = wish(tmp_path / "data", (source, "1"), rows=50)
    first = mixing.mix(asked)
    seen = []
    assert mixing.mix(asked, lambda *a: seen.append(a)) == first
    assert not seen
    source.touch()
    again = mixing.mix(asked, lambda *a: seen.append(a))
    assert seen
    assert again.digest == first.digest


@pytest.mark.parametrize("name", ["m.jsonl", "m.holdout.jsonl"])
def test_a_file_of_someone_elses_is_never_overwritten(tmp_path, name):
    source = numbered(tmp_path / "a.jsonl", "a", 100)
    (tmp_path / name).write_text("precious")
    with pytest.raises(BadInput, match="is there already"):
        mixed(
            tmp_path, (source, "1"), rows=50, holdout=Fraction(1, 10), output=tmp_path / "m.jsonl"
        )
    assert (tmp_path / name).read_text() == "precious"


def test_a_bad_row_is_named_and_nothing_is_left(tmp_path):
    source = numbered(tmp_path / "a.jsonl", "a", 300)
    with source.open("a") as file:
        file.write("oops\n")
    with pytest.raises(BadInput, match=r"a\.jsonl:301: not JSON"):
        mixed(tmp_path / "data", (source, "1"), rows=50)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("moment", [0.05, 0.4, 0.8, 1.2])
def test_kill_9_leaves_the_old_mix_or_the_new_one(tmp_path, moment, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"q{n}", "output": "some words " * 40} for n in range(20_000)]
    write(tmp_path / "a.jsonl", rows)
    command = [sys.executable, "-c", "from leviathan.cli import main; main()", "data", "mix",
               "a.jsonl:1", "-o", "m.jsonl", "--rows"]  # fmt: skip
    subprocess.run([*command, "10"], check=True, capture_output=True)
    old = corpus.file_digest(Path("m.jsonl"))
    process = subprocess.Popen([*command, "19000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    time.sleep(0.4 + moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = corpus.file_digest(Path("m.jsonl"))
    subprocess.run([*command, "19000"], check=True, capture_output=True)
    assert left in {old, corpus.file_digest(Path("m.jsonl"))}
    assert not list(tmp_path.rglob(".*.tmp"))


# --- the command -----------------------------------------------------------------------


def test_the_screen_and_the_document(run_cli, tmp_path):
    one = write(tmp_path / "web.jsonl", [{"instruction": f"q{n}", "output": "a" * 90} for n in range(200)])  # fmt: skip
    two = write(tmp_path / "book.jsonl", [{"instruction": f"b{n}", "output": "b" * 90} for n in range(20)])  # fmt: skip
    arguments = ["data", "mix", f"{one}:75", f"{two}:25", "--tokens", "30k"]
    done = run_cli(*arguments)
    assert done.exit_code == 0, done.output
    assert "75.00%" in done.stdout
    assert "is repeated" in done.stderr.replace("\n", " ")
    assert "beyond 4 passes" in done.stderr.replace("\n", " ")
    document = json.loads(run_cli(*arguments, "--json").stdout)
    assert document["tokens"] == pytest.approx(30_000, abs=80)
    assert [p["weight"] for p in document["portions"]] == [0.75, 0.25]
    assert any("repeated" in warning for warning in document["warnings"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}:1"], "how much is to be mixed?"),
        (["{a}:1", "--rows", "5", "--tokens", "5k"], "how much is to be mixed?"),
        (["{a}", "--rows", "5"], "has no weight"),
        (["{a}:x", "--rows", "5"], "has no weight"),
        (["{a}:0", "--rows", "5"], "has weight 0"),
        (["{a}:0.5", "--rows", "5"], "the weights add up to 0.5"),
        (["{a}:0.5", "{a}:0.5", "--rows", "5"], "is named twice"),
        (["nowhere.jsonl:1", "--rows", "5"], "corpus nowhere.jsonl does not exist"),
        (["{other}:1", "--rows", "5"], "other.jsonl:1: no 'instruction' in this row"),
        (["{a}:1", "--tokens", "many"], "--tokens 'many' is no number of tokens"),
        (["{a}:1", "--rows", "5", "--holdout", "90pct"], "--holdout '90pct' is no share"),
        (["{a}:1", "--rows", "5", "-o", "{a}"], "is there already"),
        (["{a}:1", "--tokens", "1"], "--tokens 1 is less than a row"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run_cli, tmp_path, arguments, message):
    a = write(tmp_path / "a.jsonl", [{"instruction": "q", "output": "an answer of words"}] * 30)
    other = write(tmp_path / "other.jsonl", [{"text": "t"}])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = run_cli("data", "mix", *(x.format(a=a, other=other) for x in arguments))
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
