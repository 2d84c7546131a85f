"""What of a row is shown: its parts, its gaps, and signs for what is not seen."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as some

from leviathan.excerpt import Part, parts, visible
from leviathan.preview import Token


def row(*runs):
    """Tokens of runs: text of each token, how many, with loss or not."""
    kinds = [(text, trained) for text, count, trained in runs for _ in range(count)]
    return [Token(text, number, trained) for number, (text, trained) in enumerate(kinds)]


def test_neighbours_of_a_kind_are_one_part():
    tokens = [Token("<s>", 0, False, True), Token("a", 1, False), Token(" b", 2, False),
              Token("c\n", 3, True), Token("\n", 4, True), Token("</s>", 5, True, True)]  # fmt: skip
    assert parts(tokens) == [
        Part("<s>", special=True),
        Part("a b"),
        Part("c↵↵\n", trained=True),
        Part("</s>", trained=True, special=True),
    ]
    assert parts([]) == []


def test_line_ends_over_the_border_of_parts_are_one():
    found = parts([Token("a\n", 1, False), Token("\n", 2, True), Token("b", 3, True)])
    assert [part.text for part in found] == ["a↵", "↵\nb"]


def test_of_a_long_row_its_ends_and_borders_are_shown():
    tokens = row(("ask ", 900, False), ("say ", 900, True))
    found = parts(tokens, most=400)
    assert [bool(part.left_out) for part in found] == [False, True, False, False, True, False]
    assert [part.trained for part in found if part.text] == [False, False, True, True]
    assert 200 < sum(len(part.text) for part in found) <= 400
    for gap in (part for part in found if part.left_out):
        assert gap.left_trained in {0, gap.left_out}


def test_many_turns_are_cut_in_the_middle():
    tokens = row(*[("word ", 3, bool(turn % 2)) for turn in range(300)])
    found = parts(tokens, most=400)
    (gap,) = [part for part in found if part.left_out]
    assert gap.left_out > 700
    assert 0 < gap.left_trained < gap.left_out
    place = found.index(gap)
    assert 0.5 < place / (len(found) - 1 - place) < 2


def test_a_gap_not_worth_its_mark_is_closed():
    tokens = row(*[("w ", 15, bool(turn % 2)) for turn in range(4)], ("w ", 500, False))
    found = parts(tokens, most=150)
    assert [part.left_out > 400 for part in found] == [False] * 5 + [True, False]
    assert sum(len(part.text) for part in found[:4]) == 4 * 15 * 2


@given(
    some.lists(some.tuples(some.sampled_from("a\n日"), some.booleans()), max_size=400),
    some.integers(20, 800),
)
def test_every_token_is_shown_or_counted(made, most):
    tokens = [Token(text, number, trained) for number, (text, trained) in enumerate(made)]
    found = parts(tokens, most)
    shown = [(len(part.text.replace("\n", "")), part.trained) for part in found]
    assert sum(n for n, _ in shown) + sum(part.left_out for part in found) == len(tokens)
    trained = sum(n for n, trained in shown if trained) + sum(part.left_trained for part in found)
    assert trained == sum(token.trained for token in tokens)


@pytest.mark.parametrize(("text", "shown"), [
    ("a\nb", "a↵\nb"), ("a\n\n\nb\n", "a↵↵↵\nb↵"), ("\r\n", "␍↵"), ("\t", "⇥"),
    ("\x1b[31m", "␛[31m"), ("\x00\x7f", "␀␡"), ("\x9b", "<U+009B>"), ("\u202e", "<U+202E>"),
    ("\u2028", "<U+2028>"), ("\ufffd", "\ufffd"), ("👨\u200d👩", "👨\u200d👩"), ("日本 ü", "日本 ü"),
])  # fmt: skip
def test_signs(text, shown):
    assert visible(text) == shown


def test_a_line_ends_where_the_next_begins():
    assert visible("a\n", "b") == "a↵\n"
    assert visible("a\n", "\n") == "a↵"


@given(some.text())
def test_nothing_in_a_row_commands_the_terminal(text):
    categories = {unicodedata.category(character) for character in visible(text).replace("\n", "")}
    assert not categories & {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
