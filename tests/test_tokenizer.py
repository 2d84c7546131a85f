"""Tokens of a row, against Axolotl's own prompt strategies."""

import copy
import json
import random

import pytest
from axolotl.prompt_strategies import chat_template, completion
from axolotl.prompt_strategies.jinja_template_analyzer import JinjaTemplateAnalyzer
from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy
from axolotl.prompters import AlpacaPrompter
from axolotl.utils.chat_templates import get_chat_template_from_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from transformers import AutoTokenizer

import tiny
from leviathan import chat_templates, layers, templates, tokenizer
from leviathan.errors import BadInput
from leviathan.templates import Text, Turn

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


def conversations():
    chance = random.Random(2)
    yield [("user", "a"), ("assistant", "b")]
    yield [("system", "be brief"), ("user", " padded "), ("assistant", "\n padded \n")]
    yield [("user", "no answer")]
    yield [("user", "[[brackets]]"), ("assistant", "[[a]]"), ("user", "zz"), ("assistant", "zz")]
    yield [("human", "other names"), ("gpt", "are mapped"), ("user", "b"), ("assistant", "")]
    yield [("user", "repeat"), ("assistant", "repeat"), ("user", "repeat"), ("assistant", "repeat")]
    yield [("system", ""), ("human", "call"), ("tool", "42 \u65e5\u672c"), ("gpt", "<|im_end|>")]
    for _ in range(10):
        turns = [("user", words(chance)), ("assistant", words(chance))]
        yield turns * chance.randint(1, 3)


def chat_rows(field="messages", role="role", content="content"):
    for turns in conversations():
        yield {field: [{role: name, content: text} for name, text in turns]}


def ours(tree):
    """What makes tokens of a row here."""
    file = tokenizer.find(tree)
    form = templates.read(tree, tokenizer.special_tokens(file, tree), tokenizer.chat_template(file))
    assert not form.unfollowed
    made, adds = tokenizer.Tokenizer(file, tree), form.adds_special_tokens

    def spell(row):
        text = form.render(row)
        found = made.spell(text, adds_special_tokens=adds)
        assert made.count([text], adds_special_tokens=adds) == [count_of(found)]
        return found

    return spell


def count_of(made):
    places = [place for place, trained in enumerate(made.trained) if trained]
    return tokenizer.Count(len(made.ids), places[0] if places else len(made.ids), len(places))


def in_our_words(made):
    """Axolotl's row; its labels are the ids, or -100 where there is no loss."""
    ids, labels = made["input_ids"], made["labels"]
    trained = [label != -100 for label in labels]
    assert [i for i, t in zip(ids, trained, strict=True) if t] == [n for n in labels if n != -100]
    return tokenizer.Spelled(tuple(ids), tuple(trained))


def axolotls(tree):
    """Axolotl's strategy for a dataset of messages, its entry read as its configuration is."""
    directory, (entry,) = tree["base_model"], tree["datasets"]
    cfg = DictDefault({"sequence_len": LONG, "train_on_inputs": False, **tree})
    theirs = AutoTokenizer.from_pretrained(directory)
    if tree.get("chat_template") or tree.get("chat_template_jinja"):  # loaders/tokenizer.py
        cfg.chat_template = tree.get("chat_template") or "jinja"
        theirs.chat_template = get_chat_template_from_config(cfg, tokenizer=theirs)
    read = DictDefault(SFTDataset(**entry).model_dump(exclude_none=True))
    strategy = chat_template.load(theirs, cfg, read)
    # As datasets.map hands rows over: columns of several rows.
    return lambda row: {
        name: value[0]
        for name, value in strategy.tokenize_prompt({k: [v] for k, v in row.items()}).items()
    }


def compare(tree, rows):
    """Every row the same in both, or refused by both; how many were refused."""
    mine, theirs, refused = ours(tree), axolotls(tree), 0
    for row in rows:
        try:
            expected = in_our_words(theirs(copy.deepcopy(row)))
        except Exception:  # a template is a program: it may raise anything
            with pytest.raises(BadInput):
                mine(row)
            refused += 1
            continue
        assert mine(row) == expected, row
    return refused


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("train_on_inputs", [False, True])
def test_alpaca(tokenizers, begins, train_on_inputs):
    directory = tokenizers[begins]
    theirs = AlpacaPromptTokenizingStrategy(
        AlpacaPrompter(), AutoTokenizer.from_pretrained(directory), train_on_inputs, LONG
    )
    tree = {"base_model": str(directory), "datasets": [{"type": "alpaca"}],
            "train_on_inputs": train_on_inputs}  # fmt: skip
    mine = ours(tree)
    for row in alpaca_rows():
        assert mine(row) == in_our_words(theirs.tokenize_prompt(row)), row


