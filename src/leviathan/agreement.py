"""Owns what the hosts of one training must have in common, and saying where they differ.

Pure but for reading the base model's digest. Does not ask the other hosts (``hosts``).
"""

import json
from typing import Any

from leviathan import models
from leviathan.train import Decision
from leviathan.yamlfile import dotted

_SHOWN = 3


def facts(decision: Decision, base: str | None) -> dict[str, Any]:
    """What must be the same on every host, as one of them has it.

    Args:
        decision: what this host's files and command line make of it.
        base: digest of the base model's files; None for a name on the hub.
    """
    config, here = decision.config, decision.machine
    told = {
        "run directory": str(decision.paths.directory.resolve()),
        "sample": config.sample,
        "corpus": config.recipe.corpus,
        "hardware": {n: getattr(config.profile.hardware, n) for n in ("device", "count", "nodes")},
        "settings": config.tree,
        "base model": models.local_or_hub(config.tree["base_model"]),
        "base model's files": base,
        "versions": here.versions,
        "flash-attn": here.flash_attn,
    }
    # As it comes over the wire: a tuple there is a list.
    return dict(json.loads(json.dumps(told, default=str)))


def differences(head: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What ``other`` has otherwise than the head, a phrase each; empty where they agree."""
    ours, theirs = dict(_leaves(head)), dict(_leaves(other))
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [
        f"{_name(key)} is {_told(theirs, key)}, {_told(ours, key)} on the head"
        for key in keys
        if theirs.get(key, _ABSENT) != ours.get(key, _ABSENT)
    ]


def shown(found: list[str]) -> str:
    """The first of them, and how many more."""
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


_ABSENT = object()


def _leaves(value: Any, key: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        return [leaf for name, item in value.items() for leaf in _leaves(item, (*key, name))]
    return [(key, value)]


def _name(key: tuple[str, ...]) -> str:
    return dotted(key[1:]) if key[:1] == ("settings",) and key[1:] else " ".join(key)


def _told(values: dict[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return "absent" if key not in values else f"{values[key]!r:.60}"
