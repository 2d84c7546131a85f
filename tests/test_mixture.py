"""Mixes: weights, order, passes, what is held out, and that nobody's file is lost."""

import gzip
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from leviathan import corpus, layers, mixing, mixture, tokens
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
            # A row of its own ahead, or one of each other source behind; and what was reached.
            assert abs(running["abcd"[number]] - share) <= (len(sources) + 1) * largest
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


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "ndjson"])
def test_a_packed_source_gives_the_same_rows(tmp_path, kind):
    plain = numbered(tmp_path / "a.jsonl", "a", 3000)
    other = tmp_path / f"a.{kind}"
    data = plain.read_bytes()
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(kind.split(".")[-1], bytes)
    other.write_bytes(pack(data))
    first, second = (
        mixed(tmp_path, (source, "1"), tokens=20_000, output=tmp_path / f"{n}.out.jsonl")
        for n, source in enumerate((plain, other))
    )
    assert first.digest == second.digest


def test_shards_and_parquet_are_sources_too(tmp_path):
    shards = tmp_path / "shards"
    (shards / "deep").mkdir(parents=True)
    numbered(shards / "1.jsonl", "a", 300)
    (shards / "deep/2.jsonl.gz").write_bytes(
        gzip.compress(numbered(tmp_path / "x.jsonl", "b", 300).read_bytes())
    )
    from pyarrow import Table, parquet

    rows = [{"text": text("c", n)} for n in range(600)]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "c.parquet")
    asked = (shards, "0.5"), (tmp_path / "c.parquet", "0.5")
    made = mixed(tmp_path / "data", *asked, rows=600)
    first = Counter(line[0] for line in lines(made.path))
    assert (first["a"] + first["b"], first["c"]) == (300, 300)
    assert 100 < first["a"] < 200


@pytest.mark.parametrize("form", ["alpaca", "completion", "chat", "sharegpt"])
def test_tokens_are_those_that_data_stats_counts(tmp_path, base, form):
    """With the tokenizer, row by row: the mix's tokens are the mix's file's tokens."""
    chance = random.Random(1)
    tree = {"base_model": str(base), "chat_template": "chatml",
            "datasets": layers.dataset_entries(form)}  # fmt: skip
    sources = []
    for name in "ab":
        rows = [row_of(form, name, chance) for _ in range(150)]
        sources.append((write(tmp_path / f"{name}.jsonl", rows), "0.5"))
    made = mixed(tmp_path / "data", *sources, rows=200, tree=tree, holdout=Fraction(1, 20))
    assert made.in_tokens
    assert not made.unfollowed
    for path, amount in ((made.path, made.tokens), (made.holdout.path, made.holdout.tokens)):
        figures = tokens.measure(
            tokens.Source(Path(path), "full", 42, tmp_path / "other", tree), exact=True
        )
        assert figures.exact
        assert sum(figures.tokens) == amount