@pytest.mark.parametrize("begins", [False, True])
def test_completion(tokenizers, begins):
    directory = tokenizers[begins]
    theirs = completion.load(
        AutoTokenizer.from_pretrained(directory), DictDefault(sequence_len=LONG), {"field": "body"}
    )
    mine = ours(
        {"base_model": str(directory), "datasets": [{"type": "completion", "field": "body"}]}
    )
    for text in [row["output"] or "x" for row in alpaca_rows()]:
        made = theirs.tokenize_prompt({"body": [text]})
        assert mine({"body": text}) == in_our_words({key: made[key][0] for key in made}), text
    assert mine({"body": ""}) == tokenizer.Spelled((), ())


OWN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}"
)
CHATML = {"type": "chat_template", "chat_template": "chatml"}
SHAREGPT = {**layers.DATASET_FORMATS["sharegpt"], "chat_template": "chatml"}


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "qwen_25", "phi_4", "own"])
@pytest.mark.parametrize("settings", [
    {}, {"roles_to_train": ["assistant", "user"]}, {"roles_to_train": ["gpt", "tool"]},
    {"roles_to_train": []}, {"train_on_eos": "all"}, {"train_on_eos": "last"},
    {"train_on_eos": "none"},
], ids=str)  # fmt: skip
def test_chat_and_sharegpt(tokenizers, begins, name, settings):
    chosen = {"chat_template": name}
    if name == "own":
        chosen = {"chat_template": "jinja", "chat_template_jinja": OWN}
    for row_format in ("chat", "sharegpt"):
        entry = {**layers.DATASET_FORMATS[row_format], **chosen, **settings}
        rows = chat_rows() if row_format == "chat" else chat_rows("conversations", "from", "value")
        refused = compare({"base_model": str(tokenizers[begins]), "datasets": [entry]}, rows)
        assert bool(refused) == (name == "gemma")  # it wants users and models to take turns


READ = {
    "mapped": ({"message_property_mappings": {"content": "text"}}, chat_rows(content="text")),
    "named the older way": ({"message_field_role": "who", "message_field_content": "what"},
                            chat_rows("messages", "who", "what")),
    "another field": ({"field_messages": "talk"}, chat_rows("talk")),
    "roles": ({"roles": {"assistant": ["user", "gpt"], "user": ["assistant"]}}, chat_rows()),
    "no system message": ({"drop_system_message": True}, chat_rows()),
    "no system field": ({"drop_system_message": True},
                        [{"system": "s", **row} for row in chat_rows()]),
    "system": ({}, [{"system": "be kind", **row} for row in chat_rows()]),
    "system is null": ({}, [{"system": None, **row} for row in chat_rows()]),
    "JSON": ({}, [{"messages": json.dumps(row["messages"])} for row in chat_rows()]),
    "none": ({}, [{"messages": "no JSON"}, {"messages": []}, {"messages": None},
                  {"messages": [{}]}, {"messages": [{"from": "human", "value": "hi"}]}]),
    "training": ({"message_field_training": "learn"},
                 [{"messages": [{"role": "user", "content": "x", "learn": True},
                                {"role": "assistant", "content": "y", "learn": False},
                                {"role": "assistant", "content": "z", "learn": None}]}]),
    "parts": ({}, [{"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"content": "b"}]},
        {"role": "assistant", "content": [{"value": "c"}, "d"]}]}]),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "rows"), READ.values(), ids=READ)
def test_how_messages_are_read(tokenizers, entry, rows):
    compare({"base_model": str(tokenizers[True]), "datasets": [{**CHATML, **entry}]}, rows)


def test_a_mapped_message_takes_other_keys_that_the_template_reads(tokenizers):
    rows = [{"conversations": [{"from": "human", "value": "hi", "role": "tool", "content": "!"},
                               {"from": "gpt", "value": "yo", "weight": 1}]}]  # fmt: skip
    compare({"base_model": str(tokenizers[True]), "datasets": [SHAREGPT]}, rows)


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"one": 1, "two": [2]}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": '{"type": "object"}'}}


@pytest.mark.parametrize("name", ["qwen_25", "qwen3", "command_a_tool_use", "llama3", "own"])
@pytest.mark.parametrize("tools", [None, [TOOL], json.dumps([TOOL]), [], "{}", 7, "no JSON"])
def test_tools_and_their_calls(tokenizers, name, tools):
    chosen = {"chat_template": name}
    if name == "own":  # its loop variable is not called message: no tool_calls for it
        text = "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
        chosen = {"chat_template": "jinja", "chat_template_jinja": text + "{{ tools }}"}
    messages = [
        {"role": "user", "content": "1 + 2"},
        {"role": "assistant", "content": "I add", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "add"},
        {"role": "assistant", "content": "It is 3"},
    ]
    entry = {"type": "chat_template", "roles_to_train": ["assistant", "tool"], **chosen}
    tree = {"base_model": str(tokenizers[False]), "datasets": [entry]}
    compare(tree, [{"messages": messages} | ({} if tools is None else {"tools": tools})])


