"""How rows are read by the real Axolotl in its child process, and that Leviathan reads the same."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from leviathan import layers, preview, schema

pytestmark = pytest.mark.real

LONG = "alpha beta " * 400
ROWS = {
    "alpaca": [
        {"instruction": "a", "input": "", "output": "b 日本 \U0001f600"},
        {"instruction": "a", "input": "more", "output": "b<|endoftext|>"},
        {"instruction": "a", "input": "", "output": ""},
        {"instruction": "a", "input": "", "output": LONG},
        {"instruction": LONG, "input": "", "output": "b"},
    ],
    "chat": [
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"},
                      {"role": "assistant", "content": "b\n"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": LONG}]},
        {"messages": [{"role": "user", "content": "no answer"}]},
        {"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]},
    ],
    "sharegpt": [
        {"conversations": [{"from": role, "value": f"{role} says"}
                           for role in ("system", "human", "gpt", "tool", "gpt")]},
        {"conversations": [{"from": "gpt", "value": "first"}, {"from": "human", "value": ""}]},
    ],
    "completion": [{"text": "a b"}, {"text": ""}, {"text": LONG}],
}  # fmt: skip
REFUSED = {"chat": [3]}
CUT = "excess_length_strategy=truncate"
MIXED = [{**ROWS["sharegpt"][1], "system": "be kind"}, ROWS["sharegpt"][1]]
ASKED = {
    **{name: ([f"format={name}"], rows) for name, rows in ROWS.items()},
    "alpaca cut": (["format=alpaca", CUT], ROWS["alpaca"]),
    "mixed": (["format=sharegpt"], MIXED),
    "no such type": (["datasets.0.type=nonsense"], ROWS["alpaca"][:1]),
    "no such adapter": (["adapter=nonsense"], ROWS["alpaca"][:1]),
}


@pytest.fixture(scope="module")
def previewed(template, tmp_path_factory):
    """All that is asked, two children at a time: each imports torch."""
    home = tmp_path_factory.mktemp("home")
    sets = ["chat_template=chatml", "eot_tokens=[<|im_end|>]"]

    def ask(more, rows):
        tree = layers.build("tiny", "tiny", "full", [*sets, *more]).tree
        with preview.start(tree, rows) as pending:
            return pending.result()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.chdir(template)
        patch.setenv("HF_HOME", str(home))
        answers = {name: pool.submit(ask, *asked) for name, asked in ASKED.items()}
        found = {name: answer.result() for name, answer in answers.items()}
    assert not (home / "datasets").exists()  # what was read is not kept
    return found


def text(row, *, trained):
    return "".join(token.text for token in row.tokens if token.trained is trained)


@pytest.mark.parametrize("name", [*ROWS, "alpaca cut"])
def test_axolotl_and_leviathan_read_the_same(previewed, name):
    found = previewed[name]
    assert (found.by, found.reason) == (f"axolotl {schema.installed_version()}", "")
    assert [row.agrees for row in found.rows] == [True] * len(ASKED[name][1])
    refused = [number for number, row in enumerate(found.rows) if row.problem]
    assert refused == REFUSED.get(name.split()[0], [])
    assert all(row.trained + row.masked == sum(row.left) for row in found.rows)


def test_what_is_trained_on(previewed):
    rows = previewed["alpaca"].rows
    assert [text(row, trained=True) for row in rows[:3]] == [
        "b 日本 \U0001f600<|endoftext|>", "b<|endoftext|>", ""
    ]  # fmt: skip
    assert text(rows[0], trained=False).endswith("### Instruction:\na\n\n### Response:\n")
    assert [len(row.left) for row in rows] == [1, 1, 1, 0, 0]
    assert [row.left for row in previewed["alpaca cut"].rows[3:]] == [
        (256,), (256,)
    ]  # fmt: skip
    (talk, _) = previewed["sharegpt"].rows
    assert text(talk, trained=True) == "gpt says<|im_end|>gpt says<|im_end|>"
    assert {token.text for token in talk.tokens if token.special} == {"<|im_start|>", "<|im_end|>"}
    whole, empty, long = previewed["completion"].rows
    assert text(whole, trained=True) == "a b<|endoftext|>"
    assert empty.left == ()
    assert len(long.left) > 1
    assert set(long.left[:-1]) == {256}


def test_rows_of_which_only_some_have_a_system_prompt(previewed):
    found = previewed["mixed"]
    assert found.rows[0].problem == ""
    assert "other rows have 'system', this one has not" in found.rows[1].problem
    assert [row.agrees for row in found.rows] == [True, False]


def test_what_axolotl_refuses_is_told_in_a_line(previewed):
    (row,) = previewed["no such type"].rows
    assert row.problem == "ValueError: unhandled prompt tokenization strategy: nonsense."
    found = previewed["no such adapter"]
    assert found.by == "leviathan"
    assert found.reason.startswith("axolotl refuses the configuration: ValidationError: ")
    assert "\n" not in found.reason
    assert found.rows


def test_a_real_training_had_these_tokens(reference, monkeypatch):
    """The rows prepared by a whole run, in another process and order, hold every one previewed."""
    from datasets import load_from_disk

    monkeypatch.chdir(reference.directory)
    (folder,) = [file.parent for file in reference.directory.rglob("prepared/*/dataset_info.json")]
    prepared = load_from_disk(str(folder))
    trained = {(tuple(row["input_ids"]), tuple(row["labels"])) for row in prepared}
    rows = [json.loads(line) for line in (reference.directory / "rows.jsonl").open()][:40]
    with preview.start(layers.build("tiny", "tiny", "full").tree, rows) as pending:
        found = pending.result()
    assert found.agrees
    for row in found.rows:
        ids = tuple(token.id for token in row.tokens)
        assert (ids, tuple(t.id if t.trained else -100 for t in row.tokens)) in trained
