"""Owns the shipped reward functions: what a completion of a multiple-choice question earns.

Imported inside the training process by the names in ``trl.reward_funcs``. Pure, and knows
neither a command line nor torch. Does not make the questions (``lessons``).

A reward function gets a batch: ``completions`` (texts, or lists of messages where the model
has a chat template) and every column of the dataset by name, and gives one number each.
"""

import re
from collections.abc import Sequence
from typing import Any

from leviathan.lessons import LETTERS

CORRECT = 1.0
AT_ONCE = 0.1
Completion = str | list[dict[str, Any]]

_MARKUP = re.compile(r"[*_`\"\u201c\u201d\u2018\u2019]|\\boxed|[{}$]")
_LETTER = r"[\[(]?(?P<letter>[A-Za-z])[\])]?"
_END = r"(?=[\s.,:;!?)\]]|$)"
_PHRASE = r"(?:the\s+)?(?:(?:right|correct|final)\s+)?(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*"
# The whole of an answer: a letter, with or without the word.
_WHOLE = re.compile(rf"(?:{_PHRASE})?{_LETTER}\s*[.:)]?", re.IGNORECASE)
_STATED = re.compile(rf"\b(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*{_LETTER}{_END}", re.I)
# A letter that stands alone; not the article, nor "I think".
_NO_ARTICLE = r"(?!(?<=[AI])\s+(?!(?:or|and|nor|is|but|because|since|as)\b)[a-z])"
_ALONE = re.compile(
    rf"(?<![\w'])(?P<letter>[A-Z])(?![\w']){_NO_ARTICLE}|[\[(](?P<inside>[A-Z])[\])]"
)
_DENIED = re.compile(r"\b(?:not|isn't|neither|nor|except)\s+(?:option\s+|choice\s+)?[\[(]?$", re.I)
_AROUND = " ,.:;-()[]"
_INTRODUCTION = re.compile(rf"^(?:{_PHRASE}|it\s+is\s+|it's\s+)", re.IGNORECASE)


def correct_choice(
    completions: Sequence[Completion],
    answer: Sequence[str],
    choices: Sequence[Sequence[str]],
    **_columns: Any,
) -> list[float]:
    """1.0 for each completion that names the right choice and no other; else 0.0.

    Args:
        completions: what the model wrote.
        answer: letters of the right choices.
        choices: the texts of the choices.
    """
    rows = zip(completions, answer, choices, strict=True)
    return [
        CORRECT if chosen(said(written), texts) == right else 0.0 for written, right, texts in rows
    ]


def answers_at_once(
    completions: Sequence[Completion], choices: Sequence[Sequence[str]], **_columns: Any
) -> list[float]:
    """0.1 for each completion that is a letter of a choice, right or wrong, and nothing else.

    "B", "(B)", "B." and "Answer: B" are; small, so that form never pays for a wrong answer.

    Args:
        completions: what the model wrote.
        choices: the texts of the choices.
    """
    rows = zip(completions, choices, strict=True)
    return [
        AT_ONCE if _whole(_plain(said(written)), len(texts)) else 0.0 for written, texts in rows
    ]


def said(completion: Completion) -> str:
    """What was written, where a conversation's completion is a list of messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def chosen(written: str, choices: Sequence[str]) -> str | None:
    """Letter of the one choice that ``written`` names, by letter or by its own text.

    None where it names none, or more than one: listing choices earns nothing, and neither does
    a letter beside the text of another choice. Thoughts up to ``</think>`` do not count, nor
    does a letter that is denied ("not B").
    """
    plain, count = _plain(written), len(choices)
    whole = _whole(plain, count)
    if whole:
        return whole
    by_text = _by_text(plain, choices)
    claimed = _claims(plain, count, choices)
    if len(claimed) > 1 or (by_text and claimed - {by_text}):
        return None
    return by_text or next(iter(claimed), None)


def _plain(written: str) -> str:
    answer = written.rpartition("</think>")[2]
    return _MARKUP.sub("", answer).strip()


def _whole(plain: str, count: int) -> str | None:
    found = _WHOLE.fullmatch(plain)
    return _valid(found["letter"], count) if found else None


def _valid(letter: str, count: int) -> str | None:
    upper = letter.upper()
    return upper if upper in LETTERS[:count] else None


def _claims(plain: str, count: int, choices: Sequence[str]) -> set[str]:
    """Every letter named, and that of a choice whose text stands beside another's letter."""
    found = [*_STATED.finditer(plain), *_ALONE.finditer(plain)]
    claimed = set[str]()
    for match in found:
        groups = match.groupdict()
        letter = groups["letter"] or groups.get("inside") or ""
        # "answer is a metal": a small letter is one only where nothing follows it.
        small = letter.islower() and plain[match.end() :].lstrip(" .)]\t") != ""
        if small or _DENIED.search(plain[: match.start()]):
            continue
        claimed |= {_valid(letter, count) or letter.upper()}
        before = plain[: match.start()].rpartition("\n")[2]
        after = plain[match.end() :].partition("\n")[0]
        beside = (_by_text(text.strip(_AROUND), choices) for text in (before, after))
        claimed |= {named for named in beside if named}
    return claimed if claimed <= set(LETTERS[:count]) else set()


def _by_text(plain: str, choices: Sequence[str]) -> str | None:
    """Letter of the choice whose text ``plain`` is, whatever introduces it."""
    wanted = {_bare(plain), _bare(_INTRODUCTION.sub("", plain))} - {""}
    found = [LETTERS[i] for i, choice in enumerate(choices) if _bare(choice) in wanted]
    return found[0] if len(found) == 1 else None


def _bare(words: str) -> str:
    """Without case, and without the spaces and dots around and between."""
    return " ".join(_MARKUP.sub("", words).casefold().split()).strip(" .,:;!?")