@pytest.mark.parametrize("settings", [
    {"eot_tokens": ["<|im_end|>"]},
    {"eot_tokens": ["<|im_end|>", "<|endoftext|>"]},
    {"eot_tokens": ["<|pad|>"]},  # not in the template: none is left
    {"eot_tokens": ["<|endoftext|>"]},
    {"special_tokens": {"eos_token": "<|im_end|>"}},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("entry", [
    {}, {"train_on_eot": "all"}, {"train_on_eot": "none"}, {"train_on_eot": "last", "train_on_eos": "all"},
    {"train_on_eos": "none"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("around", [("<|im_start|>", "<|im_end|>\n<|endoftext|>"), ("", "")])
def test_the_ends_of_turns(tokenizers, settings, entry, around):
    begin, end = around
    turn = "{{ message.role }}\n{{ message.content }}"
    text = f"{{% for message in messages %}}{begin}{turn}{end}{{% endfor %}}"
    jinja = {"chat_template": "jinja", "chat_template_jinja": text}
    tree = {"datasets": [{**CHATML, **jinja, **entry}], **settings}
    directory = tokenizers[True]
    theirs = {"base_model": str(directory), **tree}
    if "special_tokens" in settings:
        changed = directory.with_name(f"{directory.name}-ends")
        if not changed.exists():
            made = AutoTokenizer.from_pretrained(directory)
            made.add_special_tokens(settings["special_tokens"])
            made.save_pretrained(changed)
        theirs = {"base_model": str(changed), **tree}
    mine = ours({"base_model": str(directory), **tree})
    try:
        expected = axolotls(theirs)
    except ValueError:  # train_on_eos and train_on_eot say different things of one token
        return
    ends = [{"role": "<|pad|>", "content": "far from b"}, {"role": "<|endoftext|>", "content": "b"}]
    ends = [{"role": "assistant", "content": text} for text in ("a", "b")] + ends
    for row in [*chat_rows(), {"messages": ends}, {"messages": [*ends, *ends]}]:
        assert mine(row) == in_our_words(expected(row)), row


@pytest.mark.parametrize("tree", [
    {"chat_template": "chatml", "datasets": [{}]},
    {"chat_template": "chatml", "datasets": [{"chat_template": "llama3"}]},
    {"chat_template": "chatml", "datasets": [{"chat_template": "tokenizer_default"}]},
    {"chat_template": "chatml", "datasets": [{"chat_template": "tokenizer_default_fallback_llama3"}]},
    {"chat_template": "chatml", "datasets": [{"chat_template_jinja": OWN}]},  # without effect
    {"chat_template_jinja": OWN, "datasets": [{}]},
    {"datasets": [{"chat_template": "tokenizer_default_fallback_llama3"}]},
    {"datasets": [{"chat_template": "chatml", "chat_template_jinja": OWN}]},
    {"chat_template_jinja": OWN + "{{ mood }}", "chat_template_kwargs": {"mood": "good"}, "datasets": [{}]},
    {"train_on_inputs": True, "chat_template": "chatml", "datasets": [{}]},
], ids=str)  # fmt: skip
def test_which_template(tokenizers, tree):
    (entry,) = tree["datasets"]
    full = {**tree, "base_model": str(tokenizers[True]),
            "datasets": [{"type": "chat_template", **entry}]}  # fmt: skip
    assert compare(full, chat_rows()) == 0


def test_the_keys_of_a_message_that_templates_read():
    shipped = chat_templates.shipped()
    assert len(shipped) > 20
    for name, file in shipped.items():
        source = file.read_text()
        expected = JinjaTemplateAnalyzer(source).get_message_vars("messages")
        assert chat_templates.Template(source, {}).keys == expected, name


def test_mistrals_system_prompt_is_not_looked_for(tokenizers, tmp_path):
    directory = tmp_path / "Mistral-7B"
    directory.symlink_to(tokenizers[True])
    tree = {"base_model": str(directory), "train_on_inputs": True, "datasets": [CHATML]}
    assert compare(tree, chat_rows()) == 0


@pytest.mark.parametrize("begins", [False, True])
def test_pieces_are_the_text(tokenizers, begins):
    made = tokenizer.Tokenizer(tokenizers[begins] / "tokenizer.json", {})
    text = "alpha \u65e5\u672c \U0001f600 <|im_end|>\n beta"
    ids = made.spell(Text("", text), adds_special_tokens=True).ids
    pieces = made.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == ("<|im_start|>" if begins else "") + text + "<|endoftext|>"
    assert {"\u65e5", "\U0001f600", "<|im_end|>"} <= set(pieces)
    assert made.pieces(ids[: pieces.index("\u65e5")])[-1] == "\ufffd"  # cut within a character


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
        Text("", "z" * 400, (Turn(100, 200, True), Turn(300, 400, False))), Text("", "z" * 400, ()),
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
