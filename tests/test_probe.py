"""Rows of a probe: the longest first, enough for full batches, from any corpus or none."""

import json
import random

import pytest

from leviathan import knobs, probe
from leviathan.errors import BadInput

TREE = {"adapter": "lora", "lora_r": 8, "lora_target_linear": True, "sequence_len": 64,
        "micro_batch_size": 2, "gradient_accumulation_steps": 8, "eval_batch_size": 3,
        "val_set_size": 4, "eval_steps": 5}  # fmt: skip
KNOBS = knobs.read(TREE)
REQUIRED = ("text",)


def write(path, sizes):
    path.write_text("".join(json.dumps({"text": "x" * size}) + "\n" for size in sizes))
    return path


def sizes(lines):
    return [len(json.loads(line)["text"]) for line in lines]


@pytest.fixture
def corpus(tmp_path):
    """Rows of 0 to 499 letters, in no order."""
    numbers = list(range(500))
    random.Random(1).shuffle(numbers)
    return write(tmp_path / "rows.jsonl", numbers)


def test_the_longest_rows_come_first_and_fill_two_steps(corpus):
    rows = probe.from_corpus(corpus, KNOBS, 6, 4, REQUIRED)
    two_steps = 2 * 2 * 4
    assert rows.worst == two_steps
    assert sizes(rows.train[:two_steps]) == list(range(499, 499 - two_steps, -1))
    assert len(rows.train) == 6 * 2 * 4
    assert len(rows.evaluation) == probe.EVAL_BATCHES * 3
    assert sizes(rows.evaluation[:3]) == [499, 498, 497]
    ordinary = sizes(rows.train[two_steps:])
    assert len(set(ordinary)) == len(ordinary)
    assert 150 < sum(ordinary) / len(ordinary) < 350
    assert rows.source == f"rows of {corpus}"


def test_the_draw_follows_the_seed(corpus):
    other = knobs.read({**TREE, "seed": 7})
    one, same, another = (
        probe.from_corpus(corpus, k, 6, 4, REQUIRED).train for k in (KNOBS, KNOBS, other)
    )
    assert one == same != another


def test_several_processes_need_more_rows(corpus):
    rows = probe.from_corpus(corpus, knobs.read(TREE, processes=3), 2, 2, REQUIRED)
    assert len(rows.train) == 2 * 2 * 2 * 3


def test_a_small_corpus_gives_its_rows_again(tmp_path):
    rows = probe.from_corpus(write(tmp_path / "rows", [5, 9, 7]), KNOBS, 3, 2, REQUIRED)
    assert sizes(rows.train[:4]) == [9, 7, 5, 9]
    assert len(rows.train) == 12


def test_packed_rows_are_counted_by_their_bytes(corpus):
    packed = knobs.read({**TREE, "sample_packing": True, "sequence_len": 1024})
    rows = probe.from_corpus(corpus, packed, 4, 2, REQUIRED)
    tokens = sum(len(line) for line in rows.train) / 4
    assert tokens > 4 * 2 * 2 * 1024
    assert rows.worst > 2 * 2 * 2


def test_the_scan_ends_where_it_says(corpus):
    rows = probe.from_corpus(corpus, KNOBS, 2, 2, REQUIRED, limit_bytes=20_000)
    assert "of its first 20," in rows.source
    assert sizes(rows.train) != sizes(probe.from_corpus(corpus, KNOBS, 2, 2, REQUIRED).train)


def test_odd_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b'\xef\xbb\xbf{"text": "first and longest"}\r\n\n  \n{"text": "no newline"}')
    rows = probe.from_corpus(path, KNOBS, 2, 1, REQUIRED)
    assert rows.train[0] == b'{"text": "first and longest"}\n'
    assert rows.train[1] == b'{"text": "no newline"}\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"text": "a"}\n{"prompt": "longer than the other"}\n', ":2: no 'text'"),
        ('{"text": "a"}\n\n{"text": broken, and long}\n', ":3: not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, complaint):
    path = tmp_path / "rows"
    path.write_text(text)
    with pytest.raises(BadInput, match=complaint):
        probe.from_corpus(path, KNOBS, 2, 2, REQUIRED)


@pytest.mark.parametrize("row_format", ["alpaca", "chat", "sharegpt", "completion"])
def test_made_up_rows_fit_the_format_and_are_long(row_format):
    from leviathan.corpus import REQUIRED_FIELDS

    rows = probe.generated(row_format, KNOBS, 3, 2)
    assert len(rows.train) == 3 * 2 * 2
    for line in rows.train:
        assert set(REQUIRED_FIELDS[row_format]) <= set(json.loads(line))
        assert len(line) > 64 * 4
    assert len(set(rows.train)) == len(rows.train)


def made(tmp_path, evaluation=True):
    rows = probe.generated("completion", KNOBS, 5, 2)
    sample, held_out = probe.write(rows, tmp_path, evaluation=evaluation)
    return probe.Probe(sample, held_out, 2, 3, rows.worst, 2)


def test_a_probes_keys_over_a_training(tmp_path):
    tree = {**TREE, "datasets": [{"path": "rows", "type": "alpaca"}, {"path": "more"}],
            "save_steps": 100, "saves_per_epoch": 1, "group_by_length": True, "num_epochs": 3,
            "early_stopping_patience": 2, "wandb_project": "mine", "use_wandb": True,
            "learning_rate": 1e-4}  # fmt: skip
    wanted, gone = probe.overlay(tree, made(tmp_path))
    assert wanted == {
        "datasets": [{"path": "rows", "type": "alpaca"}], "max_steps": 5, "save_steps": 5,
        "logging_steps": 1, "gradient_accumulation_steps": 2, "val_set_size": 0,
        "curriculum_sampling": True, "shuffle_merged_datasets": False,
        "excess_length_strategy": "truncate", "eval_steps": 5,
        "test_datasets": [{"path": str(tmp_path / "eval_rows.jsonl"), "type": "alpaca",
                           "split": "train"}],
    }  # fmt: skip
    assert set(gone) == {"saves_per_epoch", "group_by_length", "early_stopping_patience",
                         "wandb_project", "use_wandb"}  # fmt: skip


def test_a_training_that_never_evaluates_is_not_evaluated(tmp_path):
    tree = {**TREE, "datasets": [{}], "test_datasets": [{}]}
    wanted, gone = probe.overlay(tree, made(tmp_path, evaluation=False))
    assert not {"eval_steps", "test_datasets"} & set(wanted)
    assert {"eval_steps", "test_datasets"} <= set(gone)


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ({"val_set_size": 8, "eval_steps": 5}, True),
        ({"val_set_size": 0.1, "evals_per_epoch": 1}, True),
        ({"test_datasets": [{}], "eval_steps": 5}, True),
        ({"val_set_size": 8}, False),
        ({"val_set_size": 0, "eval_steps": 5}, False),
    ],
)
def test_whether_a_training_evaluates(keys, asked):
    assert probe.evaluates(keys) is asked


def test_the_rows_of_most_tokens_come_first_the_others_as_they_were():
    from leviathan.gauge import worst_first

    assert worst_first([3, 9, 1, 9, 7, 2], 3) == [1, 3, 4, 0, 2, 5]
    assert worst_first([3, 1], 5) == [0, 1]
