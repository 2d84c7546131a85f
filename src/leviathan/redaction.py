"""Owns keeping secrets out of what is written and shown: which texts and names hold one.

Pure. The forms that makers document are ``hazards``'s; here are also the places where a
secret of any form stands: after a telling name, and in an address.
"""

import re
from collections.abc import Iterator
from typing import Any

from leviathan import hazards
from leviathan.yamlfile import KeyPath

BLANK = "[redacted]"

_FORMS = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)"
    r"|(?<![A-Za-z0-9])(?:"
    + "|".join(form for begin, form in hazards.SECRETS.items() if not begin.startswith("---"))
    + r"|wandb_v1_[A-Za-z0-9_]{20,})",
    re.DOTALL,
)
_NAME = re.compile(
    r"(?:api_?key|access_?key|secret|secret_?key|private_?key|passw(?:or)?d|passphrase|credentials?"
    r"|token)$",
    re.IGNORECASE,
)
# Tokens that a tokenizer has, not a service.
_VOCABULARY = re.compile(
    r"(?:^|_)(?:bos|eos|pad|unk|cls|sep|mask|eot|eod|image|audio|video|stop|special|per)_token$",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    r"(?P<name>[A-Za-z][\w-]*)(?P<sign>[\"']?\s*[=:]\s*[\"']?)(?P<value>[^\s\"',;&}\]]+)"
)
_USER_INFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s/@\"']+)@")
_BEARER = re.compile(r"\b(?P<kind>Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")


def redact(text: str) -> str:
    """``text`` with everything that looks like a secret blanked."""
    text = _FORMS.sub(BLANK, text)
    text = _USER_INFO.sub(rf"\g<scheme>{BLANK}@", text)
    text = _BEARER.sub(rf"\g<kind> {BLANK}", text)
    return _ASSIGNED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    if not names_secret(found["name"]) or _is_harmless(found["value"]):
        return found[0]
    return f"{found['name']}{found['sign']}{BLANK}"


def _is_harmless(value: str) -> bool:
    """A switch, a count or nothing is no secret; ``<HUB_TOKEN>`` is transformers' own blank."""
    return value.lower() in {"true", "false", "null", "none", "~"} or bool(
        re.fullmatch(r"-?\d{1,9}(?:\.\d+)?|<\w+>", value) or value.startswith(BLANK[:-1])
    )


def names_secret(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret, if it holds a text."""
    name = name.replace("-", "_")
    return bool(_NAME.search(name)) and not _VOCABULARY.search(name)


def secrets_in(tree: Any) -> list[tuple[KeyPath, str]]:
    """Where in a tree of settings a secret stands, and what it is; never the secret itself."""
    return list(_secrets(tree, ()))


def _secrets(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _secrets(item, (*key, str(name)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _secrets(item, (*key, number))
    elif isinstance(value, str) and value:
        if key and "special_tokens" not in key and names_secret(str(key[-1])):
            yield key, "a key or password"
        elif _USER_INFO.search(value):
            yield key, "an address with a password"
        elif _FORMS.search(value):
            yield key, "what looks like a key"
