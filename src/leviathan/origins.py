"""Owns a tree of settings under construction, with the origin of every value.

Pure. Does not know what any key means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leviathan.errors import BadInput
from leviathan.yamlfile import KeyPath, dotted


@dataclass(frozen=True)
class Origin:
    """Who set a value: a layer, and the place in it."""

    layer: str
    where: str


class Tree:
    """A tree under construction: dicts merge, everything else is replaced."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[KeyPath, Origin] = {}

    def add(self, layer: dict[str, Any], origin: Callable[[KeyPath], Origin]) -> None:
        self._merge(self.tree, layer, (), origin)

    def drop(self, name: str) -> None:
        """Take a top-level key back."""
        self.tree.pop(name, None)
        self.origins = {k: o for k, o in self.origins.items() if k[0] != name}

    def where(self, key: KeyPath) -> str:
        """The place that set ``key``, or something in it, or the block around it."""
        exact = self.origins.get(key)
        inside = (o for k, o in self.origins.items() if k[: len(key)] == key)
        around = (self.origins.get(key[:n]) for n in range(len(key) - 1, 0, -1))
        found = exact or next(inside, None) or next(filter(None, around), None)
        return found.where if found else dotted(key)

    def _merge(self, into: Any, layer: dict[Any, Any], prefix: KeyPath, origin: Any) -> None:
        for name, value in layer.items():
            key = (*prefix, name)
            old = _item(into, name)
            if isinstance(value, dict) and isinstance(old, dict | list):
                self._merge(old, value, key, origin)
                continue
            self.origins = {k: o for k, o in self.origins.items() if k[: len(key)] != key}
            if value is None and isinstance(into, dict):
                into.pop(name, None)  # null takes back what a lower layer set
                continue
            self._set(into, name, value, key, origin)

    def _set(self, into: Any, name: Any, value: Any, key: KeyPath, origin: Any) -> None:
        if isinstance(into, list) and not (isinstance(name, int) and name < len(into)):
            raise BadInput(
                f"{dotted(key)} is not in the list it names", f"it has {len(into)} items"
            )
        if isinstance(value, dict) and value:
            into[name] = {}
            self._merge(into[name], value, key, origin)
            return
        into[name] = list(value) if isinstance(value, list) else value
        self.origins[key] = origin(key)
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    into[name][index] = {}
                    self._merge(into[name][index], item, (*key, index), origin)


def _item(container: Any, name: Any) -> Any:
    if isinstance(container, dict):
        return container.get(name)
    return container[name] if isinstance(name, int) and name < len(container) else None
