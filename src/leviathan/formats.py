"""Owns the shapes of rows that recipes know, and what is wrong with a row of such a shape.

Does not read files and does not render rows (``templates``).
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from leviathan import lessons

Kind = Literal["alpaca", "chat", "sharegpt", "completion", "choices", "unknown"]
Problem = tuple[str, str]
"""A kind of finding (``audit.KINDS``) and what it is about in this row."""

# Roles as Axolotl's default mapping and the common chat templates know them.
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "ipython": "tool", "observation": "tool",
}  # fmt: skip
_DEFAULTS = {
    "chat": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}
AROUND = ("system", "tools")
"""Fields of a row that go into a conversation beside its messages,"""
_BESIDE = ("tool_calls",)
"""and of a message beside its content."""
_SHOWN = 24


@dataclass(frozen=True)
class Shape:
    """How the rows of a corpus are to be read."""

    kind: Kind
    field: str = ""
    """Of the messages, or of the text."""
    role: str = "role"
    content: str = "content"
    """A message's keys."""

    def texts(self, row: dict[str, Any]) -> tuple[str, ...]:
        """What a row trains, in order; keys, ids and other fields are left out."""
        if self.kind == "alpaca":
            return tuple(_text(row.get(name)) for name in ("instruction", "input", "output"))
        if self.kind == "completion":
            return (_text(row.get(self.field)),)
        if self.kind == "choices":
            return tuple(_text(row.get(name)) for name in ("system", "question", "choices"))
        messages = row.get(self.field)
        if self.kind in {"chat", "sharegpt"} and isinstance(messages, list):
            around = [_text(row[name]) for name in AROUND if row.get(name)]
            return (*around, *(text for message in messages for text in self._said(message)))
        return tuple(_strings(row))

    def _said(self, message: Any) -> Iterator[str]:
        """Who says what; a role by its usual name, as ``human`` is a user."""
        if isinstance(message, dict):
            role = _text(message.get(self.role))
            yield ROLES.get(role, role)
            yield from (_text(message[key]) for key in (self.content, *_BESIDE) if message.get(key))

    def problems(self, row: dict[str, Any]) -> Iterator[Problem]:
        """What is wrong with a row."""
        if self.kind == "alpaca":
            return _alpaca(row)
        if self.kind == "completion":
            return _completion(row, self.field)
        if self.kind == "choices":
            return lessons.problems(row)
        if self.kind in {"chat", "sharegpt"}:
            return self._chat(row)
        return iter(())

    def _chat(self, row: dict[str, Any]) -> Iterator[Problem]:
        messages = row.get(self.field)
        if messages is None:
            yield "missing_field", f"no {self.field!r}"
        elif not isinstance(messages, list):
            yield "wrong_type", f"{self.field!r} holds {_name(messages)}, not a list of messages"
        elif not messages:
            yield "nothing_trained", f"{self.field!r} is an empty list"
        else:
            yield from self._messages(messages)

    def _messages(self, messages: list[Any]) -> Iterator[Problem]:
        roles, answered = [], False
        for number, message in enumerate(messages):
            place = f"{self.field}[{number}]"
            if not isinstance(message, dict):
                yield "wrong_type", f"{place} is {_name(message)}, not an object"
                return
            role = message.get(self.role)
            if not isinstance(role, str):
                missing = role is None
                found = f"no {self.role!r}" if missing else f"{self.role!r} holds {_name(role)}"
                yield "missing_field" if missing else "wrong_type", f"{place}: {found}"
                return
            roles.append(ROLES.get(role, ""))
            if not roles[-1]:
                yield "unknown_role", f"{place}: {self.role} {role[:_SHOWN]!r}"
            yield from self._text(message, place)
            answered |= roles[-1] == "assistant" and bool(message.get(self.content))
        yield from _order(roles)
        if not answered:
            yield "nothing_trained", "no answer by the assistant"

    def _text(self, message: dict[str, Any], place: str) -> Iterator[Problem]:
        text = message.get(self.content)
        if isinstance(text, str):
            if not text or text.isspace():
                yield "empty_field", f"{place}: empty {self.content!r}"
        elif text is None:
            if not message.get("tool_calls"):
                yield "missing_field", f"{place}: no {self.content!r}"
        elif not isinstance(text, list):  # a list of parts is what multimodal models take
            yield "wrong_type", f"{place}: {self.content!r} holds {_name(text)}, not text"


