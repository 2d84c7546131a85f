"""Hours and money over all sessions."""

import pytest

from leviathan.budget import Budget, to_finish
from leviathan.errors import BadInput
from leviathan.eta import Eta


@pytest.mark.parametrize(
    ("given", "hours", "text"),
    [
        ({}, None, ""),
        ({"usd_hour": 2.0}, None, ""),
        ({"max_hours": 3}, 3, "3 h"),
        ({"budget_usd": 10, "usd_hour": 2}, 5, "$10 at $2/h"),
        ({"max_hours": 3, "budget_usd": 10, "usd_hour": 2}, 3, "3 h, $10 at $2/h"),
        ({"max_hours": 9, "budget_usd": 10, "usd_hour": 2}, 5, "9 h, $10 at $2/h"),
    ],
)
def test_the_nearer_limit_counts(given, hours, text):
    budget = Budget(**given)
    assert (budget.hours, budget.text) == (hours, text)


@pytest.mark.parametrize(("spent_s", "left_s"), [(0, 3600), (3599, 1), (3600, 0), (9999, 0)])
def test_what_is_left_is_never_negative(spent_s, left_s):
    assert Budget(max_hours=1).left_s(spent_s) == left_s
    assert Budget().left_s(spent_s) is None


@pytest.mark.parametrize(
    "given",
    [
        {"budget_usd": 5}, {"budget_usd": 5, "usd_hour": 0}, {"max_hours": float("nan")},
        {"budget_usd": float("nan"), "usd_hour": 1}, {"budget_usd": 1, "usd_hour": float("nan")},
    ],
)  # fmt: skip
def test_a_budget_without_a_price_or_number_is_refused(given):
    with pytest.raises(BadInput):
        Budget(**given)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((7, None, None), "7 steps to go"),
        ((100, 3600.0, None), "100 steps to go, about 1.0 h, by session 2's 9 steps"),
        ((100, 3600.0, 2.5), "100 steps to go, about 1.0 h, $2.50, by session 2's 9 steps"),
        ((10, 300.0, 0.0), "10 steps to go, about 5 min, by session 2's 9 steps"),
        ((10, 3.0, None), "10 steps to go, about 1 min, by session 2's 9 steps"),
    ],
)
def test_what_the_rest_takes(arguments, text):
    steps, seconds, usd_hour = arguments
    left = Eta(None, seconds, None, "session 2's 9 steps")
    assert to_finish(steps, left, usd_hour) == text
