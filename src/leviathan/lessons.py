"""Owns questions with choices: what is wrong with one, and the prompt it is asked as.

Also imported inside the training process, where ``leviathan.choices`` makes prompts of rows.
Knows neither a command line nor torch. Does not judge answers (``rewards``).
"""

import string
from collections.abc import Callable, Iterator
from typing import Any

LETTERS = string.ascii_uppercase
REQUEST = "Answer with the letter of the right choice."
TYPE = "leviathan.choices"
"""What Axolotl calls the transform, in ``datasets``."""
_FEWEST = 2
Row = dict[str, Any]


def problems(row: Row) -> Iterator[tuple[str, str]]:
    """What is wrong with a row, as kinds of ``findings`` and words."""
    yield from _text_problems(row)
    choices = row.get("choices")
    if choices is None:
        yield "missing_field", "no 'choices'"
    elif not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        yield "wrong_type", "'choices' is not a list of texts"
    else:
        yield from _choice_problems(choices)
        yield from _answer_problems(row, len(choices))


def _text_problems(row: Row) -> Iterator[tuple[str, str]]:
    question, system = row.get("question"), row.get("system")
    if question is None:
        yield "missing_field", "no 'question'"
    elif not isinstance(question, str):
        yield "wrong_type", "'question' is not text"
    elif not question.strip():
        yield "empty_field", "empty 'question'"
    if system is not None and not isinstance(system, str):
        yield "wrong_type", "'system' is not text"


def _choice_problems(choices: list[str]) -> Iterator[tuple[str, str]]:
    plain = [choice.strip() for choice in choices]
    if not _FEWEST <= len(choices) <= len(LETTERS):
        yield "bad_choices", f"{len(choices)} choices, not {_FEWEST} to {len(LETTERS)}"
    if not all(plain):
        yield "bad_choices", f"choices[{plain.index('')}] is empty"
    twice = next((i for i, choice in enumerate(plain) if choice in plain[:i]), None)
    if twice is not None:
        yield "bad_choices", f"choices[{twice}] equals choices[{plain.index(plain[twice])}]"


def _answer_problems(row: Row, count: int) -> Iterator[tuple[str, str]]:
    answer = row.get("answer")
    if answer is None:
        yield "missing_field", "no 'answer'"
    elif isinstance(answer, bool) or not isinstance(answer, int | str):
        yield "wrong_type", "'answer' is neither an index from 0 nor a letter"
    elif place(answer, count) is None:
        yield "bad_answer", f"answer {str(answer)[:24]!r} names none of {count} choices"


def place(answer: int | str, count: int) -> int | None:
    """Index of the choice that ``answer`` names: an index from 0, or a letter from A; else None."""
    if isinstance(answer, str):
        letter = answer.strip().upper()
        index = LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS else -1
    else:
        index = answer
    return index if 0 <= index < count else None


def letter(row: Row) -> str:
    """Letter of the right choice of a sound row.

    Raises:
        ValueError: the row is not sound.
    """
    found = next(problems(row), None)
    index = None if found else place(row["answer"], len(row["choices"]))
    if index is None:
        what = found[1] if found else "no answer"
        raise ValueError(f"not a question with choices: {what}; see leviathan data check")
    return LETTERS[index]


def question(row: Row) -> str:
    """The question, its choices with letters, and what to answer with."""
    listed = [f"{LETTERS[i]}) {choice.strip()}" for i, choice in enumerate(row["choices"])]
    return "\n".join([row["question"].strip(), "", *listed, "", REQUEST])


def messages(row: Row) -> list[dict[str, str]]:
    """The question as a conversation, for a model with a chat template."""
    system = (row.get("system") or "").strip()
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": question(row)}]


def text(row: Row) -> str:
    """The question as plain text, for a model without a chat template."""
    system = (row.get("system") or "").strip()
    return "\n\n".join([*([system] if system else []), question(row), "Answer:"])


def choices(_cfg: Any, **_options: Any) -> tuple[Callable[..., Row], dict[str, Any]]:
    """A dataset transform for Axolotl (``type: leviathan.choices``), and what it is mapped with."""

    def transform(row: Row, tokenizer: Any = None) -> Row:
        right = letter(row)
        spoken = getattr(tokenizer, "chat_template", None)
        prompt = messages(row) if spoken else text(row)
        return {"prompt": prompt, "answer": right, "choices": list(row["choices"])}

    return transform, {"remove_columns": "__all__"}
