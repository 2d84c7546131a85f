"""Owns ``--set key=value``: reading it, and what it does to keys of Leviathan's own.

Does not merge it over the other layers (``layers``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from leviathan import yamlfile
from leviathan.config import Model, bad_inputs, validated
from leviathan.errors import BadInput
from leviathan.yamlfile import KeyPath, dotted

# Which mode and which stage of a recipe: chosen like a setting, so that everything that builds
# a configuration anew from its overrides (a resume, an export, a promotion) has them, too.
CHOICES = ("mode", "stage")


@dataclass(frozen=True)
class Override:
    """One ``--set``."""

    key: KeyPath
    value: Any
    text: str

    @property
    def tree(self) -> dict[str, Any]:
        """The value at its place."""
        return as_tree(self.key, self.value)


def parse(texts: Iterable[str]) -> list[Override]:
    """What each ``key=value`` says.

    Raises:
        BadInput: all that cannot be read, a line each.
    """
    parsed, problems = [], []
    for text in texts:
        try:
            parsed.append(_parse(text))
        except BadInput as error:
            problems.append(error.line)
    if problems:
        raise bad_inputs(problems)
    return parsed


def _parse(text: str) -> Override:
    name, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z_][\w.]*", name.strip()):
        raise BadInput(f"--set {text!r} is not key=value", "example: --set learning_rate=1e-4")
    key: KeyPath = tuple(
        int(part) if part.isdigit() else part for part in name.strip().split(".") if part
    )
    if key[0] == "axolotl" and len(key) > 1:
        key = key[1:]
    if key[0] == "notify" and "://" in value:
        raise BadInput("--set notify: a webhook's URL is a secret, and the run keeps its overrides",
                       "put it into the profile, or name its variable: webhook: $NAME")  # fmt: skip
    if key[0] in CHOICES:
        return Override(key, value.strip(), text)
    return Override(key, yamlfile.parse_value(value), text)


def choice(kind: str, overrides: Iterable[Override]) -> str:
    """The mode or the stage that is asked for; "" where none is. The last one counts."""
    found = [o.value for o in overrides if o.key == (kind,)]
    return str(found[-1]) if found else ""


def as_tree(key: KeyPath, value: Any) -> dict[str, Any]:
    """``value`` in a mapping for each part of ``key``."""
    for part in reversed(key[1:]):
        value = {part: value}
    return {str(key[0]): value}


def overridden(own: Model, keys: set[str], overrides: Iterable[Override]) -> Model:
    """``own`` with those of its own ``keys`` that are overridden; nested ones too.

    Raises:
        BadInput: a value that cannot be.
    """
    tree = own.model_dump(exclude_unset=True)
    texts: dict[str | int, str] = {}
    for override in overrides:
        if override.key[0] in keys:
            place: dict[str | int, Any] = tree  # type: ignore[assignment]
            for part in override.key[:-1]:
                inner = place.setdefault(part, {})
                place = inner if isinstance(inner, dict) else {}
            place[override.key[-1]] = override.value
            texts[override.key[0]] = override.text
    return validated(type(own), tree, lambda key: f"--set {texts.get(key[0], dotted(key))}")
