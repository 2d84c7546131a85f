"""What hosts must have in common."""

import json

from leviathan import agreement, layers, train


def facts(*sets, base="d1"):
    decision = train.decide(layers.build("tiny", "tiny", "full", ["hardware.nodes=2", *sets]))
    return agreement.facts(decision, base)


def test_equal_hosts_agree_and_facts_survive_the_wire(project):
    ours = facts()
    assert json.loads(json.dumps(ours)) == ours
    assert agreement.differences(ours, facts()) == []
    assert ours["run directory"] == str((project / "work/training/tiny_full_tiny").resolve())


def test_each_difference_is_named_with_both_values(project):
    ours = facts()
    assert agreement.differences(ours, facts("learning_rate=0.5", "hardware.count=2")) == [
        "hardware count is 2, 1 on the head",
        "learning_rate is 0.5, 0.01 on the head",
    ]
    assert agreement.differences(ours, facts("warmup_steps=null", "seed=7", base="d2")) == [
        "seed is 7, 42 on the head",
        "warmup_steps is absent, 2 on the head",
        "base model's files is 'd2', 'd1' on the head",
    ]
    other = {**ours, "versions": {**ours["versions"], "torch": "0.1"}}
    (one,) = agreement.differences(ours, other)
    assert one.startswith("versions torch is '0.1', ")


def test_many_differences_are_counted():
    assert agreement.shown(["a", "b", "c"]) == "a; b; c"
    assert agreement.shown(["a", "b", "c", "d", "e"]) == "a; b; c, and 2 more"


def test_what_is_no_facts_differs_in_everything(project):
    assert len(agreement.differences(facts(), {})) > 5
