"""Owns when two rows are the same row: by what is trained of them, not by how they are written.

Does not look for such rows (``duplicates``, ``neighbours``, ``mixture``).
"""

import json
from typing import Any

_FIELDS = {"alpaca": ("instruction", "input", "output"), "completion": ("text",)}


def texts(row: dict[str, Any], kind: str, fields: tuple[str, ...] = ()) -> list[str]:
    """What a row trains, in order; keys, ids and other fields are left out.

    Args:
        row: parsed.
        kind: ``alpaca``, ``chat``, ``sharegpt``, ``completion``; of others, every text.
        fields: names that differ from the kind's own: the messages' or the text's.
    """
    if kind == "alpaca":
        asked, given, answer = row.get("instruction"), row.get("input"), row.get("output")
        if type(asked) is str and type(answer) is str and (given is None or type(given) is str):
            return [asked, given or "", answer]
    if kind in {"chat", "sharegpt"}:
        messages = row.get(fields[0] if fields else "messages")
        if isinstance(messages, list):
            return [text for message in messages for text in _strings(message)]
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


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _strings(item)]