def _alpaca(row: dict[str, Any]) -> Iterator[Problem]:
    for name in ("instruction", "input", "output"):
        value = row.get(name)
        if value is None and name != "input":
            yield "missing_field", f"no {name!r}"
        elif value is not None and not isinstance(value, str):
            yield "wrong_type", f"{name!r} holds {_name(value)}, not text"
        elif name != "input" and (not value or value.isspace()):
            yield "nothing_trained" if name == "output" else "empty_field", f"empty {name!r}"


def _completion(row: dict[str, Any], field: str) -> Iterator[Problem]:
    text = row.get(field)
    if text is None:
        yield "missing_field", f"no {field!r}"
    elif not isinstance(text, str):
        yield "wrong_type", f"{field!r} holds {_name(text)}, not text"
    elif not text or text.isspace():
        yield "nothing_trained", f"empty {field!r}"


def _order(roles: list[str]) -> Iterator[Problem]:
    """System first if at all, then the user, then in turn; the assistant has the last word."""
    talk = roles[1:] if roles[0] == "system" else roles
    if "system" in talk:
        yield "role_order", "a system message that is not the first"
    elif talk[:1] == ["assistant"]:
        yield "role_order", "the assistant begins"
    elif any(a == b and a in {"user", "assistant"} for a, b in itertools.pairwise(talk)):
        yield "role_order", "one side speaks twice in a row"
    elif talk and talk[-1] != "assistant" and "assistant" in talk:
        yield "role_order", f"the {talk[-1] or 'unknown'} has the last word"


_NAMES: dict[type, str] = {
    dict: "an object", list: "a list", int: "a number", float: "a number", bool: "true or false",
    str: "text", type(None): "null",
}  # fmt: skip


def _name(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _text(value: Any) -> str:
    return value if type(value) is str else "\0".join(_strings(value))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]


# --- which shape -------------------------------------------------------------------------


def of(tree: dict[str, Any]) -> Shape:
    """The shape that a merged configuration's first dataset says its rows have."""
    entry = tree["datasets"][0]
    kind = entry.get("type")
    if kind == "alpaca":
        return Shape("alpaca")
    if kind == "completion":
        return Shape("completion", str(entry.get("field") or "text"))
    if kind == lessons.TYPE:
        return Shape("choices")
    if kind == "chat_template":
        named = entry.get("message_property_mappings") or {}
        role, content = named.get("role") or "role", named.get("content") or "content"
        field = str(entry.get("field_messages") or "messages")
        known = "sharegpt" if (field, role, content) == _DEFAULTS["sharegpt"] else "chat"
        return Shape(known, field, role, content)  # type: ignore[arg-type]
    return Shape("unknown")


def detect(rows: Iterable[dict[str, Any]]) -> Shape:
    """The shape that most of these rows have."""
    found = Counter(_detect(row) for row in rows)
    return found.most_common(1)[0][0] if found else Shape("unknown")


def _detect(row: dict[str, Any]) -> Shape:
    for kind, (field, role, content) in _DEFAULTS.items():
        for name in (field, "conversations" if kind == "chat" else "messages"):
            messages = row.get(name)
            if isinstance(messages, list) and messages and isinstance(messages[0], dict):
                keys = messages[0].keys()
                if role in keys and content in keys:
                    return Shape(kind, name, role, content)  # type: ignore[arg-type]
    if "instruction" in row and "output" in row:
        return Shape("alpaca")
    if "question" in row and isinstance(row.get("choices"), list):
        return Shape("choices")
    if "text" in row:
        return Shape("completion", "text")
    return Shape("unknown")


def settings(shape: Shape) -> tuple[str, ...]:
    """What a configuration has to set for rows of a shape, as ``key=value``."""
    usual = _DEFAULTS.get(shape.kind, ("messages",))[0]
    named = shape.kind in _DEFAULTS and shape.field != usual
    field = (f"datasets.0.field_messages={shape.field}",) if named else ()
    return (f"format={shape.kind}", *field)
