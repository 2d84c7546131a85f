"""Owns when two rows are the same row: by what is trained of them, not by how they are written.

Does not look for such rows (``duplicates``, ``neighbours``, ``mixture``).
"""

import json
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant"}
_MESSAGE = (("role", "content"), ("from", "value"))
_AROUND = ("system", "tools")
_FIELDS = {"alpaca": ("instruction", "input", "output"), "completion": ("text",)}


def texts(row: dict[str, Any], kind: str, fields: tuple[str, ...] = ()) -> list[str]:
    """What a row trains, in order; keys, ids and other fields are left out.

    Args:
        row: parsed.
        kind: ``alpaca``, ``chat``, ``sharegpt``, ``completion``; of others, every text.
        fields: names that differ from the kind's own: the text's, or the messages', and behind
            them a message's role and content.
    """
    if kind == "alpaca":
        asked, given, answer = row.get("instruction"), row.get("input"), row.get("output")
        if type(asked) is str and type(answer) is str and (given is None or type(given) is str):
            return [asked, given or "", answer]
    if kind in {"chat", "sharegpt"}:
        messages = row.get(fields[0] if fields else "messages")
        if isinstance(messages, list):
            around = [_json(row[name]) for name in _AROUND if row.get(name)]
            return around + [text for said in messages for text in _message(said, fields[1:])]
    names = (fields if fields and kind == "completion" else None) or _FIELDS.get(kind)
    if names:
        return [value if isinstance(value, str) else _json(value) for value in
                (row.get(name) or "" for name in names)]  # fmt: skip
    return _strings(row)


def content(row: dict[str, Any], kind: str, fields: tuple[str, ...] = ()) -> bytes:
    """``texts`` for a hash: equal for rows that train the same."""
    return "\0".join(texts(row, kind, fields)).encode(errors="surrogatepass")


def plain(row: dict[str, Any], kind: str, fields: tuple[str, ...] = ()) -> bytes:
    """The same for rows that differ in white space and capitals only."""
    joined = "\0".join(" ".join(text.split()) for text in texts(row, kind, fields))
    return joined.casefold().encode(errors="surrogatepass")


def _message(message: Any, names: tuple[str, ...]) -> list[str]:
    """Who says what; names, times and other fields of a message are left out."""
    if not isinstance(message, dict):
        return _strings(message)
    for role, content in (names, *_MESSAGE) if len(names) == 2 else _MESSAGE:
        who = message.get(role)
        if isinstance(who, str):
            called = message.get("tool_calls")
            more = [_json(called)] if called else []
            return [_ROLES.get(who, who), *_strings(message.get(content)), *more]
    return _strings(message)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else []