def row_of(form: str, name: str, chance: random.Random) -> dict:
    said = [" ".join(chance.choices(tiny.WORDS, k=chance.randint(1, 30))) for _ in range(4)]
    if form == "alpaca":
        return {"instruction": said[0], "input": chance.choice(["", said[1]]), "output": said[2]}
    if form == "completion":
        return {"text": "\n".join(said)}
    field, role, content, names = {
        "chat": ("messages", "role", "content", ("user", "assistant")),
        "sharegpt": ("conversations", "from", "value", ("human", "gpt")),
    }[form]
    return {field: [{role: names[n % 2], content: text} for n, text in enumerate(said)]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    return tiny.write_tokenizer(directory, tiny.write_rows(directory / "rows.jsonl", 50))


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


def test_a_conversation_is_the_same_with_other_ids_keys_and_spaces(tmp_path):
    def said(number: int, other: bool) -> dict:
        asked, answer = f"What is {number}?", f"A number, {number}."
        if not other:
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            return {"messages": turns, "id": number}
        turns = [{"content": f" {asked.upper()}\n", "role": "user", "time": number},
                 {"weight": 1, "content": answer, "role": "assistant"}]  # fmt: skip
        return {"source": "x", "messages": turns}

    one = write(tmp_path / "a.jsonl", [said(n, False) for n in range(300)])
    two = write(tmp_path / "b.jsonl", [said(n, True) for n in reversed(range(300))])
    tree = {**TREE, "datasets": [{"type": "chat_template", "field_messages": "messages"}]}
    made = mixed(tmp_path, (one, "0.5"), (two, "0.5"), rows=900, tree=tree, holdout=Fraction(1, 8))

    def questions(path: str) -> list[str]:
        rows = [json.loads(line)["messages"] for line in Path(path).read_text().splitlines()]
        return [row[0]["content"].strip().casefold() for row in rows]

    held, trained = questions(made.holdout.path), questions(made.path)
    assert len(held) == len(set(held))
    assert 15 < len(held) < 75
    assert not set(held) & set(trained)
    assert len(set(trained)) + made.holdout.rows_kept_out // 2 == 300


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


def test_counts_are_those_of_the_content_wherever_it_lies(tmp_path):
    source = numbered(tmp_path / "a.jsonl", "a", 100, 40)
    mixed(tmp_path / "data", (source, "1"), rows=100)
    moved = source.rename(tmp_path / "other-name.jsonl")
    copy = Path(shutil.copy(moved, source))
    mixed(tmp_path / "data", (copy, "1"), rows=99)
    assert len(list((tmp_path / "data").glob("*.counts"))) == 1
    numbered(source, "a", 100, 80)  # as many rows, of twice the tokens
    made = mixed(tmp_path / "data", (source, "1"), rows=100)
    assert made.tokens == tokens_of(lines(made.path)) == 100 * 21


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


DYING = """
import os, signal, sys
from pathlib import Path
left = int(sys.argv.pop(1))
def dying(real):
    def call(*given, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*given, **named)
    return call
Path.replace, Path.unlink, os.fsync = map(dying, (Path.replace, Path.unlink, os.fsync))
from leviathan.cli import main
main()
"""


def test_killed_at_any_step_no_holdout_is_beside_a_mix_that_has_its_rows(run_cli, tmp_path):
    """Before every fsync, rename and removal of a mix that takes another's place."""
    write(tmp_path / "a.jsonl", [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(200)])
    asked = ["data", "mix", "a.jsonl:1", "--rows", "300", "--holdout", "20pct", "-o", "m.jsonl"]

    def whole(seed: int) -> bytes:
        done = run_cli(*asked, "--seed", str(seed))
        assert done.exit_code == 0, done.output  # whatever was left, it is known to be ours
        return mix.read_bytes()

    def killed(steps: int) -> int:
        command = [sys.executable, "-c", DYING, str(steps), *asked, "--seed", "2"]
        return subprocess.run(command, capture_output=True, check=False).returncode

    mix, held = Path("m.jsonl"), Path("m.holdout.jsonl")
    new, old = whole(2), whole(1)
    steps, states = 0, set()
    while killed(steps):
        assert mix.read_bytes() in {old, new}
        shown = set(held.read_bytes().splitlines()) if held.exists() else set()
        assert not shown & set(mix.read_bytes().splitlines())
        states.add((mix.read_bytes() == new, held.exists()))
        assert whole(1) == old
        steps += 1
    assert mix.read_bytes() == new
    assert steps > 8
    assert states == {(False, True), (False, False), (True, False), (True, True)}
    assert not list(tmp_path.rglob(".*.tmp"))


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"q{n}", "output": "some words " * 40} for n in range(60_000)]
    write(tmp_path / "a.jsonl", rows)
    process = subprocess.Popen(
        [sys.executable, "-c", "from leviathan.cli import main; main()", "data", "mix", "a.jsonl:1",
         "--rows", "50000", "-o", "deep/m.jsonl"], stderr=subprocess.PIPE,
    )  # fmt: skip
    while not list(tmp_path.glob("work/data/.*.counts.*.tmp")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read() == b""
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.jsonl"]
    assert not Path("deep").exists()


def test_a_mix_that_does_not_fit_is_refused_and_its_counts_are_not_lost(
    run_cli, tmp_path, monkeypatch
):
    write(tmp_path / "a.jsonl", [{"instruction": "q", "output": "answer " * 50}] * 100)
    Usage = type(shutil.disk_usage("."))  # noqa: N806 - a type
    monkeypatch.setattr(mixing.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**4, 10**4))
    done = run_cli("data", "mix", "a.jsonl:1", "--tokens", "5G", "-o", "there/m.jsonl")
    assert done.exit_code == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("leviathan: the mix takes ")
    assert "has 1e-05 GB free; make room for " in line
    assert "-o" in line
    assert not Path("there").exists()


