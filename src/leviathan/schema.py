"""Owns which keys Axolotl knows: read from the installed Axolotl, cached per version.

Does not validate a whole config as Axolotl does (that needs torch and six seconds);
it finds what Axolotl would drop silently: unknown keys and values of a wrong type.

A key's shape is JSON: ``{"kinds": [...], "enum": [...], "fields": {...}, "items": ...}``
with kinds among bool, int, float, str, list, dict, null, any.
"""

import difflib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leviathan import files
from leviathan.yamlfile import KeyPath, dotted

SUPPORTED = ("0.19", "0.22")
"""Axolotl's versions that Leviathan knows, the second excluded; as pyproject.toml has them."""
_CACHE_FORMAT = 3
Shape = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One wrong key or value: where in the tree, what, and what to do."""

    key: KeyPath
    message: str
    hint: str


@dataclass(frozen=True)
class AxolotlSchema:
    """Every key of one Axolotl version, and the keys its integrations add."""

    version: str
    fields: dict[str, Shape]
    integrations: dict[str, dict[str, Shape]]

    def check(self, tree: dict[str, Any], plugins: list[str]) -> list[Problem]:
        """Unknown keys and wrong types in ``tree``, in the order they are written."""
        known = dict(self.fields)
        for name, fields in self.integrations.items():
            if any(plugin.startswith(f"axolotl.integrations.{name}.") for plugin in plugins):
                known.update(fields)
        problems = []
        for problem in _check_fields(tree, known, ()):
            problems.append(self._integration_hint(problem) or problem)
        return problems

    def _integration_hint(self, problem: Problem) -> Problem | None:
        name = str(problem.key[0])
        for integration, fields in self.integrations.items():
            if len(problem.key) == 1 and name in fields and name not in self.fields:
                return Problem(
                    problem.key,
                    f"{name} has no effect without its plugin",
                    f"add axolotl.integrations.{integration}'s plugin class to plugins",
                )
        return None


def installed_version() -> str | None:
    """The installed Axolotl's version, found without importing it; None without one."""
    try:
        return importlib.metadata.version("axolotl")
    except importlib.metadata.PackageNotFoundError:
        return None


def load() -> AxolotlSchema | None:
    """The installed Axolotl's keys; None where Axolotl is absent or does not import.

    The first call for a version asks Axolotl itself in a child process (about five
    seconds: it imports torch) and keeps the answer in the user's cache directory.
    """
    version = installed_version()
    if version is None:
        return None
    path = _cache_path(version)
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        document = _ask_axolotl()
        if document is None:
            return None
        _keep(path, document)
    return AxolotlSchema(version, document["fields"], document["integrations"])


def is_cached() -> bool:
    """Whether ``load`` answers at once."""
    version = installed_version()
    return version is None or _cache_path(version).exists()


def _cache_path(version: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "leviathan" / f"axolotl-{version}-keys-{_CACHE_FORMAT}.json"


def _keep(path: Path, document: Any) -> None:
    try:
        files.write_json(path, document)
    except OSError:
        return  # a read-only home costs five seconds each time, not the run


def _ask_axolotl() -> Any | None:
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "schema.json"
        result = subprocess.run(
            [sys.executable, "-m", "leviathan.schema_dump", str(answer)],
            env=environment,
            capture_output=True,
            check=False,
        )
        return json.loads(answer.read_text()) if result.returncode == 0 else None


def _check_fields(
    tree: dict[str, Any], known: dict[str, Shape], prefix: KeyPath
) -> Iterator[Problem]:
    for name, value in tree.items():
        key = (*prefix, str(name))
        if str(name) not in known:
            yield Problem(
                key, f"{dotted(key)} is not a key Axolotl knows", nearest(str(name), known)
            )
            continue
        yield from _check_value(value, known[str(name)], key)


def _check_value(value: Any, shape: Shape, key: KeyPath) -> Iterator[Problem]:
    if not _accepts(value, shape):
        wanted = ", ".join(str(option) for option in shape.get("enum", [])) or " or ".join(
            kind for kind in shape["kinds"] if kind != "null"
        )
        yield Problem(key, f"{dotted(key)}: {value!r} does not fit", f"expected {wanted}")
    elif isinstance(value, dict) and "fields" in shape and "dict" not in shape["kinds"]:
        yield from _check_fields(value, shape["fields"], key)
    elif isinstance(value, list) and "items" in shape:
        for index, item in enumerate(value):
            yield from _check_value(item, shape["items"], (*key, index))


def _accepts(value: Any, shape: Shape) -> bool:
    """Whether pydantic's lax mode would take ``value``: numbers in text, 0/1 as booleans."""
    kinds = shape["kinds"]
    if "any" in kinds:
        return True
    if value is None:
        return "null" in kinds
    if isinstance(value, bool):
        return bool({"bool", "int", "float"} & set(kinds)) or value in shape.get("enum", [])
    if isinstance(value, int):
        return bool({"int", "float"} & set(kinds)) or ("bool" in kinds and value in (0, 1))
    if isinstance(value, float):
        return "float" in kinds or ("int" in kinds and value.is_integer())
    if isinstance(value, str):
        return _accepts_text(value, kinds, shape.get("enum", []))
    if isinstance(value, list):
        return "list" in kinds
    if isinstance(value, dict):
        return "dict" in kinds or "fields" in shape
    return True


def _accepts_text(value: str, kinds: list[str], options: list[Any]) -> bool:
    if "str" in kinds or value in options:
        return True
    if "bool" in kinds and value.lower() in {"true", "false", "yes", "no", "on", "off"}:
        return True
    if not {"int", "float"} & set(kinds):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def nearest(name: str, known: Any) -> str:
    """A hint naming the valid names nearest to ``name``."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return "Axolotl would drop it silently; see its config reference for valid keys"
