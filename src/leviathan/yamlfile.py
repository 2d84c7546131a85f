"""Owns reading YAML with positions: every key knows its file and line.

Does not know what any key means; ``config`` does.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leviathan.errors import BadInput

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats: plain ``1e-4`` is a number, not a string.

    PyYAML follows YAML 1.1, where a float needs a dot and a signed exponent, so the
    learning rates people write would arrive as text.
    """


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*\.(?:[eE][-+]?[0-9]+)?"
        r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: plain data, and the 1-based line of every key and list item."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(repr=False)

    def where(self, key: KeyPath) -> str:
        """``file:line`` of the deepest known part of ``key``."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        return f"{self.path}:1"


def dotted(key: KeyPath) -> str:
    """A key path as people write it: ``axolotl.datasets.0.type``."""
    return ".".join(str(part) for part in key)


def parse_value(text: str) -> Any:
    """The value of ``--set key=TEXT``, read as YAML, so lists and booleans work.

    Raises:
        BadInput: ``text`` is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise BadInput(f"cannot read {text!r} as a YAML value", "quote it") from error


def load(path: Path) -> YamlFile:
    """Read a YAML mapping from ``path``.

    Raises:
        BadInput: unreadable, not YAML, a key given twice, or not a mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlFile(path, {}, {(): 1})
        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines, path)
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise BadInput(
            f"{path}:{line}: not valid YAML: {error.problem or error.context}",
            "check the indentation and the colons around that line",
        ) from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise BadInput(f"{path}:1: expected keys and values, found {type(data).__name__}")
    return YamlFile(path, data, lines)


def _collect_lines(node: yaml.Node, key: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            name = str(key_node.value)
            line = key_node.start_mark.line + 1
            if name in seen and name != "<<":
                raise BadInput(
                    f"{path}:{line}: {dotted((*key, name))} is given twice",
                    "keep one; YAML would silently use the last",
                )
            seen.add(name)
            lines[(*key, name)] = line
            _collect_lines(value_node, (*key, name), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_lines(item, (*key, index), lines, path)


def dump(data: Any) -> str:
    """``data`` as YAML in the order given."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
