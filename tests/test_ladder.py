"""The out-of-memory ladder: each rung needs less memory and trains the same model."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leviathan import compatibility, ladder
from leviathan.config import OutOfMemory, Rung
from leviathan.ladder import Change

DEFAULT = OutOfMemory()


def walk(policy, tree, phase="train"):
    """Every change until the end of the ladder, and the tree there."""
    taken = []
    while change := ladder.next_rung(policy, tree, phase, "why"):
        taken.append(change)
        tree = {**tree, **change.after}
        assert len(taken) < 100, "the ladder has no end"
    return taken, tree


@pytest.mark.parametrize(
    ("phase", "tree", "after"),
    [
        ("train", {"micro_batch_size": 4}, [
            {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
            {"micro_batch_size": 1, "gradient_accumulation_steps": 4},
            {"gradient_checkpointing": True},
            {"activation_offloading": True},
        ]),
        ("train", {"micro_batch_size": 1, "eval_batch_size": 4, "gradient_checkpointing": True}, [
            {"eval_batch_size": 1},
            {"activation_offloading": True},
        ]),
        ("eval", {"micro_batch_size": 2, "eval_sample_packing": True}, [
            {"eval_batch_size": 1},
            {"eval_sample_packing": False},
            {"micro_batch_size": 1, "gradient_accumulation_steps": 2},
            {"gradient_checkpointing": True},
            {"activation_offloading": True},
        ]),
        ("train", {"micro_batch_size": 9, "gradient_accumulation_steps": 2}, [
            {"micro_batch_size": 3, "gradient_accumulation_steps": 6},
            {"micro_batch_size": 1, "gradient_accumulation_steps": 18},
            {"gradient_checkpointing": True},
            {"activation_offloading": True},
        ]),
    ],
)  # fmt: skip
def test_the_default_ladder(phase, tree, after):
    taken, _ = walk(DEFAULT, tree, phase)
    assert [change.after for change in taken] == after


@pytest.mark.parametrize(
    ("rung", "tree", "after"),
    [
        ({"halve": "micro_batch_size", "down_to": 2}, {"micro_batch_size": 2}, None),
        ({"halve": "micro_batch_size", "down_to": 3}, {"micro_batch_size": 7}, None),
        ({"halve": "micro_batch_size"}, {}, None),
        ({"halve": "eval_batch_size"}, {"eval_batch_size": 5}, {"eval_batch_size": 2}),
        ({"halve": "eval_batch_size"}, {"micro_batch_size": 4}, {"eval_batch_size": 2}),
        ({"set": {"eval_batch_size": 4}}, {"eval_batch_size": 2}, None),
        ({"set": {"eval_batch_size": 1}}, {"micro_batch_size": 1}, None),
        ({"set": {"activation_offloading": "hidden_states"}}, {}, {"activation_offloading": "hidden_states"}),
    ],
)  # fmt: skip
def test_one_rung(rung, tree, after):
    change = ladder.next_rung(OutOfMemory(ladder=[Rung(**rung)]), tree, "train", "")
    assert (change and change.after) == after


def test_two_rungs_for_one_key_do_not_take_turns_for_ever():
    rungs = [{"set": {"activation_offloading": value}} for value in ("hidden_states", True)]
    taken, tree = walk(OutOfMemory.model_validate({"ladder": rungs}), {})
    assert (len(taken), tree) == (2, {"activation_offloading": True})


RUNGS = st.lists(
    st.one_of(
        st.builds(
            Rung,
            halve=st.sampled_from(["micro_batch_size", "eval_batch_size"]),
            down_to=st.integers(1, 8),
            when=st.lists(st.sampled_from(["train", "eval", "save"]), min_size=1),
        ),
        st.builds(
            Rung,
            set=st.dictionaries(
                st.sampled_from(["eval_batch_size", "eval_steps", "activation_offloading"]),
                st.integers(1, 4),
                min_size=1,
            ),
            when=st.lists(st.sampled_from(["train", "eval", "save"]), min_size=1),
        ),
    ),
    max_size=5,
)
TREES = st.fixed_dictionaries(
    {"micro_batch_size": st.integers(1, 300)},
    optional={
        "gradient_accumulation_steps": st.integers(1, 64),
        "eval_batch_size": st.integers(1, 64),
        "eval_steps": st.integers(1, 4),
    },
)


@given(RUNGS, TREES, st.lists(st.sampled_from(["train", "eval", "save"]), min_size=60))
def test_any_ladder_ends_keeps_the_effective_batch_and_raises_no_size(rungs, tree, phases):
    """Whatever runs out of memory when."""
    policy, before = OutOfMemory(ladder=rungs), dict(tree)
    for phase in [*phases, *["train", "eval", "save"] * 60]:
        change = ladder.next_rung(policy, tree, phase, "")
        if change is None:
            continue
        after = {**tree, **change.after}
        assert after != tree
        assert compatibility.effective_batch(after) == compatibility.effective_batch(before)
        assert after["micro_batch_size"] <= tree["micro_batch_size"]
        old, new = ladder._size("eval_batch_size", tree), ladder._size("eval_batch_size", after)
        assert new <= old
        assert change.applies_to(tree)
        assert not change.applies_to(after)
        tree = after
    assert [ladder.next_rung(policy, tree, phase, "") for phase in ("train", "eval", "save")] == [
        None
    ] * 3


@given(RUNGS, TREES)
def test_every_rung_may_be_resumed_with(rungs, tree):
    _, end = walk(OutOfMemory(ladder=rungs), tree)
    found = compatibility.differences(tree, end)
    assert {d.verdict for d in found} <= {"free", "arithmetic"}


def test_shrinking_halves_length_then_rank_with_alpha():
    tree, taken = {"sequence_len": 1024, "lora_r": 32, "lora_alpha": 64}, []
    while change := ladder.next_shrink(DEFAULT, tree, ""):
        taken.append(change.after)
        tree = {**tree, **change.after}
    assert taken == [
        {"sequence_len": 512}, {"sequence_len": 256},
        {"lora_r": 16, "lora_alpha": 32}, {"lora_r": 8, "lora_alpha": 16},
    ]  # fmt: skip


def test_a_change_survives_the_record_and_reads_well():
    change = ladder.next_rung(DEFAULT, {"micro_batch_size": 2}, "train", "made up")
    assert Change(**json.loads(json.dumps(change.to_json()))) == change
    assert str(change) == "micro_batch_size 2 -> 1, gradient_accumulation_steps None -> 2"


def test_advice_is_yaml():
    shown = ladder.advice({"micro_batch_size": 1, "activation_offloading": True, "a": "b"})
    assert shown.endswith('{micro_batch_size: 1, activation_offloading: true, a: "b"}')


@pytest.mark.parametrize(
    "rung",
    [
        {}, {"set": {}}, {"halve": "lora_alpha"}, {"halve": "micro_batch_size", "down_to": 0},
        {"set": {"micro_batch_size": 1}}, {"set": {"lora_r": 4}}, {"set": {"use_pose": True}},
        {"halve": "sequence_len"}, {"halve": "lora_r"}, {"set": {"eval_steps": 1}, "when": ["load"]},
    ],
)  # fmt: skip
def test_rungs_that_cannot_be_taken_within_a_run(rung):
    with pytest.raises(ValidationError):
        OutOfMemory.model_validate({"ladder": [rung]})
