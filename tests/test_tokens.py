"""Statistics of a corpus: whole, of a part, kept, and refused."""

import gzip
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from leviathan import figures, samples, tokenizer, tokens
from leviathan.errors import BadInput
from leviathan.templates import Text

ALPACA = [{"type": "alpaca", "ds_type": "json"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    return tiny.write_tokenizer(directory, tiny.write_rows(directory / "rows.jsonl", 50))


@pytest.fixture
def source(tmp_path, base):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 200)
    tree = {"base_model": str(base), "datasets": ALPACA}
    return figures.Source(rows, "full", 42, tmp_path / "data", tree)


def write_large(path, rows):
    """Rows from 100 bytes to some 30 KB, longer towards the end of the file."""
    chance = random.Random(4)
    with path.open("w") as out:
        for number in range(rows):
            words = int(chance.lognormvariate(3 + 2 * number / rows, 0.7)) + 2
            text = " ".join(chance.choices(tiny.WORDS, k=words))
            out.write(json.dumps({"instruction": "go", "output": text}) + "\n")
    return path


def test_a_small_corpus_is_tokenised_whole(source):
    found = tokens.measure(source)
    assert (found.rows, len(found.tokens), found.total_error) == (200, 200, 0)
    assert found.exact
    assert found.total_tokens == sum(found.tokens)
    assert found.bytes_per_token == source.corpus.stat().st_size / sum(found.tokens)
    assert found.row_tokens.tolist() == sorted(found.tokens)
    # Alpaca's loss is on the answer.
    assert found.trainable_share == pytest.approx(1 - sum(found.masked) / sum(found.tokens))
    assert 0 < found.trainable_share < 0.3
    assert found.source.startswith("all 200 rows tokenised with ")


@pytest.mark.parametrize("sample", ["30", "10pct", "full"])
def test_a_sample_is_the_same_before_and_after_it_is_drawn(source, sample):
    source = replace(source, sample=sample)
    before = tokens.measure(source)
    drawn = samples.draw(source.wish)
    after = tokens.measure(source)
    assert after == before
    assert after.rows == drawn.rows
    assert tokens.measure(replace(source, seed=43)) != before or sample == "full"


def test_a_large_corpus_is_estimated_within_what_it_says(source, monkeypatch):
    monkeypatch.setattr(tokens, "_BLOCK_BYTES", 8 << 10)  # as if it were 16 times as large
    source = replace(source, corpus=write_large(source.corpus, 20_000), sample="50pct")
    truth = tokens.measure(source, exact=True)
    estimated = tokens.measure(replace(source, directory=source.directory / "other"))
    assert truth.exact
    assert not estimated.exact
    assert 300 < len(estimated.tokens) < 5000
    for name in ("rows", "mean_tokens"):
        off = getattr(estimated, name) - getattr(truth, name)
        error = {"rows": estimated.rows_error, "mean_tokens": estimated.mean_error}[name]
        assert 0 < error < 0.03 * getattr(truth, name)
        assert abs(off) < 4 * error
    assert estimated.total_tokens == pytest.approx(truth.total_tokens, rel=0.02)
    assert estimated.trainable_share == pytest.approx(truth.trainable_share, rel=0.05)
    assert max(estimated.tokens) > 0.5 * max(truth.tokens)
    assert estimated.source.split(" rows")[0].endswith(f"of about {estimated.rows:,}")


def test_rows_of_a_drawn_sample_are_not_estimated(source, monkeypatch):
    monkeypatch.setattr(tokens, "WHOLE_BYTES", 1000)
    source = replace(source, corpus=write_large(source.corpus, 5000), sample="2000")
    drawn = samples.draw(replace(source, sample="2000").wish)
    found = tokens.measure(source)
    assert (found.rows, found.rows_error, found.exact) == (drawn.rows, 0, False)
    assert 0 < found.mean_error < 0.02 * found.mean_tokens


def test_long_rows_are_found_no_more_often_than_short_ones(tmp_path):
    """Taking the next line after a random place would find 10 long rows for each short one."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as out:
        for number in range(40_000):
            out.write(b"x" * (1000 if number % 2 else 100) + b"\n")
    blocks = tokens._read_blocks(path)
    long = sum(len(line) > 500 for _, _, line in blocks.lines)
    assert long / len(blocks.lines) == pytest.approx(0.5, abs=0.01)
    assert blocks.rows == pytest.approx(40_000, rel=0.01)


def test_the_standard_errors_are_what_estimates_are_off_by(source, monkeypatch):
    """Over 30 corpora the errors, in units of what was said, scatter by about one."""
    monkeypatch.setattr(tokens, "_BLOCK_BYTES", 512)
    monkeypatch.setattr(tokens, "_TOKENISED_BYTES", 20_000)
    monkeypatch.setattr(tokens, "WHOLE_BYTES", 1000)
    off = {"rows": [], "mean_tokens": [], "total_tokens": []}
    for seed in range(30):
        chance = random.Random(seed)
        sizes = [1 + chance.randint(0, 1) * chance.randint(0, 100) for _ in range(1500)]
        rows = [{"text": " ".join(chance.choices(tiny.WORDS, k=size))} for size in sizes]
        source.corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tree = {**source.tree, "datasets": [{"type": "completion"}]}
        made = replace(source, tree=tree, directory=source.directory / str(seed))
        estimate, truth = tokens.measure(made), tokens.measure(made, exact=True)
        errors = (
            estimate.rows_error,
            estimate.mean_error,
            estimate.total_error * truth.total_tokens,
        )
        for name, error in zip(off, errors, strict=True):
            off[name].append((getattr(estimate, name) - getattr(truth, name)) / error)
    for name, deviations in off.items():
        assert 0.6 < math.sqrt(sum(z * z for z in deviations) / 30) < 1.5, (name, deviations)


@pytest.mark.parametrize("size", [1, 30, 127, 128, 500, 5000])
def test_a_file_within_the_blocks_is_read_once_and_whole(tmp_path, size):
    path = tmp_path / "rows.jsonl"
    lines = [b"%d" % number * (1 + number % 7) + b"\n" for number in range(size)]
    path.write_bytes(b"\n \n".join(lines))
    blocks = tokens._read_blocks(path)
    assert [line for _, _, line in blocks.lines] == lines or size == 1
    assert (blocks.rows, blocks.rows_error) == (size, 0)
    for _, place, line in blocks.lines:
        assert path.read_bytes()[int(place.split()[1]) :].startswith(line)


def test_the_second_time_it_is_read_from_the_cache(source, monkeypatch):
    found = tokens.measure(source)
    monkeypatch.setattr(tokens._Look, "begin", None)  # whoever looks again fails
    assert tokens.measure(source) == found
    assert tokens.measure(source, exact=True) == found


@pytest.mark.parametrize("what", ["corpus", "tokenizer", "format", "seed", "damage"])
def test_the_cache_is_not_used_when_something_has_changed(source, what, tmp_path):
    before = tokens.measure(source)
    if what == "corpus":
        tiny.write_rows(source.corpus, 200, seed=2)
    elif what == "tokenizer":
        tiny.write_tokenizer(tmp_path / "own", source.corpus, begins=True)
        source = replace(source, tree={**source.tree, "base_model": str(tmp_path / "own")})
    elif what == "format":
        source = replace(source, tree={**source.tree, "train_on_inputs": True})
    elif what == "seed":
        source = replace(source, sample="50")
    (kept,) = source.directory.glob("*.tokens")
    if what == "damage":
        kept.write_bytes(kept.read_bytes()[:-8])
    after = tokens.measure(source)
    assert (after == before) == (what == "damage")


def test_an_estimate_does_not_answer_for_the_exact_figures(source):
    source = replace(source, corpus=write_large(source.corpus, 20_000))
    assert not tokens.measure(source).exact
    told = []
    found = tokens.measure(source, exact=True, progress=lambda *now: told.append(now))
    assert found.exact
    size = source.corpus.stat().st_size
    assert told[-1] == ("tokenising", size, size)
    assert tokens.measure(source) == found


def test_a_directory_that_cannot_be_written_costs_only_time(source, tmp_path):
    (tmp_path / "file").touch()
    source = replace(source, directory=tmp_path / "file")
    assert tokens.measure(source).exact


def test_without_a_tokenizer_it_says_so_and_widens(source):
    source = replace(source, tree={**source.tree, "base_model": "org/unknown"})
    found = tokens.measure(source)
    assert not found.exact
    assert found.total_error == tokenizer.ASSUMPTION_ERROR
    assert "no tokenizer of org/unknown here: 4 bytes a token assumed" in found.source


def test_without_the_library_too(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "the tokenizers library is not installed" in tokens.measure(source).source


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"datasets": [{"type": "gpteacher"}]}, "datasets.0.type: gpteacher"),
        ({"datasets": [*ALPACA, {"path": "more", "type": "alpaca"}]}, "datasets.1"),
        ({"datasets": [{**ALPACA[0], "shards": 4}]}, "datasets.0.shards"),
        ({"dataset_exact_deduplication": True}, "dataset_exact_deduplication"),
    ],
)
def test_what_is_not_followed_is_named(source, tree, named):
    found = tokens.measure(replace(source, tree={**source.tree, **tree}))
    assert not found.exact
    assert found.total_tokens > 1000
    assert f"an estimate: {named} is not followed" in found.source


CHAT = [{"type": "chat_template", "chat_template": "chatml"}]
JINJA = [{"type": "chat_template", "chat_template": "jinja",
          "chat_template_jinja": "{{ raise_exception('users first') }}"}]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "tree", "line"),
    [
        (None, {}, "{corpus} does not exist; set corpus: in the recipe"),
        ([], {}, "{corpus} is empty; it needs one JSON object per line"),
        ([{"text": "a"}], {}, "{path}:1: no 'instruction' in this row (it has: text); set format:"),
        ([{"instruction": "", "output": ""}] * 3, {}, "{corpus} has no text to train on"),
        ([{"instruction": "a", "output": 3}], {}, "{path}:1: 'output' holds int, not text"),
        ([{"messages": "hi"}], {"datasets": CHAT}, "{path}:1: 'messages' is not a list of messages"),
        ([{"messages": [{"content": "a"}]}], {"datasets": CHAT}, "{path}:1: a message in 'messages' has no 'role'"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {"datasets": CHAT}, "{corpus} has no text to train on"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {"datasets": JINJA}, "{path}:1: the chat template refuses it: users first"),
        ([{}], {"datasets": [{**CHAT[0], "chat_template": "chatmI"}]}, "chat_template 'chatmI' is not one Axolotl knows; alpaca,"),
        ([{}], {"datasets": [{**JINJA[0], "chat_template_jinja": "{% if"}]}, "the chat template is not Jinja:"),
        ([{"text": ""}], {"datasets": [{"type": "completion"}]}, "{corpus} has no text to train on"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(source, rows, tree, line):
    source.corpus.unlink()
    if rows is not None:
        source.corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput) as caught:
        tokens.measure(replace(source, tree={**source.tree, **tree}))
    expected = line.replace("{corpus}", f"corpus {source.corpus}")
    assert caught.value.line.startswith(expected.replace("{path}", str(source.corpus)))
    assert "\n" not in caught.value.line
    assert not source.directory.exists()


def test_a_bad_row_in_the_middle_of_a_large_corpus_is_named_by_its_place(source, monkeypatch):
    monkeypatch.setattr(tokens, "WHOLE_BYTES", 1000)
    lines = source.corpus.read_bytes().splitlines(keepends=True)
    source.corpus.write_bytes(b"".join([*lines[:150], b"{}\n", *lines[150:]]))
    place = sum(map(len, lines[:150]))
    with pytest.raises(BadInput, match=rf"rows\.jsonl:byte {place}: no 'instruction'"):
        tokens.measure(source)


@pytest.mark.parametrize("whole", [1 << 20, 1000])
def test_more_rows_than_there_are(source, monkeypatch, whole):
    monkeypatch.setattr(tokens, "WHOLE_BYTES", whole)
    found = tokens.measure(replace(source, sample="199"))
    assert (found.rows, found.rows_error) == (199, 0)
    with pytest.raises(BadInput, match="asks for more rows"):
        tokens.measure(replace(source, sample="201"))


def test_a_chat_without_any_template_is_estimated(source, tmp_path):
    turns = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta gamma"}]
    source.corpus.write_text(json.dumps({"messages": turns}) + "\n")
    tree = {**source.tree, "datasets": [{"type": "chat_template"}]}
    found = tokens.measure(replace(source, tree=tree))
    assert "the chat template (none is at hand) is not followed" in found.source
    assert 0 < found.trainable_share < 0.7
    assert not found.exact


def test_the_prompt_of_alpaca_is_in_front(source):
    """What is masked is the question, whatever its length."""
    look = tokens._Look.begin(source, None, Path(source.tree["base_model"]) / "tokenizer.json")
    text = look.form.render({"instruction": "ask", "output": "answer"})
    assert text == Text(text.prompt, "answer")
    assert "ask" in text.prompt


@pytest.mark.parametrize("form", ["gz", "directory"])
@pytest.mark.parametrize("exact", [True, False])
def test_a_corpus_that_is_not_plain_has_the_same_tokens(source, tmp_path, monkeypatch, form, exact):
    monkeypatch.setattr(tokens, "WHOLE_BYTES", 1000)
    write_large(source.corpus, 3000)
    plain = tokens.measure(source, exact=True)
    data = source.corpus.read_bytes()
    other = tmp_path / "other"
    if form == "gz":
        other.write_bytes(gzip.compress(data))
    else:
        other.mkdir()
        (other / "a.jsonl").write_bytes(data[: data.index(b"\n", 60_000) + 1])
        (other / "b.jsonl").write_bytes(data[data.index(b"\n", 60_000) + 1 :])
    found = tokens.measure(replace(source, corpus=other), exact=exact)
    assert (found.rows, found.rows_error, found.exact) == (3000, 0, exact)
    assert found.total_tokens == pytest.approx(plain.total_tokens, rel=0 if exact else 0.03)
