"""Owns the corpora of the small recipes made from nothing: text, conversations, choices.

All are taken from the demo's shipped corpus (``configs/demo/stdlib.jsonl``), deterministically.
Does not train (``train``), nor make the demo's base model (``demo``).

Three families of its questions have few different answers, and so become questions with
choices: what kind of object a name is, whether it is public, which package it belongs to.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import files, lessons

Row = dict[str, Any]
DIRECTORY = Path("work/demo")
"""Where the shipped recipes look for them."""
NAMES = ("text.jsonl", "chat.jsonl", "lessons.jsonl", "choices.jsonl")
_SEED = 42
_MOST_CHOICES = 5
_HELD_OUT_EVERY = 40


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
"""Names of their choices differ, so that the words of one family are those of no other."""


@dataclass(frozen=True)
class Lesson:
    """A question with choices, in an order that is the same for all of its family.

    A model as small as the demo's learns which letter goes with which answer. To find a letter
    in a shuffled list it would have to read the list, and it has not the size for it.
    """

    question: str
    word: str
    """The right choice."""
    choices: tuple[str, ...]

    @property
    def row(self) -> Row:
        """As a row of ``format: choices``."""
        answer = self.choices.index(self.word)
        return {"question": self.question, "choices": list(self.choices), "answer": answer}


def missing(directory: Path = DIRECTORY) -> bool:
    """Whether one of the corpora is not in ``directory``."""
    return not all((directory / name).is_file() for name in NAMES)


def prepare(shipped: Path, directory: Path = DIRECTORY) -> tuple[Path, ...]:
    """Write the corpora to ``directory``, each whole or not at all, where they are not there."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(shipped))
    asked, _ = lessons_of(rows)
    made = {
        "text.jsonl": [{"text": row["text"]} for row in rows if "text" in row],
        "chat.jsonl": list(_conversations(rows)),
        "lessons.jsonl": _shuffled(_spoken(asked)),
        "choices.jsonl": _shuffled([lesson.row for lesson in asked]),
    }
    for name, found in made.items():
        path, text = directory / name, "".join(json.dumps(row) + "\n" for row in found)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            files.write_text(path, text)
    return tuple(directory / name for name in made)


def suite(shipped: Path) -> list[Row]:
    """The questions that are in none of the corpora, as cases of a prompt suite."""
    _, held_out = lessons_of(_rows(shipped))
    cases = []
    for number, lesson in enumerate(held_out, 1):
        row = lesson.row
        letter = lessons.LETTERS[row["answer"]]
        cases.append({"name": f"choice-{number:02}", "prompt": lessons.question(row),
                      "checks": [{"exact": letter}]})  # fmt: skip
    return cases


def lessons_of(rows: Iterable[Row]) -> tuple[list[Lesson], list[Lesson]]:
    """All questions with choices: those to train on, and those that are held out."""
    found: list[list[tuple[str, str]]] = [[] for _ in FAMILIES]
    for row in rows:
        question, answer = (message["content"] for message in row["messages"])
        for family, pairs in zip(FAMILIES, found, strict=True):
            if family.question.match(question) and (said := family.answer.match(answer)):
                pairs.append((question, said[1]))
    asked, held_out = [], []
    for pairs in found:
        choices = _choices({word for _, word in pairs})
        made = [Lesson(question, word, choices[word]) for question, word in pairs]
        held_out += made[::_HELD_OUT_EVERY]
        asked += [lesson for place, lesson in enumerate(made) if place % _HELD_OUT_EVERY]
    return asked, held_out


def _conversations(rows: Sequence[Row]) -> Iterator[Row]:
    """The shipped conversations but those that the suite asks."""
    _, held_out = lessons_of(rows)
    kept_out = {lesson.question for lesson in held_out}
    for row in rows:
        if row["messages"][0]["content"] not in kept_out:
            yield {"messages": row["messages"]}


def _choices(words: set[str]) -> dict[str, tuple[str, ...]]:
    """For each word the choices it stands among: neighbours in the alphabet, as many in each."""
    ranked = sorted(words)
    groups = -(-len(ranked) // _MOST_CHOICES)
    size = -(-len(ranked) // groups)
    return {word: tuple(ranked[i // size * size :][:size]) for i, word in enumerate(ranked)}


def _spoken(asked: Sequence[Lesson]) -> list[Row]:
    """The questions as conversations that end with the letter."""
    found = []
    for lesson in asked:
        letter = lessons.LETTERS[lesson.row["answer"]]
        answer = {"role": "assistant", "content": letter}
        found.append({"messages": [*lessons.messages(lesson.row), answer]})
    return found


def _shuffled(rows: list[Row]) -> list[Row]:
    random.Random(_SEED).shuffle(rows)  # noqa: S311 - a reproducible order, no secret
    return rows


def _rows(shipped: Path) -> Iterator[Row]:
    yield from files.read_json_lines(shipped)
