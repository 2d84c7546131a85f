"""What servers read of a model's directory: every check that fails, what is put right, what is told."""

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import tiny
from leviathan import (
    evidence,
    parity,
    parity_finding,
    parity_settings,
    parity_tokens,
    proving,
    recipe,
    schema,
)
from leviathan.errors import Refused
from leviathan.parity import Subject
from leviathan.parity_finding import Finding
from leviathan.parity_settings import Taught

# Llama 3's way: the turn ends with another token than the text.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}"
    "{% endif %}"
)
TEXT_END, _, END, _ = tiny.SPECIAL
IM_END = 2
CHAT = [
    {"messages": [{"role": "user", "content": f"Repeat: {word}"},
                  {"role": "assistant", "content": f"{word} {word}"}]}
    for word in tiny.WORDS[:3]
]  # fmt: skip
ALPACA = [{"instruction": "Repeat: alpha", "input": "", "output": "alpha 日"}]
ROWS = {"chat_template": CHAT, "alpaca": ALPACA, "completion": [{"text": "alpha beta"}]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base model without a chat template; its tensors lie in several files."""
    directory = tmp_path_factory.mktemp("base")
    rows = tiny.write_rows(directory / "rows.jsonl", 80)
    vocabulary = len(tokenizer(tiny.write_tokenizer(directory / "model", rows))["model"]["vocab"])
    return tiny.write_model(
        directory / "model", rows, vocabulary=vocabulary, max_shard_size="100KB"
    )


def tokenizer(directory: Path) -> dict:
    return json.loads((directory / "tokenizer.json").read_text())


def edit(path: Path, **changes) -> None:
    """Change keys of a JSON file; None takes one away."""
    told = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))


def eos_of(directory: Path, name: str = "generation_config.json"):
    return json.loads((directory / name).read_text()).get("eos_token_id")


def word(directory: Path) -> int:
    """A token inside an answer that was trained on."""
    return Tokenizer.from_file(str(directory / "tokenizer.json")).encode("alpha alpha").ids[0]


@pytest.fixture(autouse=True)
def no_axolotl(monkeypatch):
    """It would be asked, for half a minute each time, wherever tokens differ."""
    monkeypatch.setattr(schema, "installed_version", lambda: None)


@pytest.fixture
def subject(base, tmp_path) -> Subject:
    """A sound model trained on conversations, that ends a turn with <|im_end|>."""
    return made(base, tmp_path, "chat_template")


def made(base: Path, tmp_path: Path, kind: str, **more) -> Subject:
    checkpoint, merged = tmp_path / "checkpoint-1", tmp_path / "merged"
    checkpoint.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, checkpoint / name)
    tree = {"base_model": str(base), "datasets": [{"path": "rows.jsonl", "type": kind}], **more}
    if kind == "chat_template":
        tree |= {"chat_template": "jinja", "chat_template_jinja": TEMPLATE,
                 "special_tokens": {"eos_token": "<|im_end|>"}}  # fmt: skip
        edit(checkpoint / "tokenizer_config.json", eos_token=END)
        (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    shutil.copytree(base, merged)
    for file in checkpoint.iterdir():
        shutil.copyfile(file, merged / file.name)
    if kind == "chat_template":
        for name in ("generation_config.json", "config.json"):
            edit(merged / name, eos_token_id=IM_END)
    return Subject(merged, base, checkpoint, tree, tuple(ROWS[kind]))


def found(subject: Subject) -> dict[str, Finding]:
    return {one.check: one for one in parity.check(subject)}


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["chat_template", "alpaca", "completion"])
def test_a_sound_model_passes_and_nothing_is_written(base, tmp_path, kind):
    subject = made(base, tmp_path, kind)
    before = files_of(subject.directory)
    findings = parity.check(subject)
    assert [one.check for one in findings] == list(parity.CHECKS)
    assert {one.state for one in findings} == {"ok"}, findings
    assert parity_finding.lines(findings) == ["serving parity: 9 of 9 checks pass"]
    assert files_of(subject.directory) == before
    assert all(one.evidence for one in findings)


def weights(directory: Path) -> dict[str, str]:
    return json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]


def retensor(name: str, change):
    """A damage: one tensor becomes another, in its file."""

    def damage(directory: Path) -> None:
        file = directory / weights(directory)[name]
        tensors = load_file(file)
        tensors |= {name: change(tensors[name])}
        save_file({k: v for k, v in tensors.items() if v is not None}, file, {"format": "pt"})

    return damage


def without(name: str):
    """A damage: one tensor is gone, and the index knows."""

    def damage(directory: Path) -> None:
        retensor(name, lambda _: None)(directory)
        reindex(directory, lambda index: index["weight_map"].pop(name))

    return damage


def reindex(directory: Path, change) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def index_with(change):
    return lambda directory: reindex(directory, change)


def settings(name: str = "generation_config.json", **changes):
    return lambda directory: edit(directory / name, **changes)


def forget_tokens(directory: Path) -> None:
    """The tokenizer of the base, which had no <|im_end|>, instead of the trained one."""
    file = directory / "tokenizer.json"
    told = json.loads(file.read_text())
    told["added_tokens"] = [t for t in told["added_tokens"] if t["content"] != "<|im_end|>"]
    del told["model"]["vocab"]["<|im_end|>"]
    file.write_text(json.dumps(told))


def write(name: str, text: str):
    return lambda directory: (directory / name).write_text(text)


def remove(name: str):
    return lambda directory: (directory / name).unlink()


HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
# What was done, to the check that must say so, and a part of its evidence.
DAMAGES = {
    "eos of the base": (settings(eos_token_id=0), "stop ids", "does not end answers at <|im_end|> (2)"),
    "no eos": (settings(eos_token_id=None), "stop ids", "does not end answers at <|im_end|> (2)"),
    "a word as eos": (lambda d: edit(d / "generation_config.json", eos_token_id=[2, word(d)]), "stop ids", "inside answers trained on"),
    "an eos that is none": (settings(eos_token_id=[2, 9999]), "stop ids", "outside the vocabulary"),
    "another eos in config.json": (settings("config.json", eos_token_id=0), "stop ids", "config.json says eos_token_id [0]"),
    "an eos that is no id": (settings(eos_token_id=END), "stop ids", "is no id"),
    "broken generation_config": (write("generation_config.json", "{"), "stop ids", "JSONDecodeError"),
    "another eos in the tokenizer": (settings("tokenizer_config.json", eos_token=TEXT_END), "stop ids", "the tokenizer's eos token is <|endoftext|>, training's <|im_end|>"),
    "a temperature that is none": (settings(temperature="hot"), "sampling defaults", "temperature is 'hot'"),
    "a smaller config": (settings("config.json", vocab_size=100), "vocabulary", "rows, vocab_size of config.json is 100"),
    "cut embeddings": (retensor(EMBEDDINGS, lambda t: t[:200]), "vocabulary", f"{EMBEDDINGS} has 200 rows"),
    "the base's tokenizer": (forget_tokens, "vocabulary", "1 of training's"),
    "a tie that drops the head": (settings("config.json", tie_word_embeddings=True), "tied weights", "servers would drop it"),
    "no head": (without(HEAD), "tied weights", "there is no lm_head.weight"),
    "a tensor in another file": (index_with(lambda i: i["weight_map"].update({NORM: weights_first(i, NORM)})), "safetensors index", f"{NORM} is in model-"),
    "a tensor of no file": (retensor(NORM, lambda _: None), "safetensors index", f"{NORM} is in no file"),
    "an unlisted tensor": (index_with(lambda i: i["weight_map"].pop(NORM)), "safetensors index", f"{NORM} is not in the index"),
    "a wrong total": (index_with(lambda i: i["metadata"].update(total_size=7)), "safetensors index", "total_size says 7"),
    "no index": (remove("model.safetensors.index.json"), "safetensors index", "without model.safetensors.index.json"),
    "a missing tensor": (without(NORM), "missing tensors", f"{NORM} is missing"),
    "another shape": (retensor(UP, lambda t: t[:3]), "missing tensors", f"{UP} has another shape"),
    "no template": (remove("chat_template.jinja"), "chat template", "training's is not there"),
    "another template": (write("chat_template.jinja", "{{ messages[0]['content'] }}"), "chat template", "another one than training's"),
    "no Jinja": (write("chat_template.jinja", "{% if"), "chat template", "another one than training's"),
    "tokens of another template": (write("chat_template.jinja", "{{ messages[0]['content'] }}"), "rendered tokens", "row 1 parts at token 1: trained on '<|im_start|>' (1)"),
    "no tokenizer": (remove("tokenizer.json"), "rendered tokens", ""),
}  # fmt: skip


def weights_first(index: dict, name: str) -> str:
    """A file of the index that does not hold the tensor."""
    return next(file for file in index["weight_map"].values() if file != index["weight_map"][name])


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_fails_and_tells_the_way_out(subject, name):
    damage, check, evidence = DAMAGES[name]
    damage(subject.directory)
    before = files_of(subject.directory)
    one = found(replace(subject, repair=False))[check]
    assert (one.state, one.check) == ("fail", check), one
    assert evidence in one.evidence
    assert one.fix
    assert files_of(subject.directory) == before


def test_files_that_are_cut_off_fail(subject):
    file = subject.directory / weights(subject.directory)[UP]
    file.write_bytes(file.read_bytes()[:-4])
    one = found(subject)["safetensors index"]
    assert (one.state, one.evidence) == ("fail", f"{file.name} is not as long as its header says")


# --- what is put right ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "right"),
    [(0, [2, 0]), (None, 2), ([0, 9999], [2, 0]), ([word, 2], 2), ([0, 1], [2, 0, 1])],
)
def test_stop_ids_are_written_where_servers_read_them(subject, told, right):
    """The base's own stay, behind training's: what ends a text ends an answer too."""
    told = (
        [word(subject.directory) if n is word else n for n in told]
        if isinstance(told, list)
        else told
    )
    edit(subject.directory / "generation_config.json", eos_token_id=told)
    edit(subject.directory / "config.json", eos_token_id=0)
    one = found(subject)["stop ids"]
    assert one.state == "fixed"
    assert eos_of(subject.directory) == right
    assert eos_of(subject.directory, "config.json") == 2  # an id stays one id
    assert found(subject)["stop ids"].state == "ok"


def test_without_generation_config_one_is_made(subject):
    (subject.directory / "generation_config.json").unlink()
    edit(subject.directory / "config.json", eos_token_id=[0])
    assert found(subject)["stop ids"].state == "fixed"
    told = json.loads((subject.directory / "generation_config.json").read_text())
    assert told == {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 3}
    assert eos_of(subject.directory, "config.json") == [2, 0]


@pytest.mark.parametrize("damage", ["no template", "another template", "no Jinja"])
def test_a_lost_chat_template_is_written_back(subject, damage):
    DAMAGES[damage][0](subject.directory)
    findings = found(subject)
    assert findings["chat template"].state == "fixed"
    assert findings["rendered tokens"].state == "ok"  # those of the template that was written
    assert (subject.directory / "chat_template.jinja").read_text() == TEMPLATE
    assert {one.state for one in parity.check(subject)} == {"ok"}


def test_the_template_of_the_dataset_is_what_training_used(base, tmp_path):
    """Axolotl saves the general one with the tokenizer; the rows went through their own."""
    own = TEMPLATE.replace("\n", " ")
    subject = made(base, tmp_path, "chat_template")
    entry = {**subject.tree["datasets"][0], "chat_template": "jinja", "chat_template_jinja": own}
    subject = replace(subject, tree={**subject.tree, "datasets": [entry]})
    assert found(subject)["chat template"].state == "fixed"
    assert (subject.directory / "chat_template.jinja").read_text() == own


def test_ends_of_added_and_declared_tokens_are_stop_ids(subject):
    """eot_tokens end a turn that the eos token does not."""
    tree = {**subject.tree, "special_tokens": {}, "eot_tokens": ["<|im_end|>"]}
    edit(subject.directory / "generation_config.json", eos_token_id=0)
    for place in (subject.directory, subject.checkpoint):
        edit(place / "tokenizer_config.json", eos_token=TEXT_END)
    assert found(replace(subject, tree=tree))["stop ids"].state == "fixed"
    assert eos_of(subject.directory) == [0, 2]


def test_renamed_tokens_are_read_from_the_tokenizer_that_training_saved(subject, base):
    """added_tokens_overrides: the base's tokenizer.json does not know the new name."""
    for place in (subject.directory, subject.checkpoint):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            text = (place / name).read_text().replace("<|im_end|>", "<|done|>")
            (place / name).write_text(text)
    tree = {**subject.tree, "added_tokens_overrides": {2: "<|done|>"},
            "special_tokens": {"eos_token": "<|done|>"},
            "chat_template_jinja": TEMPLATE.replace("<|im_end|>", "<|done|>")}  # fmt: skip
    edit(subject.directory / "generation_config.json", eos_token_id=0)
    findings = found(replace(subject, tree=tree))
    assert findings["stop ids"].evidence.startswith(
        "generation_config.json does not end answers at <|done|> (2)")  # fmt: skip
    assert findings["rendered tokens"].state == "ok"
    assert "<|done|>" not in (base / "tokenizer.json").read_text()


# --- what is only told -----------------------------------------------------------------


def test_a_model_that_was_not_taught_to_stop_is_told(subject):
    """No eot_tokens, and an eos token that the template never writes: Axolotl trains on no end."""
    for place in (subject.directory, subject.checkpoint):
        edit(place / "tokenizer_config.json", eos_token=TEXT_END)
    for name in ("generation_config.json", "config.json"):
        edit(subject.directory / name, eos_token_id=0)
    one = found(replace(subject, tree={**subject.tree, "special_tokens": {}}))["stop ids"]
    assert (one.state, one.evidence) == ("warn", "no row trains on a token that ends an answer")


def test_a_template_that_training_did_not_use_is_told(base, tmp_path):
    subject = made(base, tmp_path, "alpaca")
    (subject.directory / "chat_template.jinja").write_text(TEMPLATE)
    one = found(subject)["chat template"]
    assert one.state == "warn"
    assert "it read alpaca rows" in one.evidence
    assert "/v1/completions" in one.fix


def test_without_rows_the_tokens_are_not_said_to_be_equal(subject):
    one = found(replace(subject, rows=()))["rendered tokens"]
    assert (one.state, one.evidence) == ("warn", "not compared: no row of the sample is here")


def test_a_format_that_is_not_followed_is_told_and_not_judged(subject):
    tree = {**subject.tree, "datasets": [{"type": "sharegpt_of_my_own"}]}
    findings = found(replace(subject, tree=tree))
    assert findings["rendered tokens"].state == "warn"
    assert not [one for one in findings.values() if one.state == "fail"]


@pytest.mark.parametrize("tree", [{"datasets": None}, {"datasets": ["rows.jsonl"]}])
def test_rows_that_cannot_be_read_again_are_told_and_not_judged(subject, tree):
    """A training on other data than rows, or of a form unknown here, is no worse to serve."""
    findings = found(replace(subject, tree={**subject.tree, **tree}))
    assert {name for name, one in findings.items() if one.state == "warn"} >= {"rendered tokens"}
    assert not [one for one in findings.values() if one.state == "fail"]


def test_a_template_whose_prompt_is_another_is_told(subject):
    """It renders whole rows as training saw them, but not what comes before an answer."""
    prompting = TEMPLATE.replace("assistant\n'}}{% endif", "assistant: '}}{% endif")
    (subject.directory / "chat_template.jinja").write_text(prompting)
    findings = found(subject)
    assert findings["chat template"].state == "ok"
    one = findings["rendered tokens"]
    assert one.state == "warn"
    assert "a server's prompt goes on with ': ', training with '\\n" in one.evidence


def test_of_a_training_by_rewards_no_row_shows_an_answer(subject):
    questions = ({"question": "Which?", "choices": ["a", "b"], "answer": "A"},)
    rewarded = replace(subject, tree={**subject.tree, "rl": "grpo"}, rows=questions)
    assert {name: one.state for name, one in found(rewarded).items() if one.state != "ok"} == {}
    (subject.directory / "chat_template.jinja").unlink()
    assert found(rewarded)["chat template"].state == "fixed"


def test_arguments_that_training_gave_the_template_are_told(base, tmp_path):
    subject = made(base, tmp_path, "chat_template", chat_template_kwargs={"mood": "kind"})
    template = "{{ mood }}" + TEMPLATE
    subject = replace(subject, tree={**subject.tree, "chat_template_jinja": template})
    for place in (subject.directory, subject.checkpoint):
        (place / "chat_template.jinja").write_text(template)
    one = found(subject)["rendered tokens"]
    assert (one.state, one.fix) == ("warn", "send chat_template_kwargs in every request")


# --- who decides where the tokens differ ------------------------------------------------


def add_a_space(directory: Path) -> None:
    """A tokenizer that puts a space before a text: an alpaca answer begins with another token."""
    told = tokenizer(directory)
    told["pre_tokenizer"]["add_prefix_space"] = True
    (directory / "tokenizer.json").write_text(json.dumps(told))


def asked(subject: Subject, monkeypatch, tmp_path, rows) -> Finding:
    """What is found where this process stands for Axolotl's."""
    answer = {"rows": rows} if rows else {"problem": "axolotl is ill"}
    (tmp_path / "answer").write_text(json.dumps(answer))
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\ncp {tmp_path}/answer "$4"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(schema, "installed_version", lambda: "0.0")
    return found(subject)["rendered tokens"]


@pytest.mark.parametrize("who", ["served", "trained", "nobody"])
def test_where_tokens_differ_axolotl_is_asked(base, tmp_path, monkeypatch, who):
    subject = made(base, tmp_path, "alpaca")
    add_a_space(subject.directory)
    served = parity._Seen(subject)
    trained = served.trained.rows[0].spelled.ids
    ids = parity_tokens._served(served.tokenizer, served.trained.rows[0], served.trained, {})
    assert tuple(ids) != trained
    right = {"served": ids, "trained": trained, "nobody": ()}[who]
    row = [["", number, True, False] for number in right]
    one = asked(
        subject, monkeypatch, tmp_path, [{"tokens": row, "left": [len(row)]}] if row else []
    )
    if who == "served":
        assert (one.state, one.evidence) == ("ok", "1 rows: equal to those that Axolotl makes")
    else:
        assert one.state == "fail"
        assert one.evidence.startswith("row 1 parts at token ")


# --- an adapter, a quantised copy ---------------------------------------------------------


def test_of_an_adapter_the_base_s_settings_are_what_is_served(subject, base, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(subject.checkpoint, adapter)
    before = files_of(base)
    findings = found(replace(subject, directory=adapter, form="adapter"))
    assert list(findings) == ["stop ids", "padding", "sampling defaults", "vocabulary",
                              "chat template", "rendered tokens"]  # fmt: skip
    one = findings.pop("stop ids")
    assert (one.state, one.check) == ("warn", "stop ids")  # the base is not ours to write
    assert "stop_token_ids" in one.fix
    assert {two.state for two in findings.values()} == {"ok"}
    assert files_of(base) == before


def test_of_a_quantised_copy_the_weights_are_not_looked_at(subject):
    for file in subject.directory.glob("*.safetensors"):
        file.write_bytes(b"of torchao")
    findings = found(replace(subject, form="quantised"))
    assert "safetensors index" not in findings
    assert {one.state for one in findings.values()} == {"ok"}


# --- what a proof makes of it --------------------------------------------------------------


def test_a_model_that_fails_a_check_is_not_proven(subject, monkeypatch):
    """Its logits may be those of the trained model: served, it would still be another."""
    figures = {"positions": 8, "argmax_agreement": 1.0, "max_abs_diff": 0.0, "relative_error": 0.0,
               "kl": 0.0, "adapter_effect": 1.0, "differs_from_base": True}  # fmt: skip
    (subject.directory / "tokenizer.json").unlink()

    def child_run(_module, specification, _tell, _what):
        findings = parity.check(parity.subject_of(specification["subject"]))
        return {"comparison": figures, "parity": [asdict(one) for one in findings]}

    monkeypatch.setattr(proving.child, "run", child_run)
    record = SimpleNamespace(name="r", base=None, versions={})
    made_of = SimpleNamespace(format="chat", merge=recipe.MergeLimits())
    checkpoint = SimpleNamespace(path=subject.checkpoint)
    job = proving.Job(record, made_of, subject.tree, checkpoint, subject.base, [], "", subject.rows)
    result = proving.prove(job, subject.directory, print)
    assert result.verdict == "different"
    assert result.reason.startswith("it would be served otherwise: stop ids: ")
    told = json.loads((subject.directory / evidence.PROOF).read_text())
    assert [one["check"] for one in told["serving_parity"]] == list(parity.CHECKS)
    assert (subject.directory / proving.UNVERIFIED).exists()
    with pytest.raises(Refused, match="is not proven: it would be served otherwise"):
        evidence.demand(subject.directory, force=False)
    assert evidence.demand(subject.directory, force=True).verdict == "different"


# --- the settings, as data ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("pad", "told", "state", "evidence"),
    [
        ((3, "<pad>"), None, "ok", "<pad> (3), which ends no answer"),
        ((3, "<pad>"), 3, "ok", "<pad> (3)"),
        (None, None, "ok", "no pad token"),
        ((2, "<eos>"), None, "warn", "<eos> (2) is also what ends an answer"),
        ((3, "<pad>"), -1, "warn", "pads with -1, the tokenizer with <pad> (3)"),
        ((10, "<pad>"), None, "fail", "10 is outside the vocabulary of 10"),
    ],
)
def test_padding(pad, told, state, evidence):
    one = parity_settings.padding(pad, {2: "<eos>"}, told, 10)
    assert one.state == state
    assert evidence in one.evidence
    assert bool(one.fix) == (state != "ok")


@pytest.mark.parametrize(
    ("generation", "state", "evidence"),
    [
        (None, "ok", "no generation_config.json: transformers is greedy, vLLM samples"),
        ({}, "ok", "transformers is greedy, vLLM samples at temperature 1"),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, "ok", "temperature 0.6, top_p 0.9"),
        ({"do_sample": False, "temperature": 1.0, "top_k": 50}, "ok", "greedy"),
        ({"max_length": 20}, "ok", "greedy"),
        ({"temperature": 0.9}, "warn", "temperature 0.9 without do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "warn", "do_sample with temperature 0.0"),
        ({"do_sample": True, "top_p": 1.5}, "warn", "top_p 1.5 is no share"),
        ({"max_length": 100}, "warn", "max_length 100 cuts answers short"),
        ({"max_new_tokens": 64}, "warn", "max_new_tokens 64 cuts answers short"),
        ({"top_p": True}, "fail", "top_p is True: no number"),
    ],
)  # fmt: skip
def test_sampling(generation, state, evidence):
    one = parity_settings.sampling(generation)
    assert one.state == state
    assert evidence in one.evidence
    assert bool(one.fix) == (state != "ok")


def test_ids_of_a_model_of_several_parts_stand_in_its_text_part():
    taught = Taught({7: "<end>"}, True, {}, 3)
    config = {"model_type": "seen", "text_config": {"eos_token_id": 1, "vocab_size": 9}}
    right = parity_settings.stop_ids({"eos_token_id": 1}, config, taught, 9)
    assert right.config == {
        "model_type": "seen",
        "text_config": {"eos_token_id": 7, "vocab_size": 9},
    }
    assert right.generation == {"eos_token_id": [7, 1]}


def test_lines_name_what_is_not_ok():
    findings = [Finding("a", "ok", "fine"), Finding("b", "fixed", "was so", "is so"),
                Finding("c", "warn", "odd", "look"), Finding("d", "fail", "wrong", "merge again")]  # fmt: skip
    assert parity_finding.lines(findings) == [
        "serving parity: 2 of 4 checks pass",
        "  b, fixed: was so; is so",
        "  c, warn: odd; look",
        "  d, fail: wrong; merge again",
    ]
    assert parity_finding.failed(findings) == findings[3]
    assert parity_finding.failed(findings[:3]) is None
