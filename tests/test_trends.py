"""Where a figure is going, and that noise alone is going nowhere."""

import numpy as np
import pytest

from leviathan import trends
from test_series import curve


@pytest.mark.parametrize(
    ("slope", "direction"), [(-0.01, "falling"), (0.0, "level"), (0.01, "rising")]
)
def test_direction(slope, direction):
    noise = np.random.default_rng(3).normal(0, 0.05, 200)
    assert trends.of(curve(2 + slope * np.arange(200) + noise)).direction == direction


def test_the_means_are_of_the_newest_twenty_and_the_twenty_before():
    found = trends.of(curve([*[5.0] * 60, *[3.0] * 20, *[1.0] * 20]))
    assert (found.mean, found.before, found.direction) == (1.0, 3.0, "falling")


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_points_go_nowhere(count):
    assert trends.of(curve([1.0] * count)) is None


def test_noise_is_rarely_taken_for_a_trend():
    """Two standard errors: about 5 % of the time; some more for small samples."""
    chance = np.random.default_rng(5)
    found = [trends.of(curve(chance.normal(1, 0.1, 60))).direction for _ in range(400)]
    assert sum(word != "level" for word in found) < 0.1 * 400


def test_points_are_means_of_equal_parts():
    assert trends.points(curve(range(100)), 4) == (12.0, 37.0, 62.0, 87.0)
    assert trends.points(curve([1.0, 2.0]), 24) == (1.0, 2.0)
    assert trends.points(curve([])) == ()


def test_usual_is_the_median_of_the_newest():
    assert trends.usual(curve([900.0] * 50 + [2.0] * 19 + [500.0])) == 2.0
    assert trends.usual(curve([])) is None