def test_a_mix_without_a_holdout_removes_the_old_ones(tmp_path):
    source, output = numbered(tmp_path / "a.jsonl", "a", 200), tmp_path / "m.jsonl"
    with_one = mixed(tmp_path, (source, "1"), rows=50, holdout=Fraction(1, 10), output=output)
    assert Path(with_one.holdout.path).exists()
    mixed(tmp_path, (source, "1"), rows=50, output=output)
    assert not Path(with_one.holdout.path).exists()


def test_a_recipe_that_tests_on_the_holdout_has_the_same_mix(tmp_path):
    source = numbered(tmp_path / "a.jsonl", "a", 200)
    first = wish(tmp_path, (source, "1"), rows=50)
    tested = wish(tmp_path, (source, "1"), rows=50, tree={**TREE, "test_datasets": [{"path": "h"}]})
    other = wish(tmp_path, (source, "1"), rows=50, tree={**TREE, "train_on_inputs": True})
    assert first.request == tested.request != other.request


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sequence_len": 50}, "training drops rows longer than sequence_len 50, and the weights of what is left are"),
        ({"sequence_len": 50, "excess_length_strategy": "truncate"}, "training cuts rows longer than sequence_len 50"),
        ({"sequence_len": 4096}, None),
        ({"sequence_len": 50, "datasets": [{"type": "completion"}]}, None),
        ({"val_set_size": 0.1}, "b.jsonl come more than once, and val_set_size takes rows at random"),
        ({"rl": "dpo"}, "tokens are estimated: rl is not followed"),
    ],
)  # fmt: skip
def test_what_training_would_make_of_the_weights_is_told(tmp_path, keys, said):
    long = [{"instruction": "q", "output": "x" * (400 if n % 3 else 40)} for n in range(300)]
    short = [{"instruction": "q", "output": "x" * 40} for n in range(300)]
    tree = {"base_model": "nobody/nothing", "datasets": [{"type": "alpaca"}], **keys}
    if tree["datasets"] == [{"type": "completion"}]:
        long, short = ([{"text": row["output"]} for row in rows] for rows in (long, short))
    sources = (
        (write(tmp_path / "a.jsonl", long), "0.6"),
        (write(tmp_path / "b.jsonl", short), "0.4"),
    )
    made = mixed(tmp_path, *sources, rows=590, tree=tree)
    told = [text for text in mixture.warnings(made, tree) if "bytes, not in tokens" not in text]
    assert [said in text for text in told] == [True] if said else told == []


def test_memory_does_not_grow_with_the_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    peaks = []
    for rows in (4_000, 40_000):
        words = "some words " * 100
        write(Path("a.jsonl"), [{"instruction": f"q{n}", "output": words} for n in range(rows)])
        done = subprocess.run([sys.executable, "-c", PEAK, str(rows)], capture_output=True,
                              text=True, check=True)  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 12
    assert peaks[1] < 120


PEAK = """
import re, sys
from pathlib import Path
from leviathan.cli import main
sys.argv[1:] = ["data", "mix", "a.jsonl:1", "--rows", sys.argv[1], "--holdout", "1pct"]
sys.stdout, out = open("out", "w"), sys.stdout
try:
    main()
except SystemExit as end:
    assert not end.code
# ru_maxrss would begin with that of the process that started this one.
print(int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10, file=out)
"""


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
    sets = ["--set", "lora_r=4"]
    done = run_cli(*arguments, *sets)
    path = json.loads(run_cli(*arguments, "--json").stdout)["path"]
    assert done.stderr.splitlines()[-1] == (
        f"next: leviathan train -p a4000 -r leviathan -s full --set lora_r=4 --set corpus={path}"
    )
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
