"""Owns the kinds of things that can be wrong with a row, and the flags that stand for them.

Does not find any (``formats``, ``hazards``, ``scrutiny``, ``audit``).
"""

from collections.abc import Iterable
from typing import Literal

Severity = Literal["error", "warning"]

KINDS: dict[str, tuple[Severity, str]] = {
    "not_utf8": ("error", "not UTF-8"),
    "not_json": ("error", "not JSON"),
    "not_object": ("error", "JSON, but no object"),
    "not_text": ("error", "half a surrogate pair, which is no text"),
    "missing_field": ("error", "a field is missing"),
    "wrong_type": ("error", "a field holds something else than text"),
    "nothing_trained": ("error", "nothing to train on"),
    "unknown_role": ("error", "a role that chat templates do not know"),
    "bad_choices": ("error", "too few choices, too many, an empty one, or one twice"),
    "bad_answer": ("error", "an answer that names none of the choices"),
    "secret": ("error", "looks like a secret: a key or a token"),
    "duplicate": ("warning", "trains the very text of an earlier row"),
    "near_duplicate": ("warning", "nearly the text of an earlier row"),
    "role_order": ("warning", "turns in an unusual order"),
    "empty_field": ("warning", "an empty field"),
    "control": ("warning", "control characters, or text that was decoded wrongly"),
    "over_long": ("warning", "longer than sequence_len"),
    "masked": ("warning", "no token is left to train on within sequence_len"),
}
"""Every kind of finding: ``error`` is what breaks a training or should not be trained on."""
BITS = {kind: 1 << bit for bit, kind in enumerate(KINDS)}
BLANK = 1 << 31
"""Flag of a line that is no row."""
EXAMPLES = 5
"""So many rows of a kind are shown."""


def flags(kinds: Iterable[str]) -> int:
    """The flags of these kinds together."""
    return sum(BITS[kind] for kind in kinds)


ERRORS = flags(kind for kind, (severity, _) in KINDS.items() if severity == "error")
