"""Tokens of a row, against Axolotl's own prompt strategies."""

import json
import random

import pytest
from axolotl.prompt_strategies import chat_template, completion
from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy
from axolotl.prompters import AlpacaPrompter
from axolotl.utils.dict import DictDefault
from transformers import AutoTokenizer

import tiny
from leviathan import templates, tokenizer
from leviathan.errors import BadInput
from leviathan.templates import Text

LONG = 100_000  # nothing is cut: lengths are compared as they are before that


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two directories: texts begin with a token of their own, or not."""
    made = {}
    for begins in (False, True):
        directory = tmp_path_factory.mktemp("base")
        corpus = tiny.write_rows(directory / "rows.jsonl", 50)
        made[begins] = tiny.write_tokenizer(directory, corpus, begins=begins)
    return made


def words(chance):
    return " ".join(chance.choices(tiny.WORDS, k=chance.randint(1, 12)))


def alpaca_rows():
    chance = random.Random(1)
    yield {"instruction": "a", "output": ""}
    yield {"instruction": "a", "input": None, "output": "b<|endoftext|>"}
    yield {"instruction": "  ünïcode\n ", "input": "日本", "output": " leading and trailing "}
    for _ in range(20):
        yield {"instruction": words(chance), "input": words(chance), "output": words(chance)}


def chat_rows():
    chance = random.Random(2)
    yield [("user", "a"), ("assistant", "b")]
    yield [("system", "be brief"), ("user", " padded "), ("assistant", "\n padded \n")]
    yield [("user", "no answer")]
    yield [("user", "[[brackets]]"), ("assistant", "[[a]]"), ("user", "zz"), ("assistant", "zz")]
    yield [("human", "other names"), ("gpt", "are mapped"), ("user", "b"), ("assistant", "")]
    yield [("user", "repeat"), ("assistant", "repeat"), ("user", "repeat"), ("assistant", "repeat")]
    for _ in range(10):
        turns = [("user", words(chance)), ("assistant", words(chance))]
        yield turns * chance.randint(1, 3)


def counted(directory, tree, rows):
    file = tokenizer.find(tree)
    form = templates.read(tree, tokenizer.special_tokens(file, tree), tokenizer.chat_template(file))
    assert not form.unfollowed
    texts = [form.render(row) for row in rows]
    return tokenizer.Tokenizer(file, tree).count(
        texts, adds_special_tokens=form.adds_special_tokens
    )


def count_of(made):
    """Axolotl's row in our words."""
    trained = [index for index, label in enumerate(made["labels"]) if label != -100]
    tokens = len(made["input_ids"])
    return tokenizer.Count(tokens, trained[0] if trained else tokens, len(trained))


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("train_on_inputs", [False, True])
def test_alpaca(tokenizers, begins, train_on_inputs):
    directory = tokenizers[begins]
    theirs = AlpacaPromptTokenizingStrategy(
        AlpacaPrompter(), AutoTokenizer.from_pretrained(directory), train_on_inputs, LONG
    )
    rows = list(alpaca_rows())
    tree = {"base_model": str(directory), "datasets": [{"type": "alpaca"}],
            "train_on_inputs": train_on_inputs}  # fmt: skip
    expected = [count_of(theirs.tokenize_prompt(row)) for row in rows]
    assert counted(directory, tree, rows) == expected


@pytest.mark.parametrize("begins", [False, True])
def test_completion(tokenizers, begins):
    directory = tokenizers[begins]
    theirs = completion.load(
        AutoTokenizer.from_pretrained(directory), DictDefault(sequence_len=LONG), {"field": "body"}
    )
    rows = [{"body": row["output"] or "x"} for row in alpaca_rows()]
    tree = {"base_model": str(directory), "datasets": [{"type": "completion", "field": "body"}]}
    expected = [
        count_of({key: value[0] for key, value in
                  theirs.tokenize_prompt({"body": [row["body"]]}).items()})
        for row in rows
    ]  # fmt: skip
    assert counted(directory, tree, rows) == expected
    (empty,) = counted(directory, tree, [{"body": ""}])
    assert empty == tokenizer.Count(0, 0, 0)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "qwen_25", "phi_4", "own"])
@pytest.mark.parametrize("roles", [None, ["assistant", "user"]])
def test_chat(tokenizers, begins, name, roles):
    directory = tokenizers[begins]
    entry = {"type": "chat_template", "field_messages": "messages", "chat_template": name}
    if roles:
        entry["roles_to_train"] = roles
    if name == "own":
        text = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"
        entry |= {"chat_template": "jinja", "chat_template_jinja": text}
    theirs = chat_template.load(
        AutoTokenizer.from_pretrained(directory),
        DictDefault(sequence_len=LONG, train_on_inputs=False), entry,
    )  # fmt: skip
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns]}
        for turns in chat_rows()
    ]
    if not begins:
        # Axolotl takes a first token that is also an end for the end of an empty turn.
        rows = [row for row in rows if all(turn["content"] for turn in row["messages"])]
    if name == "gemma":  # knows no system turn, and users and models must take turns
        rows = rows[:1] + rows[5:]
    tree = {"base_model": str(directory), "datasets": [entry]}
    expected = [count_of(theirs._tokenize_single_prompt(row)) for row in rows]
    assert counted(directory, tree, rows) == expected


def test_tokens_of_the_configuration_count_as_one(tokenizers):
    directory = tokenizers[False]
    text = [Text("", "a[NEW]b[END]")]
    plain = tokenizer.Tokenizer(directory / "tokenizer.json", {})
    tree = {"tokens": ["[NEW]"], "special_tokens": {"eos_token": "[END]"}}
    changed = tokenizer.Tokenizer(directory / "tokenizer.json", tree)
    assert plain.count(text, adds_special_tokens=True)[0].tokens > 5
    assert changed.count(text, adds_special_tokens=True)[0].tokens == 4  # and no second end


def test_assumed_without_a_tokenizer():
    found = tokenizer.assume([
        Text("x" * 40, "y" * 80), Text("x" * 40, "y" * 80, prompt_trained=True), Text("", ""),
        Text("", "z" * 400, ((100, 200),)), Text("", "z" * 400, ()),
    ])  # fmt: skip
    assert found == [
        tokenizer.Count(31, 10, 21), tokenizer.Count(31, 0, 31), tokenizer.Count(0, 0, 0),
        tokenizer.Count(101, 25, 26), tokenizer.Count(101, 101, 0),
    ]  # fmt: skip


def test_it_is_found_in_the_hub_cache(tokenizers, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--name"
    tree = {"base_model": "org/name"}
    assert tokenizer.find(tree) is None
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("abc")
    (model / "snapshots").mkdir()
    (model / "snapshots/abc").symlink_to(tokenizers[False])
    assert tokenizer.find(tree) == model / "snapshots/abc/tokenizer.json"
    assert tokenizer.find({**tree, "revision_of_model": "other"}) is None
    assert tokenizer.find({**tree, "revision_of_model": "abc"})


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=r"tokenizer .*tokenizer\.json cannot be read"):
        tokenizer.Tokenizer(tmp_path / "tokenizer.json", {})


@pytest.mark.parametrize("kept", ["file", "text", "named"])
def test_the_tokenizers_own_chat_template(tmp_path, kept):
    config = {"text": "T", "named": [{"name": "default", "template": "T"}]}.get(kept)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": config}))
    if kept == "file":
        (tmp_path / "chat_template.jinja").write_text("T")
    assert tokenizer.chat_template(tmp_path / "tokenizer.json") == "T"
