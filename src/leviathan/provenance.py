"""Owns where a run's settings came from: kept beside it as provenance.json at each launch.

Does not find origins (``layers``, ``render``) nor show them.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from leviathan import files, runs
from leviathan.render import Rendered


@dataclass(frozen=True)
class Setting:
    """One key that was launched with."""

    key: str
    """Dotted."""
    value: Any
    layer: str
    """recipe, profile, set, fallback, leviathan, ...; empty where nobody kept it."""
    where: str
    """file:line, or why."""


def note(paths: runs.RunPaths, rendered: Rendered) -> None:
    """Keep what is launched now; a full disk keeps the launch before."""
    found = [Setting(key, value, o.layer, o.where) for key, value, o in rendered.rows()]
    with files.unless_full():
        files.write_json(paths.provenance, [asdict(setting) for setting in found])


def read(paths: runs.RunPaths) -> tuple[Setting, ...]:
    """As the newest launch kept it; of an older run the first launch's keys, without origins."""
    kept = _kept(paths)
    if kept:
        return kept
    bare = Rendered(runs.read(paths).tree, {}, ())
    return tuple(Setting(key, value, "", "") for key, value, _ in bare.rows())


def _kept(paths: runs.RunPaths) -> tuple[Setting, ...]:
    try:
        told = json.loads(paths.provenance.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ()
    if not isinstance(told, list):
        return ()
    return tuple(
        Setting(*(str(s.get("key")), s.get("value"), str(s.get("layer")), str(s.get("where"))))
        for s in told
        if isinstance(s, dict) and "key" in s
    )
