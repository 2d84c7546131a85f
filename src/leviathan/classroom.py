"""Owns the corpora of the small recipes made from nothing: text, conversations, choices.

All are taken from the demo's shipped corpus (``configs/demo/stdlib.jsonl``), the same bytes
each time. Does not train (``train``), nor make the demo's base model (``demo``).

Three families of its questions have few different answers, and so become questions with
choices: what kind of object a name is, whether it is public, which package it belongs to.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import config, files, lessons

Row = dict[str, Any]
DIRECTORY = Path("work/demo")
"""Where the shipped recipes look for them."""
NAMES = ("text.jsonl", "chat.jsonl", "lessons.jsonl", "choices.jsonl")
_SEED = 42
_MOST_CHOICES = 5
_HELD_OUT_EVERY = 40
_NAME = re.compile(r"`([\w.]+)`")


@dataclass(frozen=True)
class Family:
    """Questions of the shipped corpus whose answers are few."""

    question: re.Pattern[str]
    answer: re.Pattern[str]
    """Its first group is the word that becomes a choice."""


FAMILIES = (
    Family(re.compile(r"What kind of object is `"), re.compile(r"It is an? (\w+)\.")),
    Family(re.compile(r"Is `.*` public, private or special"), re.compile(r"It is (\w+):")),
    Family(re.compile(r"Which package does `"), re.compile(r"It belongs to `(\w+)`\.")),
)


@dataclass(frozen=True)
class Lesson:
    """A question with choices, in an order that is the same for all of its family.

    A model as small as the demo's learns which letter goes with which answer. To find a letter
    in a shuffled list it would have to read the list; 600 steps were not enough for that.
    """

    question: str
    word: str
    """The right choice."""
    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        """The object that is asked about."""
        return _name(self.question)

    @property
    def letter(self) -> str:
        """The answer."""
        return lessons.LETTERS[self.choices.index(self.word)]

    @property
    def row(self) -> Row:
        """As a row of ``format: choices``."""
        return {"question": self.question, "choices": list(self.choices), "answer": self.letter}


def shipped() -> Path:
    """The corpus that comes with Leviathan."""
    return config.directories("demo")[-1] / "stdlib.jsonl"


def provide(corpus: str) -> None:
    """Write the corpora, if ``corpus`` is one of them and is not there."""
    path = Path(corpus)
    if path.parent == DIRECTORY and path.name in NAMES and not path.exists():
        prepare(shipped())


def prepare(source: Path, directory: Path = DIRECTORY) -> tuple[Path, ...]:
    """Write the corpora to ``directory``, each whole or not at all, where they are not there."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = files.read_json_lines(source)
    asked, held_out = split(rows)
    kept_out = {lesson.name for lesson in held_out}
    made: dict[str, list[Row]] = {
        "text.jsonl": list(_texts(rows, kept_out)),
        "chat.jsonl": list(_conversations(rows, kept_out)),
        "lessons.jsonl": [_spoken(lesson) for lesson in asked],
        "choices.jsonl": [lesson.row for lesson in asked],
    }
    for name, found in made.items():
        path, text = directory / name, "".join(json.dumps(row) + "\n" for row in found)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)
    return tuple(directory / name for name in made)


def split(rows: Sequence[Row]) -> tuple[list[Lesson], list[Lesson]]:
    """The lessons to train on, in a shuffled order, and those of the suite.

    What the suite asks about is in no lesson of another family, either.
    """
    found = [_family(rows, family) for family in FAMILIES]
    held_out = [lesson for made in found for lesson in made[::_HELD_OUT_EVERY]]
    names = {lesson.name for lesson in held_out}
    asked = [lesson for made in found for lesson in made if lesson.name not in names]
    random.Random(_SEED).shuffle(asked)  # noqa: S311 - a reproducible order, no secret
    return asked, held_out


def _family(rows: Sequence[Row], family: Family) -> list[Lesson]:
    pairs = []
    for row in rows:
        question, answer = (message["content"] for message in row["messages"])
        said = family.answer.match(answer)
        if said and family.question.match(question):
            pairs.append((question, said[1]))
    choices = _choices({word for _, word in pairs})
    return [Lesson(question, word, choices[word]) for question, word in pairs]


def _choices(words: set[str]) -> dict[str, tuple[str, ...]]:
    """For each word the choices it stands among: neighbours in the alphabet, as many in each."""
    ranked = sorted(words)
    groups = -(-len(ranked) // _MOST_CHOICES)
    size = -(-len(ranked) // groups)
    return {word: tuple(ranked[i // size * size :][:size]) for i, word in enumerate(ranked)}


def _texts(rows: Sequence[Row], kept_out: set[str]) -> Iterator[Row]:
    for row in rows:
        if "text" in row and row["text"].partition("\n")[0] not in kept_out:
            yield {"text": row["text"]}


def _conversations(rows: Sequence[Row], kept_out: set[str]) -> Iterator[Row]:
    for row in rows:
        if _name(row["messages"][0]["content"]) not in kept_out:
            yield {"messages": row["messages"]}


def _name(question: str) -> str:
    found = _NAME.search(question)
    return found[1] if found else ""


def _spoken(lesson: Lesson) -> Row:
    """A conversation that ends with the letter."""
    answer = {"role": "assistant", "content": lesson.letter}
    return {"messages": [*lessons.messages(lesson.row), answer]}


# --- the suite -----------------------------------------------------------------------------

_HEADER = """\
# What the model of `nanochat --mode demo` is asked.
#   leviathan test RUN --suite nanochat
# Made by scripts/make_nanochat_suite.py from configs/demo/stdlib.jsonl; not to be edited.
# {count} questions with choices, from the same distribution as those that it trains on: the
# same library, the same three kinds of question, choices in the same order. Their names
# are in none of its corpora. Guessing passes {guessed:.0f} %, always the commonest letter
# ({letter}) {commonest:.0f} %.
"""


def suite(source: Path) -> str:
    """The prompt suite of the lessons that are held out, as YAML."""
    _, held_out = split(files.read_json_lines(source))
    letters = [lesson.letter for lesson in held_out]
    commonest = max(sorted(set(letters)), key=letters.count)
    header = _HEADER.format(
        count=len(held_out),
        guessed=guessed_pct(held_out),
        letter=commonest,
        commonest=100 * letters.count(commonest) / len(letters),
    )
    return header + "cases:\n" + "".join(_case(*each) for each in enumerate(held_out, 1))


def guessed_pct(asked: Sequence[Lesson]) -> float:
    """The share of ``asked`` that a blind guess passes, in percent."""
    return 100 * sum(1 / len(lesson.choices) for lesson in asked) / len(asked)


def _case(number: int, lesson: Lesson) -> str:
    prompt = json.dumps(lessons.question(lesson.row))
    return (
        f"  - name: choice-{number:02}\n    prompt: {prompt}\n"
        f"    checks: [{{exact: {lesson.letter}}}]\n"
    )
