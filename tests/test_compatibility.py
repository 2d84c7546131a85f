"""What may change between the sessions of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leviathan import compatibility
from leviathan.compatibility import differences, effective_batch, version_changes

TREE = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "processes": 1, "lora_r": 8}


@pytest.mark.parametrize(
    ("key", "new", "verdict", "reason"),
    [
        ("learning_rate", 1e-5, "free", "may change between sessions"),
        ("save_steps", 7, "free", "may change"),
        ("saves_per_epoch", 4, "free", "may change"),
        ("eval_max_new_tokens", 4, "free", "may change"),
        ("gradient_checkpointing_kwargs", {}, "free", "may change"),
        ("use_wandb", True, "free", "may change"),
        ("wandb_project", "x", "free", "may change"),
        ("dataloader_num_workers", 2, "free", "may change"),
        ("base_model", "x", "refused", "the base model is another one"),
        ("lora_r", 16, "refused", "the saved adapter has another shape"),
        ("lora_target_modules", [], "refused", "the saved adapter has another shape"),
        ("load_in_4bit", True, "refused", "the saved adapter has another shape"),
        ("sequence_len", 1, "refused", "the rows, or their order"),
        ("datasets", [], "refused", "the rows, or their order"),
        ("sample", "full", "refused", "the rows, or their order"),
        ("seed", 1, "refused", "the rows, or their order"),
        ("sample_packing", True, "refused", "the rows, or their order"),
        ("num_epochs", 2, "refused", "the learning rate schedule"),
        ("lr_scheduler", "linear", "refused", "the learning rate schedule"),
        ("optimizer", "x", "refused", "the saved optimizer state"),
        ("lora_alpha", 64, "refused", "another shape or scale"),
        ("bf16", True, "refused", "it changes what is trained"),
    ],
)
def test_each_key_has_its_verdict(key, new, verdict, reason):
    (found,) = differences(TREE, {**TREE, key: new})
    assert (found.key, found.old, found.new, found.verdict) == (key, TREE.get(key), new, verdict)
    assert reason in found.reason


@pytest.mark.parametrize(
    "key",
    ["use_pose", "use_eaft", "use_onebitllms", "dataloader_drop_last", "revision_of_model"],
)
def test_keys_that_change_what_is_trained_are_not_free(keys, key):
    """Their names look like those of harmless ones."""
    assert key in keys.fields
    assert not compatibility.is_free(key)


def test_every_named_key_is_one_of_axolotl(keys):
    """A misspelt key here would silently judge nothing."""
    ours = {"sample"}
    named = {k for keys_ in compatibility._REASONS.values() for k in keys_} - ours
    assert sorted(named - keys.fields.keys()) == []
    integrations = {name for fields in keys.integrations.values() for name in fields}
    known = keys.fields.keys() | integrations
    assert sorted(compatibility.FREE_KEYS - known) == []
    lost = [p for p in compatibility.FREE_PREFIXES if not any(k.startswith(p) for k in known)]
    assert lost == []


BATCHES = st.fixed_dictionaries(
    {},
    optional={
        "micro_batch_size": st.integers(1, 12),
        "gradient_accumulation_steps": st.integers(1, 12),
        "processes": st.integers(1, 4),
    },
)


@given(BATCHES, BATCHES)
def test_batches_are_judged_by_their_product(old, new):
    found = differences(old, new)
    same = effective_batch(old) == effective_batch(new)
    assert {d.verdict for d in found} <= ({"arithmetic"} if same else {"refused"})
    for difference in found:
        _, hint, wanted = difference.reason.partition("gradient_accumulation_steps=")
        if hint:  # what it tells the user to set does what it promises
            steps = int(wanted.removesuffix(" keeps it"))
            fixed = {**new, "gradient_accumulation_steps": steps}
            assert {d.verdict for d in differences(old, fixed)} <= {"arithmetic"}


@given(BATCHES)
def test_nothing_differs_from_itself(tree):
    assert differences(tree, dict(tree)) == []


DROPOUT, MEANS, PACKED = "dropout draws anew", "other micro batches", "rows are packed anew"


@pytest.mark.parametrize(
    ("sizes", "packing", "what"),
    [
        ((4, 1, 2), False, {DROPOUT}),
        ((4, 1, 2), True, {DROPOUT}),
        ((2, 4, 1), False, {MEANS}),
        ((2, 4, 1), True, {PACKED}),
        ((2, 2, 2), False, {MEANS, DROPOUT}),
        ((2, 2, 2), True, {PACKED, DROPOUT}),
    ],
)
def test_what_is_not_exact_at_the_same_batch_is_said(sizes, packing, what):
    tree = {**TREE, "sample_packing": packing}
    found = differences(tree, {**tree, **dict(zip(compatibility.BATCH_KEYS, sizes, strict=True))})
    assert found
    for difference in found:
        assert "stays 8 rows; " in difference.reason
        assert {text for text in (DROPOUT, MEANS, PACKED) if text in difference.reason} == what


def test_versions_that_reach_the_loss():
    old = {"torch": "2.1", "datasets": "1", "peft": "1", "axolotl": "1", "python": "3.11"}
    new = {"torch": "2.2", "datasets": "2", "axolotl": "1", "bitsandbytes": "1", "python": "3.12"}
    assert list(version_changes(old, new)) == ["torch 2.1 -> 2.2", "peft 1 -> gone"]


def test_the_fingerprint_is_the_same_exactly_where_a_resume_is_allowed():
    tree = {"lora_r": 8, "micro_batch_size": 4, "learning_rate": 1e-4, "sample": "full"}
    print_of = compatibility.fingerprint
    assert print_of({**tree, "learning_rate": 1.0, "save_steps": 3}) == print_of(tree)
    halved = {**tree, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    assert print_of(halved) == print_of(tree)
    for key, value in (("lora_r", 4), ("sample", "10pct"), ("micro_batch_size", 2), ("seed", 1)):
        assert print_of({**tree, key: value}) != print_of(tree)
