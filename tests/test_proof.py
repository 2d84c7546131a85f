"""The verdict on a merge, from made-up comparisons."""

import math
from dataclasses import fields, replace

import pytest

from leviathan import proof

GOOD = proof.Comparison(
    positions=2048, argmax_agreement=1.0, max_abs_diff=1e-6, relative_error=1e-6, kl=1e-9,
    adapter_effect=1.4, differs_from_base=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word", "reason"),
    [
        ({}, "equal", "differs from the base"),
        ({"adapter_effect": 0.0, "relative_error": math.inf}, "unproven", "changes nothing"),
        ({"differs_from_base": False}, "different", "is the base model"),
        ({"max_abs_diff": math.nan}, "unproven", "NaN"),
        ({"kl": math.inf}, "unproven", "NaN"),
        ({"adapter_effect": math.nan}, "unproven", "NaN"),
        ({"argmax_agreement": 0.82}, "different", "only 82.0% of positions"),
        ({"argmax_agreement": 0.98}, "equal", ""),
        ({"argmax_agreement": 0.9799}, "different", "only 98.0% of positions"),
        ({"relative_error": 0.1}, "equal", ""),
        ({"relative_error": 0.11}, "different", "off by 11.0% of the adapter's effect"),
        # What QLoRA's NF4 round trip did to embeddings and head (facts: 0.60 and 0.82).
        ({"max_abs_diff": 0.6, "argmax_agreement": 0.82, "relative_error": 0.4}, "different", ""),
        ({"positions": 0, "argmax_agreement": 0.0, "adapter_effect": 0.0}, "unproven", ""),
    ],
)
def test_verdict(change, word, reason):
    found = proof.verdict(replace(GOOD, **change), 0.98, 0.1)
    assert found[0] == word
    assert reason in found[1]


@pytest.mark.parametrize("nonsense", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", [f.name for f in fields(proof.Comparison) if f.type in ("float", float)]
)
def test_no_number_that_is_none_is_ever_equal(name, nonsense):
    if (name, nonsense) == ("argmax_agreement", math.inf):
        return  # a share; infinity cannot come out of a division of counts
    assert proof.verdict(replace(GOOD, **{name: nonsense}), 0.98, 0.1)[0] != "equal"


def test_limits_of_the_recipe_are_the_ones_applied():
    poor = replace(GOOD, argmax_agreement=0.9, relative_error=0.15)
    assert proof.verdict(poor, 0.98, 0.1)[0] == "different"
    assert proof.verdict(poor, 0.9, 0.15)[0] == "equal"
