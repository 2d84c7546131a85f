"""Lines, dots and marks in braille cells: exact characters."""

import random

import pytest

from leviathan.braille import Canvas, Window


def drawn(canvas):
    return ["".join(text for text, _ in line) for line in canvas.lines()]


def test_a_line_joins_its_points():
    canvas = Canvas(4, 1, Window(0, 7, 0, 3))
    canvas.line([(0, 0), (3, 3), (7, 3)], "a")
    assert drawn(canvas) == ["⡠⠊⠉⠉"]


def test_dots_are_not_joined_and_stay_at_the_edge():
    canvas = Canvas(2, 1, Window(0, 3, 0, 3))
    canvas.dots([(0, 3), (3, 99), (0, -5), (9, 1)], "a")  # the last one is beyond the right end
    assert drawn(canvas) == ["⡁⠈"]


def test_a_cell_belongs_to_who_drew_last_and_shows_only_that():
    canvas = Canvas(2, 1, Window(0, 3, 0, 3))
    canvas.line([(0, 0), (3, 0)], "under")
    canvas.line([(0, 3), (1, 3)], "over")
    canvas.marks([(3, 0)], "mark", "◆")
    assert canvas.lines() == [[("⠉", "over"), ("◆", "mark")]]


@pytest.mark.parametrize("points", [[], [(5.0, 1.0)], [(5.0, 1.0), (5.0, 1.0)]])
def test_nothing_and_a_single_point_are_drawn_too(points):
    canvas = Canvas(3, 2, Window(5.0, 5.0, 1.0, 1.0))
    canvas.line(points, "a")
    assert "".join(drawn(canvas)).strip() == ("⡀" if points else "")


def test_thinning_changes_nothing_that_is_seen(monkeypatch):
    chance = random.Random(1)
    points = [(n, chance.gauss(0, 1)) for n in range(3000)]
    window = Window(0, 2999, -4, 4)
    thinned, whole = Canvas(40, 6, window), Canvas(40, 6, window)
    thinned.line(points, "a")
    monkeypatch.setattr(Canvas, "_thinned", staticmethod(list))
    whole.line(points, "a")
    assert drawn(thinned) == drawn(whole)
