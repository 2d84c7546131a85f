"""Figures kept between calls, and what every row of a corpus knows of its samples."""

import importlib.util
import json
import sys
from dataclasses import fields, replace

import pytest

import tiny
from leviathan import figures, samples, tokens
from leviathan.errors import BadInput

ALPACA = [{"type": "alpaca", "ds_type": "json"}]
ROWS = ("tokens", "masked", "trainable", "sizes")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    return tiny.write_tokenizer(directory, tiny.write_rows(directory / "rows.jsonl", 50))


@pytest.fixture
def source(tmp_path, base):
    """Of a corpus that would not be read whole."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 3000)
    tree = {"base_model": str(base), "datasets": ALPACA}
    return figures.Source(rows, "full", 42, tmp_path / "data", tree)


@pytest.fixture(autouse=True)
def as_if_large(monkeypatch):
    monkeypatch.setattr(tokens, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(tokens, "_BLOCK_BYTES", 256)


def never_look(monkeypatch):
    monkeypatch.setattr(tokens._Look, "begin", None)  # whoever looks fails


@pytest.mark.parametrize("sample", ["10pct", "0.5pct", "7", "2999", "3000", "100pct", "full"])
@pytest.mark.parametrize("seed", [42, 7])
def test_every_row_counted_once_serves_any_sample(source, monkeypatch, sample, seed):
    asked = replace(source, sample=sample, seed=seed)
    elsewhere = replace(asked, directory=source.directory / "other")
    directly = tokens.measure(elsewhere, exact=True)
    tokens.measure(source, exact=True)
    never_look(monkeypatch)
    assert tokens.measure(asked) == directly
    assert tokens.measure(asked).exact


def test_it_serves_a_sample_that_is_drawn_too(source, monkeypatch):
    tokens.measure(source, exact=True)
    drawn = samples.draw(replace(source, sample="10pct").wish)
    never_look(monkeypatch)
    found = tokens.measure(replace(source, sample="10pct"))
    assert (found.rows, found.size) == (drawn.rows, drawn.bytes)


def test_drawing_the_whole_corpus_does_not_lose_the_figures(source, monkeypatch):
    found = tokens.measure(source, exact=True)
    samples.draw(replace(source, sample="full").wish)
    never_look(monkeypatch)
    assert tokens.measure(source) == found


def test_an_exact_sample_serves_only_itself(source):
    tokens.measure(replace(source, sample="50pct"), exact=True)
    assert tokens.measure(replace(source, sample="50pct")).exact
    assert not tokens.measure(replace(source, sample="50pct", seed=1)).exact
    assert not tokens.measure(source).exact


def test_what_is_exact_replaces_an_estimate_that_is_kept(source):
    asked = replace(source, sample="10pct")
    assert not tokens.measure(asked).exact
    tokens.measure(source, exact=True)
    assert tokens.measure(asked).exact


def test_a_closer_look_counts_all_it_reads_and_serves_who_asks_for_less(source, monkeypatch):
    monkeypatch.setattr(tokens, "_TOKENISED_BYTES", 5000)
    glance = tokens.measure(source)
    assert 0 < glance.counted < len(glance.tokens) / 3
    told = []
    closer = tokens.measure(source, closer=True, progress=lambda *now: told.append(now))
    assert closer.counted == len(closer.tokens) == len(glance.tokens)
    assert not closer.whole
    assert told[-1][1] == told[-1][2] == sum(closer.sizes)
    assert closer.total_error < glance.total_error
    truth = tokens.measure(replace(source, directory=source.directory / "x"), exact=True)
    assert closer.total_tokens == pytest.approx(
        truth.total_tokens, rel=4 * closer.total_error, abs=1
    )
    assert closer.size == pytest.approx(truth.size, rel=0.001)
    assert closer.trainable_share == pytest.approx(truth.trainable_share, rel=0.03)
    never_look(monkeypatch)
    assert tokens.measure(source) == closer


def test_figures_are_kept_row_by_row_in_four_bytes_each(source):
    found = tokens.measure(source, exact=True)
    (path,) = source.directory.iterdir()
    assert path == figures.keep(source, found)
    header = path.read_bytes().split(b"\n")[0]
    assert path.stat().st_size == len(header) + 1 + 3000 * 4 * 4
    assert set(json.loads(header)) == {field.name for field in fields(found)}
    assert figures.known(source, source.corpus.parent) is None  # of another tokenizer
    for name in ROWS:
        assert len(getattr(found, name)) == 3000
    assert sum(found.sizes) == found.size == source.corpus.stat().st_size


def test_what_is_kept_already_is_not_written_again(source):
    found = tokens.measure(source, exact=True)
    (path,) = source.directory.iterdir()
    before = path.stat().st_ino
    assert figures.keep(source, found) == path
    assert path.stat().st_ino == before
    path.write_bytes(path.read_bytes()[:-4])
    assert figures.keep(source, found) == path
    assert path.stat().st_ino != before


def test_where_nothing_can_be_kept_it_says_so(source, tmp_path):
    (tmp_path / "file").touch()
    source = replace(source, directory=tmp_path / "file")
    assert figures.keep(source, tokens.measure(source, kept=False)) is None


JINJA = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("what", ["corpus", "tokenizer", "template", "library"])
def test_they_are_not_used_when_something_has_changed(source, what, tmp_path, monkeypatch):
    template = tmp_path / "own.jinja"
    template.write_text(JINJA)
    turns = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}]
    source.corpus.write_text((json.dumps({"messages": turns}) + "\n") * 2000)
    entry = {
        "type": "chat_template",
        "chat_template": "jinja",
        "chat_template_jinja": str(template),
    }
    base = tiny.write_tokenizer(tmp_path / "own", source.corpus)
    tree = {"base_model": str(base), "datasets": [entry]}
    source = replace(source, tree=tree)
    assert tokens.measure(replace(source, sample="100"), exact=True).exact
    assert tokens.measure(source, exact=True).exact
    if what == "corpus":
        source.corpus.write_text((json.dumps({"messages": turns[:2]}) + "\n") * 1999)
    elif what == "tokenizer":
        tiny.write_tokenizer(base, source.corpus, begins=True)
    elif what == "template":
        template.write_text(JINJA.replace("[", "[[["))
    else:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        assert importlib.util.find_spec("tokenizers") is None
    for sample in ("100", "full"):
        assert not tokens.measure(replace(source, sample=sample)).exact


def test_a_sample_of_more_rows_than_there_are(source):
    tokens.measure(source, exact=True)
    with pytest.raises(BadInput, match="asks for more rows"):
        tokens.measure(replace(source, sample="3001"))


def test_a_sample_without_a_token_to_train_on(source):
    empty, full = ({"instruction": "a", "output": text} for text in ("", "b"))
    lines = [json.dumps(empty) + "\n"] * 400 + [json.dumps(full) + "\n"]
    source.corpus.write_text("".join(lines))
    tokens.measure(source, exact=True)
    with pytest.raises(BadInput, match="has no text to train on"):
        tokens.measure(replace(source, sample="1"))
