"""What an answer to a multiple-choice question earns, honest ones and cheats."""

import subprocess
import sys

import pytest

from leviathan import rewards

CHOICES = ["Paris", "London", "Rome", "A big city"]
ELEMENTS = ["iron", "iron oxide", "I do not know"]


@pytest.mark.parametrize(
    ("written", "letter"),
    [
        ("B", "B"),
        (" b \n", "B"),
        ("(B)", "B"),
        ("[B]", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("**B**", "B"),
        ("\\boxed{B}", "B"),
        ("Answer: B", "B"),
        ("answer: b", "B"),
        ("The correct answer is (B).", "B"),
        ("Option B", "B"),
        ("B) London", "B"),
        ("B. London, of course", "B"),
        ("Answer: (B) London", "B"),
        ("Answer: B because London is meant", "B"),
        ("I think it is C", "C"),
        ("London", "B"),
        ("  LONDON. ", "B"),
        ("It is London.", "B"),
        ("The answer is London", "B"),
        ("A big city", "D"),
        ("a big city", "D"),
        ("not A, so B", "B"),
        ("<think>A or C? D!</think>B", "B"),
        ("B\n\nLondon lies on the Thames.", "B"),
    ],
)
def test_an_answer_that_names_one_choice_is_understood(written, letter):
    assert rewards.chosen(written, CHOICES) == letter


@pytest.mark.parametrize(
    "cheat",
    [
        "",
        "   ",
        "A B C D",
        "ABCD",
        "A, B",
        "A/B/C/D",
        "A or B",
        "B or C",
        "B or C or D",
        "A and B",
        "A\nB\nC\nD",
        "(A)(B)(C)(D)",
        "A) Paris\nB) London\nC) Rome\nD) A big city",
        "Answer: A. Answer: B",
        "Answer: A\nAnswer: B\nAnswer: C",
        "The answer is A, B, C or D",
        "B) Rome",
        "B. Rome",
        "Rome (B)",
        "Paris, London, Rome",
        "Paris London",
        "E",
        "Answer: E",
        "Z",
        "B E",
        "A city is big",
        "the answer is a city",
        "None",
        "not B",
        "<think>B</think>",
        "Which one?",
    ],
)
def test_what_names_none_or_several_earns_nothing(cheat):
    assert rewards.chosen(cheat, CHOICES) is None
    for right in "ABCD":
        assert rewards.correct_choice([cheat], [right], [CHOICES]) == [0.0]


def test_a_choice_within_another_and_one_like_a_sentence():
    assert rewards.chosen("iron", ELEMENTS) == "A"
    assert rewards.chosen("Iron oxide.", ELEMENTS) == "B"
    assert rewards.chosen("I do not know", ELEMENTS) == "C"
    assert rewards.chosen("iron, or iron oxide", ELEMENTS) is None


def test_texts_and_conversations_are_rewarded_alike():
    said = ["B", "A", [{"role": "assistant", "content": "B"}], [{"role": "assistant"}]]
    columns = {
        "answer": ["B"] * 4,
        "choices": [CHOICES] * 4,
        "prompts": [""] * 4,
        "trainer_state": 1,
    }
    assert rewards.correct_choice(completions=said, **columns) == [1.0, 0.0, 1.0, 0.0]
    assert rewards.answers_at_once(completions=said, **columns) == [0.1, 0.1, 0.1, 0.0]


@pytest.mark.parametrize(
    ("written", "earned"),
    [("B", 0.1), ("(B)", 0.1), ("b.", 0.1), ("Answer: B", 0.1), ("E", 0.0), ("B London", 0.0),
     ("London", 0.0), ("", 0.0), ("A B", 0.0), ("ABCD", 0.0)],
)  # fmt: skip
def test_an_answer_at_once_is_a_letter_and_nothing_else(written, earned):
    assert rewards.answers_at_once([written], [CHOICES]) == [earned]


def test_no_form_pays_more_than_the_right_answer():
    assert rewards.AT_ONCE < rewards.CORRECT / 4


def test_training_imports_them_without_the_command_line():
    code = "import sys, leviathan.rewards, leviathan.lessons; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    ours = {name for name in loaded.stdout.split() if name.startswith("leviathan")}
    assert ours == {"leviathan", "leviathan.rewards", "leviathan.lessons"}
    assert not {"typer", "rich", "pydantic", "torch", "numpy"} & set(loaded.stdout.split())
